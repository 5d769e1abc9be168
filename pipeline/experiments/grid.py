"""A grid of runs that goes on where it stopped, and the document that its results are written into.

ablation.py and classification_study.py say what their runs are and what the document shows; the rest is here.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipeline.runtime.stop import TerminatedError, terminable, told
from storage.store import Store


@dataclass(frozen=True)
class GridRun:
    """One run of a grid, trained and measured at most once.

    Attributes:
        folder: its directory.
        kind: runs of one kind take about equally long.
        perform: trains and measures whatever is not yet done; called for finished runs too, to check that the
            directory holds what is asked for.
        seconds: what it took, None until it is trained and measured.
    """

    folder: Path
    kind: str
    perform: Callable[[], object]
    seconds: Callable[[], float | None]


def run_grid(
    name: str, runs: Sequence[GridRun], after: Callable[[int], object], say: TextIO = sys.stderr
) -> None:
    """Perform the runs in order; `after` gets the number of finished ones after each."""
    for number, run in enumerate(runs, 1):
        if pending := run.seconds() is None:
            left = time_left(runs)
            until = "" if left is None else f", about {left / 60:.0f} min left"
            print(f"{name}: run {number} of {len(runs)}, {run.folder.name}{until}", file=say, flush=True)
        began = time.monotonic()
        run.perform()
        if pending:
            print(f"{name}: took {time.monotonic() - began:.0f} s", file=say, flush=True)
        after(number)


def time_left(runs: Sequence[GridRun]) -> float | None:
    """Seconds until all are done, from what the finished runs took; None while none is finished."""
    took = [(run.kind, run.seconds()) for run in runs]
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in took:
        if seconds is not None:
            by_kind.setdefault(kind, []).append(seconds)
    known = [value for values in by_kind.values() for value in values]
    if not known:
        return None
    expected = {kind: sum(values) / len(values) for kind, values in by_kind.items()}
    mean = sum(known) / len(known)
    return sum(expected.get(kind, mean) for kind, seconds in took if seconds is None)


def write_section(document: Path, marks: tuple[str, str], text: str, preface: str | None = None) -> None:
    """Put `text` between two marks, each a line of the document, in place of what stood there; the rest stays.

    Args:
        document: a Markdown file.
        marks: the lines before and after the section.
        text: the section.
        preface: starts a document that does not exist, and lets a section without marks go to the end. None: both
            are refused.

    Raises:
        FileNotFoundError, ValueError: without a preface, no document or no marks in it.
    """
    begin, end = marks
    block = "\n\n".join((begin, text.strip("\n"), end)) + "\n"
    held = preface + "\n" if preface and not document.is_file() else document.read_text(encoding="utf-8")
    if begin in held and end in held:
        before, _, rest = held.partition(begin)
        held = before + block + rest.partition(end)[2].removeprefix("\n")
    elif preface is None:
        raise ValueError(f"{document} has no place for the section: add the lines '{begin}' and '{end}'")
    else:
        held = held.rstrip("\n") + "\n\n" + block
    Store(document.parent).replace(document.name, held.encode())


def command(work: Callable[[], object]) -> int:
    """Do the work of a command line and return its exit code; mistakes are one line, a signal ends at a checkpoint."""
    try:
        with terminable():
            work()
    except (ValueError, OSError) as error:
        print(f"hyco: error: {error}", file=sys.stderr)
        return 2
    except (TerminatedError, KeyboardInterrupt) as error:
        return told(error)
    return 0
