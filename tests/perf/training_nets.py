"""The nets of `training_study`: many at once, of one architecture and with a curvature and weights each.

Ours and the Euclidean ones are `nn.Sequential`s under torch.vmap. HypLL's modules pass tensor subclasses, which vmap
does not take, so HypLL's nets call the functions of plain tensors that its modules call, in their order;
`tests/perf/test_training_nets.py` holds both against the modules themselves. Legend: N nets, B batch, D dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypll.manifolds.poincare_ball.math import diffgeom, linalg, stats
from hypll.utils.math import beta_func
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE

CAPS = {"ours": None, "clip at 4": 4.0, "no cap (12)": MAX_ANGLE}
TRAINED = ("ours", "HypLL", "clip at 4", "Euclidean", "no cap (12)")
RUNNING, TEST_BATCH, RECALIBRATED = "", ", statistics of the test batch", ", recalibrated"
"""What a net with batch norm is evaluated with; HypLL's has no running statistics and is evaluated with the second."""


@dataclass(frozen=True)
class Shape:
    """An architecture on digits of 8 x 8: hidden layers of a perceptron, or a small convolutional net."""

    depth: int = 2
    norm: bool = False
    conv: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the perceptron: 64-64-32 at depth 2."""
        return (*(64,) * self.depth, 32)


def our_net(shape: Shape, c: float, contender: str) -> nn.Sequential:
    """The net of one contender but HypLL, with its usual initialisation; plain autograd, for vmap."""
    if contender == "Euclidean":
        linear, norm, conv, flat, head = nn.Linear, nn.BatchNorm1d, nn.Conv2d, nn.Flatten, nn.Linear
        here: dict[str, Any] = {}
        normed: dict[str, Any] = {}
        cut: dict[str, Any] = {}
    else:
        linear, norm, conv, flat, head = hnn.Linear, hnn.BatchNorm1d, hnn.Conv2d, hnn.Flatten, hnn.MLR
        cap = CAPS[contender]
        cut = {"c": Curvature(c)} | ({} if cap is None else {"max_angle": cap})
        here = normed = {**cut, "fused": False}
    if shape.conv:
        first = conv(1, 8, 3, padding=1, **here)
        layers = [first, nn.ReLU(), conv(8, 16, 3, padding=1, stride=2, **here), nn.ReLU(), flat()]
        return nn.Sequential(*layers, head(256, 10, **cut))
    layers = []
    for before, after in zip((64, *shape.sizes), shape.sizes, strict=False):
        layers += [linear(before, after, **here), *([norm(after, **normed)] if shape.norm else []), nn.ReLU()]
    return nn.Sequential(*layers, head(shape.sizes[-1], 10, **cut))


def hypll_forward(shape: Shape) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    """(parameters in our names and layouts, c, tangent vectors) -> logits, by HypLL's functions; one net."""

    def dense(x: Tensor, p: dict[str, Tensor], at: int, c: Tensor) -> Tensor:
        z = p[f"{at}.weight"].flatten(1).T
        return diffgeom.project(linalg.poincare_fully_connected(x, z, p[f"{at}.bias"], c), c)

    def relu(x: Tensor, c: Tensor) -> Tensor:
        return diffgeom.expmap0(diffgeom.logmap0(x, c).relu(), c)

    def batch_norm(x: Tensor, p: dict[str, Tensor], at: int, c: Tensor) -> Tensor:
        mean = stats.midpoint(x, c, batch_dim=0)
        spread = stats.frechet_variance(x, c, mean, batch_dim=0)
        centre = diffgeom.expmap0(p[f"{at}.bias"], c)
        moved = diffgeom.transp(mean, centre, diffgeom.logmap(mean, x, c), c)
        return diffgeom.expmap(centre, (F.softplus(p[f"{at}.weight"]) / (spread + 1e-6)).sqrt() * moved, c)

    def convolve(x: Tensor, p: dict[str, Tensor], at: int, c: Tensor, stride: int) -> Tensor:
        # x: [B, H, W, C] points; -> [B, H', W', K]
        u = diffgeom.logmap0(x, c).permute(0, 3, 1, 2)
        channels = u.shape[1]
        u = u * (beta_func(9 * channels / 2, 0.5) / beta_func(channels / 2, 0.5))
        patches = F.unfold(u, 3, padding=1, stride=stride).transpose(1, 2)
        side = -(-u.shape[2] // stride)
        return dense(diffgeom.expmap0(patches, c), p, at, c).unflatten(1, (side, side))

    def forward(p: dict[str, Tensor], c: Tensor, u: Tensor) -> Tensor:
        if shape.conv:
            x = diffgeom.expmap0(u.permute(0, 2, 3, 1), c)
            x = relu(convolve(x, p, 0, c, 1), c)
            x = relu(convolve(x, p, 2, c, 2), c)
            v = diffgeom.logmap0(x, c).permute(0, 3, 1, 2)
            ratio = beta_func(v[0].numel() / 2, 0.5) / beta_func(v.shape[1] / 2, 0.5)
            x, at = diffgeom.expmap0(v.flatten(1) * ratio, c), 5
        else:
            x, at = diffgeom.expmap0(u, c), 0
            for _ in shape.sizes:
                x = dense(x, p, at, c)
                if shape.norm:
                    x = batch_norm(x, p, at + 1, c)
                x, at = relu(x, c), at + 2 + shape.norm
        return linalg.poincare_hyperplane_dists(x, p[f"{at}.weight"].T, p[f"{at}.bias"], c)

    return forward


class Nets:
    """N nets that train side by side: `parameters[rate]` are stacked, and `forward` maps [N, B, ...] to logits."""

    def __init__(
        self, shape: Shape, contender: str, curvatures: Sequence[float], rates: Sequence[float], seeds: int
    ) -> None:
        self.lanes = [(c, rate, seed) for rate in rates for c in curvatures for seed in range(seeds)]
        nets = []
        for c, _, seed in self.lanes:
            torch.manual_seed(seed)
            nets.append(our_net(shape, c, "ours" if contender == "HypLL" else contender))
        everything, self.buffers = torch.func.stack_module_state(nets)
        curved = {name: p.detach() for name, p in everything.items() if name.endswith("log_c")}
        self.fixed, self.c = curved, torch.tensor([c for c, *_ in self.lanes])
        weights = {name: p for name, p in everything.items() if name not in curved}
        # One group of parameters for each rate: lanes are sorted by it.
        self.groups = [
            {"params": [nn.Parameter(part) for part in parts], "lr": rate}
            for rate, parts in zip(
                rates,
                zip(*(p.detach().chunk(len(rates)) for p in weights.values()), strict=True),
                strict=True,
            )
        ]
        self.names, self.peer, self.net = list(weights), contender == "HypLL", nets[0]
        self.single = hypll_forward(shape)

    @torch.no_grad()
    def evaluate(self, u: Tensor, statistics: str, batches: Sequence[Tensor]) -> Tensor:
        """[N, B, ...] pixels -> [N, B, 10] logits; the running statistics stay as they are.

        Args:
            u: pixels of each net.
            statistics: `RUNNING`, `TEST_BATCH` (those of u) or `RECALIBRATED` (those of `batches`).
            batches: [B, ...] pixels of the training set.
        """
        kept = {name: buffer.clone() for name, buffer in self.buffers.items()}
        if statistics == RECALIBRATED:
            self.recalibrate(batches)
        logits = self.forward(u, training=statistics == TEST_BATCH)
        for name, buffer in kept.items():
            self.buffers[name].copy_(buffer)
        return logits

    @torch.no_grad()
    def recalibrate(self, batches: Sequence[Tensor]) -> None:
        """Running statistics of [B, ...] batches; `migrate.recalibrate`, whose buffers here are stacked."""
        norms = [layer for layer in self.net.modules() if isinstance(layer, hnn.BatchNorm1d)]
        kept = [norm.momentum for norm in norms]
        for name, buffer in self.buffers.items():
            if name.endswith("num_batches_tracked"):
                buffer.zero_()
        for norm in norms:
            norm.momentum = None
        for batch in batches:
            self.forward(batch.expand(len(self.lanes), *batch.shape))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum

    def forward(self, u: Tensor, training: bool = True) -> Tensor:
        """[N, B, ...] pixels -> [N, B, 10] logits."""
        parts = zip(*(group["params"] for group in self.groups), strict=True)
        weights = {name: torch.cat(part) for name, part in zip(self.names, parts, strict=True)}
        if self.peer:
            return torch.vmap(self.single)(weights, self.c, u)
        self.net.train(training)

        def run(weights: dict[str, Tensor], fixed: dict[str, Tensor], buffers: dict[str, Tensor], u: Tensor):
            return torch.func.functional_call(self.net, ({**weights, **fixed}, buffers), (u,))

        return torch.vmap(run)(weights, self.fixed, self.buffers, u)
