"""References of maximum separation: the recursion of the paper, loops over classes, and the distance from acosh."""

import math

import torch
from torch import Tensor


def recursive_matrix(classes: int) -> Tensor:
    """P_1 = (1, -1); P_k = [[1, -1/k 1^T], [0, sqrt(1 - 1/k^2) P_{k-1}]]: [C - 1, C] float64."""
    if classes == 2:
        return torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    k = classes - 1
    inner = recursive_matrix(classes - 1)
    top = torch.cat(
        [torch.ones(1, 1, dtype=torch.float64), torch.full((1, k), -1 / k, dtype=torch.float64)], 1
    )
    left = torch.zeros(k - 1, 1, dtype=torch.float64)
    return torch.cat([top, torch.cat([left, math.sqrt(1 - 1 / k**2) * inner], 1)], 0)


def looped_matrix(classes: int) -> Tensor:
    """The recursion without Python's depth limit: P_1, P_2, ... up to P_{C-1}, each from the one before."""
    matrix = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for k in range(2, classes):
        larger = torch.zeros(k, k + 1, dtype=torch.float64)
        larger[0, 0] = 1
        larger[0, 1:] = -1 / k
        larger[1:, 1:] = math.sqrt(1 - 1 / k**2) * matrix
        matrix = larger
    return matrix


def logits(features: Tensor, weight: Tensor, bias: Tensor, radius: float) -> Tensor:
    """radius * (W x + b) P in float64 by one loop over classes: [B, D] -> [B, C]."""
    classes = len(weight) + 1
    matrix = looped_matrix(classes)
    projected = features.double() @ weight.double().T + bias.double()
    columns = [radius * (projected * matrix[:, j]).sum(-1) for j in range(classes)]
    return torch.stack(columns, -1)


def prototype_logits(points: Tensor, directions: Tensor, radius: float, scale: float, c: float) -> Tensor:
    """-scale * acosh(-c <x, p>) / sqrt(c) with p = sinh(sqrt(c) r)/sqrt(c) q, in float64: [B, D] -> [B, C]."""
    x, q, root = points.double(), directions.double(), math.sqrt(c)
    p = math.sinh(root * radius) / root * q
    x_t, p_t = (1 / c + (x**2).sum(-1)).sqrt(), (1 / c + (p**2).sum(-1)).sqrt()
    inner = x @ p.T - x_t[:, None] * p_t[None]
    return -scale * torch.acosh(-c * inner) / root
