"""How layers take part in torch's transforms: torch.func, forward mode, torch.fx.

An autograd.Function without a vmap rule and a jvp stops torch.func, and dynamo refuses one that has a jvp. So functions
of the layers ask `transformed` and take plain arithmetic then, and `Scalar` has a second class, with a jvp, for it.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.fx import Proxy

F = TypeVar("F", bound=Callable[..., Any])


def transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp and what is made of them) or forward-mode differentiation is running.

    Torch has no public question for it; this is the one that autograd.Function asks itself. False under torch.compile.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def recorded() -> bool:
    """Whether a compiler, a transform or a mode records or replaces torch's operations.

    Modes are those of torch's dispatcher, such as make_fx, FakeTensorMode and FlopCounterMode.
    """
    if torch.compiler.is_compiling() or transformed() or torch.jit.is_tracing():
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def scalar(x: Tensor, function: Callable[..., Tensor], slope: Callable[..., Tensor]) -> Tensor:
    """function(x), elementwise, with the derivative slope(x, value, by) = by * function'(x): one node of the graph.

    Any transform may run it, as often as the functions themselves can be differentiated.
    """
    return (_ScalarForward if transformed() else _Scalar).apply(x, function, slope)


class _Scalar(Function):
    """Stores x and the value, where autograd's graph of the function would store each step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, function, slope):
        return function(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.slope(*ctx.saved_tensors, grad), None, None


class _ScalarForward(_Scalar):
    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _Scalar.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def jvp(ctx, tangent, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.slope(*ctx.saved_tensors, tangent)


def fx_leaf(function: F) -> F:
    """Let torch.fx record a call of the function, or of the module whose forward it is, as one node of its graph."""

    @functools.wraps(function)
    def wrapped(*inputs: Any, **options: Any) -> Any:
        proxy = _proxy((*inputs, *options.values()))
        return function(*inputs, **options) if proxy is None else fx_node(proxy, wrapped, inputs, options)

    return wrapped  # type: ignore[return-value]


def fx_node(
    proxy: Proxy, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The node of a call; where the first input is a module, of a call of that module."""
    if not isinstance(inputs[0], nn.Module):
        return proxy.tracer.create_proxy("call_function", function, inputs, options)
    tracer: Any = proxy.tracer  # with a root
    module = inputs[0]
    if tracer.root is module:  # the graph needs a module that holds the one it calls
        tracer.root = nn.ModuleDict({"layer": module})
        tracer.submodule_paths = {module: "layer"}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), inputs[1:], options)


def _proxy(values: Iterable[Any]) -> Proxy | None:
    for value in values:
        found = _proxy(value) if isinstance(value, list | tuple) else value
        if isinstance(found, Proxy):
            return found
    return None
