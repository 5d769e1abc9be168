"""Walks to the root among the names that the training captions say, beside all names of the taxonomy.

    python -m hyco.pipeline.experiments.said_names RUN --home var/demo

Is a walk poor because the upper names never occur in a caption, so that training gives them no place? The same walks
are read with all names and with those alone that occur, singular or plural, as whole words; and for the images whose
true leaf has an ancestor that occurs, and for the others. Equal steps cross the distances at which texts lie in a few
steps, so the walks are also taken in steps that shrink by a factor.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.metrics.traversal import climbs, nearest, root_of, walk
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of
from hyco.pipeline.experiments.grid import command
from hyco.pipeline.imaging.decode import decode
from hyco.pipeline.sources.source import open_source

LEAST = 0.005  # of the way, before the root, of the steps that shrink


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


def ancestors(parents: Sequence[int], rows: Sequence[int]) -> Bool[np.ndarray, "K K"]:
    """Whether node rows[j] is above node rows[i]; nodes that are left out are passed."""
    place = {node: n for n, node in enumerate(rows)}
    above = np.zeros((len(rows), len(rows)), bool)
    for n, node in enumerate(rows):
        up = parents[node]
        while up >= 0:
            if up in place:
                above[n, place[up]] = True
            up = parents[up]
    return above


def levels(index: Int[np.ndarray, "N S"], depth: Int[np.ndarray, " K"]) -> Int[np.ndarray, " N"]:
    """Number of depths of the tree that each walk meets; the root, index K, does not count."""
    return np.array([len(np.unique(depth[row[row < len(depth)]])) for row in index])


def report(
    run: Path, source: str, training: str, taxonomy: Path, most: int = 300, seed: int = 0
) -> list[str]:
    """The lines of a markdown table: the walks of a run among all and among the said names.

    Raises:
        FileNotFoundError: no model, taxonomy or source.
        ValueError: a Euclidean model with shrinking steps, no image with a single kind of thing.
    """
    tree, nodes = Taxonomy.load(taxonomy), json.loads(taxonomy.read_text())["nodes"]
    opened = open_source(training)
    captions = (
        text
        for unit in opened.units()
        for sample in opened.samples(unit, lambda failure: None)
        for text in sample.captions
    )
    counts = occurring(nodes, captions)
    embedder, boot = Embedder.load(run / "model", "cpu"), Bootstrap(1000)
    scenes = of_source(source, 5000).scenes
    chosen = np.sort(np.random.default_rng(seed).permutation(len(scenes))[:most])
    scenes = [scenes[n] for n in chosen if len(set(scenes[n].labels or ())) == 1]
    if not scenes:
        raise ValueError(f"{source}: no image shows a single kind of thing, so that no walk has a true leaf")
    leaf_of = tree.leaves()
    leaf = [int(leaf_of[tree.class_index(next(iter(set(scene.labels or ()))))]) for scene in scenes]
    start = embedder.encode_image([decode(scene.image) for scene in scenes])
    root = root_of(embedder.curvatures, start)
    every = [n for n in range(len(tree.ids)) if n != tree.root()]
    said = [n for n in every if counts.get(tree.ids[n])]
    depths = tree.depths()
    lines = [
        f"{len(said)} of {len(every)} names occur; by depth "
        + ", ".join(
            f"{d}: {sum(depths[n] == d for n in said)} of {sum(depths[n] == d for n in every)}"
            for d in np.unique(depths[every])
        ),
        "| names | true leaf | steps | walks | two depths, % | three depths, % | at an ancestor, % | chance, % |",
        "|---" * 8 + "|",
    ]
    for title, rows in (("all", every), ("that occur", said)):
        above, place = ancestors(tree.parents, rows), {node: n for n, node in enumerate(rows)}
        vectors = vectors_of(embedder, [tree.names[n] for n in rows], tree.prompts)
        known = np.array([node in place for node in leaf])
        has = np.array([bool(np.isin(_up(tree.parents, node), said).any()) for node in leaf])
        for steps, least in (("equal", 0.0), ("shrinking", LEAST)):
            if least and embedder.curvatures is None:
                continue
            way = walk(start, embedder.curvatures, root, least=least)
            index = nearest(embedder.model.nearness, way, vectors, root)
            for group, mask in (("any", has | ~has), ("ancestor occurs", has), ("none occurs", ~has)):
                mask = mask & known
                if not mask.any():
                    continue
                truth = np.array([place[node] for node, kept in zip(leaf, mask, strict=True) if kept])
                found = climbs(index[mask], truth, above, boot)
                met, value = levels(index[mask], depths[rows]), found.numbers
                at, chance = "-", "-"
                if "ancestor" in value:  # no name is met where the root is always nearest
                    low, high = found.intervals["ancestor"]
                    at = f"{100 * value['ancestor']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                    chance = f"{100 * value['chance']['ancestor']:.1f}"
                cells = (title, group, steps, str(mask.sum()), f"{100 * (met >= 2).mean():.0f}")
                lines.append(f"| {' | '.join(cells)} | {100 * (met >= 3).mean():.0f} | {at} | {chance} |")
    return lines


def _up(parents: Sequence[int], node: int) -> list[int]:
    found, up = [], parents[node]
    while up >= 0:
        found.append(up)
        up = parents[up]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print how walks to the root do among the names that captions say, and among all."""
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
