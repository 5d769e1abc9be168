"""Poincare embeddings of the WordNet mammals (Nickel and Kiela, NeurIPS 2017), and the picture of the disk.

    .venv/bin/python docs/tutorials/wordnet_mammals.py --dimensions 2 --picture docs/tutorials/wordnet_mammals.png
    .venv/bin/python docs/tutorials/wordnet_mammals.py --dimensions 10

The 1,180 kinds of mammal in WordNet form a tree with a few crossings, and a tree grows exponentially with depth.
So does hyperbolic space with radius, and that is why two dimensions go a long way there. Each kind gets a point.
Training sees pairs (kind, what it is a kind of), transitive ones included, and pulls the two together against
random others; nobody tells it which of the two is the more general one. That it finds out by itself is the
point: general kinds end near the origin, special ones near the rim.

Each row of the table is a tangent vector at the origin, an ordinary parameter that torch's Adam trains;
tree_embedding.py shows why that is better than a table of points with Riemannian SGD. --rows points and
--rows geoopt train such a table, ours and geoopt's, on the same pairs.

What is measured is reconstruction, as published: for each pair, the rank of the true distance among the distances
to everything that is no ancestor (1 is best), and the mean average precision over kinds.
"""

import argparse
import lzma
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic import poincare
from hyco.models.hyperbolic.optim import RiemannianSGD, parameter_groups

NOUNS = Path("data/wordnet/data.noun")
LABELS = """mammal placental carnivore canine dog feline bear pinniped ungulate even-toed_ungulate odd-toed_ungulate
ruminant deer antelope equine horse primate ape monkey lemur cetacean whale dolphin bat rodent mouse squirrel
marsupial kangaroo elephant rabbit insectivore edentate monotreme terrier hound cattle sheep cat seal
domestic_cat hunting_dog pony swine"""
BRANCHES = ("carnivore", "ungulate", "primate", "rodent", "aquatic_mammal", "marsupial", "bat")
COLOURS = ("#c0392b", "#2471a3", "#b9770e", "#6c8e3f", "#148f8f", "#8e44ad", "#d1478c")
REST = "#707070"


class Kinds:
    """The synsets below one: names, ids of the direct (child, parent) pairs, and of all (kind, ancestor) pairs."""

    def __init__(self, path: Path, root: str) -> None:
        words, above = read_nouns(path)
        top = next((k for k in words if words[k] == root), None)
        if top is None:
            raise ValueError(f"{path} has no synset whose first word is {root!r}")
        below: dict[str, list[str]] = {}
        for kind, parents in above.items():
            for parent in parents:
                below.setdefault(parent, []).append(kind)
        found, queue = {top: 0}, [top]
        for kind in queue:  # grows while it is read
            for child in below.get(kind, []):
                if child not in found:
                    found[child] = len(found)
                    queue.append(child)
        self.names = [words[kind] for kind in queue]
        self.links = [(found[k], found[p]) for k in queue for p in above[k] if p in found]
        ancestors: list[set[int]] = [set() for _ in queue]
        # Synsets of several parents come to the queue by the first, so a parent may follow its child: repeat.
        changed = True
        while changed:
            changed = False
            for child, parent in self.links:
                more = ancestors[parent] | {parent}
                changed |= not more <= ancestors[child]
                ancestors[child] |= more
        self.pairs = [(kind, up) for kind, all_up in enumerate(ancestors) for up in sorted(all_up)]
        self.related = torch.eye(len(queue), dtype=torch.bool)
        self.related[tuple(torch.tensor(self.pairs).T)] = True

    def __len__(self) -> int:
        return len(self.names)


def read_nouns(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """First word, and ids of the direct hypernyms, of every noun synset; data.noun as wndb(5WN) describes it."""
    words, above = {}, {}
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="latin-1") as file:
        for line in file:
            if line.startswith("  "):  # the licence stands at the top, indented
                continue
            fields = line.partition(" | ")[0].split()
            at = 4 + 2 * int(fields[3], 16)  # word and sense number, as many as the hexadecimal count says
            words[fields[0]] = fields[4]
            pointers = zip(fields[at + 1 :: 4], fields[at + 2 :: 4], strict=False)
            above[fields[0]] = [target for symbol, target in pointers if symbol in ("@", "@i")]
    return words, above


