"""Configuration: frozen, typed objects that refuse unknown fields and suggest the nearest known one."""

import dataclasses
import hashlib
import json
import typing
from typing import Any, ClassVar, Self

import pydantic
import pydantic_core

from hyco.pipeline.config_fields import fields_of, follow, nearest_field, nearest_value
from hyco.pipeline.config_fields import nearest as nearest

C = typing.TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """A configuration that cannot be used; the text is one line that names the value and the remedy."""


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, unknown keys refused, one-line errors.

    Fields named in `incidental` change how the work is done, not its result (batch size, device, workers): `digest`
    excludes them, so changing them repeats no work. Fields named in `digest_if_set` were added when homes with digests
    existed: they enter the digest only where they differ from their default, so that the digests of existing results
    stay the same. A plain dataclass inside a Config may name such fields too. Fields named in `derived` are set by Hyco
    itself: forms leave them out, but a stored value is accepted. Fields named in `foremost` stand first in forms, in
    this order; then come the other single values, then the groups of fields.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    incidental: ClassVar[frozenset[str]] = frozenset()
    digest_if_set: ClassVar[frozenset[str]] = frozenset()
    derived: ClassVar[frozenset[str]] = frozenset()
    foremost: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema with places in a form, and derived fields as patterns: validators accept them, forms omit them."""
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        if cls.derived:
            hidden = {f"^{name}$": body["properties"].pop(name) for name in sorted(cls.derived)}
            body["patternProperties"] = hidden
        place(body.get("properties", {}), cls.foremost)
        return schema

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(type(self), error)) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Build from a dict or an instance; raises ConfigError with a one-line text."""
        try:
            return super().model_validate(obj, **options)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(cls, error)) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Build from JSON text; raises ConfigError with a one-line text."""
        try:
            return super().model_validate_json(json_data, **options)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(cls, error)) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated (pydantic's model_copy does not validate)."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


def place(properties: dict[str, dict[str, Any]], foremost: tuple[str, ...] = ()) -> None:
    """Number the properties of a JSON schema as Prefect's forms order them: `foremost`, single values, groups."""

    def rank(name: str) -> tuple[int, bool]:
        return (
            foremost.index(name) if name in foremost else len(foremost),
            '"$ref"' in json.dumps(properties[name]),
        )

    for position, name in enumerate(sorted(properties, key=rank)):
        properties[name]["position"] = position


def digest(config: Any) -> str:
    """Return 16 hex digits that identify a Config, dataclass or value: the start of its canonical JSON's sha256.

    Independent of field order and of whether defaults were written out; `incidental` fields are left out, also in
    nested configurations.
    """
    text = json.dumps(essence(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def explain(owner: type, error: pydantic.ValidationError) -> str:
    """Turn a pydantic error into one line: every wrong option by its full path, its value, the nearest known one."""
    lines = []
    for location, item in _items(error):
        holder, path = follow(owner, location)
        where, text = ".".join(path), item["msg"].removeprefix("Value error, ")
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):  # one of our validators has already written the message
            lines.append(str(inner))
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"unknown option '{where}' of {owner.__name__}{nearest_field(holder, path)}")
        elif item["type"] == "missing":
            lines.append(f"option '{where}' of {owner.__name__} is required")
        elif not item["loc"]:  # a condition on several options: the text names them
            prefix, above = (f"option '{where}' of ", f"{where}.") if where else ("", "")
            text = text.replace("--set ", f"--set {above}")  # a remedy names options from where the user is
            lines.append(f"{prefix}{owner.__name__}: {text}")
        else:
            text += (
                nearest_value(item["input"], item["ctx"]["expected"])
                if item["type"] == "literal_error"
                else ""
            )
            lines.append(f"option '{where}' of {owner.__name__} is {_short(item['input'])}: {text}")
    return "; ".join(dict.fromkeys(lines))


def _items(
    error: pydantic.ValidationError, above: tuple[int | str, ...] = ()
) -> typing.Iterator[tuple[tuple[int | str, ...], Any]]:
    """(location from the outermost configuration, pydantic's item) of every error.

    A nested Config raises a ConfigError; the original ValidationError is its context.
    """
    for item in error.errors(include_url=False):
        location, inner = (*above, *item["loc"]), item.get("ctx", {}).get("error")
        cause = inner.__context__ if isinstance(inner, ConfigError) else None
        if isinstance(cause, pydantic.ValidationError):
            yield from _items(cause, location)
        else:
            yield location, item


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def essence(value: Any) -> Any:
    """The input of `digest`: a configuration as plain JSON without its incidental fields and unset later ones."""
    if isinstance(value, Config):
        fields = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(value).model_fields.items()
        }
        kept = [name for name in fields if name not in type(value).incidental]
        return _named(value, kept, fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _default(field) for field in dataclasses.fields(value)}
        return _named(value, list(fields), fields)
    if isinstance(value, dict):
        return {str(key): essence(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [essence(item) for item in value]
    return pydantic_core.to_jsonable_python(value)


def _named(value: Any, names: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    later = getattr(type(value), "digest_if_set", frozenset())
    return {
        name: essence(getattr(value, name))
        for name in names
        if name not in later or getattr(value, name) != defaults[name]
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def override(config: C, assignments: typing.Iterable[str]) -> C:
    """Return `config` with FIELD=VALUE assignments applied; FIELD may be dotted (`nouns.batch_size=64`).

    VALUE is read as JSON where it is JSON, and as a plain string otherwise or where the field holds text. Raises
    ConfigError for an assignment without "=", an unknown field (with the nearest name) or a value of the wrong type.
    """
    values = config.model_dump()
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"'{assignment}' is not FIELD=VALUE, for example batch_size=16")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = name.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise ConfigError(f"option '{parent}' of {type(config).__name__} in '{name}' holds no fields")
        holder, _ = follow(type(config), tuple(name.split(".")))
        annotation = fields_of(holder).get(last)
        # a name may look like a number
        target[last] = (
            text if annotation in (str, str | None) and not isinstance(value, annotation) else value
        )
    return type(config).model_validate(values)
