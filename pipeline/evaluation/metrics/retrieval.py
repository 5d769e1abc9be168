"""Recall at k between images and their captions, both ways (also used for parts and their phrases).

Several captions may belong to an image; a query is a hit at k when any paired item is among its first k.
Captions that read the same, up to case and spaces, are one text with a multiplicity: an image is paired with
every copy of its captions, whichever image the copy was written for. Copies stay in the gallery and in the
averages, so the metrics are those of the full list of captions at the cost of the distinct ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import LorentzOrder, Plain, Score, wrong_before

KS = (1, 5, 10)
CHUNK = 4_000_000  # scores held at once: 16 MB


def same_text(text: str) -> str:
    """The key of a caption; equal keys are the same text: words and their order, not case or spaces."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which text belongs to which image: occurrence n says text[n] is a caption of image[n]."""

    texts: tuple[str, ...]  # distinct, as first written
    image: Int[np.ndarray, " N"]
    text: Int[np.ndarray, " N"]
    images: int  # number of images, captioned or not

    @classmethod
    def own(cls, captions: Sequence[Sequence[str]]) -> "Pairing":
        """As `of`, but equal captions stay apart: each belongs to its own image alone, as published."""
        pairs = [
            (index, caption) for index, own in enumerate(captions) for caption in own if same_text(caption)
        ]
        image = np.array([index for index, _ in pairs], np.int64)
        return cls(tuple(caption for _, caption in pairs), image, np.arange(len(pairs)), len(captions))

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> "Pairing":
        """From the captions of each image; blank ones are left out."""
        known: dict[str, int] = {}
        texts: list[str] = []
        image, text = [], []
        for index, own in enumerate(captions):
            for caption in own:
                name = same_text(caption)
                if not name:
                    continue
                if name not in known:
                    known[name] = len(texts)
                    texts.append(caption)
                image.append(index)
                text.append(known[name])
        return cls(tuple(texts), np.array(image, np.int64), np.array(text, np.int64), len(captions))

    def distinct(self) -> "Pairing":
        """The same pairs with each (image, text) once."""
        pairs = np.unique(np.stack([self.image, self.text], 1), axis=0).reshape(-1, 2)
        return Pairing(self.texts, pairs[:, 0], pairs[:, 1], self.images)


@dataclass(frozen=True, slots=True)
class Ranks:
    """For each query: the number of wrong items before the first right one, and the number of right ones."""

    rank: Int[np.ndarray, " Q"]
    right: Int[np.ndarray, " Q"]
    size: int  # items in the gallery, copies counted


