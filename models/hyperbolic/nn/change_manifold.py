"""Changes of coordinates: into the layers, out of them, and from one curvature to another."""

from torch import Tensor

from hyco.models.hyperbolic import isometry, lorentz, poincare
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.module import HyperbolicModule, full_precision

SPACES = ("tangent", "poincare", "lorentz", "klein")


class ChangeManifold(HyperbolicModule):
    """Map points of one space to another through the tangent space at the origin; same shape.

    Spaces:

    - "tangent": tangent vectors in the coordinates of `model`, the input and output of layers; Euclidean features are
      tangent vectors
    - "poincare", "klein": points of the Poincare or the Klein ball
    - "lorentz": points of the hyperboloid, by their space parts

    Points beyond the rim of the target are moved back to it along their direction. Distance of the rim from the origin:

    - "poincare": the margin of `poincare.project`, 14.5 / sqrt(c) in float32
    - "klein": the same margin, 7.3 / sqrt(c) in float32
    - "lorentz": `lorentz.MAX_RADIUS`, 11.09 / sqrt(c); a tangent vector of 5.545 / sqrt(c) with model="poincare"

    Args:
        source: space of the input.
        target: space of the output.
        dim: the dimension of the coordinates.
        c: curvature of the source.
        target_c: curvature of the target; None: the same. Between curvatures the tangent vector stays the same, as in
            HypLL; so do distances from the origin, but no others.
        model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        source: str = "tangent",
        target: str = "poincare",
        dim: int = -1,
        c: float | Curvature = 1.0,
        target_c: float | Curvature | None = None,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        for space in (source, target):
            if space not in SPACES:
                raise ValueError(f"a space is one of {', '.join(SPACES)}; got {space!r}")
        self.source, self.target, self.dim = source, target, dim
        self.target_c = target_c

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        """Coordinates of the source in, of the target out."""
        c = self.curvature()
        to_c = c if self.target_c is None else self.target_c
        to_c = to_c() if isinstance(to_c, Curvature) else to_c
        half = 2 if self.model == "poincare" else 1
        x = x.movedim(self.dim, -1)
        # v: tangent vector in hyperboloid coordinates, whose length is the distance from the origin.
        if self.source == "tangent":
            v = x * half
        elif self.source == "poincare":
            v = 2 * poincare.log0(x, c)
        else:
            v = lorentz.log0(isometry.klein_to_lorentz(x, c) if self.source == "klein" else x, c)
        if self.target == "tangent":
            out = v / half
        elif self.target == "poincare":
            out = poincare.project(poincare.exp0(v / 2, to_c), to_c)
        else:
            out = lorentz.exp0(v, to_c)
            if self.target == "klein":
                out = poincare.project(isometry.lorentz_to_klein(out, to_c), to_c)
        return out.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        """Spaces, curvature and model."""
        return f"{self.source} -> {self.target}, {super().extra_repr()}"
