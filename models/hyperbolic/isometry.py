"""One space, three charts: maps between the hyperboloid (space part), the Poincare ball and the Klein ball.

Each takes points [..., D] and returns points [..., D] of the same curvature -c; distances do not change.
What is no point of a ball, c|x|^2 >= 1, becomes NaN.
"""

from torch import Tensor

from hyco.models.hyperbolic.ops import (
    CurvatureLike,
    ball_square,
    expand_c,
    promote,
    sqrt_c,
    square_fits,
    square_norm,
)


def lorentz_to_poincare(x: Tensor, c: CurvatureLike) -> Tensor:
    """Stereographic projection x / (1 + sqrt(c) x_t)."""
    x = square_fits(promote(x))
    return x / (1 + (1 + expand_c(c) * square_norm(x)).sqrt())


def poincare_to_lorentz(x: Tensor, c: CurvatureLike) -> Tensor:
    """lambda_x x = 2 x / (1 - c|x|^2)."""
    x = promote(x)
    return 2 * x / (1 - ball_square(x, c))


def lorentz_to_klein(x: Tensor, c: CurvatureLike) -> Tensor:
    """Central projection x / (sqrt(c) x_t): geodesics become straight lines."""
    x = square_fits(promote(x))
    return x * (1 + expand_c(c) * square_norm(x)).rsqrt()


def klein_to_lorentz(x: Tensor, c: CurvatureLike) -> Tensor:
    """Lorentz factor times the point, x / sqrt(1 - c|x|^2)."""
    x = promote(x)
    return x * (1 - ball_square(x, c)).rsqrt()


def poincare_to_klein(x: Tensor, c: CurvatureLike) -> Tensor:
    """2 x / (1 + c|x|^2)."""
    x = promote(x)
    return 2 * x / (1 + ball_square(x, c))


def klein_to_poincare(x: Tensor, c: CurvatureLike) -> Tensor:
    """x / (1 + sqrt(1 - c|x|^2))."""
    x = promote(x)
    return x / (1 + (1 - ball_square(x, c)).sqrt())


def rescale(x: Tensor, source: CurvatureLike, target: CurvatureLike) -> Tensor:
    """The corresponding point at another curvature, sqrt(c_source / c_target) x; valid in all three charts."""
    return promote(x) * (expand_c(sqrt_c(source)) / expand_c(sqrt_c(target)))
