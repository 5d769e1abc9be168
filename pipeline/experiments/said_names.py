"""Walks to the root among the names that the training captions say, beside all names of the taxonomy.

    python -m hyco.pipeline.experiments.said_names RUN --home var/demo

Is a walk poor because the upper names never occur in a caption, so that training gives them no place? The same walks
are read with all names and with those alone that occur, singular or plural, as whole words; and for the images whose
true leaf has an ancestor that occurs, and for the others. Equal steps cross the distances at which texts lie in a few
steps, so the walks are also taken in steps that shrink by a factor. The section `attribution` of the evaluation is
likewise read with both sets of names.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.evaluation.metrics.attribution import Concepts, attribute
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.geometry import radii
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy, ancestors, parents_among, upward
from hyco.pipeline.evaluation.metrics.traversal import climbs, nearest, root_of, walk
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of
from hyco.pipeline.evaluation.sections import name_aperture
from hyco.pipeline.experiments.grid import command
from hyco.pipeline.imaging.decode import decode
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.sources.source import open_source

LEAST = 0.005  # of the way, before the root, of the steps that shrink
READINGS = {
    "direction": ("norm", "angle", "bias"),
    "hierarchical_retrieval": ("score", "angle", "norm"),
    "membership": ("angle", "aperture", "angle_and_norm", "angle_and_bias", "norm"),
}
WALKS = (
    "names",
    "steps",
    "true leaf",
    "walks",
    "two depths, %",
    "three depths, %",
    "at an ancestor, %",
    "chance, %",
)
UPPER = ("inner name", "captions", "distance", "its children's, median", "cosine with them, mean")
NORMS = (
    "names",
    "parent and child",
    "parent told by norm / angle / bias (chance), %",
    "AP of the images under a name by score / angle / norm, %",
    "AP of all pairs by angle / and aperture / and best norm / and bias / norm alone, %",
)


def occurring(nodes: Sequence[Mapping[str, Any]], captions: Iterable[str]) -> dict[str, int]:
    """How many captions say each node, by id: one of its names or its plural as whole words, in any case."""
    forms = {}
    for node in nodes:
        words = {*(node.get("names") or (node["id"].replace("_", " "),)), *filter(None, [node.get("plural")])}
        forms[node["id"]] = re.compile("|".join(rf"\b{re.escape(w)}\b" for w in sorted(words)), re.IGNORECASE)
    texts = list(captions)
    together = "\n".join(texts)
    return {
        name: sum(bool(form.search(text)) for text in texts) if form.search(together) else 0
        for name, form in forms.items()
    }


def levels(index: Int[np.ndarray, "N S"], depth: Int[np.ndarray, " K"]) -> Int[np.ndarray, " N"]:
    """Number of depths of the tree that each walk meets; the root, index K, does not count."""
    return np.array([len(np.unique(depth[row[row < len(depth)]])) for row in index])


@dataclass(frozen=True)
class _Names:
    """A model, a tree, and some of its names: `rows` are their nodes, `place` the row of a node."""

    embedder: Embedder
    tree: Taxonomy
    rows: Sequence[int]

    @cached_property
    def place(self) -> dict[int, int]:
        return {node: n for n, node in enumerate(self.rows)}

    @cached_property
    def vectors(self) -> Tensor:
        """The points of the names."""
        return vectors_of(self.embedder, [self.tree.names[n] for n in self.rows], self.tree.prompts)


def walks(
    names: _Names, start: Tensor, leaf: Sequence[int], said: Sequence[int], least: float, boot: Bootstrap
) -> Iterator[list[str]]:
    """Cells of the walks from images to the root: whose true leaf is any, below a said name, or below none."""
    curvatures, tree, rows, place = names.embedder.curvatures, names.tree, names.rows, names.place
    above, depth = ancestors(tree.parents, rows), tree.depths()[list(rows)]
    root = root_of(curvatures, start)
    index = nearest(
        names.embedder.model.nearness, walk(start, curvatures, root, least=least), names.vectors, root
    )
    known = np.array([node in place for node in leaf])
    has = np.array([bool(np.isin(list(upward(tree.parents, node)), said).any()) for node in leaf])
    for group, mask in (("any", known), ("ancestor occurs", known & has), ("none occurs", known & ~has)):
        if not mask.any():
            continue
        truth = np.array([place[node] for node, kept in zip(leaf, mask, strict=True) if kept])
        found, met = climbs(index[mask], truth, above, boot), levels(index[mask], depth)
        at, chance = "-", "-"
        if "ancestor" in found.numbers:  # no name is met where the root is always nearest
            low, high = found.intervals["ancestor"]
            at = f"{100 * found.numbers['ancestor']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            chance = f"{100 * found.numbers['chance']['ancestor']:.1f}"
        three = f"{100 * (met >= 3).mean():.0f}"
        yield [group, str(mask.sum()), f"{100 * (met >= 2).mean():.0f}", three, at, chance]


def upper(names: _Names, counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Cells of the inner names: each that occurs, then the median of those that do not.

    Captions that say it, distance from the origin in units of the curvature, the median distance of its children, and
    the mean cosine with them.
    """
    tree, vectors = names.tree, names.vectors
    parents = parents_among(tree.parents, names.rows)
    unit, curvatures = F.normalize(vectors, dim=1), names.embedder.curvatures
    assert curvatures is not None, "report refuses Euclidean models"
    radius = radii(vectors, curvatures)
    silent: list[tuple[float, ...]] = []
    for row, node in enumerate(names.rows):
        below = np.flatnonzero(parents == row)
        if len(below):
            near = float((unit[row] @ unit[torch.from_numpy(below)].T).mean())
            figures = (float(radius[row]), float(np.median(radius[below])), near)
            if count := counts.get(tree.ids[node]):
                yield [tree.names[node][0], str(count), *(f"{x:.2g}" for x in figures)]
            else:
                silent.append(figures)
    if silent:
        yield [f"{len(silent)} others", "0", *(f"{x:.2g}" for x in np.median(silent, axis=0))]


