"""Riemannian stochastic gradient descent (Bonnabel 2013); parallel transport moves the momentum along."""

from typing import Any

import torch

from hyco.models.hyperbolic.optim.groups import PointsMixin, move_, riemannian_gradient


class RiemannianSGD(PointsMixin, torch.optim.SGD):
    """`torch.optim.SGD` that moves the points of groups with a "manifold" along geodesics.

    Arguments are those of torch.optim.SGD; build the groups with `parameter_groups(module)`. Ordinary groups
    take torch's own step, so they agree with it bit for bit.
    """

    def _move_group(self, group: dict[str, Any]) -> None:
        for x in group["params"]:
            if x.grad is None:
                continue
            grad, state, carried = riemannian_gradient(x, group), self.state[x], []
            if group["momentum"] != 0:
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = grad.clone()
                else:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
                carried = [state["momentum_buffer"]]
                grad = grad.add(carried[0], alpha=group["momentum"]) if group["nesterov"] else carried[0]
            move_(x, -group["lr"] * grad, group, carried)
