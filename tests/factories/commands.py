"""Commands of hyco as processes of their own, and the grounder in this repository that most of them are given."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GROUNDER = f"transformers:{ROOT / 'demo' / 'weights' / 'grounder'}"
HYCO = (sys.executable, "-m", "hyco.flows")


def hyco(*words: str | Path) -> str:
    """Run a command of hyco to its end and return what it printed; it must succeed."""
    done = subprocess.run([*HYCO, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
