"""Speed and memory beside a peer: equal results first, then interleaved rounds in one process, medians of ratios."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROUNDS, SECONDS = 15, 6.0


@dataclass(frozen=True)
class Case:
    """One comparison. ratio = theirs / ours: above 1, ours is the cheaper; `floor` is the least that is accepted.

    ours and theirs: for unit "ms" a call to time (milliseconds of processor time), for another unit ("MB",
    "s") a call returning the number itself, made once. equal: asserts equal results and says how equal (run
    once, before any timing).
    """

    name: str
    peer: str
    unit: str
    ours: Callable[[], float | None]
    theirs: Callable[[], float | None]
    equal: Callable[[], str]
    floor: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    equal: str
    floor: float | None

    @property
    def passed(self) -> bool:
        return self.floor is None or self.ratio >= self.floor


def measure(case: Case) -> Row:
    """Equality, two warm-up calls each, then rounds of ours and theirs in alternating order."""
    equal = case.equal()
    if case.unit != "ms":
        ours, theirs = case.ours(), case.theirs()
        assert ours and theirs
        return Row(case.name, case.peer, case.unit, ours, theirs, theirs / ours, equal, case.floor)
    for call in (case.ours, case.theirs) * 2:
        call()
    pairs, start = [], time.perf_counter()
    gc.disable()
    while len(pairs) < ROUNDS and (len(pairs) < 5 or time.perf_counter() - start < SECONDS):
        calls = [case.ours, case.theirs]
        spent = {}
        for call in calls if len(pairs) % 2 else reversed(calls):
            # Processor time, so that what else runs on the machine counts as little as it can.
            begin = time.process_time()
            call()
            spent[call] = 1e3 * (time.process_time() - begin)
        pairs.append((spent[case.ours], spent[case.theirs]))
    gc.enable()
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return Row(case.name, case.peer, case.unit, ours, theirs, ratio, equal, case.floor)


def saved_megabytes(forward: Callable[[], object]) -> float:
    """Size of the distinct storages that autograd keeps between the forward and the backward pass."""
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = forward()
    size = sum(nbytes for nbytes, _ in kept.values()) / 1e6
    del out
    return size


def report(cases: Iterable[Case], only: str, file: Path) -> bool:
    """Print the table as it grows, write `file`, and say whether every floor was reached."""
    rows: list[Row] = []
    print(
        f"{'name':30s} {'peer':18s} {'unit':4s} {'ours':>9s} {'theirs':>9s} {'ratio':>7s} {'floor':>6s}  equal"
    )
    for case in cases:
        if only and only not in f"{case.name} {case.peer}":
            continue
        row = measure(case)
        rows.append(row)
        floor = "" if row.floor is None else f"{row.floor:.3g}"
        print(
            f"{row.name:30s} {row.peer:18s} {row.unit:4s} {row.ours:9.3f} {row.theirs:9.3f} {row.ratio:7.2f} "
            f"{floor:>6s}  {row.equal}{'' if row.passed else '   BELOW ITS FLOOR'}",
            flush=True,
        )
    if not rows:
        raise SystemExit(f"no benchmark's name or peer contains {only!r}")
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [asdict(r) for r in rows],
    }
    file.write_text(json.dumps(document, indent=1))
    print(f"ratio = theirs / ours; {file} written")
    return all(row.passed for row in rows)
