"""Multi-head attention between points."""

import math

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.attention_ops import attend, attend_plain
from hyco.models.hyperbolic.nn.flatten import beta_ratio
from hyco.models.hyperbolic.nn.hyperplane_ops import FEATURE_ANGLE
from hyco.models.hyperbolic.nn.linear import Linear
from hyco.models.hyperbolic.nn.module import (
    Device,
    HyperbolicModule,
    accepts_lean,
    check_coordinates,
    full_precision,
    placed,
)
from hyco.models.hyperbolic.nn.projection_ops import project
from hyco.models.hyperbolic.transforms import transformed


class MultiheadAttention(HyperbolicModule):
    """Attention between points: scores -d(q, k)^2 / 2, midpoints as averages.

    After Gulcehre et al. 2019 and Shimizu et al. 2021. [B, N, E] queries, [B, M, E] keys and values (tangent vectors)
    -> [B, N, E]. Projections are hyperbolic `Linear`s; heads are beta-splits of their outputs and are beta-concatenated
    again. Near the origin the scores are those of a dot product up to a term in |q| and |k| alone.

    Products of points are made in float64 (float32 on MPS, and on a CPU where all points are near enough for it), pair
    by pair arithmetic in float32: outputs and
    gradients of float32 inputs are those of float64 to 1e-5 and 1e-4 (relative; one gradient of a sweep 1.2e-4) for c
    of 0.1 to 3, norms up to 8 and points that lie 1 % of their norm apart or more. Closer together and far out, the
    gradient follows differences that the projections have rounded: 1.5e-2 at norm 8 and 0.01 %, while the output keeps
    1e-4.

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
        fused: backward passes written by hand, which keep nothing of size N M; False is plain autograd with
        the same numbers and can be differentiated any number of times.
        max_angle: of the points that go into the four projections, see `Linear`.
        device, dtype: as in torch; float32 or float64.
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
        max_angle: float = FEATURE_ANGLE,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.fused = fused
        self.query, self.key, self.value, self.out = (
            Linear(
                embed_dim,
                embed_dim,
                bias,
                c=c,
                model=model,
                fused=fused,
                max_angle=max_angle,
                device=device,
                dtype=dtype,
            )
            for _ in range(4)
        )
        # One learned temperature per head; distances count in units of their typical size, sqrt(head_dim).
        self.log_scale = nn.Parameter(torch.empty(num_heads, 1, 1, **placed(device, dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the temperatures to head_dim^-1/2; the projections have a reset_parameters of their own."""
        self.log_scale.fill_(-0.5 * math.log(self.head_dim))

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
        # The beta-split and the beta-concatenation of the heads scale tangent vectors; so does a rate.
        rate = self.rate() * beta_ratio(self.head_dim, self.embed_dim)
        fast = self.fused and not (transformed() or query.is_meta or torch.compiler.is_exporting())
        if fast and query is key is value and self._plain(self.query, self.key, self.value):
            heads = self._project(query, self.query, self.key, self.value), None, None
            joined = attend(*heads, self.log_scale.exp(), mask, rate)
        else:
            heads = self.query(query), self.key(key), self.value(value)
            joined = (attend if fast else attend_plain)(*heads, self.log_scale.exp(), mask, rate)
        if fast and self._plain(self.out):
            return self._project(joined, self.out).squeeze(-2)
        return self.out(joined)

    def _plain(self, *layers: nn.Module) -> bool:
        """Whether these are the layers that the constructor made, without hooks, so that `project` does their work."""
        return all(
            type(layer) is Linear
            and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
            and not layer._backward_pre_hooks
            and (layer.fused, layer.max_angle, layer.c, layer.model)
            == (True, layers[0].max_angle, self.c, self.model)
            and (layer.bias is None) == (layers[0].bias is None)
            for layer in layers
        )

    def _project(self, u: Tensor, first: Linear, *others: Linear) -> Tensor:
        """Several projections of the same points: [B, N, E] -> [B, N, G, E]."""
        check_coordinates(u, self.embed_dim)
        weight: Tensor = first.weight
        bias: Tensor | None = first.bias
        if others:
            weight = torch.cat([weight, *(layer.weight for layer in others)])
            if bias is not None:
                bias = torch.cat([bias, *(layer.bias for layer in others if layer.bias is not None)])
        return project(u, weight, bias, self.rate(), 1 + len(others), first.max_angle)

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        return f"{self.embed_dim}, {self.num_heads}, {super().extra_repr()}"
