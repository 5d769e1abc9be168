"""The fields of configurations by dotted path, and suggestions for unknown ones."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic

Path = tuple[str, ...]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or all known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def nearest_value(given: Any, expected: str) -> str:
    """The same for a value that is not in pydantic's list "'a', 'b' or 'c'"; empty when none is close."""
    close = difflib.get_close_matches(str(given), re.findall("'([^']*)'", expected), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest_field(holder: Any, path: list[str]) -> str:
    """The same for an unknown field of `holder`, by its full path.

    Suggests a field of the same name below, else the closest sibling, else the closest field below.
    """
    *above, wrong = path
    below = sorted(paths(holder), key=len)
    found = [other for other in below if other[-1] == wrong]
    found = [other for other in found if len(other) == len(found[0])]
    for cutoff, depth in ((0.5, 1), (0.7, None)):
        if not found:
            names = {other[-1]: other for other in reversed(below) if depth in (None, len(other))}
            found = [names[name] for name in difflib.get_close_matches(wrong, names, n=1, cutoff=cutoff)]
    if not found:
        return nearest(wrong, fields_of(holder))
    return f"; did you mean {' or '.join(repr('.'.join((*above, *other))) for other in found)}?"


def fields_of(owner: Any) -> dict[str, Any]:
    """Field name -> annotation of a Config or dataclass; empty for anything else."""
    if isinstance(owner, type) and issubclass(owner, pydantic.BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        hints = typing.get_type_hints(owner)
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return {}


def members(annotation: Any) -> list[Any]:
    """The Configs and dataclasses that a field of this annotation may hold, in unions and tuples too."""
    if fields_of(annotation):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in members(argument)]


def paths(owner: Any) -> Iterator[Path]:
    """The path of every field at or below `owner` that can be set; fields inside a tuple cannot."""
    for name, annotation in fields_of(owner).items():
        yield (name,)
        if typing.get_origin(annotation) is not tuple:
            for member in members(annotation):
                yield from ((name, *path) for path in paths(member))


def follow(owner: Any, location: tuple[int | str, ...]) -> tuple[Any, list[str]]:
    """The class that holds the last field of a pydantic error location below `owner`, and the user's path of the field.

    The path has no tags of unions.
    """
    holder, annotation, names = owner, owner, []
    for step in location:
        if step in fields_of(owner):
            holder, annotation = owner, fields_of(owner)[str(step)]
            owner = next(iter(members(annotation)), None)
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