def first_hit(
    score: Score | LorentzOrder,
    queries: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "G D"],
    pairs: Int[np.ndarray, "P 2"],
    multiplicity: Int[np.ndarray, " G"] | None = None,
    *,
    in_order: bool = False,
) -> Ranks:
    """Rank of the best paired item of each query, by `score` (larger is nearer) or by distance on the hyperboloid.

    `pairs` holds distinct (query, gallery) indices and every query occurs in it. A wrong item that ties with
    the best right one counts as before it, so a collapsed model scores 0 instead of 1. With `in_order`, items that tie
    keep the order of the gallery, as in a stable sort by score (without multiplicity).
    """
    count = np.ones(len(gallery), np.int64) if multiplicity is None else multiplicity
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    right = np.bincount(pairs[:, 0], weights=count[pairs[:, 1]], minlength=len(queries)).astype(np.int64)
    assert (right > 0).all(), "every query needs a paired item"
    copies = torch.from_numpy(count).to(queries.device)
    items = score.over(gallery) if isinstance(score, LorentzOrder) else Plain(score, gallery)
    step = max(1, CHUNK // max(len(gallery), 1))
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        low, high = np.searchsorted(pairs[:, 0], [start, start + len(block)])
        own = torch.from_numpy(pairs[low:high] - [start, 0]).to(queries.device)
        ranks.append(wrong_before(items, block, own, copies, in_order=in_order).cpu().numpy())
    return Ranks(np.concatenate(ranks), right, int(count.sum()))


def chance_recall(right: Int[np.ndarray, " Q"], size: int, k: int) -> Float[np.ndarray, " Q"]:
    """P(one of `right` items is in the first k of `size` in random order) = 1 - C(n-m, k)/C(n, k)."""
    step = np.arange(min(k, size))[:, None]
    return 1.0 - np.prod(np.clip((size - right - step) / (size - step), 0.0, 1.0), axis=0)


def recall(
    ranks: Ranks,
    bootstrap: Bootstrap,
    *,
    asked: Int[np.ndarray, " N"] | None = None,
    clusters: Int[np.ndarray, " N"] | None = None,
    ks: Sequence[int] = KS,
) -> MetricResult:
    """R@k, its exact chance level under "chance" and an interval each, keys "r1", "r5" ...

    `asked` lists the query of each occurrence (default: each once), `clusters` the groups that are resampled together.
    """
    asked = np.arange(len(ranks.rank)) if asked is None else asked
    hits = np.stack([ranks.rank[asked] < k for k in ks], axis=1).astype(np.float64)
    numbers: dict = {f"r{k}": float(share) for k, share in zip(ks, hits.mean(axis=0), strict=True)}
    numbers["chance"] = {f"r{k}": float(chance_recall(ranks.right, ranks.size, k)[asked].mean()) for k in ks}
    spans = bootstrap.hits(hits, clusters)
    return MetricResult(numbers, {f"r{k}": span for k, span in zip(ks, spans, strict=True)})


def ranks_both_ways(
    score: Score | LorentzOrder,
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "K D"],
    pairing: Pairing,
    *,
    copies: bool = True,
    in_order: bool = False,
) -> tuple[Ranks, Ranks, Int[np.ndarray, " C"]]:
    """Ranks of the captioned images among the texts and of the texts among the images, and these images' numbers.

    Options and errors as in `both_ways`.
    """
    if pairing.images < 2 or len(pairing.texts) < 2:
        raise ValueError(
            f"retrieval needs two images and two texts; here are {pairing.images} and {len(pairing.texts)}"
        )
    once = pairing.distinct()
    captioned, query = np.unique(once.image, return_inverse=True)
    count = np.bincount(pairing.text, minlength=len(pairing.texts)) if copies else None
    captions = np.stack([query, once.text], 1)
    to_text = first_hit(
        score, images[torch.from_numpy(captioned)], texts, captions, multiplicity=count, in_order=in_order
    )
    to_image = first_hit(score, texts, images, np.stack([once.text, once.image], 1), in_order=in_order)
    return to_text, to_image, captioned


def both_ways(
    score: Score | LorentzOrder,
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "K D"],
    pairing: Pairing,
    bootstrap: Bootstrap,
    *,
    names: tuple[str, str] = ("image_to_text", "text_to_image"),
    copies: bool = True,
    clusters: Int[np.ndarray, " B"] | None = None,
    ks: Sequence[int] = KS,
    in_order: bool = False,
) -> MetricResult:
    """Both ways over a pairing: images are [pairing.images, D], texts the embeddings of pairing.texts.

    Each direction also has the size of its gallery ("gallery") and the number of queries ("queries").
    copies=True keeps copies of a text in the gallery and as queries (captions); copies=False takes every
    distinct text once (phrases). `clusters` says which images are resampled together (crops of one scene).
    `in_order` breaks ties by the order of the gallery, see `first_hit`.
    ValueError for fewer than two images or two texts.
    """
    to_text, to_image, captioned = ranks_both_ways(
        score, images, texts, pairing, copies=copies, in_order=in_order
    )
    there = recall(to_text, bootstrap, clusters=None if clusters is None else clusters[captioned], ks=ks)
    if copies:
        back = recall(to_image, bootstrap, asked=pairing.text, clusters=pairing.image, ks=ks)
    else:
        back = recall(to_image, bootstrap, ks=ks)
    numbers: dict = {"chance": {}}
    intervals = {}
    asked = len(captioned), len(pairing.text if copies else pairing.texts)
    ways = zip(names, (there, back), (to_text.size, to_image.size), asked, strict=True)
    for name, outcome, gallery, queries in ways:
        numbers["chance"][name] = outcome.numbers["chance"]
        numbers[name] = {key: value for key, value in outcome.numbers.items() if key != "chance"}
        numbers[name] |= {"gallery": gallery, "queries": queries}
        intervals |= {f"{name}.{key}": span for key, span in outcome.intervals.items()}
    return MetricResult(numbers, intervals)
