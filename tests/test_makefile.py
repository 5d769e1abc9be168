"""What `make clean` removes is what the targets made."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_clean_leaves_every_home_but_the_targets_own():
    """`var` is the default home of every command: registry, champion, Prefect's database."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(
        ["make", "-n", "clean"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True
    ).stdout
    words = made.split()
    assert words[:2] == ["rm", "-rf"] and ".venv" not in words
    assert {word for word in words if word.startswith("var")} == {"var/demo", "var/classification"}
