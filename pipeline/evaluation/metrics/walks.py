"""The section traversal: walks from images to the root, with texts, images and names of a taxonomy as candidates."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.retrieval import same_text
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy, ancestors
from hyco.pipeline.evaluation.metrics.traversal import Pool, climbs, met, nearest, root_of, walk
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of


@dataclass(frozen=True, slots=True)
class Walks:
    """Walks from some images to the root.

    Attributes:
        images: indices of the embedded images at their start.
        texts: the candidate texts: `captions` captions first, then phrases.
        text: index of the nearest text at each step, len(texts) for the root.
        picture: index of the nearest picture: images first, then their parts; their number for the root.
        names: of the taxonomy, without its root; empty without one.
        name: index of the nearest name at each step, or None.
    """

    images: Int[np.ndarray, " N"]
    texts: tuple[str, ...]
    captions: int
    text: Int[np.ndarray, "N S"]
    picture: Int[np.ndarray, "N S"]
    names: tuple[str, ...] = ()
    name: Int[np.ndarray, "N S"] | None = None


def traverse(
    embedder: Embedder,
    embedded: Embedded,
    tree: Taxonomy | None,
    boot: Bootstrap,
    most: int,
    seed: int,
) -> tuple[MetricResult, Walks]:
    """Walk from at most `most` images drawn by seed; the blocks texts, pictures and (with a tree) names."""
    count = len(embedded.images)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    start = embedded.images[torch.from_numpy(chosen)]
    root = root_of(embedder.curvatures, embedded.texts, embedded.images)
    way = walk(start, embedder.curvatures, root)

    captions, phrases = embedded.captions.texts, embedded.phrases.texts
    known = {same_text(text) for text in captions}
    fresh = [n for n, text in enumerate(phrases) if same_text(text) not in known]
    texts = (*captions, *(phrases[n] for n in fresh))
    text = nearest(
        embedder.model.nearness, way, torch.cat([embedded.texts, embedded.phrase_points[fresh]]), root
    )
    picture = nearest(embedder.model.nearness, way, torch.cat([embedded.images, embedded.crops]), root)

    called = {same_text(text) for text in phrases}
    is_phrase = np.array([same_text(text) in called for text in texts])
    is_part = np.arange(count + len(embedded.crops)) >= count
    pools = {
        "texts": (text, Pool(len(texts), is_phrase, _own_texts(embedded, texts, chosen)), "phrases"),
        "pictures": (picture, Pool(len(is_part), is_part, _own_pictures(embedded, chosen)), "parts"),
    }
    found = {block: met(index, pool, general, boot) for block, (index, pool, general) in pools.items()}
    names: tuple[str, ...] = ()
    name = None
    if tree is not None:
        names, above = _names(tree)
        nodes = [n for n in range(len(tree.ids)) if n != tree.root()]
        vectors = vectors_of(embedder, [tree.names[n] for n in nodes], tree.prompts)
        name = nearest(embedder.model.nearness, way, vectors, root)
        single = _single(embedded, chosen, tree, nodes)
        asked = np.flatnonzero(single >= 0)
        if len(asked):
            found["names"] = climbs(name[asked], single[asked], above, boot)
    numbers = {block: outcome.numbers for block, outcome in found.items()}
    spans = {f"{block}.{key}": span for block, o in found.items() for key, span in o.intervals.items()}
    return MetricResult(numbers, spans), Walks(chosen, texts, len(captions), text, picture, names, name)


def _own_texts(
    embedded: Embedded, texts: tuple[str, ...], chosen: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, "N K"]:
    """Which texts were written for each chosen image or for a part of it."""
    place = {same_text(text): n for n, text in enumerate(texts)}
    column = np.array([place[same_text(text)] for text in embedded.phrases.texts], np.int64)
    image = np.concatenate([embedded.captions.image, embedded.scene_of_crop[embedded.phrases.image]])
    text = np.concatenate([embedded.captions.text, column[embedded.phrases.text]])
    return _marked(chosen, len(embedded.images), image, text, len(texts))


def _own_pictures(embedded: Embedded, chosen: Int[np.ndarray, " N"]) -> Bool[np.ndarray, "N K"]:
    """Each chosen image itself and its parts."""
    count, parts = len(embedded.images), len(embedded.crops)
    image = np.concatenate([np.arange(count), embedded.scene_of_crop])
    return _marked(chosen, count, image, np.arange(count + parts), count + parts)


def _marked(
    chosen: Int[np.ndarray, " N"],
    images: int,
    image: Int[np.ndarray, " P"],
    item: Int[np.ndarray, " P"],
    items: int,
) -> Bool[np.ndarray, "N K"]:
    """True at (row of the image, item) for each pair whose image is chosen."""
    row = np.full(images, -1)
    row[chosen] = np.arange(len(chosen))
    asked = row[image] >= 0
    marks = np.zeros((len(chosen), items), bool)
    marks[row[image[asked]], item[asked]] = True
    return marks


def _names(tree: Taxonomy) -> tuple[tuple[str, ...], Bool[np.ndarray, "K K"]]:
    """The first name of every node but the root, and the matrix of ancestors."""
    nodes = [n for n in range(len(tree.ids)) if n != tree.root()]
    return tuple(tree.names[n][0] for n in nodes), ancestors(tree.parents, nodes)


def _single(
    embedded: Embedded, chosen: Int[np.ndarray, " N"], tree: Taxonomy, nodes: list[int]
) -> Int[np.ndarray, " N"]:
    """Row of the one kind of thing each chosen image shows, -1 where it shows several or it is unknown."""
    row = {node: n for n, node in enumerate(nodes)}
    leaves = tree.leaves()
    found = np.full(len(chosen), -1)
    for n, index in enumerate(chosen):
        labels = set(embedded.scenes[index].labels or ())
        if len(labels) == 1:
            found[n] = row[int(leaves[tree.class_index(labels.pop())])]
    return found
