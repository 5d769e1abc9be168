"""Import of weights trained with HypLL 0.1.

HypLL's parameters are tensor subclasses that torch.load(weights_only=True) refuses. In an environment that
has HypLL:

    plain = {k: getattr(v, "tensor", v).detach().clone() for k, v in theirs.state_dict().items()}
    torch.save(plain, "plain.pt")
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.hyperbolic import isometry, poincare
from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.batchnorm import _BatchNorm
from models.hyperbolic.nn.conv import _Conv
from models.hyperbolic.nn.embedding import Embedding
from models.hyperbolic.nn.linear import Linear
from models.hyperbolic.nn.module import HyperbolicModule


@torch.no_grad()
def load_hypll(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a HypLL state dict into `module`, whose layers have the same attribute names.

    See docs/coming-from-hypll.md. Tangent vectors get the length they have in the layer's model; embeddings, which are
    points in HypLL, become rows of the table (tangent vectors or points). Ordinary torch layers in the module are
    loaded as they are. Running statistics, which HypLL does not have, stay at their initial values: call `recalibrate`
    or train on before using eval mode.

    Args:
        module: receives the weights.
        state: the HypLL state dict, as plain tensors (see the module's docstring).

    Raises:
        ValueError: a missing or unused tensor, a shape that does not fit, a batch-norm weight that is not
            positive, or a curvature that differs from the layer's.
    """
    left = dict(state)
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        double = 2 if isinstance(layer, HyperbolicModule) and layer.model == "lorentz" else 1
        if isinstance(layer, HyperbolicModule):
            _check_curvature(prefix, layer, left)
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


def _check_curvature(prefix: str, layer: HyperbolicModule, left: Mapping[str, Tensor]) -> None:
    """Compare curvatures; HypLL's stated value goes through a softplus: its Curvature(0.1) is 0.744."""
    for key in (f"{prefix}manifold.c.value", f"{prefix}norm.manifold.c.value"):
        if key in left:
            theirs, ours = float(nn.functional.softplus(left[key])), float(layer.curvature())
            if abs(theirs / ours - 1) > 1e-3:
                raise ValueError(
                    f"{key} means c = {theirs:.6g} (softplus of {float(left[key]):.6g}), the layer has c = {ours:.6g}"
                )


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