def make_table(
    size: int, dimensions: int, rows: str, rate: float
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], torch.optim.Optimizer]:
    """(indices -> points of the ball, their distance, optimiser) in float64, where the ball reaches 33."""
    table = hnn.Embedding(size, dimensions, points=rows != "tangent", std=1e-3).double()
    if rows == "geoopt":
        import geoopt

        ball = geoopt.PoincareBall(c=torch.tensor(1.0, dtype=torch.double))
        points = geoopt.ManifoldParameter(table.weight.detach(), manifold=ball)
        return points.__getitem__, ball.dist, geoopt.optim.RiemannianSGD([points], lr=rate)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return poincare.distance(x, y, 1.0)

    if rows == "points":
        return table, distance, RiemannianSGD(parameter_groups(table), lr=rate)
    lift = hnn.ChangeManifold("tangent", "poincare")
    return nn.Sequential(table, lift), distance, torch.optim.Adam(table.parameters(), lr=rate)


def train(kinds: Kinds, options: argparse.Namespace) -> Tensor:
    """Points of the Poincare ball, [kinds, dimensions]."""
    # 1. A table of tangent vectors at the origin, any optimiser's; or of points, which move along geodesics.
    rate = options.rate or {"tangent": 0.03, "points": 0.2, "geoopt": 0.2}[options.rows]
    points, distance, optimiser = make_table(len(kinds), options.dimensions, options.rows, rate)
    pairs = torch.tensor(kinds.pairs)
    often = torch.bincount(pairs.flatten(), minlength=len(kinds)).double() ** 0.75
    evenly = torch.ones_like(often)
    start = shown = time.monotonic()
    for epoch in range(options.epochs):
        # 2. Burn-in: small steps, and common kinds as negatives, until the angles have found their places. Then the
        # rate of Adam falls to 0; that of Riemannian SGD stays, as published.
        burning = epoch < options.burn_in
        left = (options.epochs - epoch) / max(options.epochs - options.burn_in, 1)
        optimiser.param_groups[0]["lr"] = rate * (
            0.1 if burning else left if options.rows == "tangent" else 1.0
        )
        drawn = torch.multinomial(
            often if burning else evenly, len(pairs) * options.negatives, replacement=True
        )
        negatives = drawn.view(len(pairs), options.negatives)
        total, batches = 0.0, torch.randperm(len(pairs)).split(options.batch)
        for batch in batches:
            (kind, true), others = pairs[batch].T, negatives[batch]
            # 3. Which of 1 + 50 is the ancestor? A softmax of minus distances; what is related is no negative.
            logits = -distance(points(kind).unsqueeze(1), points(torch.cat([true.unsqueeze(1), others], 1)))
            related = kinds.related[kind.unsqueeze(1), others]
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(related, -torch.inf)], 1)
            # A sum, so that each pair moves its points as far as it would alone.
            loss = F.cross_entropy(logits, torch.zeros_like(kind), reduction="sum")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        now = time.monotonic()
        if now - shown > 5 or epoch + 1 == options.epochs:
            shown, speed = now, (epoch + 1) / (now - start)
            left = (options.epochs - epoch - 1) / speed
            print(f"epoch {epoch + 1:4d}/{options.epochs}  loss {total / len(pairs):.3f}  "
                  f"{speed * len(pairs):,.0f} pairs/s  {left:.0f} s left", flush=True)  # fmt: skip
    with torch.no_grad():
        return points(torch.arange(len(kinds))).detach()


def reconstruction(points: Tensor, kinds: Kinds) -> tuple[float, float]:
    """(mean rank, mean average precision) of the true ancestors."""
    ranks, precisions = [], []
    for kind, distances in enumerate(poincare.pairwise_distance(points, points, 1.0)):
        true = kinds.related[kind].clone()
        true[kind] = False
        if not true.any():
            continue
        wrong = distances[~kinds.related[kind]].sort().values
        before = torch.searchsorted(wrong, distances[true].sort().values).double()
        ranks.append(before + 1)
        order = torch.arange(1, len(before) + 1)
        precisions.append((order / (order + before)).mean())
    return torch.cat(ranks).mean().item(), torch.stack(precisions).mean().item()


