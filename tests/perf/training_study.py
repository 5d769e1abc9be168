"""python -m tests.perf.training_study: where nets of the layers train, beside HypLL; the tables of a page in docs.

Digits (scikit-learn's), AdamW, batches of 64, float32. A cell is the held-out accuracy, averaged over the last epochs
and the seeds. Every training is stored as soon as it is measured, so that an interrupted study goes on where it
stopped. The tables with and without batch norm are sections of their own; one without stored rows stays as it is.
"""

import argparse
import itertools
import json
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from hyco.pipeline.runtime import markdown
from tests.perf.training_nets import RECALIBRATED, RUNNING, TEST_BATCH, TRAINED, Nets, Shape

CURVATURES, RATES, SEEDS = (0.1, 1.0, 3.0), (1e-3, 3e-3, 1e-2, 3e-2), 3
HELD_OUT, BATCH, LAST = 497, 64, 5
SHAPES = {
    f"perceptron, {depth} hidden layers{', batch norm' if norm else ''}": (Shape(depth - 1, norm), 20)
    for norm in (True, False)
    for depth in (2, 4, 6)
} | {"convolutional net": (Shape(conv=True), 10)}
SECTIONS = {
    "batch norm": [title for title, (shape, _) in SHAPES.items() if shape.norm],
    "without batch norm": [title for title, (shape, _) in SHAPES.items() if not shape.norm],
}
OURS, PEER, CLIP = TRAINED[:3]
"""Contenders of the bar; they are measured first."""
STUDENT = 4.30
"""Half of the 95 % interval of a mean of three differences, in standard errors."""
COLLAPSED = 50.0
"""Per cent of accuracy, averaged over the seeds, below which a cell counts as collapsed."""


