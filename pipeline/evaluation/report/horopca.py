"""HoroPCA: points of the hyperboloid projected onto a plane through the origin (Chami et al., ICML 2021).

A direction w (a unit vector) is a point at infinity. Its Busemann function B_w(x) = log(x_t - w.x), on the unit
hyperboloid, measures the distance of x to it; points with equal values form a horosphere. The plane of two
directions is spanned by the geodesics from the origin to them, and the horospherical projection moves x along
horospheres: it goes to the point of the plane with the same two Busemann values, on the side of the geodesic
between the two directions on which x lies. Points of the plane are fixed.

The directions maximise the mean squared distance between the projected points (the paper's generalised variance), by
gradient ascent from the principal directions of the tangent vectors; both at once, where the paper takes one after the
other for nested components. The base point is the origin because it has a meaning in this space: general concepts are
near it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hyco.models.hyperbolic import lorentz

STEPS = 60
FITTED = 250  # number of points for fitting the directions; all are projected


def busemann(x: Float[Tensor, "N D"], w: Float[Tensor, " D"]) -> Float[Tensor, " N"]:
    """B_w(x) of points of the unit hyperboloid, 0 at the origin and negative towards w."""
    return (lorentz.time(x, 1.0).squeeze(-1) - x @ w).log()


def project(x: Float[Tensor, "N D"], directions: Float[Tensor, "2 D"]) -> Float[Tensor, "N 2"]:
    """Horospherical projection of points of the unit hyperboloid, as coordinates of the plane's hyperboloid.

    With orthonormal w_1, w_2 and a_i = exp B_i the null vectors p_i = (1, w_i) have <p_1, p_2> = -1, the part of x in
    their span is a_2 p_1 + a_1 p_2, and the remainder has the length r, r^2 = 2 a_1 a_2 - 1; the plane's unit normal to
    the span is n = -(1, w_1 + w_2). The projection is a_2 p_1 + a_1 p_2 +- r n.
    """
    along = x @ directions.T
    time = lorentz.time(x, 1.0)
    a = time - along
    left = (2 * a.prod(dim=1, keepdim=True) - 1).clamp(min=1e-24).sqrt()
    side = torch.where(time - along.sum(dim=1, keepdim=True) >= 0, 1.0, -1.0)
    return a.flip(1) - side * left


@torch.inference_mode(False)
def fit(points: Float[Tensor, "N D"], seed: int = 0) -> Float[Tensor, "2 D"]:
    """The plane for points of the unit hyperboloid, as two orthonormal directions.

    Gradient ascent with backtracking (Armijo); torch's own optimisers would load its compiler first, which takes longer
    than the fit.
    """
    x = points.double().clone()
    if len(x) > FITTED:
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:FITTED]
        x = x[chosen.to(x.device)]
    w = torch.linalg.svd(lorentz.log0(x, 1.0), full_matrices=False).Vh[:2]

    def spread(directions: Tensor) -> Tensor:
        laid = project(x, directions)
        return lorentz.pairwise_distance(laid, laid, 1.0).square().mean()

    step = 1.0
    for _ in range(STEPS):
        with torch.enable_grad():
            free = w.clone().requires_grad_()
            value = spread(orthonormal(free))
            (slope,) = torch.autograd.grad(value, free)
        rise = float(slope.square().sum())
        while step * rise > 1e-12 and spread(orthonormal(w + step * slope)) < value + 1e-4 * step * rise:
            step /= 2
        if not step * rise > 1e-12:  # at the maximum, or a negligible slope
            break
        w, step = orthonormal(w + step * slope), 2 * step
    return w


def orthonormal(w: Float[Tensor, "2 D"]) -> Float[Tensor, "2 D"]:
    """Two orthonormal directions, the first one unchanged (Gram-Schmidt)."""
    first = w[0] / w[0].norm()
    second = w[1] - (w[1] @ first) * first
    return torch.stack([first, second / second.norm()])


def disk(laid: Float[Tensor, "N 2"]) -> Float[Tensor, "N 2"]:
    """Points of the unit hyperboloid in the Poincare disk: x / (1 + x_t)."""
    return laid / (1 + lorentz.time(laid, 1.0))
