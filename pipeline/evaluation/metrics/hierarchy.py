"""Distance between a wrong answer and the right one on the tree: five metrics, and the depth of the errors.

A_p, A_t: ancestors of the predicted and the true leaf, root included, the leaf itself excluded. With
n = A_p and A_t, u = A_p or A_t: TIE = edges between the leaves; LCA = |A_p| - |n| + 1; Jaccard = |n|/|u|;
P_H = |n|/|A_p|; R_H = |n|/|A_t| (HyCoCLIP, appendix; mathematics.md section 2). A right answer has TIE 0 and
LCA 1. All are tables over leaf pairs, so that an evaluation is one table lookup and chance is a mean of columns.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy

NAMES = ("tie", "lca", "jaccard", "p_h", "r_h")


def tables(ancestors: Bool[np.ndarray, "L N"]) -> Float[np.ndarray, "5 L L"]:
    """The five metrics for each (predicted, true) pair of leaves, in the order of NAMES."""
    above = ancestors.astype(np.float64)
    both = above @ above.T
    size = above.sum(axis=1)
    predicted, true = size[:, None], size[None, :]
    tie = predicted + true - 2.0 * both + 2.0
    np.fill_diagonal(tie, 0.0)
    return np.stack(
        [tie, predicted - both + 1.0, both / (predicted + true - both), both / predicted, both / true]
    )


def meeting_depth(ancestors: Bool[np.ndarray, "L N"]) -> Int[np.ndarray, "L L"]:
    """Depth of the lowest common ancestor of two leaves (0 is the root); -1 on the diagonal: no error."""
    above = ancestors.astype(np.int64)
    depth = above @ above.T - 1
    np.fill_diagonal(depth, -1)
    return depth


def tree_metrics(
    predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], taxonomy: Taxonomy, bootstrap: Bootstrap
) -> MetricResult:
    """Means over images, and as chance the exact expectation when every leaf is predicted equally often."""
    table = tables(taxonomy.ancestors())
    values = table[:, predicted, truth].T
    expected = table.mean(axis=1)[:, truth].mean(axis=1)
    numbers: dict = {name: float(value) for name, value in zip(NAMES, values.mean(axis=0), strict=True)}
    numbers["chance"] = {name: float(value) for name, value in zip(NAMES, expected, strict=True)}
    numbers["images"] = len(truth)
    return MetricResult(numbers, dict(zip(NAMES, bootstrap.means(values), strict=True)))


def where_errors_meet(
    predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], taxonomy: Taxonomy
) -> dict[str, list[float]]:
    """Fraction of images that are right (first entry) or meet the truth at depth 0, 1, ...; and by chance."""
    depth = meeting_depth(taxonomy.ancestors())
    bins = int(depth.max()) + 2
    found = np.bincount(depth[predicted, truth] + 1, minlength=bins) / len(truth)
    columns = np.stack([(depth == d - 1).mean(axis=0) for d in range(bins)])
    return {"model": found.tolist(), "chance": columns[:, truth].mean(axis=1).tolist()}


def family_confusion(
    predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], taxonomy: Taxonomy
) -> tuple[tuple[str, ...], Int[np.ndarray, "F F"]]:
    """Names of the families and how often family (row) was answered with family (column)."""
    names, member = taxonomy.families()
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (member[truth], member[predicted]), 1)
    return names, counts