def readings(
    names: _Names, images: Tensor, leaves: Sequence[Sequence[int]], k: float, boot: Bootstrap
) -> list[str]:
    """Cells of `attribution`: a parent told from its child, the images under a name, and all pairs in one ranking."""
    curvatures = names.embedder.curvatures
    concepts = Concepts.of(names.vectors, names.tree, names.rows, images, leaves)
    found = attribute(concepts, names.embedder.score, curvatures, k, boot).numbers
    cells = [f"{found['direction']['n']} pairs"]
    for block, keys in READINGS.items():
        percent = [f"{100 * found[block][key]:.1f}" for key in keys if key in found[block]]
        guess = found[block].get("chance")
        cells.append(
            f"{' / '.join(percent) or '-'} ({100 * next(iter(guess.values())):.1f})" if guess else "-"
        )
    return cells


def report(
    run: Path, source: str, training: str, taxonomy: Path, most: int = 300, seed: int = 0
) -> list[str]:
    """Markdown tables of a run: walks and what the norm tells, among all and the said names; and the inner names.

    Raises:
        FileNotFoundError: no model, taxonomy or source.
        ValueError: a Euclidean model, no image with a single kind of thing.
    """
    tree, nodes = Taxonomy.load(taxonomy), json.loads(taxonomy.read_text(encoding="utf-8"))["nodes"]
    embedder, boot = Embedder.load(run / "model", "cpu"), Bootstrap(1000)
    if embedder.curvatures is None:
        raise ValueError(
            f"{run} is Euclidean: it has no norms and no origin to walk to; give a hyperbolic model"
        )
    objective = json.loads((run / "config.json").read_text(encoding="utf-8"))["recipe"]["objective"]
    opened = open_source(training)
    captions = (
        text
        for unit in opened.units()
        for sample in opened.samples(unit, lambda failure: None)
        for text in sample.captions
    )
    counts = occurring(nodes, captions)
    every = [n for n in range(len(tree.ids)) if n != tree.root()]
    said, depths = [n for n in every if counts.get(tree.ids[n])], tree.depths()
    scenes = of_source(source, 5000).scenes
    chosen = set(np.random.default_rng(seed).permutation(len(scenes))[:most].tolist())
    class_of = tree.leaves()
    leaves = [[int(class_of[tree.class_index(label)]) for label in set(s.labels or ())] for s in scenes]
    single = [n for n, own in enumerate(leaves) if n in chosen and len(own) == 1]
    if not single:
        raise ValueError(f"{source}: no image shows a single kind of thing, so that no walk has a true leaf")
    points = embedder.encode_image([decode(scene.image) for scene in scenes])
    by_depth = (
        f"{d}: {sum(depths[n] == d for n in said)} of {sum(depths[n] == d for n in every)}"
        for d in np.unique(depths[every])
    )
    lines = [f"{len(said)} of {len(every)} names occur; by depth {', '.join(by_depth)}", ""]
    kinds = {"all": _Names(embedder, tree, every), "that occur": _Names(embedder, tree, said)}
    walked = [
        [title, steps, *cells]
        for title, names in kinds.items()
        for steps, least in (("equal", 0.0), ("shrinking", LEAST))
        for cells in walks(names, points[single], [leaves[n][0] for n in single], said, least, boot)
    ]
    lines += [*table(WALKS, walked), ""]
    labelled, k = [n for n, own in enumerate(leaves) if own], name_aperture(objective)
    told = [
        [title, *readings(names, points[labelled], [leaves[n] for n in labelled], k, boot)]
        for title, names in kinds.items()
    ]
    lines += [*table(NORMS, told), ""]
    return lines + table(UPPER, upper(kinds["all"], counts))


def main(arguments: list[str] | None = None) -> int:
    """Print what walks to the root meet and norms tell, among the names that captions say and among all."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.experiments.said_names", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--home", type=Path, default=Path("var/demo"), help="home with the scenes")
    given = parser.parse_args(arguments)
    scenes = given.home / "scenes"
    return command(
        lambda: print(
            "\n".join(
                report(given.run, str(scenes / "heldout"), str(scenes / "train"), scenes / "taxonomy.json")
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
