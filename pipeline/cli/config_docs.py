"""The verb config: name, type, default and meaning of every field, on the terminal and as docs/configuration.md.

    hyco config --markdown > docs/configuration.md

The texts come from the JSON schemas, which the forms of Prefect's UI show too.
"""

import importlib
import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from hyco.pipeline.cli.app import app
from hyco.pipeline.config_fields import nearest
from hyco.pipeline.runtime.markdown import table

SECTIONS: dict[str, tuple[str, str]] = {
    "mine": (
        "hyco.pipeline.mining.mine:MineConfig",
        "`hyco mine --set FIELD=VALUE`, and `mine.FIELD` of the section journey",
    ),
    "pack": ("hyco.pipeline.packing.pack:PackConfig", "`hyco pack --set pack.FIELD=VALUE`"),
    "recipe": (
        "hyco.pipeline.training.recipes:Recipe",
        "`hyco train --set FIELD=VALUE`, and `recipe.FIELD` of the section journey, on top of a recipe's own values",
    ),
    "assess": (
        "hyco.pipeline.evaluation.config:AssessConfig",
        "`hyco assess --set FIELD=VALUE`, and `assess.FIELD` of the section journey",
    ),
    "journey": (
        "hyco.pipeline.end_to_end:JourneyConfig",
        "`hyco journey --set FIELD=VALUE` and `hyco pack --set ...`",
    ),
    "retrain": ("hyco.pipeline.registry.retraining:RetrainConfig", "`hyco deploy --set retrain.FIELD=VALUE`"),
    "fit": ("hyco.pipeline.classification.config:FitConfig", "`hyco fit --set FIELD=VALUE`"),
    "evaluate": (
        "hyco.pipeline.classification.evaluate:EvaluateConfig",
        "`--ood` and `--attacked` of `hyco fit`, or in Python",
    ),
    "study": (
        "hyco.pipeline.experiments.classification_study:StudyConfig",
        "the studies of pipeline/experiments/classification_study.py",
    ),
}
"""Name of a section -> (module:class, where its fields are set). flows/cli.py adds those of flows."""

_TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "null"}


@dataclass(frozen=True, slots=True)
class FieldText:
    """One field as it is shown; `default` is JSON, or empty if the field has none."""

    name: str
    type: str
    default: str
    meaning: str


@app.command()
def config(
    section: Annotated[str | None, typer.Argument(help="Which configuration; all by default.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/configuration.md.")] = False,
) -> None:
    """List configuration fields: name, type, default and meaning.

    The sections: mine, pack, recipe, assess, journey, retrain, deploy, maintain, fit, evaluate, study.
    """
    if section is not None and section not in SECTIONS:
        raise ValueError(f"unknown section '{section}'{nearest(section, SECTIONS)}")
    names = [section] if section else list(SECTIONS)
    if markdown:
        typer.echo(to_markdown(names), nl=False)
        return
    width = min(shutil.get_terminal_size().columns, 110)
    for name in names:
        typer.echo(f"{name}: set with {SECTIONS[name][1]}\n")
        for field in describe(name):
            kind = f"{field.type}, default {field.default}" if field.default else field.type
            typer.echo(f"{field.name}  {kind}")
            typer.echo(textwrap.fill(field.meaning, width, initial_indent="    ", subsequent_indent="    "))
        typer.echo()


def describe(section: str) -> list[FieldText]:
    """Return all fields of a section by dotted name, without those that another section lists."""
    module, _, name = SECTIONS[section][0].partition(":")
    schema = getattr(importlib.import_module(module), name).model_json_schema()
    others = {target.partition(":")[2]: other for other, (target, _) in SECTIONS.items() if other != section}
    return list(_walk(schema, schema.get("$defs", {}), others, "", {}))


def to_markdown(names: list[str]) -> str:
    """Return docs/configuration.md: a table for each section."""
    lines = [
        "# Configuration",
        "",
        "<!-- Generated: hyco config --markdown > docs/configuration.md -->",
        "",
        "Every field of every configuration; `hyco config SECTION` prints the same on the terminal. A field is set by",
        "its dotted name, with `--set FIELD=VALUE` or in the form of a deployment in Prefect's UI. VALUE is JSON, or",
        "plain text. A name with `[]` is a field of each element of a list; the list is set as a whole.",
    ]
    for name in names:
        lines += ["", f"## {name}", "", f"Set with {SECTIONS[name][1]}.", ""]
        rows = (
            (f"`{field.name}`", field.type, f"`{field.default}`" if field.default else "", field.meaning)
            for field in describe(name)
        )
        head = ("field", "type", "default", "meaning")
        lines += table(head, ([cell.replace("|", "\\|") for cell in cells] for cells in rows))
    return "\n".join(lines) + "\n"


def _walk(
    schema: dict[str, Any], known: dict[str, Any], others: dict[str, str], above: str, defaults: Any
) -> Iterator[FieldText]:
    """The fields of an object's schema. `defaults` are its parent's own for it; `others` have sections by class."""
    for name, field in schema["properties"].items():
        meaning = " ".join(field["description"].split())
        default = defaults.get(name, field.get("default"))
        path, inner = above + name, _classes(field)
        if not inner:
            required = name in schema.get("required", ())
            shown = "" if required else json.dumps(default)
            yield FieldText(path, _type(field) + ", required" * required, shown, meaning)
        for title in inner:
            if title in others:
                yield FieldText(path, f"see {others[title]}", "", meaning)
                continue
            kind = known[title]["properties"].get("kind", {}).get("const")
            is_list = field.get("type") == "array"
            text = f"kind {json.dumps(kind)}" if kind else "list" if is_list else "fields below"
            yield FieldText(path, text, "", meaning)
            own = default if isinstance(default, dict) else {}
            yield from _walk(known[title], known, others, f"{path}{'[]' * is_list}.", own)


def _classes(field: dict[str, Any]) -> list[str]:
    """Names of the classes that a field holds: itself, in a union, or in a list."""
    parts = [field, *field.get("oneOf", ()), *field.get("anyOf", ()), field.get("items") or {}]
    return [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]


def _type(field: dict[str, Any]) -> str:
    if "enum" in field or "const" in field:
        return " or ".join(json.dumps(value) for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if field["type"] == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_type(part) for part in field['prefixItems'])}]"
        return f"list of {_type(field['items'])}"
    return _TYPES[field["type"]] + _range(field)


def _range(field: dict[str, Any]) -> str:
    low, high = (field.get(key, field.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum"))
    if low is not None and high is not None:
        return (
            f" in {'[' if 'minimum' in field else '('}{low:g}, {high:g}{']' if 'maximum' in field else ')'}"
        )
    return f" {'>=' if 'minimum' in field else '>'} {low:g}" if low is not None else ""
