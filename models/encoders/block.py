"""The pre-norm transformer block both towers are made of (Vaswani 2017; pre-norm: Xiong 2020).

Legend: B batch, N tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    q: Float[Tensor, "B A N d"], k: Float[Tensor, "B A N d"], v: Float[Tensor, "B A N d"], causal: bool
) -> Float[Tensor, "B A N d"]:
    """Softmax attention of A heads. PyTorch's fused kernel, except in bfloat16 on a CPU.

    There the fused backward (torch 2.13) takes most of a step; spelled out, a small tower trains 3 times faster
    than in float32, at the price of the [N, N] weights kept in memory.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    weight = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        n = q.shape[-2]
        weight = weight.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return weight.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): [B, N, D] -> [B, N, D].

    Weights start as in Radford et al. 2021 (CLIP): std width^-1/2 into the residual branch, and
    (2 width depth)^-1/2 out of it, so that the sum over the `depth` blocks keeps its size.
    """

    def __init__(self, width: int, heads: int, depth: int, mlp_ratio: float, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width {width} is not a multiple of {heads} heads; choose another number of heads"
            )
        hidden = round(width * mlp_ratio)
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        outward = (2 * width * depth) ** -0.5
        for linear, std in (
            (self.qkv, width**-0.5),
            (self.attention_out, outward),
            (self.mlp_in, (2 * width) ** -0.5),
            (self.mlp_out, outward),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Tokens in, tokens out: [B, N, D]."""
        b, n, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v, self.causal)
        x = x + self.attention_out(seen.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
