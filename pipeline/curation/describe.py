"""The configuration of a dataset version, in a line and as a table."""

from typing import Any

from hyco.pipeline.config import Config
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing.pack import PackConfig
from hyco.storage.versions import Version

_STAGES: dict[str, type[Config]] = {"mine": MineConfig, "pack": PackConfig}
_ALWAYS = ("pack.threshold", "pack.image_size", "mine.grounder", "adopt.source")
_HIDDEN = ("mine.source", "mine.weights", "adopt.holdout")


def settings(version: Version) -> dict[str, Any]:
    """Every option of a version that can change its content, by dotted name ("pack.threshold"), and its source."""
    found: dict[str, Any] = {}
    for stage, values in version.config.items():
        if isinstance(values, dict):
            _flatten(stage, values, found)
    hidden = {
        f"{stage}.{name}"
        for stage, config in _STAGES.items()
        for name in config.incidental - {"source", "grounder"}
    }
    return {name: value for name, value in found.items() if not any(_below(name, one) for one in hidden)}


def brief(version: Version) -> str:
    """The configuration in a line: threshold, size and detector, and every option that is not at its default."""
    held, usual = settings(version), _defaults()
    told = [name for name in _ALWAYS if name in held]
    told += [
        name
        for name, value in sorted(held.items())
        if name not in (*_ALWAYS, *_HIDDEN) and (name not in usual or usual[name] != value)
    ]
    return ", ".join(f"{name.partition('.')[2]} {_short(held[name])}" for name in told) or "not recorded"


def differences(a: Version, b: Version) -> dict[str, tuple[Any, Any]]:
    """The options in which two versions differ, by dotted name; one that a version does not have counts as unset."""
    usual, first, second = _defaults(), settings(a), settings(b)
    names = sorted(first.keys() | second.keys())
    both = {name: (first.get(name, usual.get(name)), second.get(name, usual.get(name))) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage, config in _STAGES.items():
        for name, field in config.model_fields.items():
            if not field.is_required():
                value = field.get_default(call_default_factory=True)
                _flatten(
                    stage,
                    {name: value.model_dump(mode="json") if isinstance(value, Config) else value},
                    found,
                )
    return found


def _flatten(prefix: str, values: dict[str, Any], into: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            _flatten(f"{prefix}.{name}", value, into)
        else:
            into[f"{prefix}.{name}"] = list(value) if isinstance(value, tuple) else value


def _below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]
