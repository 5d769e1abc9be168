"""python -m tests.perf [ONLY]: every module of this folder with a `cases()` function; exit 1 below a floor."""

import importlib
import sys
from pathlib import Path

import torch

from tests.perf.runner import report


def main() -> int:
    """Run the benchmarks whose name or peer contains the argument, on one thread."""
    torch.set_num_threads(1)
    here = Path(__file__).parent
    modules = [importlib.import_module(f"tests.perf.{f.stem}") for f in sorted(here.glob("bench_*.py"))]
    cases = (case for module in modules for case in module.cases())
    return 0 if report(cases, sys.argv[1] if len(sys.argv) > 1 else "", Path("build/bench.json")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
