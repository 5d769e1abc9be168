"""The exterior angles of all pairs as scores of the fused contrast: who lies inside whose entailment cone.

On the unit hyperboloid write a specific y = y_r e + a f at a general x with e = x / |x|, f orthogonal to e, n = |x|.
The exterior angle is theta = atan2(a, b) with a^2 = |y|^2 - y_r^2 and b = y_r x_t - y_t n; S = a^2 + b^2 = sinh^2 of
the distance (models/losses/entailment.py). y_r of all pairs is one matrix product. With K1 = b / (a S), K2 = a / S,
    d theta / d y_r = -(K1 y_r + K2 x_t),    d / d(|y|^2 / 2) = K1,    d / d y_t = K2 n,
    d / d n = K2 y_t,    d / d x_t = -K2 y_r,
so the gradient is two products with one matrix and sums of rows and columns. Both squares cancel where the points are
nearly collinear with the origin or near each other, and f has no direction there: such pairs are computed one by one
from `cone_excess`, or, where a block has very many, the block in float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyco.models.hyperbolic.ops import has_direction
from hyco.models.losses.entailment import cone_excess
from hyco.models.losses.spaces import Block, Sphere

COLLINEAR = {torch.float32: 1e-2, torch.float64: 1e-13}
"""Of |y|^2: an a^2 below it has lost two of the seven digits of float32, or nearly all of float64's."""
COINCIDENT = {torch.float32: 1e-4, torch.float64: 1e-13}
"""Of (y_t n)^2: an S below it has lost as many."""
LEAST_STEP = 1e-6
"""Of y_t n: a smaller negative b of a pair that is lost in float64 is a rounding error, and the points coincide."""


@dataclass
class _Points:
    """A set on the unit hyperboloids [k, N, d], its lengths and times [k, N, 1], unit vectors (0 at the origin)."""

    x: Tensor
    length: Tensor
    time: Tensor
    unit: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, points: Tensor, root_c: Tensor) -> "_Points":
        x = points.unflatten(1, (len(root_c), -1)).transpose(0, 1) * root_c[:, None, None]
        square = torch.linalg.vecdot(x, x)[..., None]
        directed = has_direction(square)
        inverse = torch.where(directed, square, 1.0).rsqrt() * directed
        return cls(x, square * inverse, (1 + square).sqrt(), x * inverse, inverse)

    def rows(self, span: tuple[int, int]) -> "_Points":
        """The points of a span."""
        tensors = (self.x, self.length, self.time, self.unit, self.inverse)
        return _Points(*(tensor[:, slice(*span)] for tensor in tensors))


@dataclass
class _Apart:
    """Pairs taken one by one: (factor, general, specific), their points [P, d] and the angles with their graph."""

    index: tuple[Tensor, Tensor, Tensor]
    x: Tensor
    y: Tensor
    angle: Tensor

    @classmethod
    def of(cls, index: tuple[Tensor, Tensor, Tensor], x: _Points, y: _Points) -> "_Apart":
        factor, row, column = index
        with torch.enable_grad():
            general = x.x[factor, row].double().requires_grad_()
            specific = y.x[factor, column].double().requires_grad_()
            one = general.new_ones(())
            return cls(index, general, specific, cone_excess(general, specific, one, eta=0.0, k=0.0))


@dataclass
class _Angles(Block):
    """Scores, the points that were multiplied, and K1, K2 and y_r [k, q, K] (K1 = K2 = 0 of pairs in `apart`)."""

    x: _Points | None = None
    y: _Points | None = None
    k1: Tensor | None = None
    k2: Tensor | None = None
    along: Tensor | None = None
    apart: _Apart | None = None


