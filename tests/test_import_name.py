"""`hyco` is one import name that works beside a user's own models.py: from a checkout, from a wheel, and typed."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import models, pipeline, storage  # the user's own
from hyco import Embedder
from hyco.models.hyperbolic import poincare
from hyco.storage.store import Store

assert (models.MINE, pipeline.MINE, storage.MINE) == (1, 2, 3)
print(Embedder.__module__, poincare.__name__, Store.__module__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel of this tree, as pip unpacks them."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as file:
        file.extractall(out / "site")
    return out / "site"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A user's folder with modules of the project's old names."""
    for number, name in enumerate(("models", "pipeline", "storage"), start=1):
        (tmp_path / f"{name}.py").write_text(f"MINE = {number}\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run(*arguments: str, path: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_script_beside_modules_of_the_same_names(users: Path) -> None:
    answer = run("script.py", path=ROOT, cwd=users)
    assert answer == "hyco.pipeline.embedder hyco.models.hyperbolic.poincare hyco.storage.store"


def test_the_same_from_a_wheel(users: Path, wheel: Path) -> None:
    code = "import hyco, hyco.models; print(hyco.__file__, hyco.models.__file__)"
    assert run("-c", code, path=wheel, cwd=users).startswith(str(wheel))
    answer = run("script.py", path=wheel, cwd=users)
    assert answer == "hyco.pipeline.embedder hyco.models.hyperbolic.poincare hyco.storage.store"
    packed = {path.relative_to(wheel / "hyco").as_posix() for path in (wheel / "hyco").rglob("*.py")}
    here = {
        path.relative_to(ROOT).as_posix()
        for package in ("flows", "pipeline", "models", "storage", "demo")
        for path in (ROOT / package).rglob("*.py")
    }
    assert packed == here | {"__init__.py", "old_names.py"}
    assert (wheel / "hyco/demo/weights/grounder").is_dir() and (wheel / "hyco/demo/taxonomy.txt").is_file()


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_the_bare_names_are_the_same_modules(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Scripts written before the import name go on: one class by either name, in either order of import."""
    path = ROOT if place == "checkout" else request.getfixturevalue("wheel")
    code = (
        "import models.clip, hyco.models.clip, hyco.storage.store; from storage.store import Store\n"
        "assert models.clip is hyco.models.clip and Store is hyco.storage.store.Store\n"
        "assert hyco.models.clip.__spec__.name == 'hyco.models.clip'\n"
    )
    run("-c", code, path=path, cwd=tmp_path)
    assert "hyco" in run("-m", "flows", "--version", path=path, cwd=tmp_path)


def test_importing_the_name_alone_loads_no_torch() -> None:
    assert run("-c", "import sys, hyco; print('torch' in sys.modules)", path=ROOT, cwd=ROOT) == "False"


def test_a_type_checker_follows_it(users: Path) -> None:
    (users / "typed.py").write_text(
        "from hyco import Embedder\nfrom hyco.models.clip import DualEncoder\n\n"
        "def text(model: Embedder) -> DualEncoder:\n    reveal_type(model.model)\n    return 3\n"
    )
    config = {"extraPaths": [str(ROOT)], "include": ["typed.py"], "venvPath": str(ROOT), "venv": ".venv"}
    (users / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=users, capture_output=True, text=True, timeout=280)
    said = [entry["message"] for entry in json.loads(done.stdout)["generalDiagnostics"]]
    assert len(said) == 2 and "DualEncoder" in said[0] and "Unknown" not in said[0], said
    assert "is not assignable" in said[1]
