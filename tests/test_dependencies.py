"""What the packages import is declared in pyproject.toml and pinned; what is declared has no fallback."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest

from tests.test_imports import FILES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The development environment has no MLflow: a stand-in is enough for its tests.
DISTRIBUTIONS = {"mlflow": ["mlflow-skinny"], **packages_distributions()}


def normal(name: str) -> str:
    """A requirement or a distribution as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~\[;]", name, maxsplit=1)[0]).lower()


NEEDED = {normal(one) for one in PROJECT["dependencies"]}
OPTIONAL = {normal(one) for extra in PROJECT["optional-dependencies"].values() for one in extra}
PINNED = {normal(line) for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}


def distributions(module: str) -> set[str]:
    """The installed distributions that a top-level module comes from; its own name where none is installed."""
    return {normal(name) for name in DISTRIBUTIONS.get(module, [module])}


def is_guarded(node: ast.AST) -> bool:
    """Whether a statement goes on where an import fails."""
    if isinstance(node, ast.Try):
        caught = [ast.unparse(handler.type) if handler.type else "BaseException" for handler in node.handlers]
        raises = all(isinstance(handler.body[-1], ast.Raise) for handler in node.handlers)
        return not raises and any("ImportError" in name or "ModuleNotFound" in name for name in caught)
    if isinstance(node, ast.With):
        return any("suppress" in (text := ast.unparse(item)) and "ImportError" in text for item in node.items)
    return False


def imported(node: ast.AST, lazy: bool = False, guarded: bool = False) -> Iterator[tuple[str, bool, bool]]:
    """(top-level module of others, imported inside a function, with a fallback) of everything below a node."""
    for child in ast.iter_child_nodes(node):
        names = [alias.name for alias in child.names] if isinstance(child, ast.Import) else []
        names += [child.module or ""] if isinstance(child, ast.ImportFrom) else []
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names:
                yield top, lazy, guarded
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imported(child, inside, guarded or is_guarded(child))


DEMO = {normal(one) for one in PROJECT["optional-dependencies"]["demo"]}


def offences(code: str, extra: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """What a module imports against the rules; `extra`: the packages of an extra that it belongs to."""
    found = []
    for top, lazy, guarded in imported(ast.parse(code)):
        if top == "hyco":
            found += [f"{top} is ours and has a fallback"] if guarded else []
            continue
        from_where = distributions(top)
        if not from_where & (NEEDED | OPTIONAL if lazy else NEEDED | extra):
            found.append(f"{top} is not declared")
        if guarded and from_where & NEEDED:
            found.append(f"{top} is always installed and has a fallback")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_imported_is_declared(path) -> None:
    assert offences(path.read_text(), DEMO if path.is_relative_to(ROOT / "demo") else set()) == []


def test_a_worker_needs_neither_the_drawings_of_the_demo_nor_matplotlib() -> None:
    assert not DEMO & NEEDED and "matplotlib" not in NEEDED
    assert DEMO <= OPTIONAL


def test_what_is_declared_is_pinned() -> None:
    here = {
        normal(extra) for extra in ("groundingdino-py",)
    }  # an environment of its own, tests/groundingdino
    here |= {normal(one) for one in PROJECT["optional-dependencies"]["docker"]} | {"hyco"}
    assert NEEDED | OPTIONAL - here <= PINNED


@pytest.mark.parametrize(
    "code",
    [
        "import sqlglot",
        "import onnxruntime",  # an extra is imported where it is needed
        "def f():\n    import sqlglot",
        "try:\n    import simplejpeg\nexcept ImportError:\n    simplejpeg = None",
        "try:\n    from hyco.pipeline.imaging.decode import decode\nexcept ImportError:\n    decode = None",
        "with contextlib.suppress(ImportError):\n    from torch.utils.tensorboard import SummaryWriter",
    ],
)
def test_the_rules_bite(code: str) -> None:
    assert offences(code)


@pytest.mark.parametrize(
    "code",
    [
        "import yaml",
        "def f():\n    import onnxruntime",
        "def f():\n    try:\n        import peft\n    except ImportError:\n        raise ValueError",
        "try:\n    import torch\n    torch.x()\nexcept RuntimeError:\n    pass",
    ],
)
def test_the_rules_allow(code: str) -> None:
    assert offences(code) == []
