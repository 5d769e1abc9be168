"""The evaluation suite: evaluates on the data sets below a directory and names the missing ones.

Each row of EVALUATIONS finds its data set below that directory and evaluates the model on it. Its result is the section
suite.NAME of metrics.json: blocks of metrics, each with "n" (number of resampled units of the interval) and "chance"
(chance levels under the same names).
"""

import time
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks import (
    classification,
    coco_boxes,
    compositional,
    entailment,
    long_captions,
    multilabel,
    retrieval,
)
from hyco.pipeline.evaluation.benchmarks.base import Evaluation, Setting
from hyco.pipeline.evaluation.benchmarks.protocol import HYCO, Protocol
from hyco.pipeline.evaluation.coverage import MIN_COVERAGE
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.runtime.progress import Listener, Progress

UNPUBLISHED = "no paper evaluates on it in this way: use --protocol hyco"
TABLES = (  # each has a table EVALUATIONS
    classification,
    multilabel,
    retrieval,
    long_captions,
    entailment,
    coco_boxes,
    compositional,
)


def evaluations() -> dict[str, Evaluation]:
    """All rows by name, in the order of the report."""
    return {name: row for table in TABLES for name, row in table.EVALUATIONS.items()}


def chosen(names: str, table: dict[str, Evaluation]) -> list[str]:
    """Names of rows from "all" or "cifar10,tiny_imagenet"; ValueError for an unknown one."""
    if names == "all":
        return list(table)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in table:
            near = get_close_matches(name, table, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ValueError(f"no evaluation is called {name!r}{hint}; choose all, {', '.join(table)}")
    if not wanted:
        raise ValueError("the suite is empty: name evaluations, or all")
    return list(dict.fromkeys(wanted))


def run_suite(
    embedder: Embedder,
    names: str,
    data: str | Path,
    boot: Bootstrap,
    *,
    limit: int = 0,
    seed: int = 0,
    least: float = MIN_COVERAGE,
    heads: tuple[str, ...] = (),
    prompt_sensitivity: bool = False,
    protocol: Protocol = HYCO,
    listener: Listener | None = None,
    table: dict[str, Evaluation] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the data sets below a directory.

    Args:
        embedder: the model.
        names: "all" or names of rows separated by commas.
        data: the directory, with one folder per data set.
        boot: resampling for the intervals.
        limit: maximum number of images of each split; 0 takes all.
        seed: of everything random.
        least: minimum fraction of a set's images that must exist; a set with fewer is refused.
        heads: the probes to fit.
        prompt_sensitivity: also measure labelled sets with every prompt by itself.
        protocol: how the sets are asked.
        listener: gets the progress of each evaluation.
        table: evaluations by name; None takes all of the suite.

    Returns:
        {"suite": {NAME: blocks, coverage}, "intervals": {"suite.NAME.BLOCK.number": [low, high]}, "skipped": {...}}.
        A data set with invalid files is listed under skipped with the reason, and the suite continues.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: an unknown name, or no requested data set in the directory.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"{data} is not a directory: give the directory of your data sets")
    table = evaluations() if table is None else table
    found: dict[str, Any] = {"suite": {}, "intervals": {}, "skipped": {}}
    places = {name: table[name].find(data) for name in chosen(names, table)}
    if not any(places.values()):
        raise ValueError(f"{data} holds no data set of the suite; expected {_wants(table, places)}")
    for name, place in places.items():
        if place is None:
            found["skipped"][f"suite.{name}"] = f"not in {data}; expected {table[name].layout}"
            continue
        began = time.monotonic()
        with Progress(None, name, "images", listener) as progress:
            setting = Setting(
                data, boot, progress, limit, seed, least, heads, prompt_sensitivity, protocol=protocol
            )
            try:
                asked = table[name].published or not protocol.published
                outcome = table[name].evaluate(embedder, place, setting) if asked else UNPUBLISHED
            except (ValueError, OSError) as error:  # one broken data set must not stop the others
                outcome = " ".join(str(error).split())
        if isinstance(outcome, str):
            found["skipped"][f"suite.{name}"] = outcome
            continue
        seconds = round(time.monotonic() - began, 2)
        found["suite"][name] = {**outcome.numbers, "source": str(place), "seconds": seconds}
        if protocol.published:
            found["suite"][name]["protocol"] = protocol.way
        found["intervals"] |= {f"suite.{name}.{key}": list(span) for key, span in outcome.intervals.items()}
        found["skipped"] |= {f"suite.{name}.{block}": why for block, why in setting.skipped.items()}
    return found


def _wants(table: dict[str, Evaluation], names: Iterable[str]) -> str:
    return "; ".join(f"{name} ({table[name].layout})" for name in names)
