"""Parameter groups of points, and how an optimiser moves points."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import lorentz, poincare

GEOMETRIES = {"poincare": poincare, "lorentz": lorentz}


def parameter_groups(module: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """Parameter groups of a module: ordinary parameters first, then one group for each (model, c) of points.

    Layers list their points in a method `manifold_parameters()` -> [(parameter, "poincare" or "lorentz", c)], as
    `nn.Embedding(points=True)` does. A group of points has the keys "manifold" and "c"; `options` go into all groups.
    """
    points: dict[tuple[str, float], list[nn.Parameter]] = {}
    for layer in module.modules():
        for parameter, model, c in getattr(layer, "manifold_parameters", list)():
            points.setdefault((model, c), []).append(parameter)
    taken = {id(p) for group in points.values() for p in group}
    ordinary = [p for p in module.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [{"params": ordinary, **options}] if ordinary else []
    return groups + [{"params": p, "manifold": m, "c": c, **options} for (m, c), p in points.items()]


class PointsMixin:
    """Adds `step` for groups of points to a torch optimiser; other groups take torch's own step, bit for bit."""

    param_groups: list[dict[str, Any]]
    _move_group: Callable[[dict[str, Any]], None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group; closure as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # torch hooks the step of the class of each optimiser; ours is hooked, so theirs must not be.
        ordinary = super().step.__func__  # type: ignore[misc]
        if getattr(ordinary, "hooked", False):
            ordinary = ordinary.__wrapped__
        with self._only_ordinary():
            ordinary(self)
        for group in self.param_groups:
            if group.get("manifold") is not None:
                self._move_group(group)
        return loss

    @contextmanager
    def _only_ordinary(self):
        everything = self.param_groups
        self.param_groups = [g for g in everything if g.get("manifold") is None]
        try:
            yield
        finally:
            self.param_groups = everything


def riemannian_gradient(x: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """Riemannian gradient at x, with weight decay and `maximize` applied."""
    assert x.grad is not None
    if x.grad.is_sparse:
        raise ValueError("torch.nn.Embedding(sparse=True) tables cannot be points; use hnn.Embedding")
    grad = -x.grad if group["maximize"] else x.grad
    if group["weight_decay"] != 0:
        grad = grad.add(x, alpha=group["weight_decay"])
    return geometry(group).project_tangent(x, grad, group["c"])


def geometry(group: dict[str, Any]):
    """The geometry module of a group of points."""
    if group["manifold"] not in GEOMETRIES:
        raise ValueError(f'the manifold of a group is "poincare" or "lorentz"; got {group["manifold"]!r}')
    return GEOMETRIES[group["manifold"]]


def move_(x: nn.Parameter, step: Tensor, group: dict[str, Any], carried: list[Tensor]) -> None:
    """Move x along the geodesic with velocity `step`, in place, and transport the `carried` tangent vectors with it.

    x moves no further from the origin than `project` allows.
    """
    space, c = geometry(group), group["c"]
    target = space.project(space.exp(x, step, c), c)
    for vector in carried:
        vector.copy_(space.transport(x, target, vector, c))
    x.copy_(target)
