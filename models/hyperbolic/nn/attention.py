"""Multi-head attention between points."""

import math

import torch
from torch import Tensor, nn

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.flatten import beta_ratio
from models.hyperbolic.nn.functional import cosh_sinhc, normalise, to_tangent
from models.hyperbolic.nn.linear import Linear
from models.hyperbolic.nn.module import HyperbolicModule, accepts_lean, full_precision
from models.hyperbolic.ops import asinhc


class MultiheadAttention(HyperbolicModule):
    """Attention between points: scores -d(q, k)^2 / 2, midpoints as averages.

    After Gulcehre et al. 2019 and Shimizu et al. 2021. [B, N, E] queries, [B, M, E] keys and values (tangent vectors)
    -> [B, N, E]. Projections are hyperbolic `Linear`s; heads are beta-splits of their outputs and are beta-concatenated
    again. Near the origin the scores are those of a dot product up to a term in |q| and |k| alone.

    Far from the origin, scores and averages are differences of large numbers. In float32 the output and the gradient of
    clustered points have relative errors of about 1e-5 and 1e-4 at an angle sqrt(c) d(0, x) of 4, and of 4e-4 and 4e-3
    at an angle of 6; `.double()` avoids them.

    Differences from torch.nn.MultiheadAttention:

    - the batch always comes first
    - the result is one tensor, without the weights
    - there is no dropout
    - a boolean mask is True where a query may look; torch's is False there

    Args:
        embed_dim: coordinates of a point, a multiple of num_heads.
        num_heads: number of heads.
        bias: whether the four projections have a bias.
        c, model: see `HyperbolicModule`.
        fused: hand-written backward of the four projections, see `Linear`; False can be differentiated any number of
            times.
    """

    @accepts_lean
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        fused: bool = True,
    ) -> None:
        super().__init__(c, model)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.query, self.key, self.value, self.out = (
            Linear(embed_dim, embed_dim, bias, c=c, model=model, fused=fused) for _ in range(4)
        )
        # One learned temperature per head; distances count in units of their typical size, sqrt(head_dim).
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), -0.5 * math.log(self.head_dim)))

    @full_precision
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[B, N, E] (and keys, values [B, M, E]; default: the queries) -> [B, N, E].

        mask: boolean, broadcasting to [B, heads, N, M], True where a query may look. A row without any True
        raises no error and averages all values.
        """
        key = query if key is None else key
        value = key if value is None else value
        if not query.dim() == key.dim() == value.dim() == 3:
            shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
            raise ValueError(
                f"expected [B, N, E] query, key and value, got {shapes}; unsqueeze(0) adds a batch"
            )
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(
                f"mask is boolean, True where a query may look; got {mask.dtype}: make it mask == 0 if it was "
                "to be added to the scores, mask.bool() if its ones are to be seen"
            )
        rate = self.rate()
        q_t, q_s = self._heads(self.query(query), rate)
        k_t, k_s = self._heads(self.key(key), rate)
        v_t, v_s = self._heads(self.value(value), rate)
        # 4 sinh^2(angle / 2) = -2 - 2 <q, k>; the squared angle is smooth in it, so coincident points need no
        # special case.
        chord = (2 * (q_t @ k_t.transpose(-1, -2) - q_s @ k_s.transpose(-1, -2)) - 2).clamp(min=0)
        angle2 = chord * asinhc(chord / 4).square()
        logits = -angle2 * self.log_scale.exp() / 2
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        share = logits.softmax(-1)
        mean = to_tangent(normalise(share @ v_s, share @ v_t, dim=-1), rate)
        joined = mean.transpose(1, 2).flatten(2) * beta_ratio(self.embed_dim, self.head_dim)
        return self.out(joined)

    def _heads(self, u: Tensor, rate: float | Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, E] -> time and space parts [B, heads, N, 1] and [B, heads, N, E / heads]."""
        u = u.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) * beta_ratio(self.head_dim, self.embed_dim)
        t, f = cosh_sinhc(u, rate)
        return t, u * f

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        return f"{self.embed_dim}, {self.num_heads}, {super().extra_repr()}"
