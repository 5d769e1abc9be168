"""Imports run one way: flows -> pipeline -> {models, storage}. Read from the source, so lazy imports count too."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OLD_NAMES = {"hyco.old_names"}  # the last lines of each package's __init__.py
OURS = {"flows", "pipeline", "models", "storage", "demo"}
# What transformers brings and its processors speak (hub files, PIL images) counts with it.
TORCH = {
    "torch",
    "numpy",
    "jaxtyping",
    "beartype",
    "safetensors",
    "onnxruntime",
    "tokenizers",
    "transformers",
}
TORCH |= {"huggingface_hub", "PIL", "groundingdino", "peft"}
# What a package may import of ours, and of other people's (None: anything but Prefect).
RULES: dict[str, tuple[set[str], set[str] | None]] = {
    "flows": ({"flows", "pipeline", "models", "storage"}, None),
    "pipeline": ({"pipeline", "models", "storage"}, None),
    "models": ({"models"}, TORCH),
    "models/hyperbolic": ({"models"}, {"torch"}),
    "storage": ({"storage"}, {"pyarrow", "fsspec", "s3fs"}),
    "demo": ({"demo", "pipeline", "models", "storage"}, None),
}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or ""


def offences(package: str, code: str) -> list[str]:
    """What a file of `package` with this code imports against the rules."""
    ours, others = RULES[package]
    found = []
    for name in imports(ast.parse(code)):
        top, _, inside = name.partition(".")
        if name in OLD_NAMES:
            bad = False
        elif top == "hyco":
            bad = inside.partition(".")[0] not in ours or (
                package == "models/hyperbolic" and not name.startswith("hyco.models.hyperbolic")
            )
        elif top in OURS:  # a user's own models.py would be found in its place
            bad = True
        elif top == "prefect":
            bad = package != "flows"
        else:
            bad = others is not None and top not in others and top not in sys.stdlib_module_names
        found += [name] if bad or top in ("pickle", "dill", "cloudpickle", "joblib") else []
    return found


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "models/hyperbolic" if parts[:2] == ("models", "hyperbolic") else parts[0]


# The engine talks to workers it started itself through a pipe; nothing pickled is ever stored or sent.
PIPES = {f"pipeline/runtime/{name}.py" for name in ("calls", "local_executor", "worker")}
FILES = [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_direction(path: Path) -> None:
    found = offences(package_of(path), path.read_text())
    allowed = {"pickle"} if path.relative_to(ROOT).as_posix() in PIPES else set()
    assert not set(found) - allowed


def module_of(path: Path) -> str:
    return ".".join(("hyco", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Our modules that a file imports anywhere: inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module or "" for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Nodes of a circle in a graph {node: nodes it imports}, first and last the same; None without one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_modules_import_in_no_circle() -> None:
    assert circle({name: imported(path) - {name} for name, path in MODULES.items()}) is None


def test_folders_import_in_no_circle() -> None:
    """A folder below a package, with all that is in it, is one node; so is a file that lies beside the folders."""
    folders: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        own, *others = (".".join(each.split(".")[:3]) for each in (name, *imported(path)))
        folders.setdefault(own, set()).update(set(others) - {own})
    assert circle(folders) is None


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})


def test_weights_are_loaded_as_weights_only() -> None:
    for path in FILES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "torch.load" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(
                    word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords
                )
                assert safe, f"{path}:{node.lineno}: torch.load without weights_only=True"


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("pipeline", "import prefect"),
        ("pipeline", "def f():\n    from hyco.flows import mine"),
        ("pipeline", "import hyco.demo.scenes"),
        ("pipeline", "from storage.store import Store"),
        ("models", "from hyco.storage.store import Store"),
        ("models", "import spacy"),
        ("models/hyperbolic", "import numpy"),
        ("models/hyperbolic", "from hyco.models.clip import DualEncoder"),
        ("storage", "import torch"),
        ("storage", "import hyco.models"),
        ("flows", "import hyco.demo"),
        ("demo", "import pickle"),
    ],
)
def test_the_rules_bite(package: str, code: str) -> None:
    assert offences(package, code)


@pytest.mark.parametrize(
    ("code", "spared"),
    [
        ("import hyco.flows.deployment.watchers, hyco.flows.reporting.events", "torch"),  # hyco notify
        ("from hyco.pipeline.sources.language import language_fraction; language_fraction('a dog')", "spacy"),
    ],
)
def test_seconds_of_imports_are_spared(code: str, spared: str) -> None:
    asked = f"import sys; {code}; sys.exit('{spared}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], cwd=ROOT, check=False).returncode == 0
