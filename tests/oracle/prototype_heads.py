"""References of the heads of cosines and of balanced prototypes, from their formulas: loops in float64."""

import math
from collections.abc import Sequence

import numpy as np


def cosine_logits(features: np.ndarray, weight: np.ndarray, temperature: float) -> list[list[float]]:
    """cos(u, w) / tau of every image and class."""
    return [
        [math.fsum(u * w) / math.sqrt(math.fsum(u * u) * math.fsum(w * w)) / temperature for w in weight]
        for u in features
    ]


def ntce(logits: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Mean of -log(exp l[i][y_i] / sum over all images j of exp l[j][y_i])."""
    terms = []
    for image, label in enumerate(labels):
        total = math.fsum(math.exp(row[label]) for row in logits)
        terms.append(-math.log(math.exp(logits[image][label]) / total))
    return math.fsum(terms) / len(terms)


def nonl(logits: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Mean of -log(exp l[i][y_i] / sum over the images j of other classes of exp l[j][y_i])."""
    terms = []
    for image, label in enumerate(labels):
        total = math.fsum(
            math.exp(row[label]) for row, other in zip(logits, labels, strict=True) if other != label
        )
        terms.append(-math.log(math.exp(logits[image][label]) / total))
    return math.fsum(terms) / len(terms)


def edges_between(parents: Sequence[int], a: int, b: int) -> int:
    """Length of the path through the lowest common ancestor."""

    def path(node: int) -> list[int]:
        found = [node]
        while parents[found[-1]] >= 0:
            found.append(parents[found[-1]])
        return found

    up, down = path(a), path(b)
    return min(up.index(node) + down.index(node) for node in set(up) & set(down))


def hyperboloid_distance(u: np.ndarray, v: np.ndarray, c: float) -> float:
    """acosh(-c <x, y>) / sqrt c of exp_0 of two tangent vectors, by the law of cosines at the origin."""
    root, a, b = math.sqrt(c), math.sqrt(math.fsum(u * u)), math.sqrt(math.fsum(v * v))
    angle = math.fsum(u * v) / (a * b) if a and b else 0.0
    inner = math.cosh(root * a) * math.cosh(root * b) - math.sinh(root * a) * math.sinh(root * b) * angle
    return math.acosh(max(1.0, inner)) / root


def distortion(tangents: np.ndarray, parents: Sequence[int], c: float) -> float:
    """Mean over pairs of |d - g| / g."""
    count, errors = len(parents), []
    for i in range(count):
        for j in range(i + 1, count):
            edges = edges_between(parents, i, j)
            errors.append(abs(hyperboloid_distance(tangents[i], tangents[j], c) - edges) / edges)
    return math.fsum(errors) / len(errors)


def spread(tangents: np.ndarray, parents: Sequence[int]) -> float:
    """Mean over nodes of the gap between a node's length and the mean length at its depth."""
    depth = [edges_between(parents, 0, node) for node in range(len(parents))]
    lengths = [math.sqrt(math.fsum(row * row)) for row in tangents]
    gaps = []
    for node, level in enumerate(depth):
        peers = [length for length, other in zip(lengths, depth, strict=True) if other == level]
        gaps.append(abs(lengths[node] - math.fsum(peers) / len(peers)))
    return math.fsum(gaps) / len(gaps)
