"""IoU and suppression: equal to the textbook, on NumPy and on torch, without torch where nobody needs it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from hyco.models.grounding.boxes import area, enclosing, intersection, iou, nms


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = (high - low).clip(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def plain_nms(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, limit: float) -> np.ndarray:
    """The textbook, one box at a time."""
    keep = np.zeros(len(boxes), bool)
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in np.flatnonzero(keep) if groups[j] == groups[i]]
        keep[i] = all(plain_iou(boxes[i], boxes[j]) <= limit for j in rivals)
    return keep


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [0.1, 0.5, 1.0])
def test_nms_equals_the_textbook(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 8, (60, 2, 2)) / 8
    boxes = np.concatenate([corners.min(1), corners.max(1) + 0.125], 1)
    scores = rng.integers(0, 5, 60) / 4  # many ties
    groups = rng.integers(0, 6, 60) * 3
    assert (nms(boxes, scores, limit, groups) == plain_nms(boxes, scores, groups, limit)).all()


def test_nms_of_nothing() -> None:
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_nms_keeps_the_first_of_a_heap() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.5, 1], [0.5, 0.5, 1, 1]])
    falling = np.array([0.9, 0.8, 0.7, 0.6])
    assert np.flatnonzero(nms(boxes, falling, 0.65)).tolist() == [0, 2, 3]
    assert np.flatnonzero(nms(boxes, falling, 0.95)).tolist() == [0, 1, 2, 3]


def test_nms_keeps_the_best_of_boxes_that_overlap() -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [0.4, 0.4, 0.9, 0.9]])
    assert nms(boxes, np.array([0.3, 0.5, 0.4]), 0.6).tolist() == [False, True, True]
    assert nms(boxes, np.array([0.3, 0.5, 0.4]), 0.95).all()


def test_boxes_by_hand() -> None:
    a = np.array([[0.0, 0.0, 2.0, 2.0], [0.5, 0.5, 0.5, 0.5]])
    b = np.array([[1.0, 1.0, 3.0, 3.0], [0.5, 0.5, 0.5, 0.5]])
    assert area(a).tolist() == [4.0, 0.0] and area(np.array([2.0, 0.0, 1.0, 1.0])) == 0.0
    assert intersection(a[:, None], b[None]).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert enclosing(a, b).tolist() == [9.0, 0.0]
    assert iou(a, b).tolist() == pytest.approx([1 / 7, 0.0]), "no area, no overlap, and no NaN"


def test_torch_equals_numpy_and_passes_gradients_on() -> None:
    corners = np.random.default_rng(0).uniform(size=(2, 9, 2, 2)).astype(np.float32)
    a, b = np.concatenate([corners.min(2), corners.max(2)], -1)
    ours = torch.from_numpy(a).requires_grad_()
    found = iou(ours[:, None], torch.from_numpy(b)[None])
    np.testing.assert_allclose(found.detach().numpy(), iou(a[:, None], b[None]), rtol=1e-6)
    found.sum().backward()
    assert ours.grad is not None and ours.grad.isfinite().all()


def test_numpy_boxes_need_no_torch() -> None:
    code = "import sys, numpy as np; from hyco.models.grounding.boxes import iou, nms; b = np.ones((2, 4))\n"
    code += "iou(b, b), nms(b, b[:, 0], 0.5); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
