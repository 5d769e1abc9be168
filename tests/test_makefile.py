"""What `make clean` removes is what the targets made, and what the targets compile is kept."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(*words: str, **environment: str) -> str:
    """The output of make, as from a shell of its own."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-s", *words]
    return subprocess.run(
        command, cwd=ROOT, env=alone | environment, capture_output=True, text=True, check=True
    ).stdout


def test_clean_leaves_every_home_but_the_targets_own():
    """`var` is the default home of every command: registry, champion, Prefect's database."""
    words = make("-n", "clean").split()
    assert words[:2] == ["rm", "-rf"] and ".venv" not in words
    assert {word for word in words if word.startswith("var")} == {"var/demo", "var/classification"}


def test_imports_are_compiled_once():
    """Installed uncompiled, all imports would be compiled in every process, which takes ten seconds each time."""
    probe = "--eval=probe: ; @printenv PYTHONDONTWRITEBYTECODE || echo compiled once"
    assert make(probe, "probe", PYTHONDONTWRITEBYTECODE="1") == "compiled once\n"
