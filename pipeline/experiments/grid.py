"""A resumable grid of runs, and the document for its results.

ablation.py and classification_study.py define the runs and the content of the document. The runs go one after another
in this process, or at the same time in the workers of an executor, which see the same home.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hyco.pipeline.runtime.executor import LOCAL, Executor, open_executor
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.runtime.stop import TerminatedError, terminable, told
from hyco.storage.store import Store


@dataclass(frozen=True)
class GridRun:
    """One run of a grid, trained and measured at most once.

    Attributes:
        folder: its directory.
        kind: runs of one kind take about the same time.
        perform: trains and evaluates unless done; called for finished runs too, to check that the directory holds the
        same configuration. For an executor it is a partial of an importable function.
        seconds: duration, None until it is trained and evaluated.
    """

    folder: Path
    kind: str
    perform: Callable[[], object]
    seconds: Callable[[], float | None]


def run_grid(
    name: str,
    runs: Sequence[GridRun],
    after: Callable[[int], object],
    say: TextIO = sys.stderr,
    executor: Executor | None = None,
) -> None:
    """Perform the runs in order; `after` gets the number of finished ones after each.

    With an executor its workers perform them: `after` is called when all runs before have finished too, and a run whose
    worker was killed goes on from its checkpoint in another one.
    """
    if executor is not None:
        _run_far(name, runs, after, say, executor)
        return
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


def _run_far(
    name: str, runs: Sequence[GridRun], after: Callable[[int], object], say: TextIO, executor: Executor
) -> None:
    finished = [run for run in runs if run.seconds() is not None]
    for run in finished:
        run.perform()
    told = len(finished)
    reached = 0

    def submit(run: GridRun) -> Future[Any]:
        return executor.submit(_perform, run.perform, run.folder)

    def tell(folder: Path) -> None:
        nonlocal told, reached
        told += 1
        left = (time_left(runs) or 0.0) / executor.workers
        until = f", about {left / 60:.0f} min left" if left else ""
        print(f"{name}: {folder.name} is done, {told} of {len(runs)}{until}", file=say, flush=True)
        reach()

    def reach() -> None:
        nonlocal reached
        while reached < len(runs) and runs[reached].seconds() is not None:
            reached += 1
            after(reached)

    reach()
    run_units(submit, [run for run in runs if run not in finished], tell)


def _perform(work: Callable[[], object], folder: Path) -> Path:
    """Perform a run in a worker and return its directory."""
    work()
    return folder


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the runs of a grid are performed."""
    parser.add_argument(
        "--engine", default=LOCAL, help="local, ray or ray:HOST:PORT, whose nodes see the same home"
    )
    parser.add_argument(
        "--workers", type=int, help="runs at the same time; local 0, one after another; ray as many as fit"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of each worker; local its part, ray 1")
    parser.add_argument(
        "--gpus", type=float, help="GPUs of each worker on ray; by default 1 where there are any"
    )


@contextlib.contextmanager
def engine_of(given: argparse.Namespace) -> Iterator[Executor | None]:
    """Open the executor that these options name; None performs the runs in this process."""
    if given.engine == LOCAL and not given.workers:
        yield None
        return
    with open_executor(given.workers, given.threads, engine=given.engine, gpus=given.gpus, servers=0) as one:
        yield one


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
    """Put `text` between two marks, each a line of the document, in place of the old section; the rest is unchanged.

    Args:
        document: a Markdown file.
        marks: the lines before and after the section.
        text: the section.
        preface: text of a new document; with it, a section without marks is appended. None: both cases are refused.

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
        raise ValueError(f"{document} has no marks for the section: add the lines '{begin}' and '{end}'")
    else:
        held = held.rstrip("\n") + "\n\n" + block
    Store(document.parent).replace(document.name, held.encode())


def command(work: Callable[[], object]) -> int:
    """Run the work of a command and return its exit code; errors are one line, a signal ends it at a checkpoint."""
    try:
        with terminable():
            work()
    except (ValueError, OSError) as error:
        print(f"hyco: error: {error}", file=sys.stderr)
        return 2
    except (TerminatedError, KeyboardInterrupt) as error:
        return told(error)
    return 0
