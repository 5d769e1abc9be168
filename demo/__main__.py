"""`python -m hyco.demo scenes --out DIR`: write the embedded world as source shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for bad input, with one line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m hyco.demo", description="The embedded world of the demo."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="write captioned, boxed scenes as img2dataset shards")
    scenes.add_argument(
        "--out", type=Path, required=True, help="folder to write; an interrupted run continues"
    )
    scenes.add_argument("--train", type=int, default=6000, help="training scenes (default %(default)s)")
    scenes.add_argument("--heldout", type=int, default=1000, help="held-out scenes (default %(default)s)")
    scenes.add_argument(
        "--seed", type=int, default=0, help="another seed, another world (default %(default)s)"
    )
    scenes.add_argument(
        "--size", type=int, default=128, help="side of an image in pixels (default %(default)s)"
    )
    scenes.add_argument(
        "--workers", type=int, default=2, help="processes; 0 works in this one (default %(default)s)"
    )
    given = parser.parse_args(arguments)

    from hyco.demo.write import write

    try:
        plan = write(given.out, given.train, given.heldout, given.seed, given.size, given.workers)
    except (ValueError, OSError) as error:
        print(f"python -m hyco.demo: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count:,} {split}" for split, count in plan["counts"].items())
    print(f"{given.out}: {counts} scenes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
