"""python -m tests.perf.training_study: where nets of the layers train, beside HypLL; the tables of a page in docs.

Digits (scikit-learn's), AdamW, batches of 64, float32. A cell is the held-out accuracy, averaged over the last epochs
and the seeds. Every row is stored as soon as it is measured, so that an interrupted study goes on where it stopped.
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

from tests.perf.training_nets import CONTENDERS, RECALIBRATED, Nets, Shape

CURVATURES, RATES, SEEDS = (0.1, 1.0, 3.0), (1e-3, 3e-3, 1e-2, 3e-2), 3
HELD_OUT, BATCH, LAST = 497, 64, 5
SHAPES = {
    f"perceptron, {depth} hidden layers{', batch norm' if norm else ''}": (Shape(depth - 1, norm), 20)
    for depth in (2, 4, 6)
    for norm in (False, True)
} | {"convolutional net": (Shape(conv=True), 10)}
COMPARED = ("ours", "HypLL", "clip at 4")
"""Contenders of the bar; they are measured first."""
STUDENT = 2.78
"""Half of the 95 % interval of a difference of two means of three seeds, in standard errors."""
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
) -> list[float]:
    """Held-out accuracy, in per cent, of each lane (rates x curvatures x seeds), averaged over the last epochs."""
    nets, (images, labels) = Nets(shape, contender, curvatures, rates, seeds), digits()
    images = images.view(-1, 1, 8, 8) if shape.conv else images
    optimiser = torch.optim.AdamW(nets.groups)
    draws = [torch.Generator().manual_seed(seed) for *_, seed in nets.lanes]
    known = len(images) - HELD_OUT
    held_out = images[:HELD_OUT].expand(len(draws), *images[:HELD_OUT].shape)
    found = torch.zeros(len(draws))
    for epoch in range(epochs):
        orders = torch.stack([HELD_OUT + torch.randperm(known, generator=g) for g in draws])
        for batch in orders[:, : known - known % BATCH].split(BATCH, 1):
            optimiser.zero_grad()
            logits = nets.forward(images[batch])
            losses = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="none")
            losses.view(len(draws), -1).mean(1).sum().backward()
            optimiser.step()
        if epoch >= epochs - LAST:
            if contender == RECALIBRATED:
                nets.recalibrate(images[HELD_OUT:].split(BATCH)[:-1])
            with torch.no_grad():
                logits = nets.forward(held_out, training=False)
            found += 100 / LAST * (logits.argmax(-1) == labels[:HELD_OUT]).float().mean(1)
    return found.tolist()


def table(rows: dict[str, list[float]], title: str) -> list[str]:
    """Markdown of one architecture: a line for each contender, a column for each curvature and rate."""
    heads = [f"c {c:g}, {rate:g}" for c in CURVATURES for rate in RATES]
    measured = [who for who in CONTENDERS if f"{title}/{who}" in rows]
    if not measured:
        return []
    lines = [f"| {title} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for contender in measured:
        lines.append(
            f"| {contender} | {' | '.join(f'{m:.1f}' for m in cells(rows[f'{title}/{contender}']))} |"
        )
    return [*lines, ""]


def cells(lanes: list[float]) -> list[float]:
    """Means over the seeds, curvature by curvature."""
    return by_cell(lanes).mean(1).tolist()


def by_cell(lanes: list[float]) -> Tensor:
    """[cells, seeds], curvature by curvature."""
    return torch.tensor(lanes).view(len(RATES), len(CURVATURES), SEEDS).transpose(0, 1).flatten(0, 1)


def verdict(rows: dict[str, list[float]]) -> list[str]:
    """What the tables say of the bar: ours at most a point below the better of HypLL and the clip."""
    lines = []
    for who, subject in (("ours", "Ours is"), (RECALIBRATED, "With batch norm recalibrated ours is")):
        compared, clear, below, collapsed = shortfalls(rows, who)
        said = (
            f"{compared} cells are compared. {subject} more than a point below the better of HypLL and the clip in "
            f"{len(below)} of them, in {clear} of these beyond the noise of the seeds (95 % interval of the "
            f"difference), and collapses (below {COLLAPSED:.0f} %) where HypLL does not in {collapsed}."
        )
        lines += [*textwrap.wrap(said, 116), "", *(f"- {line}" for line in below), ""]
    return lines


def shortfalls(rows: dict[str, list[float]], who: str) -> tuple[int, int, list[str], int]:
    """Cells of a contender: compared, below the bar beyond noise, lines about those below it, and collapsed."""
    compared, clear, below, collapsed = 0, 0, [], 0
    for title in SHAPES:
        names = [f"{title}/{one}" for one in (who, *COMPARED[1:])]
        if any(name not in rows for name in names):
            continue
        seeds = torch.stack([by_cell(rows[name]) for name in names])
        for at, (ours, *others) in enumerate(seeds.unbind(1)):
            best = max(others, key=lambda other: other.mean().item())
            less = (ours.mean() - best.mean()).item()
            noise = STUDENT * ((ours.var() + best.var()) / SEEDS).sqrt().item()
            compared += 1
            collapsed += int(ours.mean() < COLLAPSED <= others[0].mean())
            if less < -1:
                clear += less + noise < 0
                cell = f"{title}, c {CURVATURES[at // len(RATES)]:g}, rate {RATES[at % len(RATES)]:g}"
                means = ours.mean(), *(other.mean() for other in others)
                below.append(
                    f"{cell}: {means[0]:.1f} (HypLL {means[1]:.1f}, clip {means[2]:.1f}; {less:.1f} ± {noise:.1f})"
                )
    return compared, clear, below, collapsed


def main(arguments: list[str]) -> None:
    """Measure what is missing and write the tables between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/training_study"))
    parser.add_argument("--doc", type=Path, default=Path("docs/hyperbolic_training.md"))
    parser.add_argument("--only", default="", help="measure the rows whose name contains this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = (row for contenders in (COMPARED, CONTENDERS) for row in itertools.product(SHAPES, contenders))
    for title, contender in rows:
        if contender == RECALIBRATED and not SHAPES[title][0].norm:
            continue
        file = options.store / f"{title}, {contender}.json"
        if not file.exists() and options.only in file.stem:
            start = time.process_time()
            lanes = train(*SHAPES[title], contender)
            options.store.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(lanes))
            print(f"{title}, {contender}: {time.process_time() - start:.0f} s of processor time", flush=True)
        write(stored(options.store), options.doc)


def stored(store: Path) -> dict[str, list[float]]:
    """The rows that are measured, by "architecture/contender"."""
    files = {f"{title}/{who}": store / f"{title}, {who}.json" for title in SHAPES for who in CONTENDERS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def write(rows: dict[str, list[float]], page: Path) -> None:
    """Replace what stands between the marks of the page."""
    text = "\n".join([*verdict(rows), *(line for title in SHAPES for line in table(rows, title))])
    old = page.read_text()
    new = re.sub(r"(<!-- study -->\n).*(<!-- /study -->)", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S)
    page.write_text(new)


if __name__ == "__main__":
    main(sys.argv[1:])
