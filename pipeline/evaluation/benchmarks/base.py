"""Common parts of the suite's benchmarks: the row, the setting of a measurement, and finders of folders."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.protocol import HYCO, Protocol
from hyco.pipeline.evaluation.coverage import MIN_COVERAGE
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.runtime.progress import Progress

COCO_FOLDERS = ("coco", "coco2017", "mscoco")


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting that every evaluation gets.

    Attributes:
        data: the directory of data sets, for files that several of them share (WordNet).
        boot: draws the intervals.
        progress: call `expect` with the number of images and `advance` with the number done.
        limit: maximum number of images of a split, drawn by seed; 0 takes all.
        least: minimum fraction of a set's listed items that must exist; a set below it is refused.
        heads: probes fitted on labelled sets, names of pipeline.evaluation.metrics.linear_probe.HEADS, or prototypes.
        prompt_sensitivity: whether labelled sets are also measured with every prompt by itself.
        skipped: blocks of the evaluation that could not be measured, each with the reason.
        protocol: how sets are asked.
    """

    data: Path
    boot: Bootstrap
    progress: Progress
    limit: int = 0
    seed: int = 0
    least: float = MIN_COVERAGE
    heads: tuple[str, ...] = ()
    prompt_sensitivity: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    protocol: Protocol = HYCO

    def choose(self, count: int) -> Int[np.ndarray, " n"]:
        """Indices of the evaluated images, ascending."""
        if not self.limit or count <= self.limit:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.limit, replace=False))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A row of the suite.

    Attributes:
        title: the data set as papers write it.
        find: its folder (or tar) below the directory of data sets, None where there is none.
        evaluate: returns the metrics, or the reason why there are none.
        layout: expected content of the folder, for messages.
        published: whether it can be asked as in the papers (--protocol published).
    """

    title: str
    find: Callable[[Path], Path | None]
    evaluate: Callable[[Embedder, Path, Setting], MetricResult | str]
    layout: str
    published: bool = False


def folder_called(*names: str) -> Callable[[Path], Path | None]:
    """A finder of folders and tars by their names, ignoring case; the first name has priority."""
    ends = ("", ".tar", ".tar.gz", ".tgz")
    wanted = [(name + end).lower() for name in names for end in ends]

    def find(data: Path) -> Path | None:
        there = {entry.name.lower(): entry for entry in sorted(data.iterdir())}
        return next((there[name] for name in wanted if name in there), None)

    return find


def folder_with(names: tuple[str, ...], *marks: str) -> Callable[[Path], Path | None]:
    """A finder of folders of one of the names that hold one of the files."""

    def find(data: Path) -> Path | None:
        named = (entry for entry in sorted(data.iterdir()) if entry.is_dir() and entry.name.lower() in names)
        return next((folder for folder in named if any((folder / mark).exists() for mark in marks)), None)

    return find
