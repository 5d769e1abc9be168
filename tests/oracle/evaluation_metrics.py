"""References of the assessment metrics: loops, sets and expanded lists, written from their definitions."""

import math
from collections.abc import Sequence

import numpy as np


def ancestor_set(node: str, parent: dict[str, str | None]) -> set[str]:
    """Ancestors of a node, itself excluded."""
    found = set()
    above = parent[node]
    while above is not None:
        found.add(above)
        above = parent[above]
    return found


def tree_distance(a: str, b: str, parent: dict[str, str | None]) -> int:
    """Edges on the path between two nodes, by breadth-first search over the undirected tree."""
    edges: dict[str, set[str]] = {node: set() for node in parent}
    for node, above in parent.items():
        if above is not None:
            edges[node].add(above)
            edges[above].add(node)
    seen, front, steps = {a}, [a], 0
    while b not in seen:
        steps += 1
        front = [n for node in front for n in edges[node] if n not in seen]
        seen |= set(front)
    return steps


def hierarchy_pair(predicted: str, true: str, parent: dict[str, str | None]) -> dict[str, float]:
    """The five numbers of one answer."""
    a, b = ancestor_set(predicted, parent), ancestor_set(true, parent)
    both = a & b
    return {
        "tie": tree_distance(predicted, true, parent),
        "lca": len(a) - len(both) + 1,
        "jaccard": len(both) / len(a | b),
        "p_h": len(both) / len(a),
        "r_h": len(both) / len(b),
    }


def recall_at(scores: Sequence[Sequence[float]], right: Sequence[set[int]], k: int) -> float:
    """Share of queries with a right item among the first k, wrong items first among ties."""
    hits = 0
    for row, own in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item in own))
        hits += any(item in own for item in order[:k])
    return hits / len(scores)


def published_recall(scores: Sequence[Sequence[float]], right: Sequence[set[int]], k: int) -> float:
    """Share of queries for which at least one of the k highest-scored items is paired, ties by position."""
    hits = 0
    for row, own in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        hits += any(item in own for item in order[:k])
    return hits / len(scores)


def published_mean_per_class(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Macro accuracy from the confusion of all classes: those without any prediction or image are left out."""
    shares = []
    for label in range(max(*predicted, *true) + 1):
        hit = sum(p == t == label for p, t in zip(predicted, true, strict=True))
        wrong = sum((p == label) != (t == label) for p, t in zip(predicted, true, strict=True))
        if hit + wrong:
            shares.append(hit / max(1, sum(t == label for t in true)))
    return sum(shares) / len(shares)


def chance_recall(right: int, size: int, k: int) -> float:
    """1 - C(n-m, k) / C(n, k) by binomial coefficients."""
    k = min(k, size)
    return 1.0 - math.comb(size - right, k) / math.comb(size, k)


def mean_per_class(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Accuracy of each class that occurs, averaged."""
    shares = []
    for label in sorted(set(true)):
        own = [p == t for p, t in zip(predicted, true, strict=True) if t == label]
        shares.append(sum(own) / len(own))
    return sum(shares) / len(shares)


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[int], draws: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, clusters drawn with replacement, one draw at a time."""
    random = np.random.default_rng(seed)
    names = sorted(set(clusters))
    members = {name: [v for v, c in zip(values, clusters, strict=True) if c == name] for name in names}
    means = []
    for _ in range(draws):
        drawn = [v for i in random.integers(len(names), size=len(names)) for v in members[names[i]]]
        means.append(sum(drawn) / len(drawn))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def half_aperture(x: np.ndarray, c: float, k: float) -> float:
    """asin(2K / (sqrt(c) |x|)), pi/2 inside the ball where it saturates."""
    r = math.sqrt(c) * float(np.linalg.norm(x))
    return math.pi / 2 if r <= 2 * k else math.asin(2 * k / r)


def exterior_angle(x: np.ndarray, y: np.ndarray, c: float) -> float:
    """Pi minus the angle at x of the triangle O x y, by the hyperbolic law of cosines (float64)."""

    def side(a: np.ndarray, b: np.ndarray) -> float:
        at, bt = math.sqrt(1 / c + a @ a), math.sqrt(1 / c + b @ b)
        return math.acosh(max(1.0, -c * (a @ b - at * bt)))  # times sqrt(c)

    zero = np.zeros_like(x)
    a, b, gap = side(zero, x), side(zero, y), side(x, y)
    cosine = (math.cosh(a) * math.cosh(gap) - math.cosh(b)) / (math.sinh(a) * math.sinh(gap))
    return math.pi - math.acos(max(-1.0, min(1.0, cosine)))


def average_precision(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Mean over the right items of the share of right ones among all that rank as high; O(n^2).

    Wrong items go first among ties; right items that tie follow each other in any order.
    """
    items = list(zip(scores, right, range(len(scores)), strict=True))
    shares = []
    for score, good, number in items:
        if not good:
            continue
        above = [r for s, r, n in items if s > score or (s == score and (not r or n <= number))]
        shares.append(sum(above) / len(above))
    return sum(shares) / len(shares)
