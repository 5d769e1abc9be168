"""Args of a class docstring name the constructor's parameters; ruff's D417 checks functions only."""

import importlib
import inspect
import pkgutil
import re

import pytest

from hyco import models

ENTRY = re.compile(r"    (\w+(?:, \w+)*): ")


def own_docstring(thing: type) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def classes():
    for module in pkgutil.walk_packages(models.__path__, "hyco.models."):
        for thing in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(thing)
                and thing.__module__ == module.name
                and "\nArgs:\n" in own_docstring(thing)
            ):
                yield thing


def listed(text: str) -> list[str]:
    """Names of the Args section: those that begin a line of the first indentation."""
    lines = text.split("\nArgs:\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [name for line in lines if (entry := ENTRY.match(line)) for name in entry[1].split(", ")]


@pytest.mark.parametrize("thing", classes(), ids=lambda thing: thing.__name__)
def test_each_parameter_of_a_constructor_begins_a_line(thing: type) -> None:
    assert sorted(listed(own_docstring(thing))) == sorted(inspect.signature(thing).parameters)


def test_a_name_in_the_middle_of_a_line_is_not_found() -> None:
    assert listed("A layer.\n\nArgs:\n    a: first. b: second.\n    c, d: third,\n        e: more.") == [
        *"acd"
    ]
