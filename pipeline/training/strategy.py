"""What is done to the blocks of both towers from outside: activation checkpointing and regional compilation."""

import functools
from collections.abc import Iterator

import torch
import torch.fx.experimental._config
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyco.models.encoders.text import TextTransformer

VARIANTS = 64
"""Maximum number of compiled variants of a block: towers, with and without gradient, all tokens or one."""


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of both towers; none of a tower that is made of other layers."""
    for name in ("visual", "textual"):
        found = getattr(getattr(model, name), "blocks", None)
        yield from found if isinstance(found, nn.ModuleList) else ()


def apply(model: nn.Module, checkpoint_activations: bool = False, compiled: bool = False) -> None:
    """Change how the blocks of a model are computed; names of parameters and results stay.

    Raises:
        ValueError: compilation without a C++ compiler.
    """
    if compiled:
        require_compiler()
        # Sizes that are equal in one batch by chance are no reason to compile again when they differ.
        torch.fx.experimental._config.use_duck_shape = False
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        for tower in model.children():
            if isinstance(tower, TextTransformer) and tower.layout is None:
                tower.layout = "one"  # a graph for all batches, not one for each set of lengths
    for block in blocks(model):
        forward = block.forward
        if compiled:
            # Blocks of equal shape share one compilation, since their weights are its inputs. The numbers of rows and
            # of tokens are symbols: a batch with fewer parts or shorter texts is no reason to compile again.
            forward = torch.compile(forward, dynamic=True)
        if checkpoint_activations:
            forward = functools.partial(checkpoint, forward, use_reentrant=False)
        block.forward = forward


def require_compiler() -> None:
    """Raise ValueError where torch.compile finds no C++ compiler, which it needs on a GPU too."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "execution.compile needs a C++ compiler: install g++, or set execution.compile=false"
        ) from None
