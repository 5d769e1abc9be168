"""python -m tests.perf.training_study: where nets of the layers train, beside HypLL; the tables of a page in docs.

Digits (scikit-learn's), AdamW, batches of 64, float32. A cell is the mean held-out accuracy over the seeds. Every row
is stored as soon as it is measured, so that an interrupted study goes on where it stopped.
"""

import argparse
import itertools
import json
import re
import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from tests.perf.training_nets import CONTENDERS, Nets, Shape

CURVATURES, RATES, SEEDS = (0.1, 1.0, 3.0), (1e-3, 3e-3, 1e-2, 3e-2), 3
HELD_OUT, BATCH = 497, 64
SHAPES = {
    f"perceptron, {depth} hidden layers{', batch norm' if norm else ''}": (Shape(depth - 1, norm), 20)
    for depth in (2, 4, 6)
    for norm in (False, True)
} | {"convolutional net": (Shape(conv=True), 10)}
COLLAPSED = 50.0
"""Per cent of accuracy, averaged over the seeds, below which a cell counts as collapsed."""


def digits() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 64] in 0..1 and labels, in a fixed order."""
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].float() / 16, labels[order]


def train(shape: Shape, epochs: int, contender: str, images: Tensor, labels: Tensor) -> list[float]:
    """Held-out accuracy, in per cent, of each lane: rates x curvatures x seeds."""
    nets = Nets(shape, contender, CURVATURES, RATES, SEEDS)
    images = images.view(-1, 1, 8, 8) if shape.conv else images
    optimiser = torch.optim.AdamW(nets.groups)
    draws = [torch.Generator().manual_seed(seed) for *_, seed in nets.lanes]
    known = len(images) - HELD_OUT
    for _ in range(epochs):
        orders = torch.stack([HELD_OUT + torch.randperm(known, generator=g) for g in draws])
        for batch in orders[:, : known - known % BATCH].split(BATCH, 1):
            optimiser.zero_grad()
            logits = nets.forward(images[batch])
            losses = F.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="none")
            losses.view(len(draws), -1).mean(1).sum().backward()
            optimiser.step()
    with torch.no_grad():
        logits = nets.forward(images[:HELD_OUT].expand(len(draws), *images[:HELD_OUT].shape), training=False)
    return (100 * (logits.argmax(-1) == labels[:HELD_OUT]).float().mean(1)).tolist()


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


def cells(lanes: list[float] | None) -> list[float]:
    """Means over the seeds, curvature by curvature."""
    if not lanes:
        return []
    return torch.tensor(lanes).view(len(RATES), len(CURVATURES), SEEDS).mean(2).T.flatten().tolist()


def verdict(rows: dict[str, list[float]]) -> list[str]:
    """What the tables say of the bar: ours at most a point below the better of HypLL and the clip."""
    compared, below, collapsed = 0, [], []
    for title in SHAPES:
        ours, peer, clip = (cells(rows.get(f"{title}/{who}")) for who in ("ours", "HypLL", "clip at 4"))
        for at, (a, b, d) in enumerate(zip(ours, peer, clip, strict=False)):
            name = f"{title}, c {CURVATURES[at // len(RATES)]:g}, rate {RATES[at % len(RATES)]:g}"
            compared += 1
            if a < max(b, d) - 1:
                below.append(f"{name}: {a:.1f} (HypLL {b:.1f}, clip {d:.1f})")
            if a < COLLAPSED <= b:
                collapsed.append(name)
    return [
        f"{compared} of {len(SHAPES) * len(CURVATURES) * len(RATES)} cells are measured. Ours is more than a point "
        f"below the better of HypLL and the clip in {len(below)} of them, and collapses (below {COLLAPSED:.0f} %) "
        f"where HypLL does not in {len(collapsed)}.",
        "",
        *(f"- {line}" for line in below),
        "",
    ]


def main(arguments: list[str]) -> None:
    """Measure what is missing and write the tables between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/training_study"))
    parser.add_argument("--doc", type=Path, default=Path("docs/hyperbolic_training.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = digits()
    for title, contender in itertools.product(SHAPES, CONTENDERS):
        file = options.store / f"{title}, {contender}.json"
        if not file.exists():
            start = time.process_time()
            lanes = train(*SHAPES[title], contender, images, labels)
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
