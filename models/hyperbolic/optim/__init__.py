"""Riemannian SGD and Adam, for the parameters that are points; everything else trains with torch.optim."""

from hyco.models.hyperbolic.optim.adam import RiemannianAdam
from hyco.models.hyperbolic.optim.groups import parameter_groups
from hyco.models.hyperbolic.optim.sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianSGD", "parameter_groups"]
