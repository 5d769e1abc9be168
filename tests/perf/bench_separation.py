"""Maximum separation: the closed-form matrix beside the paper's recursion, and the running sum beside the product."""

from collections.abc import Iterator

import torch

from hyco.models.heads.max_separation import RUNNING_SUM_FROM, separation_logits, separation_matrix
from tests.oracle.separation import looped_matrix
from tests.perf.runner import Case


def cases() -> Iterator[Case]:
    """The matrix at 1,000 classes; logits, forward and backward, at 10 to 1,000 classes, batch 128."""
    yield Case(
        "separation matrix C=1000",
        "recursion",
        "ms",
        lambda: _drop(separation_matrix(1000, torch.float64)),
        lambda: _drop(looped_matrix(1000)),
        _same_matrix,
        floor=100,
    )
    for classes in (10, RUNNING_SUM_FROM, 1000):
        yield _logits(classes)


def _drop(_: torch.Tensor) -> None:
    """A timed call returns nothing."""


def _same_matrix() -> str:
    off = float((separation_matrix(1000, torch.float64) - looped_matrix(1000)).abs().max())
    assert off < 1e-12, f"matrices differ by {off:.1e}"
    return f"{off:.0e}"


def _logits(classes: int) -> Case:
    torch.manual_seed(0)
    matrix, weights = separation_matrix(classes), torch.randn(128, classes)
    features = torch.randn(128, classes - 1, requires_grad=True)

    def equal() -> str:
        product, summed = features @ matrix, separation_logits(features, classes)
        off = float((product - summed).detach().abs().max() / product.detach().abs().max())
        assert off < 1e-5, f"logits differ by {off:.1e}"
        return f"{off:.0e}"

    return Case(
        f"separation logits C={classes}",
        "matrix product",
        "ms",
        lambda: separation_logits(features, classes).backward(weights),
        lambda: (features @ matrix).backward(weights),
        equal,
        floor=5 if classes == 1000 else None,
    )
