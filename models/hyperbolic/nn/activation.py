"""Activations and dropout on tangent vectors, torch's own layers re-exported, and one on hyperboloid points."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import ELU, GELU, Dropout, LeakyReLU, ReLU, SiLU, Tanh

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import to_space, to_tangent
from hyco.models.hyperbolic.nn.module import HyperbolicModule, full_precision

__all__ = ["ELU", "GELU", "Dropout", "LeakyReLU", "LorentzActivation", "ReLU", "SiLU", "Tanh"]


class LorentzActivation(HyperbolicModule):
    """A function of the space part on the unit hyperboloid, whose time part follows (Chen et al. 2022); same shape.

    Args:
        function: elementwise, for example torch.relu; nn.Dropout(p) makes it Lorentz dropout.
        dim: the dimension of the points' coordinates.
        c, model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int = 1,
        c: float | Curvature = 1.0,
        model: str = "lorentz",
    ) -> None:
        super().__init__(c, model)
        self.function, self.dim = function, dim

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Tangent vectors in and out; same shape."""
        rate = self.rate()
        return to_tangent(self.function(to_space(u, rate, self.dim)), rate, self.dim)
