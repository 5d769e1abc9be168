"""The base class of all layers: curvature, model, and no half precision."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.ops import promote, sqrt_c
from hyco.models.hyperbolic.transforms import fx_leaf

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
Device = torch.device | str | int | None


class HyperbolicModule(nn.Module):
    """A layer on tangent vectors at the origin of hyperbolic space with curvature -c.

    Args:
        c: a positive number, or a `Curvature` (learnable if it is; pass the same one to several layers to share it).
        model: the coordinates of the tangent vectors. "poincare": d(0, exp u) = 2|u|, as in HypLL, HNN++ and Poincare
            ResNet; "lorentz": d(0, exp u) = |u|, as in MERU and HyCoCLIP. The same point has half the vector in
            "poincare".

    Raises:
        ValueError: c not positive, a `Curvature` with a size, or another model; later, `.half()` or `.bfloat16()` of
            the layer.
    """

    def __init__(self, c: float | Curvature = 1.0, model: str = "poincare") -> None:
        super().__init__()
        if model not in ("poincare", "lorentz"):
            raise ValueError(f'model must be "poincare" or "lorentz"; got {model!r}')
        if not isinstance(c, Curvature) and not 0 < c < math.inf:
            raise ValueError(f"c must be positive (the curvature is -c); got {c}")
        if isinstance(c, Curvature) and c.log_c.dim():
            raise ValueError(f"a layer has one curvature, not {c.log_c.numel()}; leave out the size of {c}")
        self.c, self.model = c, model

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"{type(self).__name__} does not compute in {tensor.dtype}; keep its parameters in float32 "
                    "(.float()) and run it under torch.autocast"
                )
        return self

    def curvature(self) -> Rate:
        """The value of c: a float, or a 0-dim tensor when it comes from a `Curvature`."""
        return self.c() if isinstance(self.c, Curvature) else self.c

    def rate(self) -> Rate:
        """Hyperbolic angle per unit of tangent length: 2 sqrt(c) or sqrt(c) (see `nn.functional`)."""
        return sqrt_c(self.curvature()) * (2 if self.model == "poincare" else 1)

    def extra_repr(self) -> str:
        """Curvature, where it is a number, and model."""
        c = "" if isinstance(self.c, Curvature) else f"c={self.c}, "
        return f"{c}model={self.model}"


class _Affine(HyperbolicModule):
    """A layer with one weight vector and one bias per output; the constructor of a subclass resets them."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        c: float | Curvature,
        model: str,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(c, model)
        self.in_features, self.out_features, place = in_features, out_features, placed(device, dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **place))
        self.bias = nn.Parameter(torch.empty(out_features, **place)) if bias else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std in_features^-1/2; zero bias."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {super().extra_repr()}"
        )


def placed(device: Device, dtype: torch.dtype | None) -> dict[str, Any]:
    """Arguments of torch.empty for the parameters of a layer.

    Raises:
        ValueError: a dtype other than float32 and float64.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"hyperbolic layers do not compute in {dtype}; give dtype=torch.float32 and run them under torch.autocast"
        )
    return {"device": device, "dtype": dtype}


def check_coordinates(u: Tensor, size: int) -> None:
    """Raise ValueError where the last dimension of u does not have `size` coordinates."""
    if u.shape[-1:] != (size,):
        raise ValueError(f"expected a tensor of shape [..., {size}], got {list(u.shape)}")


def full_precision(forward: F) -> F:
    """Run a forward method in at least float32: autocast off, half-precision tensors promoted."""

    leaf = fx_leaf(forward)

    @functools.wraps(forward)
    def wrapped(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        inputs = tuple(promote(x) if isinstance(x, Tensor) else x for x in inputs)
        options = {name: promote(x) if isinstance(x, Tensor) else x for name, x in options.items()}
        kind = next((x.device.type for x in (*inputs, *options.values()) if isinstance(x, Tensor)), None)
        if kind is None:  # torch.fx's stand-ins for tensors
            return leaf(self, *inputs, **options)
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return forward(self, *inputs, **options)
        with torch.autocast(kind, enabled=False):
            return forward(self, *inputs, **options)

    return wrapped  # type: ignore[return-value]


def accepts_lean(init: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Let a constructor accept `lean=`, the earlier name of `fused=`, with a FutureWarning."""

    @functools.wraps(init)
    def wrapped(self: M, *args: P.args, **options: P.kwargs) -> None:
        if "lean" in options:
            warnings.warn(
                "lean= was renamed to fused=; the next release removes the old name", FutureWarning, 2
            )
            options["fused"] = options.pop("lean")
        init(self, *args, **options)

    return wrapped
