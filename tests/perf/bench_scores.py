"""Ranks and scores of 5,000 images and 25,000 captions on the hyperboloid beside a float32 matrix product.

The product runs over the same blocks of queries as the ranks; without one, its 500 MB would count. Beside the scores,
which are a matrix as large, it runs at once.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz
from hyco.pipeline.evaluation.metrics.order import LorentzOrder
from hyco.pipeline.evaluation.metrics.retrieval import CHUNK, first_hit
from tests.perf.runner import Case

IMAGES, CAPTIONS, DIM = 5000, 5, 512
CHECKED = 4  # queries whose ranks are compared with those of float64 distances


def cases() -> Iterator[Case]:
    """Both directions of retrieval, and the scores as numbers."""
    for name, ours, back in (
        ("captions of images", to_texts, False),
        ("images of captions", to_images, True),
    ):
        yield Case(
            f"ranks, {name}", "matmul", "ms", ours, lambda back=back: product(back), equal_ranks, 1 / 1.5
        )
    yield Case("scores, 5k x 25k", "matmul", "ms", scores, whole_product, equal_scores, 0.38)


@cache
def points() -> tuple[Tensor, Tensor, np.ndarray]:
    """Images [5,000, 512], captions near theirs [25,000, 512], and the pairs."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(DIM, generator=g) + torch.randn(IMAGES, DIM, generator=g)
    noise = 2 * torch.randn(IMAGES * CAPTIONS, DIM, generator=g)
    captions = 0.6 * images.repeat_interleave(CAPTIONS, 0) + noise
    owner = np.repeat(np.arange(IMAGES), CAPTIONS)
    images, captions = (lorentz.exp0(tangents / DIM**0.5, 1.0) for tangents in (images, captions))
    return images, captions, np.stack([owner, np.arange(len(owner))], 1)


def to_texts() -> None:
    """Ranks of the captions of every image."""
    images, captions, pairs = points()
    first_hit(LorentzOrder(1.0), images, captions, pairs)


def to_images() -> None:
    """Ranks of the image of every caption."""
    images, captions, pairs = points()
    first_hit(LorentzOrder(1.0), captions, images, pairs[:, ::-1])


def blocks(back: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of queries with the gallery, as `first_hit` takes them."""
    images, captions, _ = points()
    queries, gallery = (captions, images) if back else (images, captions)
    for block in queries.split(max(1, CHUNK // len(gallery))):
        yield block, gallery


def product(back: bool) -> None:
    """Products of all pairs."""
    for block, gallery in blocks(back):
        torch.matmul(block, gallery.T)


def whole_product() -> None:
    """Products of all pairs at once."""
    images, captions, _ = points()
    torch.matmul(images, captions.T)


def scores() -> None:
    """Distances of all pairs at once, as `Embedder.score` computes them."""
    images, captions, _ = points()
    lorentz.pairwise_distance(images, captions, 1.0)


@cache
def equal_scores() -> str:
    """Assert float64 distances, pair by pair, for some images; near pairs among them."""
    images, captions, _ = points()
    few = images[:CHECKED]
    near = torch.cat([captions, few + 1e-3 * captions[:CHECKED]])
    true = torch.stack([lorentz.distance(one.double(), near.double(), 1.0) for one in few])
    off = float(((lorentz.pairwise_distance(few, near, 1.0) - true).abs() / true).max())
    assert off < 5e-7, f"distances differ by {off:.1e} of their size"
    return f"{off:.0e}"


@cache
def equal_ranks() -> str:
    """Assert the ranks of float64 distances, pair by pair, for some queries of each direction."""
    images, captions, pairs = points()
    for queries, gallery, own in ((images, captions, pairs), (captions, images, pairs[:, ::-1])):
        own = own[own[:, 0] < CHECKED]
        queries = queries[:CHECKED]
        found = first_hit(LorentzOrder(1.0), queries, gallery, own)
        far = torch.stack([lorentz.distance(query.double(), gallery.double(), 1.0) for query in queries])
        assert (found.rank == first_hit(lambda *_, far=far: -far, queries, gallery, own).rank).all()
    return "equal"
