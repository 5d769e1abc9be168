"""Maximum class separation: C fixed directions as far apart as C directions can be (Kasarla et al., NeurIPS 2022).

The columns of a [C - 1, C] matrix P are the corners of a regular simplex: unit length, pairwise cosine -1/(C - 1).
With k = C - 1 and rows and columns counted from 0,

    s_i^2 = (k - i)(k + 1) / (k (k - i + 1)),   P[i, i] = s_i,   P[i, j] = -s_i / (k - i) for j > i,   0 for j < i,

which is the paper's recursion solved. A net that ends in C - 1 numbers f has the logits radius * f P.

P P^T = C/(C - 1) I, and columns sum to zero. Behind a free linear layer W the logits P^T W x therefore range over the
same functions as a softmax layer's, and at the radius `equal_radius(C)` = sqrt((C - 1)/C) SGD moves both alike,
momentum and weight decay included (tests/models/heads/test_max_separation.py): any other radius is another temperature.
Legend: B batch, C classes, D features.
"""

import math

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import lorentz

RUNNING_SUM_FROM = (
    128  # number of classes from which the running sum is faster (tests/perf/bench_separation.py)
)


def _factors(classes: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """(s_i, s_i / (k - i)) for i < k in float64: [C - 1] each."""
    if classes < 2:
        raise ValueError(
            f"{classes} class cannot be separated from anything: maximum separation needs 2 or more"
        )
    k = classes - 1
    left = torch.arange(k, 0, -1, dtype=torch.float64, device=device)  # k - i
    diagonal = (left * (k + 1) / (k * (left + 1))).sqrt()
    return diagonal, diagonal / left


def separation_matrix(
    classes: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """The closed form: [C - 1, C], unit columns with pairwise cosine -1/(C - 1); ValueError below 2 classes."""
    diagonal, beside = _factors(classes, "cpu")
    matrix = (-beside[:, None]).expand(-1, classes).triu(1)
    matrix.diagonal().copy_(diagonal)
    return matrix.to(dtype=dtype, device=device)


def separation_logits(features: Tensor, classes: int) -> Tensor:
    """features P without P, in O(C) by a running sum: [..., C - 1] -> [..., C].

    l_j = s_j f_j - sum_{i < j} s_i f_i / (k - i), with s_k f_k = 0. ValueError when the last dimension is not C - 1.
    """
    diagonal, beside = _factors(classes, features.device)
    if features.shape[-1] != classes - 1:
        raise ValueError(_wrong_width(features.shape[-1], classes))
    return _running_sum(features, diagonal.to(features.dtype), beside.to(features.dtype))


def _running_sum(features: Tensor, diagonal: Tensor, beside: Tensor) -> Tensor:
    none = torch.zeros_like(features[..., :1])
    return torch.cat([features * diagonal, none], -1) - torch.cat([none, (features * beside).cumsum(-1)], -1)


def _wrong_width(width: int, classes: int) -> str:
    return (
        f"{classes} classes lie in {classes - 1} dimensions and the features have {width}: project them first"
    )


def equal_radius(classes: int) -> float:
    """Radius sqrt((C - 1)/C) at which this head and a linear softmax layer train alike under SGD."""
    return math.sqrt((classes - 1) / classes)


class MaximumSeparation(nn.Module):
    """Classifier head: features [..., in_features] -> logits [..., C]; a linear layer to C - 1, then radius * f P.

    The linear layer follows autocast; the fixed part runs in float32 or wider. P is not part of the state dict and is
    recomputed exactly whenever the module changes type or device.

    Args:
        classes: C, at least 2.
        in_features: at least C - 1, since fewer dimensions hold no simplex of C corners (ValueError).
        radius: logits of a feature of length 1 lie within [-radius, radius]; None takes `equal_radius(C)`.
        learnable: learn log(radius), initialised by `radius`.
        project: False leaves the linear layer out; the features must then have C - 1 dimensions.
    """

    fixed: Tensor
    beside: Tensor

    def __init__(
        self,
        classes: int,
        in_features: int,
        radius: float | None = None,
        *,
        learnable: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        diagonal, _ = _factors(classes, "cpu")
        if in_features < classes - 1:
            raise ValueError(
                f"in_features {in_features} is too few: {classes} classes at maximum separation span "
                f"{classes - 1} dimensions; widen the net to {classes - 1} features, or use a softmax head"
            )
        if not project and in_features != classes - 1:
            raise ValueError(_wrong_width(in_features, classes))
        radius = equal_radius(classes) if radius is None else radius
        if not (radius > 0 and math.isfinite(radius)):
            raise ValueError(f"radius {radius} must be positive: it is the inverse of a temperature")
        self.classes, self.in_features = classes, in_features
        self.projection = nn.Linear(in_features, classes - 1) if project else nn.Identity()
        self.log_radius: Tensor
        if learnable:
            self.log_radius = nn.Parameter(torch.tensor(math.log(radius)))
        else:
            self.register_buffer("log_radius", torch.tensor(math.log(radius)))
        self.summed = classes >= RUNNING_SUM_FROM
        # Either the matrix, or the diagonal with the quotients beside it.
        self.register_buffer(
            "fixed", diagonal if self.summed else separation_matrix(classes), persistent=False
        )
        self.register_buffer("beside", torch.empty(classes - 1 if self.summed else 0), persistent=False)
        self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        """Compute the constants in float64, then cast to the module's type: double() must not have float32 digits."""
        wide = torch.promote_types(self.log_radius.dtype, torch.float32)
        device = self.log_radius.device
        if device.type == "meta":
            return
        if self.summed:
            self.fixed, self.beside = (part.to(device, wide) for part in _factors(self.classes, "cpu"))
        else:
            self.fixed = separation_matrix(self.classes, wide, device)

    def _apply(
        self, fn, recurse: bool = True
    ):  # .double(), .to(device), .to_empty(device) all come through here
        super()._apply(fn, recurse)
        self._fill()
        return self

    @property
    def radius(self) -> Tensor:
        """Length of the prototypes, 0-dim."""
        return self.log_radius.exp()

    def slopes(self) -> Tensor:
        """Matrix for a weight penalty: [C - 1, in_features], or [C - 1, C - 1] without `project`.

        Its Frobenius norm is that of the logits' matrix: radius / equal_radius times that of the projection. A penalty
        on the projection alone has no minimum: the projection shrinks while a learned radius grows.
        """
        steep = self.radius / equal_radius(self.classes)
        if isinstance(self.projection, nn.Linear):
            return steep * self.projection.weight
        return steep * torch.eye(self.classes - 1, dtype=steep.dtype, device=steep.device)

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., in_features] -> logits [..., C], float32 or wider."""
        projected = self.projection(features)
        with torch.autocast(features.device.type, enabled=False):
            projected = projected.to(self.fixed.dtype)
            summed = self.summed
            logits = _running_sum(projected, self.fixed, self.beside) if summed else projected @ self.fixed
            return self.log_radius.to(self.fixed.dtype).exp() * logits

    def extra_repr(self) -> str:
        """Sizes and, where it is fixed, the radius."""
        form = "running sum" if self.summed else "matrix"
        return f"classes={self.classes}, in_features={self.in_features}, {form}"


class HyperbolicPrototypes(nn.Module):
    """Classes as fixed directions of the hyperboloid at one learned distance from the origin: points -> logits.

    Prototype k is exp_0(radius * q_k), q_k the k-th corner of the simplex turned by a fixed rotation (of `seed`);
    logits are -scale * distance, as in HyCoCLIP. Only the radius and the scale are learned: over the points of a
    frozen encoder this is a classifier that needs labels but no text. Points are space parts [..., D], curvature -c.

    Args:
        classes: C, at least 2.
        dim: D of the points, at least C - 1 (ValueError).
        curvature: c > 0 of the space; a buffer of the state dict.
        radius: initial distance of a prototype from the origin.
        scale: initial inverse temperature.
        seed: of the rotation; None puts the corners in the first C - 1 coordinates.
        adapt: also learn a linear map in the tangent space at the origin, initialised as the identity. Without it the
            directions of the prototypes have no relation to the encoder's.
    """

    corners: Tensor
    curvature: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        curvature: float = 1.0,
        *,
        radius: float = 1.0,
        scale: float = 10.0,
        seed: int | None = 0,
        adapt: bool = True,
    ) -> None:
        super().__init__()
        if dim < classes - 1:
            raise ValueError(
                f"dim {dim} is too few: {classes} prototypes at maximum separation span {classes - 1} dimensions; "
                f"use an embedding of {classes - 1} dimensions or more"
            )
        for name, value in (("curvature", curvature), ("radius", radius), ("scale", scale)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} {value} must be positive")
        corners = torch.zeros(classes, dim, dtype=torch.float64)
        corners[:, : classes - 1] = separation_matrix(classes, torch.float64).T
        if seed is not None:
            noise = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            corners = corners @ torch.linalg.qr(noise).Q
        self.register_buffer("corners", corners.float())
        self.register_buffer("curvature", torch.tensor(float(curvature)))
        self.log_radius = nn.Parameter(torch.tensor(math.log(radius)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.adapt = nn.Linear(dim, dim, bias=False) if adapt else None
        if self.adapt is not None:
            nn.init.eye_(self.adapt.weight)

    def prototypes(self) -> Tensor:
        """Points of the classes: [C, D]."""
        return lorentz.exp0(self.log_radius.exp() * self.corners, self.curvature)

    def slopes(self) -> Tensor:
        """Matrix for a weight penalty: [D, D], or [C, D] without `adapt`.

        Its Frobenius norm is that of the logits' derivative at the origin: scale / equal_radius times that of the map.
        A penalty on the map alone has no minimum: the map goes to 0 while the scale, which is free, goes to infinity.
        """
        scale = self.log_scale.exp()
        if self.adapt is None:
            return scale * self.corners
        return scale / equal_radius(len(self.corners)) * self.adapt.weight

    def forward(self, points: Tensor) -> Tensor:
        """Space parts [..., D] -> logits [..., C], never in half precision."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.to(self.corners.dtype)
            if self.adapt is not None:
                points = lorentz.exp0(self.adapt(lorentz.log0(points, self.curvature)), self.curvature)
            return -self.log_scale.exp() * lorentz.pairwise_distance(
                points, self.prototypes(), self.curvature
            )