def picture(points: Tensor, kinds: Kinds, file: Path) -> None:
    """The disk: links as geodesics, branches by colour, well-known kinds by name."""
    import matplotlib.pyplot as plt

    # An isometry brings the root to the middle. Most kinds are so far from it that they would lie in the line of the
    # rim: distances from the root are drawn at a quarter.
    points = poincare.scale(0.25, poincare.difference(points[:1], points, 1.0), 1.0)
    branch = branches(kinds)
    figure, axes = plt.subplots(figsize=(9, 9), dpi=100)
    axes.add_patch(plt.Circle((0, 0), 1, facecolor="#fbfaf7", edgecolor="#444444", linewidth=1.2))
    share = torch.linspace(0, 1, 48, dtype=points.dtype).view(-1, 1, 1)
    child, parent = torch.tensor(kinds.links).T
    curves = poincare.geodesic(points[parent].unsqueeze(0), points[child].unsqueeze(0), share, 1.0).numpy()
    for at, kind in enumerate(child.tolist()):
        axes.plot(*curves[:, at].T, color=branch[kind], linewidth=0.5, alpha=0.35, zorder=1)
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=7, c=branch, linewidths=0, zorder=2)
    taken: list[np.ndarray] = []
    for label in LABELS.split():
        if label not in kinds.names:
            continue
        kind = kinds.names.index(label)
        x, y = points[kind].tolist()
        # The first of eight places around the point where no other name stands; none: no name.
        for turn in (0, 4, 2, 6, 1, 3, 5, 7):
            angle, wide = turn * np.pi / 4, 0.011 * len(label)
            middle = np.array([x + (0.02 + wide) * np.cos(angle), y + 0.03 * np.sin(angle)])
            box = np.array([[middle[0] - wide, middle[1] - 0.016], [middle[0] + wide, middle[1] + 0.016]])
            if all((box[0] > other[1]).any() or (box[1] < other[0]).any() for other in taken):
                taken.append(box)
                axes.text(middle[0], middle[1], label.replace("_", " "), fontsize=8.5, ha="center", va="center",
                          color=branch[kind], zorder=4, fontweight="bold",
                          bbox={"facecolor": "#fbfaf7", "alpha": 0.75, "pad": 0.6, "linewidth": 0})  # fmt: skip
                axes.scatter([x], [y], s=22, color=branch[kind], edgecolors="white", linewidths=0.6, zorder=3)
                break
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(-1.03, 1.03)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(file, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    with Image.open(file) as drawn:  # a few dozen colours are all there is: a third of the bytes
        drawn.convert("RGB").quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            file, optimize=True
        )
    print(f"{file}: {len(taken)} of {len(kinds)} kinds named")


def branches(kinds: Kinds) -> list[str]:
    """The colour of the branch each kind belongs to."""
    colours = [REST] * len(kinds)
    for name, colour in zip(BRANCHES, COLOURS, strict=True):
        if name in kinds.names:
            for kind in kinds.related[:, kinds.names.index(name)].nonzero().flatten().tolist():
                colours[kind] = colour
    return colours


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Train, measure, draw; returns (mean rank, MAP)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nouns", type=Path, default=NOUNS, help="data.noun of WordNet 3.0, plain or .xz")
    parser.add_argument("--root", default="mammal")
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--burn-in", type=int, default=10)
    parser.add_argument("--negatives", type=int, default=50)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rows", choices=("tangent", "points", "geoopt"), default="tangent")
    parser.add_argument("--rate", type=float, help="learning rate (0.03 of tangent rows, 0.2 of points)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of the disk (2 dimensions)")
    options = parser.parse_args(arguments)
    if not options.nouns.is_file():
        parser.error(f"no WordNet at {options.nouns}: give data.noun of WordNet 3.0 with --nouns")
    if options.picture and options.dimensions != 2:
        parser.error(f"a picture needs --dimensions 2; got {options.dimensions}")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    kinds = Kinds(options.nouns, options.root)
    print(f"{len(kinds):,} kinds of {options.root}, {len(kinds.pairs):,} pairs of the transitive closure")
    points = train(kinds, options)
    rank, precision = reconstruction(points, kinds)
    print(f"{options.dimensions} dimensions: mean rank {rank:.2f}, MAP {precision:.3f}")
    radius, below = 2 * torch.atanh(points.norm(dim=1)), kinds.related.sum(0) - 1
    for least, most in ((0, 0), (1, 4), (5, 29), (30, len(kinds))):
        found = radius[(below >= least) & (below <= most)]
        if len(found):
            print(
                f"  {len(found):4d} kinds with {least} to {most} below them: median distance {found.median():.2f}"
            )
    if options.picture:
        picture(points, kinds, options.picture)
    return rank, precision


if __name__ == "__main__":
    main()
