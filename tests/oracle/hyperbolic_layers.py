"""Textbook layers on the Poincare ball, with im2col, and HypLL's own layers with a stated curvature."""

import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.tensors import ManifoldTensor, TangentTensor
from torch.nn import functional as F

from hyco.models.hyperbolic import poincare
from hyco.models.hyperbolic.nn.flatten import beta_ratio


def fully_connected(x, z, r, c):
    """HNN++ eq. 7 on ball points: x [..., I], z [O, I], r [O] -> ball points [..., O]."""
    lam = 2 / (1 - c * x.square().sum(-1, keepdim=True))
    n = z.norm(dim=1)
    root = c**0.5
    inner = root * lam * (x @ (z.T / n)) * torch.cosh(2 * root * r) - (lam - 1) * torch.sinh(2 * root * r)
    w = torch.sinh(2 * n * torch.asinh(inner)) / root
    return w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())


def conv2d(u, weight, bias, c, groups=1, **geometry):
    """Tangents in and out: unfold, beta-concatenate, lift, fully connected layer, back.

    Groups share one output point.
    """
    channels = u.shape[1]
    outs = []
    for part, rows, offset in zip(u.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True):
        patches = F.unfold(part, weight.shape[2:], **geometry).transpose(1, 2)
        patches = patches * beta_ratio(patches.shape[-1], channels)
        outs.append((poincare.exp0(patches, c), rows.flatten(1), offset))
    if groups == 1:
        points = fully_connected(*outs[0], c)
    else:
        # w before the ball map, joined over groups
        root = c**0.5
        w = []
        for x, z, r in outs:
            lam, n = 2 / (1 - c * x.square().sum(-1, keepdim=True)), z.norm(dim=1)
            a = root * lam * (x @ (z.T / n)) * torch.cosh(2 * root * r) - (lam - 1) * torch.sinh(2 * root * r)
            w.append(torch.sinh(2 * n * torch.asinh(a)) / root)
        w = torch.cat(w, -1)
        points = w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())
    return poincare.log0(points, c).transpose(1, 2)


def hypll_ball(c):
    """HypLL's ball in float64, whose curvature is c: its own default would put c through a softplus."""
    curvature = Curvature(c, constraining_strategy=lambda x: x)
    curvature.value.data = torch.tensor(c, dtype=torch.double)
    return PoincareBall(curvature)


def hypll_run(layer, u, ball, dim=1):
    """Tangents -> HypLL layer -> tangents."""
    points = ball.expmap(TangentTensor(u, manifold=ball, man_dim=dim))
    out = layer(points)
    return ball.logmap(None, out).tensor if isinstance(out, ManifoldTensor) else out
