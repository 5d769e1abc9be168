"""The exterior angles of all pairs as scores of the fused contrast: who lies inside whose entailment cone.

On the unit hyperboloid write a specific y = y_r e + a f at a general x with e = x / |x|, f orthogonal to e, n = |x|.
The exterior angle is theta = atan2(a, b) with a^2 = |y|^2 - y_r^2 and b = y_r x_t - y_t n; S = a^2 + b^2 = sinh^2 of
the distance (models/losses/entailment.py). The cosines of all pairs are one matrix product, and y_r = |y| cosine. With
K1 = b / (a S), K2 = a / S,
    d theta / d y_r = -(K1 y_r + K2 x_t),    d / d(|y|^2 / 2) = K1,    d / d y_t = K2 n,
    d / d n = K2 y_t,    d / d x_t = -K2 y_r,
so the gradient is two products with one matrix, the derivatives by the cosines, and sums of rows and columns. Tables
that compare the directions of the same points (a polar model's contrast) share the three products. Both squares cancel
where the points are nearly collinear with the origin or near each other, and f has no direction there: such pairs are
computed one by one from `cone_excess`, or, where a block has very many, the block in float64.
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


_Place = tuple[tuple[int, int], tuple[int, int]]
"""A pair of sets, and a span of the queries."""


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
    """Scores, the points, and K1, K2, the cosines and y_r [k, q, K] (K1 = K2 = 0 of pairs in `apart`)."""

    x: _Points | None = None
    y: _Points | None = None
    k1: Tensor | None = None
    k2: Tensor | None = None
    cosine: Tensor | None = None
    along: Tensor | None = None
    apart: _Apart | None = None


class Cones(Sphere):
    """Minus the mean over k hyperboloids of the exterior angle of a key at a query; or the cosine at the origin.

    Blocks of the same pairs that follow each other have one matrix of cosines, and its gradient is multiplied once.
    """

    def __init__(self, c: Tensor, points: Sequence[Tensor], deferred: bool = False) -> None:
        super().__init__(points, len(c), deferred)
        self.root_c = c.sqrt()
        self.sets = [_Points.of(each, self.root_c) for each in points]
        self.shared: tuple[_Place, Tensor] | None = None  # the newest cosines
        self.owed: tuple[_Place, Tensor] | None = None  # derivatives by cosines that are not multiplied yet
        self.by_unit: dict[int, Tensor] = {}  # gradients by unit vectors [k, N, d], and lengths [k, N, 1]
        self.by_length: dict[int, Tensor] = {}

    def cosines(self, pair: tuple[int, int], span: tuple[int, int], scale: Tensor) -> Block:
        """Scores of directions: cosines of the queries of a span and all keys of a pair of sets, in one hyperboloid."""
        assert self.factors == 1, "a polar model lies in one hyperboloid"
        x, y = self.sets[pair[0]].rows(span), self.sets[pair[1]]
        return Block(span, scale, self._cosines(pair, span)[0] * scale, x.unit, y.unit)

    def _cosines(self, pair: tuple[int, int], span: tuple[int, int]) -> Tensor:
        if self.shared is None or self.shared[0] != (pair, span):
            self.shared = None  # before the next is made
            self.shared = (pair, span), self.sets[pair[0]].rows(span).unit @ self.sets[pair[1]].unit.mT
        return self.shared[1]

    def block(self, pair: tuple[int, int], span: tuple[int, int], scale: Tensor) -> _Angles:
        """Scores of the queries of a span and all keys of a pair of sets."""
        x, y = self.sets[pair[0]].rows(span), self.sets[pair[1]]
        cosine = self._cosines(pair, span)
        along, across, b, square = _sides(x, y, cosine)
        lost, apart = self._lost(x, y, across, square), None
        if lost is not None:
            factor, row, column = lost.nonzero(as_tuple=True)
            if len(factor) <= max(lost.shape[1:]):
                apart = _Apart.of((factor, row, column), x, y)
            else:
                wide = self.root_c.double()
                x = _Points.of(self.points[pair[0]][slice(*span)].double(), wide)
                y = _Points.of(self.points[pair[1]].double(), wide)
                cosine = x.unit @ y.unit.mT
                along, across, b, square = _sides(x, y, cosine)
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
        return _Angles(span, scale, scores, x.unit, y.x, None, None, None, x, y, k1, k2, cosine, along, apart)

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
        keys = (0, len(self.points[pair[1]]))
        if not isinstance(block, _Angles):
            self._owe(pair, block.span, slopes[None])
            return
        x, y, along, cosine = block.x, block.y, block.along, block.cosine
        assert block.k1 is not None and block.k2 is not None and along is not None and cosine is not None
        assert x is not None and y is not None
        weight, share = slopes[None].to(along.dtype), -1 / self.factors
        k1, k2 = block.k1.mul_(weight), block.k2.mul_(weight)
        by_x = k2 @ y.time - torch.linalg.vecdot(k2, along)[..., None] * x.length / x.time
        by_y = y.length * (k1.sum(1)[..., None] + k2.mT @ x.length / y.time)
        by_cosine = k2.mul_(x.time).addcmul_(k1, along).mul_(-share * y.length.mT)
        by_x = by_x * share
        by_y = by_y * share + torch.mul(by_cosine, cosine, out=k1).sum(1)[..., None] * y.inverse
        if along.dtype == slopes.dtype:
            self._owe(pair, block.span, by_cosine)
            self._gathered(self.by_length, pair[0], block.span, by_x)
            self._gathered(self.by_length, pair[1], keys, by_y)
        else:  # what cancels is summed before float32
            ends = (by_cosine @ y.unit, by_x, x), (by_cosine.mT @ x.unit, by_y, y)
            for place, span, (unit, length, own) in zip(pair, (block.span, keys), ends, strict=True):
                self._add(place, span, _by_points(own, unit, length).to(slopes.dtype))
        if block.apart is not None:
            factor, row, column = block.apart.index
            weights = slopes[row, column].to(block.apart.angle.dtype)
            ends = torch.autograd.grad(block.apart.angle, (block.apart.x, block.apart.y), weights)
            for place, span, end, by_end in zip(pair, (block.span, keys), (row, column), ends, strict=True):
                part = self._gathered(self.pulled, place, span)
                part.index_put_((factor, end), share * by_end.to(part.dtype), accumulate=True)

    def _owe(self, pair: tuple[int, int], span: tuple[int, int], by_cosine: Tensor) -> None:
        """Add derivatives by the cosines of a block; they are multiplied when another block follows."""
        if self.owed is not None and self.owed[0] == (pair, span):
            self.owed[1].add_(by_cosine)
            return
        self._pay()
        self.owed = (pair, span), by_cosine

    def _pay(self) -> None:
        if self.owed is None:
            return
        ((query, key), span), by_cosine = self.owed
        self.owed = None
        everything = (0, len(self.points[key]))
        self.gather(self.by_unit, query, span, by_cosine, self.sets[key].unit)
        self.gather(self.by_unit, key, everything, by_cosine.mT, self.sets[query].rows(span).unit)

    def _gathered(
        self, held: dict[int, Tensor], place: int, span: tuple[int, int], values: Tensor | None = None
    ) -> Tensor:
        """The part of a span of a set in a sum, which begins with zeros, after adding values to it."""
        if place not in held:
            own = self.sets[place]
            held[place] = torch.zeros_like(own.length if held is self.by_length else own.x)
        part = held[place][:, slice(*span)]
        return part if values is None else part.add_(values)

    def gradients(self) -> Iterator[Tensor]:
        """Gradients by the curvatures and every set of points, in this order."""
        self._pay()
        by_root, by_points = torch.zeros_like(self.root_c), []
        for place, (own, points) in enumerate(zip(self.sets, self.points, strict=True)):
            total = self.pulled.pop(place, None)
            if total is not None:
                by_root += torch.linalg.vecdot(total, own.x).sum(1) / self.root_c
            unit, length = self.by_unit.pop(place, None), self.by_length.pop(place, None)
            if length is not None:
                by_root += (length * own.length).sum((1, 2)) / self.root_c
            if unit is not None:
                turned = _by_points(own, unit, length)
                total = turned if total is None else total.add_(turned)
            if total is None:
                by_points.append(torch.zeros_like(points))
                continue
            total *= self.root_c[:, None, None]
            by_points.append(total.transpose(0, 1).reshape(points.shape))
        yield by_root / (2 * self.root_c)
        yield from by_points


def _sides(x: _Points, y: _Points, cosine: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y_r, a^2, b and S of all pairs, [k, q, K]."""
    along = cosine * y.length.mT
    across = torch.addcmul(y.length.square().mT, along, along, value=-1).clamp_(min=0)
    b = (along * x.time).addcmul_(x.length, y.time.mT, value=-1)
    return along, across, b, torch.addcmul(across, b, b)


def _by_points(points: _Points, by_unit: Tensor, by_length: Tensor | None) -> Tensor:
    """Gradient by the points of a function of their unit vectors and lengths; overwrites by_unit."""
    radial = -torch.linalg.vecdot(by_unit, points.unit)[..., None] * points.inverse
    if by_length is not None:
        radial = radial + by_length
    return by_unit.mul_(points.inverse).addcmul_(points.unit, radial)
