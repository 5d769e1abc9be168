"""The hyperbolic layers beside HypLL (the same arithmetic) and plain torch (the floor of what a layer can cost).

HypLL runs from ball points to ball points and ours from tangents to tangents, which is how each is used in a
network.
"""

import copy
from collections.abc import Callable, Iterator

import hypll.nn as hypll
import torch
from hypll.tensors import ManifoldTensor, TangentTensor
from torch import Tensor, nn

from hyco.models.hyperbolic import nn as hnn
from tests.oracle.hyperbolic_layers import hypll_ball
from tests.perf.runner import Case, saved_megabytes

C = 0.1


def cases() -> Iterator[Case]:
    """Convolutions, linear, batch norm, attention."""
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        yield from convolution(channels, size)
    yield from linear()
    yield from batch_norm()
    yield from attention()


class Side:
    """A layer with a fixed input and output gradient: `step` is forward + backward, `keeps` the memory between."""

    def __init__(self, run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> None:
        self.run, self.layer, self.x = run, layer, x.requires_grad_()
        self.weights = torch.randn_like(run(x))

    def step(self) -> None:
        """Forward and backward."""
        self.x.grad = None
        self.layer.zero_grad()
        self.run(self.x).backward(self.weights)

    def keeps(self) -> float:
        """Megabytes kept for the backward pass."""
        return saved_megabytes(lambda: self.run(self.x))


def ball_side(layer: nn.Module, ball, u: Tensor, dim: int) -> Side:
    """A HypLL layer from ball points to ball points."""
    x = ball.expmap(TangentTensor(u, manifold=ball, man_dim=dim)).tensor.detach()
    return Side(lambda x: layer(ManifoldTensor(x, manifold=ball, man_dim=dim)).tensor, layer, x)


def float_ball():
    """HypLL's ball with c = 0.1 in float32."""
    ball = hypll_ball(C)
    ball.c.value.data = ball.c.value.data.float()
    return ball


def agreement(ours: nn.Module, theirs: Side, ball, u: Tensor, dim: int) -> Callable[[], str]:
    """Asserts equal outputs, as tangents, to float32's digits."""

    def check() -> str:
        with torch.no_grad():
            points = ManifoldTensor(theirs.run(theirs.x), manifold=ball, man_dim=dim)
            want, got = ball.logmap(None, points).tensor, ours(u)
        off = float((got - want).abs().max() / want.abs().max())
        assert off < 2e-5, f"results differ by {off:.1e}"
        return f"{off:.0e}"

    return check


def unlike() -> str:
    """Two different functions of the same shape: nothing to compare but the cost."""
    return "n/a"


def convolution(channels: int, size: int) -> Iterator[Case]:
    """3x3, batch 32, padding 1."""
    torch.manual_seed(0)
    name, ball = f"conv3x3 {channels}ch {size}x{size}", float_ball()
    u = 0.2 * torch.randn(32, channels, size, size)
    theirs = hypll.HConvolution2d(channels, channels, 3, manifold=ball, padding=1)
    theirs.weights.tensor.data = 0.1 * torch.randn(9 * channels, channels)
    ours = hnn.Conv2d(channels, channels, 3, padding=1, c=C)
    ours.weight.data = theirs.weights.tensor.data.T.reshape(ours.weight.shape).clone()
    a, b = Side(ours, ours, u.clone()), ball_side(theirs, ball, u, 1)
    plain = nn.Conv2d(channels, channels, 3, padding=1)
    e = Side(plain, plain, u.clone())
    equal = agreement(ours, b, ball, u, 1)
    yield Case(f"{name} step", "HypLL", "ms", a.step, b.step, equal, floor=10)
    yield Case(f"{name} step", "nn.Conv2d", "ms", a.step, e.step, unlike, floor=0.5)
    yield Case(f"{name} saved", "HypLL", "MB", a.keeps, b.keeps, equal, floor=20)
    yield Case(f"{name} saved", "nn.Conv2d", "MB", a.keeps, e.keeps, unlike, floor=1 / 2.5)


def linear() -> Iterator[Case]:
    """[128, 512] through 512 hyperplanes."""
    torch.manual_seed(0)
    ball, u = float_ball(), 0.05 * torch.randn(128, 512)
    theirs = hypll.HLinear(512, 512, manifold=ball)
    theirs.z.tensor.data = 0.03 * torch.randn(512, 512)
    ours = hnn.Linear(512, 512, c=C)
    ours.weight.data = theirs.z.tensor.data.T.clone()
    a, b = Side(ours, ours, u.clone()), ball_side(theirs, ball, u, -1)
    plain = nn.Linear(512, 512)
    e = Side(plain, plain, u.clone())
    equal = agreement(ours, b, ball, u, -1)
    yield Case("linear 128x512x512 step", "HypLL", "ms", a.step, b.step, equal, floor=1 / 1.15)
    yield Case("linear 128x512x512 step", "nn.Linear", "ms", a.step, e.step, unlike)
    yield Case("linear 128x512x512 saved", "HypLL", "MB", a.keeps, b.keeps, equal, floor=1.5)
    yield Case("linear 128x512x512 saved", "nn.Linear", "MB", a.keeps, e.keeps, unlike)


def batch_norm() -> Iterator[Case]:
    """Training mode, 16 channels, 32x32, batch 32; HypLL with its faster option, the midpoint."""
    torch.manual_seed(0)
    ball, u = float_ball(), 0.2 * torch.randn(32, 16, 32, 32) + 0.05
    theirs = hypll.HBatchNorm2d(16, manifold=ball, use_midpoint=True)
    ours = hnn.BatchNorm2d(16, eps=1e-6, c=C)
    a, b = Side(ours, ours, u.clone()), ball_side(theirs, ball, u, 1)
    plain = nn.BatchNorm2d(16)
    e = Side(plain, plain, u.clone())
    equal = agreement(ours, b, ball, u, 1)
    yield Case("batch norm 16ch 32x32 step", "HypLL", "ms", a.step, b.step, equal, floor=7.5)
    yield Case("batch norm 16ch 32x32 step", "nn.BatchNorm2d", "ms", a.step, e.step, unlike)
    yield Case("batch norm 16ch 32x32 saved", "HypLL", "MB", a.keeps, b.keeps, equal, floor=12)
    yield Case("batch norm 16ch 32x32 saved", "nn.BatchNorm2d", "MB", a.keeps, e.keeps, unlike)


def attention() -> Iterator[Case]:
    """[8, 128, 128] with 4 heads; HypLL has no attention, so the digits are those of float64 by autograd."""
    torch.manual_seed(0)
    u = 0.1 * torch.randn(8, 128, 128)
    name = "attention 8x128x128"
    yield from attention_of(u, 4, name, 0.6)
    yield next(attention_of(nn.functional.layer_norm(u, (128,)), 4, f"{name} layer norm", 0.6))
    # Mostly pairs, mostly projections; without a requirement.
    for shape, heads in (((4, 256, 64), 2), ((16, 64, 256), 8)):
        yield next(attention_of(0.1 * torch.randn(shape), heads, f"attention {'x'.join(map(str, shape))}"))


def attention_of(u: Tensor, heads: int, name: str, floor: float | None = None) -> Iterator[Case]:
    """Attention between these points; the first case is the step beside torch's."""
    ours = hnn.MultiheadAttention(u.shape[-1], heads, c=C)
    plain = nn.MultiheadAttention(u.shape[-1], heads, batch_first=True)
    by_autograd = hnn.MultiheadAttention(u.shape[-1], heads, c=C, fused=False)
    by_autograd.load_state_dict(ours.state_dict())
    a, b = Side(ours, ours, u.clone()), Side(by_autograd, by_autograd, u.clone())
    e = Side(lambda x: plain(x, x, x, need_weights=False)[0], plain, u.clone())

    def equal() -> str:
        wide, x = copy.deepcopy(by_autograd).double(), u.double().requires_grad_()
        out = wide(x)
        out.backward(a.weights.double())
        a.step()
        assert a.x.grad is not None and x.grad is not None
        pairs = ((ours(a.x), out), (a.x.grad, x.grad))
        off = max(float(((got - want).norm() / want.norm()).detach()) for got, want in pairs)
        assert off < 1e-5, f"results differ by {off:.1e}"
        return f"{off:.0e}"

    yield Case(f"{name} step", "nn.MultiheadAttention", "ms", a.step, e.step, equal, floor=floor)
    yield Case(f"{name} step", "autograd", "ms", a.step, b.step, equal)
    yield Case(f"{name} saved", "nn.MultiheadAttention", "MB", a.keeps, e.keeps, equal, floor=1 / 2)
    yield Case(f"{name} saved", "autograd", "MB", a.keeps, b.keeps, equal)