def digits() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 64] in 0..1 and labels, in a fixed order."""
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].float() / 16, labels[order]


def train(
    shape: Shape,
    epochs: int,
    contender: str,
    curvatures: Sequence[float] = CURVATURES,
    rates: Sequence[float] = RATES,
    seeds: int = SEEDS,
) -> dict[str, list[float]]:
    """Held-out accuracy, in per cent, of each lane (rates x curvatures x seeds), averaged over the last epochs.

    One training gives a row for each of the statistics that its batch norms can be evaluated with, by `row`.
    """
    nets, (images, labels) = Nets(shape, contender, curvatures, rates, seeds), digits()
    images = images.view(-1, 1, 8, 8) if shape.conv else images
    optimiser = torch.optim.AdamW(nets.groups)
    draws = [torch.Generator().manual_seed(seed) for *_, seed in nets.lanes]
    known = len(images) - HELD_OUT
    held_out = images[:HELD_OUT].expand(len(draws), *images[:HELD_OUT].shape)
    found = {statistics: torch.zeros(len(draws)) for statistics in evaluations(shape, contender)}
    for epoch in range(epochs):
        orders = torch.stack([HELD_OUT + torch.randperm(known, generator=g) for g in draws])
        for batch in orders[:, : known - known % BATCH].split(BATCH, 1):
            optimiser.zero_grad()
            logits = nets.forward(images[batch])
            losses = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="none")
            losses.view(len(draws), -1).mean(1).sum().backward()
            optimiser.step()
        if epoch >= epochs - LAST:
            for statistics, sums in found.items():
                logits = nets.evaluate(held_out, statistics, images[HELD_OUT:].split(BATCH)[:-1])
                sums += 100 / LAST * (logits.argmax(-1) == labels[:HELD_OUT]).float().mean(1)
    return {contender + statistics: sums.tolist() for statistics, sums in found.items()}


def evaluations(shape: Shape, contender: str) -> tuple[str, ...]:
    """Statistics that the nets of a contender are evaluated with; a row is named contender + statistics."""
    return (RUNNING, TEST_BATCH, RECALIBRATED) if shape.norm and contender in (OURS, CLIP) else (RUNNING,)


def contenders(shape: Shape) -> list[str]:
    """Names of the rows of a table."""
    return [contender + statistics for contender in TRAINED for statistics in evaluations(shape, contender)]


def table(rows: dict[str, list[float]], title: str) -> list[str]:
    """Markdown of one architecture: a line for each contender, a column for each curvature and rate."""
    heads = [f"c {c:g}, {rate:g}" for c in CURVATURES for rate in RATES]
    measured = [who for who in contenders(SHAPES[title][0]) if f"{title}/{who}" in rows]
    if not measured:
        return []
    body = ([who, *(f"{m:.1f}" for m in cells(rows[f"{title}/{who}"]))] for who in measured)
    return [*markdown.table([title, *heads], body), ""]


def cells(lanes: list[float]) -> list[float]:
    """Means over the seeds, curvature by curvature."""
    return by_cell(lanes).mean(1).tolist()


def by_cell(lanes: list[float]) -> Tensor:
    """[cells, seeds], curvature by curvature."""
    return torch.tensor(lanes).view(len(RATES), len(CURVATURES), SEEDS).transpose(0, 1).flatten(0, 1)


def verdict(rows: dict[str, list[float]], titles: Sequence[str]) -> list[str]:
    """What the tables say of the bar: ours at most a point below the better of HypLL and the clip."""
    lines = []
    for statistics in (RUNNING, TEST_BATCH, RECALIBRATED):
        compared, clear, below, collapsed = shortfalls(rows, titles, statistics)
        if not compared:
            continue
        said = (
            f'"{OURS}{statistics}": {compared} cells. More than a point below the better of "{PEER}" and '
            f'"{CLIP}{statistics}" in {len(below)} of them, in {clear} of these beyond the noise of the seeds (95 % '
            f'interval of the paired differences); below {COLLAPSED:.0f} % where "{PEER}" is not in {collapsed}.'
        )
        lines += [*textwrap.wrap(said, 116), ""]
        if below:
            lines += [*(f"- {line}" for line in below), ""]
    return lines


def shortfalls(
    rows: dict[str, list[float]], titles: Sequence[str], statistics: str
) -> tuple[int, int, list[str], int]:
    """Cells of ours: compared, below the bar beyond noise, lines about those below it, and collapsed."""
    compared, clear, below, collapsed = 0, 0, [], 0
    for title in titles:
        names = [f"{title}/{one}" for one in (OURS + statistics, PEER, CLIP + statistics)]
        if any(name not in rows for name in names):
            continue
        seeds = torch.stack([by_cell(rows[name]) for name in names])
        for at, (ours, *others) in enumerate(seeds.unbind(1)):
            best = max(others, key=lambda other: other.mean().item())
            # A seed has the same first weights and batches in every row.
            less = ours - best
            noise = STUDENT * (less.var() / SEEDS).sqrt().item()
            compared += 1
            collapsed += int(ours.mean() < COLLAPSED <= others[0].mean())
            if less.mean() < -1:
                clear += int(less.mean() + noise < 0)
                cell = f"{title}, c {CURVATURES[at // len(RATES)]:g}, rate {RATES[at % len(RATES)]:g}"
                mean, peer, clip = (one.mean() for one in (ours, *others))
                gap = f"{less.mean():.1f} ± {noise:.1f}"
                below.append(f"{cell}: {mean:.1f} (HypLL {peer:.1f}, clip {clip:.1f}; {gap})")
    return compared, clear, below, collapsed


def main(arguments: list[str]) -> None:
    """Measure what is missing and write the tables between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/training_study"))
    parser.add_argument("--doc", type=Path, default=Path("docs/hyperbolic_training.md"))
    parser.add_argument("--only", default="", help="measure the trainings whose name contains this")
    parser.add_argument(
        "--write", action="store_true", help="measure nothing and write the tables of stored rows"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.store.mkdir(parents=True, exist_ok=True)
    for first in ((OURS, PEER, CLIP), TRAINED[3:]):
        for title, contender in itertools.product(SHAPES, first):
            file = options.store / f"{title}, {contender}.json"
            if not (options.write or file.exists()) and options.only in file.stem:
                start = time.process_time()
                file.write_text(json.dumps(train(*SHAPES[title], contender)))
                print(
                    f"{title}, {contender}: {time.process_time() - start:.0f} s of processor time", flush=True
                )
                write(stored(options.store), options.doc)
    write(stored(options.store), options.doc)


def stored(store: Path) -> dict[str, list[float]]:
    """The rows that are measured, by "architecture/contender"."""
    files = [(title, store / f"{title}, {contender}.json") for title in SHAPES for contender in TRAINED]
    return {
        f"{title}/{row}": lanes
        for title, file in files
        if file.exists()
        for row, lanes in json.loads(file.read_text()).items()
    }


def write(rows: dict[str, list[float]], page: Path) -> None:
    """Replace what stands between the marks of the sections that have rows."""
    text = page.read_text()
    for section, titles in SECTIONS.items():
        lines = [*verdict(rows, titles), *(line for title in titles for line in table(rows, title))]
        if lines:
            pattern = rf"(<!-- {section} -->\n).*(<!-- /{section} -->)"
            new = "\n".join(lines)
            text = re.sub(pattern, lambda m, new=new: f"{m[1]}{new}\n{m[2]}", text, flags=re.S)
    page.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
