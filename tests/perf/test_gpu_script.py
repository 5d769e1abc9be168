"""The GPU script runs where only torch and numpy are installed, and both ways of its step compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.perf import gpu_steps

ROOT = Path(__file__).parents[2]
BARE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

PRESENT = set(sys.stdlib_module_names) | {"torch", "torchgen", "functorch", "numpy", "hyco", "tests"}
PRESENT |= {"typing_extensions", "filelock", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "triton"}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return super().find_spec(name, path, target) if name[0] == "_" or name.partition(".")[0] in PRESENT else None


sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]
from tests.perf.gpu import main

code = main(sys.argv[1:])
absent = {"prefect", "spacy", "pydantic", "transformers", "safetensors", "PIL", "pyarrow", "typer"} & set(sys.modules)
assert not absent, absent
sys.exit(code)
"""


def test_the_script_runs_where_only_torch_is(tmp_path):
    out = tmp_path / "gpu.json"
    options = ["--batch", "2", "--eager", "--device", "cpu", "--only", "steps,pieces,loss,grounder"]
    command = [sys.executable, "-c", BARE, *options, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "grounder: left out, transformers is not installed" in done.stdout
    found = json.loads(out.read_text())
    cases = [row["case"] for row in found["rows"]]
    assert cases[:2] == ["small, published way", "small, ours, eager"] and "loss, HyCoCLIP" in cases
    assert all(0 < row["MFU %"] < 100 for row in found["rows"] if "MFU %" in row)
    assert "| steps | small, ours, eager | 2 |" in done.stdout


def test_an_unknown_section_is_named(capsys):
    from tests.perf.gpu import main

    with pytest.raises(SystemExit):
        main(["--only", "step"])
    assert "--only step: known are steps, pieces, loss, largest, grounder" in capsys.readouterr().err


def test_the_published_way_computes_our_loss_and_gradients():
    assert float(gpu_steps.agreement(gpu_steps.SIZES["small"], 3, torch.device("cpu"))) < 1e-4
