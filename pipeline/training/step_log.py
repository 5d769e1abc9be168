"""The step log of a run: log.jsonl, and the same values for TensorBoard and other sinks."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyco.models.hyperbolic import product
from hyco.pipeline.training.sinks import open_sinks
from hyco.storage.folder import Folder
from hyco.storage.store import Store

QUANTILES = (0.05, 0.5, 0.95)


class StepLog:
    """Writes one JSON line per logged step; lines after `step` are dropped when a run resumes from there.

    Args:
        run_dir: directory of the run.
        step: number of steps that the run resumes after.
        log_to: names of further sinks, see pipeline/training/sinks.py.
        config: values that such a sink shows with the run.
    """

    def __init__(
        self, run_dir: Path, step: int, log_to: Sequence[str] = (), config: dict[str, Any] | None = None
    ) -> None:
        path = run_dir / "log.jsonl"
        _keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._sinks = open_sinks(run_dir, step, log_to, config or {})

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a line; nested dicts become slashed names in the sinks."""
        line = {"step": step, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in flat(values).items() if isinstance(value, int | float)}
        for sink in self._sinks:
            sink.write(step, numbers)

    def close(self) -> None:
        """Flush the lines to disk."""
        os.fsync(self._file.fileno())
        self._file.close()
        for sink in self._sinks:
            sink.close()


def read_log(run_dir: str | Path | Folder) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl in order of their step; none without the file, incomplete lines left out.

    A run that was killed and resumed may have logged a step twice: the later row counts.
    """
    try:
        told = Folder.of(run_dir).read("log.jsonl").decode(errors="replace")
    except FileNotFoundError:
        return []
    rows: dict[int, dict[str, Any]] = {}
    for text in told.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(text)
            rows[int(row["step"])] = row
    return [rows[step] for step in sorted(rows)]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"a": {"b": 1}} -> {"a/b": 1}."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@torch.no_grad()
def radii(nodes: dict[str, Tensor], curvature: Tensor) -> dict[str, dict[str, float]]:
    """sqrt(c)|x| by node type: mean and quantiles. Synchronises the device; called at logged steps only.

    With curvatures [k] of a product, a point's radius is the mean over its factors.
    """
    report = {}
    for name, points in nodes.items():
        if len(points):
            radius = product.radii(points.float(), curvature).mean(-1).cpu()
            quantiles = torch.quantile(radius, torch.tensor(QUANTILES)).tolist()
            named = {f"q{round(100 * q):02d}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
            report[name] = {"mean": radius.mean().item(), **named}
    return report


def _keep_until(path: Path, step: int) -> None:
    """Drop lines after `step`, and an incomplete last line, replacing the file atomically."""
    if not path.exists():
        return
    kept = [line for line in read_log(path.parent) if line["step"] <= step]
    Store(path.parent).replace(path.name, "".join(json.dumps(line) + "\n" for line in kept).encode())
