"""A transformer block between points, with rotary positions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.attention import MultiheadAttention
from hyco.models.hyperbolic.nn.linear import Linear
from hyco.models.hyperbolic.nn.module import Device, HyperbolicModule, check_coordinates, full_precision
from hyco.models.hyperbolic.nn.norm import LayerNorm
from hyco.models.hyperbolic.nn.residual import ResidualAdd


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021): [..., N, embed_dim] tangent vectors, rotated by their place in N; same shape.

    In each head the coordinates 2i and 2i + 1 of point n rotate by the angle n base^(-2i / head_dim). A rotation of
    tangent vectors at the origin is an isometry of hyperbolic space that fixes the origin, so distances between rotated
    queries and keys depend on the difference of their places alone.

    Args:
        embed_dim: coordinates of a point.
        num_heads: number of heads; embed_dim is an even multiple of it.
        base: ratio of the longest wavelength to the shortest.

    Raises:
        ValueError: embed_dim is not an even multiple of num_heads; later, an input of another shape.
    """

    def __init__(self, embed_dim: int, num_heads: int, base: float = 10_000.0) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % (2 * num_heads) or embed_dim < 1:
            raise ValueError(
                f"embed_dim {embed_dim} is not an even multiple of num_heads {num_heads}; rotations take pairs"
            )
        self.embed_dim, self.num_heads, self.base = embed_dim, num_heads, base

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [..., N, embed_dim]."""
        check_coordinates(u, self.embed_dim)
        pairs = self.embed_dim // (2 * self.num_heads)
        slow = self.base ** (-torch.arange(pairs, dtype=u.dtype, device=u.device) / pairs)
        angle = torch.arange(u.shape[-2], dtype=u.dtype, device=u.device).unsqueeze(1) * slow
        # [N, 1, pairs], for all heads alike
        cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        x, y = u.unflatten(-1, (self.num_heads, pairs, 2)).unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos], -1).flatten(-3)

    def extra_repr(self) -> str:
        """Sizes and base."""
        return f"{self.embed_dim}, {self.num_heads}, base={self.base}"


class TransformerBlock(HyperbolicModule):
    """Pre-norm transformer block with rotary positions: [B, N, embed_dim] tangent vectors, same shape.

    x = attention(norm x) + x, then x = mlp(norm x) + x, with `MultiheadAttention` between points, `LayerNorm`,
    hyperbolic `Linear` layers and gyrovector sums (`ResidualAdd`, x moved by the branch).

    Args:
        embed_dim: coordinates of a point.
        num_heads: number of heads; embed_dim is an even multiple of it with rotary positions.
        hidden: coordinates inside the MLP; None: 4 embed_dim.
        dropout: fraction of the coordinates of each branch's tangent vectors that is dropped in training.
        base: of `RotaryPositions`; None: no positions.
        activation: elementwise function of tangent vectors inside the MLP.
        c, model: see `HyperbolicModule`.
        fused: hand-written backward of the parts that have one; False: plain autograd.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: sizes that do not fit, dropout outside [0, 1]; later, an input of another shape.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        base: float | None = 10_000.0,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        *,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        fused: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        hidden = 4 * embed_dim if hidden is None else hidden
        self.norm1, self.norm2 = (
            LayerNorm(embed_dim, model=model, device=device, dtype=dtype) for _ in range(2)
        )
        self.attention = MultiheadAttention(
            embed_dim, num_heads, c=c, model=model, fused=fused, device=device, dtype=dtype
        )
        if base is not None:
            # Heads are slices of the projections' outputs, scaled, so turning these turns each head.
            turn = RotaryPositions(embed_dim, num_heads, base)
            for name in ("query", "key"):
                self.attention.add_module(name, nn.Sequential(self.attention.get_submodule(name), turn))
        self.expand = Linear(embed_dim, hidden, c=c, model=model, fused=fused, device=device, dtype=dtype)
        self.contract = Linear(hidden, embed_dim, c=c, model=model, fused=fused, device=device, dtype=dtype)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.add = ResidualAdd(-1, c, model, fused)

    @full_precision
    def forward(self, u: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Same shape: [B, N, embed_dim]; mask: see `MultiheadAttention`, True where a query may look."""
        u = self.add(self.dropout(self.attention(self.norm1(u), mask=mask)), u)
        return self.add(self.dropout(self.contract(self.activation(self.expand(self.norm2(u))))), u)
