"""docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_reliability_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = [(path, name) for path, name in re.findall(r"`([\w/]*\.py)?(?:::(\w+))?`", text) if path or name]
    assert len(named) > 120
    file = ""
    for path, name in named:
        file = path or file  # `::name` goes on in the file before it
        assert (ROOT / file).is_file(), file
        assert not name or name in _tests(file), f"{file}::{name}"


def _tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
