"""Configuration: frozen, typed objects that refuse what they do not know and name the nearest they do."""

import dataclasses
import difflib
import hashlib
import json
import typing
from typing import Any, ClassVar, Self

import pydantic
import pydantic_core

C = typing.TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """A configuration that cannot be used; the text is one line, names the value and the way out."""


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, unknown keys refused, one-line errors.

    Fields named in `incidental` change how the work is done, never its result (batch size, device,
    workers): they stay out of `digest`, so changing them repeats nothing. Fields named in `digest_if_set` were
    added when homes with digests existed: they enter the digest only where they differ from their default, so
    that everything made before keeps its name. A plain dataclass inside a Config may name such fields too.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    incidental: ClassVar[frozenset[str]] = frozenset()
    digest_if_set: ClassVar[frozenset[str]] = frozenset()

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


def digest(config: Any) -> str:
    """Return 16 hex digits naming a Config, dataclass or value: the start of its canonical JSON's sha256.

    Independent of field order and of whether defaults were spelled out; `incidental` fields are left out,
    also in nested configurations.
    """
    text = json.dumps(essence(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or all known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def explain(owner: type, error: pydantic.ValidationError) -> str:
    """Turn a pydantic error into one line: every wrong option, its value, and the nearest known name."""
    lines = []
    for item in error.errors(include_url=False):
        path = item["loc"]
        holder, names = _follow(owner, path)
        where = ".".join(names)
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):  # a nested Config has already said it well
            lines.append(str(inner))
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(
                f"unknown option '{where}' of {owner.__name__}{nearest(str(path[-1]), _fields(holder))}"
            )
        elif item["type"] == "missing":
            lines.append(f"option '{where}' of {owner.__name__} is required")
        elif not names:  # what several options have to satisfy together: the text names them
            lines.append(f"{owner.__name__}: {item['msg'].removeprefix('Value error, ')}")
        else:
            text = item["msg"].removeprefix("Value error, ")
            lines.append(f"option '{where}' of {owner.__name__} is {_short(item['input'])}: {text}")
    return "; ".join(dict.fromkeys(lines))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(owner: Any) -> dict[str, Any]:
    """Field name -> annotation of a Config or dataclass; empty for anything else."""
    if isinstance(owner, type) and issubclass(owner, pydantic.BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        hints = typing.get_type_hints(owner)
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return {}


def _follow(owner: Any, path: tuple[int | str, ...]) -> tuple[Any, list[str]]:
    """Follow a pydantic error location from `owner`: the class that holds its last field, and the location as
    one would write it, without the tags of unions."""
    holder, annotation, names = owner, owner, []
    for step in path:
        if step in _fields(owner):
            holder, annotation = owner, _fields(owner)[str(step)]
            owner = _first_with_fields(annotation)
        elif member := _tagged(annotation, step):
            owner = member
            continue
        else:  # an unknown field, or a list index
            holder = owner
        names.append(str(step))
    return holder, names


def _tagged(annotation: Any, tag: int | str) -> Any:
    """The member of a union of dataclasses that has `tag` for the default of a field; None elsewhere."""
    for member in typing.get_args(annotation):
        fields = dataclasses.fields(member) if dataclasses.is_dataclass(member) else ()
        if any(field.default == tag for field in fields):
            return member
    return None


def _first_with_fields(annotation: Any) -> Any:
    if _fields(annotation):
        return annotation
    for argument in typing.get_args(annotation):
        if found := _first_with_fields(argument):
            return found
    return None


def essence(value: Any) -> Any:
    """What `digest` names: a configuration as plain JSON without its incidental fields and unset later ones."""
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
        holder, _ = _follow(type(config), tuple(name.split(".")))
        annotation = _fields(holder).get(last)
        # A name may look like a number.
        target[last] = (
            text if annotation in (str, str | None) and not isinstance(value, annotation) else value
        )
    return type(config).model_validate(values)
