"""Curvature as a module: the stated value is the actual value, and learning leaves it positive."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Curvature(nn.Module):
    """c > 0 (curvature -c), stored as log c and clamped to [low, high].

    `Curvature(0.1)()` is 0.1. With learnable=False, log c is a buffer: it is saved with the model, and optimisers do
    not see it. A learnable c should have no weight decay. Pass one module to several layers to give them the same
    curvature. Calling it returns a 0-dim tensor, or a [k] tensor when `size` = k (the factors of a product).

    Raises:
        ValueError: value, low or high not positive, or value not between low and high.
    """

    log_c: Tensor

    def __init__(
        self,
        value: float = 1.0,
        learnable: bool = False,
        low: float = 1e-3,
        high: float = 1e2,
        size: int | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < low <= value <= high < math.inf:
            raise ValueError(f"a curvature needs 0 < low <= value <= high; got {value} in {low} to {high}")
        self.value, self.low, self.high = value, low, high
        log_c = torch.full(() if size is None else (size,), math.log(value), device=device, dtype=dtype)
        if learnable:
            self.log_c = nn.Parameter(log_c)
        else:
            self.register_buffer("log_c", log_c)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set c to the value it was built with."""
        self.log_c.fill_(math.log(self.value))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # A layer built by skip_init is filled with empty memory, and so would be a curvature that others share.
        before = self.log_c.detach()
        super()._apply(fn, recurse)
        with torch.no_grad():
            if before.is_meta:
                self.reset_parameters()
            elif not self.log_c.is_meta:
                self.log_c.copy_(before)
        return self

    def forward(self) -> Tensor:
        """The value of c: 0-dim, or [size]."""
        return self.log_c.exp()

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clamp log c to its bounds; call it after the optimiser's step, never in forward."""
        self.log_c.clamp_(math.log(self.low), math.log(self.high))

    def extra_repr(self) -> str:
        """Value, kind and bounds."""
        kind = "learnable" if isinstance(self.log_c, nn.Parameter) else "fixed"
        return f"c={self.forward().detach().cpu().tolist()}, {kind}, {self.low} to {self.high}"
