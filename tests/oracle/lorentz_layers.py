"""Layers of 2026 from their definitions: whole points (time, space) in R^(D+1), Minkowski products, no safe form."""

import itertools

import torch
from torch.nn import functional as F


def lift(u, rate):
    """Tangent vectors [..., D] -> whole points [..., D + 1] of the unit hyperboloid."""
    n = u.norm(dim=-1, keepdim=True)
    return torch.cat([torch.cosh(rate * n), torch.sinh(rate * n) * u / n], -1)


def lower(space, rate):
    """Space parts -> tangent vectors, through the whole point and acosh of its time part."""
    time = (1 + space.square().sum(-1, keepdim=True)).sqrt()
    return torch.acosh(time) / rate * space / space.norm(dim=-1, keepdim=True)


def minkowski(x, v):
    """Products [..., D + 1] x [K, D + 1] -> [..., K] with signature (-, +, ..., +)."""
    sign = torch.ones(x.shape[-1], dtype=x.dtype)
    sign[0] = -1
    return (x * sign) @ v.T


def normals(weight, bias, rate):
    """Whole space-like normals of van der Klis et al. 2026: Lorentz length |w|, at angle rate bias / |w|."""
    size = weight.norm(dim=1, keepdim=True)
    r = rate * bias.unsqueeze(1) / size
    v = torch.cat([-size * torch.sinh(r), torch.cosh(r) * weight], 1)
    length = (v[:, 1:].square().sum(1) - v[:, 0].square()).sqrt()
    assert torch.allclose(length, size.squeeze(1), rtol=1e-6)
    return v


def linear(u, weight, bias, rate):
    """Output coordinates are the products with the normals."""
    return lower(minkowski(lift(u, rate), normals(weight, bias, rate)), rate)


def mlr(u, weight, bias, rate, c):
    """Distances of a point whose coordinates are the products."""
    return torch.asinh(minkowski(lift(u, rate), normals(weight, bias, rate))) / c**0.5


def windows(x, kernel, stride, padding, dilation):
    """[B, C, *space] -> [B, *space', C, taps], by slices."""
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    taps = []
    for place in itertools.product(*(range(k) for k in kernel)):
        index = [slice(p * d, p * d + (n - 1) * s + 1, s)
                 for p, d, n, s in zip(place, dilation, counts, stride, strict=True)]  # fmt: skip
        taps.append(x[(slice(None), slice(None), *index)])
    return torch.stack(taps, -1).movedim(1, -2)


def conv(u, weight, bias, rate, groups=1, *, stride, padding, dilation):
    """Lift every point, concatenate the space parts of each window, time from the constraint, products, log."""
    s = lift(u.movedim(1, -1), rate)[..., 1:].movedim(-1, 1)
    outs = []
    for part, rows, offset in zip(s.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True):
        joined = windows(part, weight.shape[2:], stride, padding, dilation).flatten(-2)
        whole = torch.cat([(1 + joined.square().sum(-1, keepdim=True)).sqrt(), joined], -1)
        outs.append(minkowski(whole, normals(rows.flatten(1), offset, rate)))
    return lower(torch.cat(outs, -1), rate).movedim(-1, 1)


def busemann(u, weight, c, rate):
    """Busemann functions of the Poincare ball, log(|v - sqrt(c) x|^2 / (1 - c|x|^2)) / sqrt(c): [..., K]."""
    n = u.norm(dim=-1, keepdim=True)
    x = torch.tanh(rate * n / 2) * u / n  # sqrt(c) times the ball point
    v = weight / weight.norm(dim=1, keepdim=True)
    square = (v - x.unsqueeze(-2)).square().sum(-1)
    return torch.log(square / (1 - x.square().sum(-1, keepdim=True))) / c**0.5


def busemann_linear(u, weight, bias, gyro, c, rate):
    """Ball chain of Chen et al. 2026: w = sinh(sqrt(c) v) / sqrt(c), ball point, gyrovector bias, log."""
    length = rate / c**0.5  # distance per unit of tangent length
    v = length * bias - weight.norm(dim=1) * busemann(u, weight, c, rate)
    w = torch.sinh(c**0.5 * v) / c**0.5
    y = w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())
    size = gyro.norm()
    p = (torch.tanh(rate * size / 2) * gyro / size / c**0.5).expand_as(y)
    xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((p, y), (p, p), (y, y)))
    z = ((1 + 2 * c * xy + c * yy) * p + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy)
    n = c**0.5 * z.norm(dim=-1, keepdim=True)
    return 2 * torch.atanh(n) / rate * z * c**0.5 / n
