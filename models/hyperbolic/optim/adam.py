"""Riemannian Adam (Becigneul and Ganea, ICLR 2019)."""

from typing import Any

import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic.optim.groups import PointsMixin, geometry, move_, riemannian_gradient


class RiemannianAdam(PointsMixin, torch.optim.Adam):
    """`torch.optim.Adam` that moves the points of groups with a "manifold" along geodesics.

    Arguments are those of torch.optim.Adam (amsgrad is refused for points); build the groups with
    `parameter_groups(module)`. The second moment of a point is one number, its squared Riemannian gradient norm;
    parallel transport moves the first moment along. Ordinary groups take torch's own step.
    """

    def _move_group(self, group: dict[str, Any]) -> None:
        if group["amsgrad"]:
            raise ValueError("amsgrad=True is not defined for points; leave it off for their group")
        beta1, beta2 = group["betas"]
        for x in group["params"]:
            if x.grad is None:
                continue
            grad, state = riemannian_gradient(x, group), self.state[x]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(x)
                state["exp_avg_sq"] = torch.zeros_like(x[..., :1])
            state["step"] += 1
            first, second, step = state["exp_avg"], state["exp_avg_sq"], state["step"].item()
            first.lerp_(grad, 1 - beta1)
            second.lerp_(_square(x, grad, group), 1 - beta2)
            scale = (second / (1 - beta2**step)).sqrt() + group["eps"]
            move_(x, first / scale * (-group["lr"] / (1 - beta1**step)), group, [first])


def _square(x: Tensor, v: Tensor, group: dict[str, Any]) -> Tensor:
    """Squared Riemannian length of tangent vectors v at x: [..., D] -> [..., 1]."""
    if geometry(group) is poincare:
        return poincare.inner(x, v, v, group["c"]).unsqueeze(-1)
    return lorentz.tangent_norm(x, v, group["c"]) ** 2
