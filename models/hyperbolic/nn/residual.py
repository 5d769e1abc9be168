"""Residual connection: the gyrovector (Mobius) sum of two points, over their coordinates."""

from torch import Tensor

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.functional import Rate, cosh_sinhc, to_tangent
from models.hyperbolic.nn.module import HyperbolicModule, full_precision


def residual_add(x: Tensor, y: Tensor, rate: Rate, dim: int = 1) -> Tensor:
    """log_0(exp_0(x) + exp_0(y)) by Mobius addition, for tangent vectors with coordinates along `dim`; same
    shape.

    The boost that takes the origin to x, applied to y: s = y_s + x_s (y_t + <x_s, y_s> / (1 + x_t)). Not
    commutative: the second argument is the one that is moved.
    """
    x_t, x_f = cosh_sinhc(x, rate, dim)
    y_t, y_f = cosh_sinhc(y, rate, dim)
    inner = (x * y).sum(dim, keepdim=True) * (x_f * y_f)
    return to_tangent(y * y_f + x * (x_f * (y_t + inner / (1 + x_t))), rate, dim)


class ResidualAdd(HyperbolicModule):
    """`residual_add` as a layer: two tensors of one shape, points' coordinates along `dim` (default:
    channels)."""

    def __init__(self, dim: int = 1, c: float | Curvature = 1.0, model: str = "poincare") -> None:
        super().__init__(c, model)
        self.dim = dim

    @full_precision
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, y moved by x; same shape."""
        if x.shape != y.shape:
            raise ValueError(f"a residual sum needs equal shapes, got {list(x.shape)} and {list(y.shape)}")
        return residual_add(x, y, self.rate(), self.dim)
