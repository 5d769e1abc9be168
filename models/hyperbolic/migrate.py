"""Import of weights trained with HypLL 0.1.

HypLL's parameters are tensor subclasses that torch.load(weights_only=True) refuses. In an environment that
has HypLL:

    plain = {k: getattr(v, "tensor", v).detach().clone() for k, v in theirs.state_dict().items()}
    torch.save(plain, "plain.pt")
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import isometry, poincare
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.batchnorm import _BatchNorm
from hyco.models.hyperbolic.nn.conv import _Conv
from hyco.models.hyperbolic.nn.embedding import Embedding
from hyco.models.hyperbolic.nn.linear import Linear
from hyco.models.hyperbolic.nn.module import HyperbolicModule

HYPLL_ANGLE = 2 * math.atanh(1 - 4e-3)
"""6.2, the angle at which HypLL projects float32 points back into the ball, as `max_angle` of our layers."""


@torch.no_grad()
def load_hypll(
    module: nn.Module,
    state: Mapping[str, Tensor],
    constraining_strategy: Callable[[Tensor], Tensor] = nn.functional.softplus,
) -> None:
    """Copy a HypLL state dict into `module`, whose layers have the same attribute names.

    See docs/coming-from-hypll.md. Tangent vectors get the length they have in the layer's model; embeddings, which are
    points in HypLL, become rows of the table (tangent vectors or points). Ordinary torch layers in the module are
    loaded as they are. Running statistics, which HypLL does not have, stay at their initial values: call `recalibrate`
    or train on before using eval mode. A lower `max_angle` of a layer is raised to `HYPLL_ANGLE`, as trained weights
    may rely on points that far out; build a net that is to load these weights again with max_angle=HYPLL_ANGLE.

    Args:
        module: the network that takes the weights. A layer whose c is a learnable `Curvature` takes the
            value of c; one whose c is fixed must have it already.
        state: HypLL's state dict, converted to plain tensors (see the module's docstring).
        constraining_strategy: the argument of that name of HypLL's Curvature, by which its stored number
            becomes c; a state dict does not hold it. `lambda value: value` for nets that pass the identity.

    Raises:
        ValueError: a missing or unused tensor, a shape that does not fit, a batch-norm weight that is not
            positive, or a curvature that differs from the layer's, lies outside the bounds of its `Curvature`, or
            differs between layers that share one.
    """
    left, learned = dict(state), {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        double = 2 if isinstance(layer, HyperbolicModule) and layer.model == "lorentz" else 1
        if isinstance(layer, HyperbolicModule):
            _load_curvature(prefix, layer, left, constraining_strategy, learned)
        if isinstance(layer, Linear | _Conv | _BatchNorm):
            layer.max_angle = max(layer.max_angle, HYPLL_ANGLE)
        if isinstance(layer, Linear):
            _copy(layer.weight, left, f"{prefix}z", lambda z: z.T)
            _copy(layer.bias, left, f"{prefix}bias", lambda r, k=double: k * r)
        elif isinstance(layer, _Conv):
            shape = layer.weight.shape
            _copy(layer.weight, left, f"{prefix}weights", lambda z, shape=shape: z.T.reshape(shape))
            _copy(layer.bias, left, f"{prefix}bias", lambda r, k=double: k * r)
        elif isinstance(layer, _BatchNorm):
            inner = f"{prefix}norm." if f"{prefix}norm.weight" in left else prefix
            _copy(layer.weight, left, f"{inner}weight", lambda w, at=inner: _unsoftplus(w, at))
            _copy(layer.bias, left, f"{inner}bias", lambda r, k=double: k * r)
        elif isinstance(layer, Embedding):
            _copy(layer.weight, left, f"{prefix}weight", lambda x, layer=layer: _rows(x, layer))
        elif not isinstance(layer, HyperbolicModule | Curvature):
            for key, target in layer.state_dict(keep_vars=True).items():
                if "." not in key:
                    _copy(target, left, f"{prefix}{key}")
    left = {k: v for k, v in left.items() if not k.endswith("c.value")}
    if left:
        raise ValueError(
            f"no layer of the model takes these tensors: {', '.join(left)}; name its layers as in HypLL"
        )


def _copy(target: Tensor | None, left: dict[str, Tensor], key: str, change=lambda z: z) -> None:
    if target is None:
        return
    if key not in left:
        raise ValueError(f"the state dict has no {key!r}; it has {', '.join(left) or 'nothing left'}")
    value = change(left.pop(key))
    if value.shape != target.shape:
        raise ValueError(f"{key!r} has shape {list(value.shape)}, expected {list(target.shape)}")
    target.copy_(value)


def _rows(x: Tensor, layer: Embedding) -> Tensor:
    """Rows of the table from HypLL's points of the ball."""
    c = layer.curvature()
    if layer.points:
        return isometry.poincare_to_lorentz(x, c) if layer.model == "lorentz" else x
    return poincare.log0(x, c) * (2 if layer.model == "lorentz" else 1)