class Cones(Sphere):
    """Minus the mean over k hyperboloids of the exterior angle of a key at a query."""

    def __init__(self, c: Tensor, points: Sequence[Tensor], deferred: bool = False) -> None:
        super().__init__(points, len(c), deferred)
        self.root_c = c.sqrt()
        self.sets = [_Points.of(each, self.root_c) for each in points]

    def block(self, pair: tuple[int, int], span: tuple[int, int], scale: Tensor) -> _Angles:
        """Scores of the queries of a span and all keys of a pair of sets."""
        x, y = self.sets[pair[0]].rows(span), self.sets[pair[1]]
        along, across, b, square = _sides(x, y)
        lost, apart = self._lost(x, y, across, square), None
        if lost is not None:
            factor, row, column = lost.nonzero(as_tuple=True)
            if len(factor) <= max(lost.shape[1:]):
                apart = _Apart.of((factor, row, column), x, y)
            else:
                wide = self.root_c.double()
                x = _Points.of(self.points[pair[0]][slice(*span)].double(), wide)
                y = _Points.of(self.points[pair[1]].double(), wide)
                along, across, b, square = _sides(x, y)
                lost = self._lost(x, y, across, square)
        a = across.sqrt_()
        angle = torch.atan2(a, b)
        k2 = torch.div(a, square)
        k1 = torch.div(b, square.mul_(a), out=square)
        if lost is not None:
            k1, k2 = k1.masked_fill_(lost, 0.0), k2.masked_fill_(lost, 0.0)
            if apart is not None:
                angle[apart.index] = apart.angle.detach().to(angle.dtype)
            else:  # straight behind or before the general to all digits of float64, or on it
                straight = torch.where(b < -LEAST_STEP * x.length * y.time.mT, math.pi, 0.0)
                angle = torch.where(lost, straight, angle)
        mean = angle[0] if self.factors == 1 else angle.mean(0)
        scores = mean.to(scale.dtype).mul_(-scale)
        return _Angles(span, scale, scores, x.unit, y.x, None, None, None, x, y, k1, k2, along, apart)

    def _lost(self, x: _Points, y: _Points, across: Tensor, square: Tensor) -> Tensor | None:
        """Pairs [k, q, K] whose a^2 or S is lost to cancellation, or overflows; None without such pairs."""
        least = COLLINEAR[across.dtype] * y.length.square().mT
        least_square = COINCIDENT[across.dtype] * x.length.square()
        times = y.time.square().mT
        # First by one pass over each matrix, with a bound that is at least the pair's own.
        some = ~(across.amin(1, keepdim=True) > least).all()
        some |= ~(square.amin(2, keepdim=True) > least_square * times.amax(2, keepdim=True)).all()
        if self.ordinary(some):
            return None
        lost = ~(across > least) | ~(square > least_square * times)
        return lost if bool(lost.any()) else None

    def accumulate_grad(self, pair: tuple[int, int], block: Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives [q, K] of the loss by its scores over the scale."""
        assert isinstance(block, _Angles) and block.k1 is not None and block.k2 is not None
        x, y, along = block.x, block.y, block.along
        assert x is not None and y is not None and along is not None
        weight = slopes[None].to(along.dtype)
        k1, k2 = block.k1.mul_(weight), block.k2.mul_(weight)
        by_time = torch.linalg.vecdot(k2, along)[..., None]
        by_length, by_their_time = k2 @ y.time, k2.mT @ x.length
        by_square = k1.sum(1)[..., None]
        turned = k2.mul_(x.time).addcmul_(k1, along)  # minus the derivative by y_r
        across = turned @ y.x
        radial = torch.linalg.vecdot(across, x.unit)[..., None] * x.inverse + by_length
        radial -= by_time * x.length / x.time
        by_x = across.mul_(-x.inverse).addcmul_(x.unit, radial)
        by_y = torch.addcmul((turned.mT @ x.unit).neg_(), y.x, by_square + by_their_time / y.time)
        by_rows = self._add(pair[0], block.span, by_x.to(slopes.dtype))
        by_keys = self._add(pair[1], (0, len(self.points[pair[1]])), by_y.to(slopes.dtype))
        if block.apart is not None:
            factor, row, column = block.apart.index
            weights = slopes[row, column].to(block.apart.angle.dtype)
            ends = torch.autograd.grad(block.apart.angle, (block.apart.x, block.apart.y), weights)
            for part, end, by_end in zip((by_rows, by_keys), (row, column), ends, strict=True):
                part.index_put_((factor, end), by_end.to(part.dtype), accumulate=True)

    def gradients(self) -> Iterator[Tensor]:
        """Gradients by the curvatures and every set of points, in this order."""
        share = -1 / self.factors
        by_root, by_points = torch.zeros_like(self.root_c), []
        for place, (own, points) in enumerate(zip(self.sets, self.points, strict=True)):
            by_own = self.pulled.pop(place, None)
            if by_own is None:
                by_points.append(torch.zeros_like(points))
                continue
            by_root += share * torch.linalg.vecdot(by_own, own.x).sum(1) / self.root_c
            by_own *= (share * self.root_c)[:, None, None]
            by_points.append(by_own.transpose(0, 1).reshape(points.shape))
        yield by_root / (2 * self.root_c)
        yield from by_points


def _sides(x: _Points, y: _Points) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y_r, a^2, b and S of all pairs, [k, q, K]."""
    along = x.unit @ y.x.mT
    across = torch.addcmul(y.length.square().mT, along, along, value=-1).clamp_(min=0)
    b = (along * x.time).addcmul_(x.length, y.time.mT, value=-1)
    return along, across, b, torch.addcmul(across, b, b)