def _unsoftplus(weight: Tensor, at: str) -> Tensor:
    if not (weight > 0).all():
        raise ValueError(
            f"{at}weight is {weight.tolist()}: HypLL takes its square root, so it must be positive"
        )
    return weight + torch.log(-torch.expm1(-weight))


def _load_curvature(
    prefix: str,
    layer: HyperbolicModule,
    left: Mapping[str, Tensor],
    strategy: Callable[[Tensor], Tensor],
    learned: dict[Curvature, tuple[str, float]],
) -> None:
    """Check a fixed c, or set a learnable one; `learned` holds the curvatures that are set, and by which key."""
    for key in (f"{prefix}manifold.c.value", f"{prefix}norm.manifold.c.value"):
        if key not in left:
            continue
        value, theirs = float(left[key]), float(strategy(left[key]))
        if not 0 < theirs < math.inf:
            raise ValueError(
                f"{key} is {value:.6g}, of which constraining_strategy makes c = {theirs:.6g}: it must be positive; "
                "pass the constraining_strategy of HypLL's Curvature (softplus by default)"
            )
        if isinstance(layer.c, Curvature) and isinstance(layer.c.log_c, nn.Parameter):
            _learn(layer.c, key, theirs, learned)
        elif abs(theirs / float(layer.curvature()) - 1) > 1e-3:
            raise ValueError(
                f"{key} is {value:.6g}, which means c = {theirs:.6g}, and the layer has c = "
                f"{float(layer.curvature()):.6g}. HypLL puts the number through a softplus unless its Curvature has "
                "another constraining_strategy: pass that one as constraining_strategy=, or give the layer "
                f"c = {theirs:.6g}"
            )


def _learn(curvature: Curvature, key: str, c: float, learned: dict[Curvature, tuple[str, float]]) -> None:
    if not curvature.low <= c <= curvature.high:
        raise ValueError(
            f"{key} means c = {c:.6g}, outside the bounds {curvature.low:g} to {curvature.high:g} of the layer's "
            "Curvature: give it other low= and high="
        )
    first, held = learned.setdefault(curvature, (key, c))
    if abs(c / held - 1) > 1e-6:
        raise ValueError(
            f"{key} means c = {c:.6g} and {first} c = {held:.6g}, but both layers share one Curvature: "
            "give each its own"
        )
    curvature.log_c.fill_(math.log(c))


@torch.no_grad()
def recalibrate(module: nn.Module, batches) -> None:
    """Set the running statistics of batch norms to the averages over `batches`, calling module(batch) for each."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept, mode = [m.momentum for m in norms], module.training
    for norm in norms:
        norm.momentum = None
        for buffer, value in (
            (norm.running_mean, 0.0),
            (norm.running_var, 1.0),
            (norm.num_batches_tracked, 0),
        ):
            if buffer is not None:
                buffer.fill_(value)
    module.train()
    for batch in batches:
        module(batch)
    module.train(mode)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
