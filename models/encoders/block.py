"""The pre-norm transformer block of both towers (Vaswani 2017; pre-norm: Xiong 2020).

Legend: B batch, N tokens, D width; T and U, nodes and distinct texts of packed texts (models/encoders/packing.py).
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hyco.models.encoders.listed import Keys, attend_listed, usable
from hyco.models.encoders.packing import Packing

Activation = Literal["gelu", "quick_gelu"]

FEW_VALUES = 50_000
FEW_KEYS = 24
"""Mean number of tokens of packed texts up to which lists of keys are faster than a product for each length."""


def activate(x: Float[Tensor, "*B D"], kind: Activation) -> Float[Tensor, "*B D"]:
    """GELU (Hendrycks and Gimpel 2016), or its approximation x sigmoid(1.702 x) that OpenAI's CLIP was trained with."""
    return F.gelu(x) if kind == "gelu" else x * torch.sigmoid(1.702 * x)


def attend(
    q: Float[Tensor, "B A M d"],
    k: Float[Tensor, "B A N d"],
    v: Float[Tensor, "B A N d"],
    causal: bool,
    seen: Bool[Tensor, "B 1 1 N"] | None = None,
) -> Float[Tensor, "B A M d"]:
    """Softmax attention of A heads, causal or only over the keys in `seen`; PyTorch's fused kernel but for one case.

    In bfloat16 on a CPU the fused backward (torch 2.13) takes most of a step. Written out, a small tower trains 3 times
    faster than in float32, at the cost of [M, N] attention weights in activation memory. Few values (a group of packed
    texts) take the fused kernel in float32: a product in bfloat16 costs at least .3 ms.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    if q.numel() <= FEW_VALUES:
        with torch.autocast("cpu", enabled=False):
            wide = (q.float(), k.float(), v.float())
            return F.scaled_dot_product_attention(*wide, attn_mask=seen, is_causal=causal).to(v.dtype)
    weight = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        seen = torch.ones(weight.shape[-2:], dtype=torch.bool).tril()[None, None]
    if seen is not None:
        weight = weight.masked_fill(~seen, -torch.inf)
    return weight.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def attend_to_selves(qkv: Float[Tensor, "B N 3 A d"], causal: bool) -> Float[Tensor, "B N A d"]:
    """`attend` of all tokens, from their queries, keys and values side by side."""
    if (
        qkv.device.type == "cpu"
        and qkv.dtype == torch.bfloat16
        and not torch.compiler.is_compiling()
        and qkv.numel() // 3 > FEW_VALUES  # asked last: a traced model must not depend on its batch size
    ):
        return _WrittenOut.apply(qkv, causal)  # pyright: ignore[reportReturnType]
    q, k, v = (each.transpose(1, 2) for each in qkv.unbind(2))
    return attend(q, k, v, causal).transpose(1, 2)


class _WrittenOut(torch.autograd.Function):
    """`attend` in bfloat16 with its own backward pass: one copy for all heads where autograd makes four, no float32.

    The softmax itself is computed in float32; its weights are kept in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, causal: bool) -> Tensor:
        b, n, _, heads, d = qkv.shape
        parts = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * heads, n, d)
        weight = torch.empty(b * heads, n, n, dtype=qkv.dtype)
        weight.baddbmm_(parts[0], parts[1].mT, beta=0, alpha=d**-0.5)
        if causal:
            weight.masked_fill_(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
        weight = torch.softmax(weight, -1)
        ctx.save_for_backward(parts, weight)
        return torch.bmm(weight, parts[2]).view(b, heads, n, d).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts, weight = ctx.saved_tensors
        b, n, heads, d = grad.shape
        q, k, v = parts
        grad = grad.transpose(1, 2).reshape(b * heads, n, d)
        by_parts = torch.empty_like(parts)
        torch.bmm(weight.mT, grad, out=by_parts[2])
        slopes = torch._softmax_backward_data(torch.bmm(grad, v.mT), weight, -1, weight.dtype)
        by_parts[0].baddbmm_(slopes, k, beta=0, alpha=d**-0.5)
        by_parts[1].baddbmm_(slopes.mT, q, beta=0, alpha=d**-0.5)
        return by_parts.view(3, b, heads, n, d).permute(1, 3, 0, 2, 4).contiguous(), None


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): [B, N, D] -> [B, N, D].

    Weights are initialised as in Radford et al. 2021 (CLIP): std width^-1/2 into the residual branch, and
    (2 width depth)^-1/2 out of it, so that the sum over the `depth` blocks has the size of its input.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        mlp_ratio: float,
        causal: bool,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width {width} is not a multiple of {heads} heads; choose another number of heads"
            )
        hidden = round(width * mlp_ratio)
        self.heads, self.causal = heads, causal
        self.activation: Activation = activation
        self.attention_norm = nn.LayerNorm(width, norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, norm_eps)
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

    def forward(
        self,
        x: Float[Tensor, "*B D"],
        at: Int[Tensor, "Q"] | None = None,
        packing: Packing | None = None,
    ) -> Float[Tensor, "*M D"]:
        """Tokens in, tokens out; with `at`, only token at[b] of each row: [B, N, D] -> [B, 1, D].

        A tower reads one token of its last block, so computing that one alone saves three quarters of the block's work.
        Of packed texts (causal blocks only) x is [T, D], and `at` the ends of the packing: [T, D] -> [U, D].
        """
        normed = self.attention_norm(x)
        if packing is not None:
            assert self.causal, "only texts of causal attention are packed"
            x, attended = self._attend_packed(x, normed, at, packing)
        else:
            x, attended = self._attend_rows(x, normed, at)
        x = x + self.attention_out(attended.reshape(x.shape))
        return x + self.mlp_out(activate(self.mlp_in(self.mlp_norm(x)), self.activation))

    def _attend_rows(self, x: Tensor, normed: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """The queries' tokens [B, M, D], and what they attend to [B, M, heads, D / heads]."""
        b, n, d = x.shape
        heads = (self.heads, d // self.heads)
        if at is None:
            return x, attend_to_selves(self.qkv(normed).view(b, n, 3, *heads), self.causal)
        row = torch.arange(b, device=x.device)
        q, keys_values = self._one_query(normed, (row, at))
        if usable(q, keys_values):
            first, count = row * n, at + 1 if self.causal else torch.full_like(at, n)
            keys = Keys(torch.arange(b * n), first + count - 1, count, once=not self.causal)
            attended = attend_listed(q, keys_values.flatten(0, 1), self.heads, keys)
            return x[row, at][:, None], attended
        q, k, v = (y.view(b, -1, *heads).transpose(1, 2) for y in (q, *keys_values.chunk(2, -1)))
        seen = (torch.arange(n, device=x.device) <= at[:, None])[:, None, None] if self.causal else None
        return x[row, at][:, None], attend(q, k, v, causal=False, seen=seen).transpose(1, 2)

    def _attend_packed(
        self, x: Tensor, normed: Tensor, at: Tensor | None, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """The queries' nodes [T, D], or [U, D] at the ends, and what they attend to, of the same shape."""
        d = x.shape[-1]
        heads = (self.heads, d // self.heads)
        if at is None:
            joined = self.qkv(normed)
            if usable(joined) and len(packing.node) <= FEW_KEYS * len(packing.ends):
                return x, attend_listed(None, joined, self.heads, packing.keys())
            blocks = packing.spread(joined)
            qkv = (block.view(*size, 3, *heads) for block, size in zip(blocks, packing.groups, strict=True))
            attended = [attend_to_selves(block, causal=True) for block in qkv]
            return x, torch.cat([one.reshape(-1, d) for one in attended]).index_select(0, packing.place)
        query, keys_values = self._one_query(normed, (at,))
        if usable(query, keys_values):
            return x.index_select(0, at), attend_listed(query, keys_values, self.heads, packing.keys(at))
        blocks = packing.spread(keys_values)
        attended, first = [], 0
        for (texts, tokens), block in zip(packing.groups, blocks, strict=True):
            q = query[first : first + texts].view(texts, 1, *heads).transpose(1, 2)
            k, v = block.view(texts, tokens, 2, *heads).permute(2, 0, 3, 1, 4)
            seen = None if packing.seen is None else packing.seen[:, None, None]
            attended.append(attend(q, k, v, causal=False, seen=seen).reshape(texts, d))
            first += texts
        return x.index_select(0, at), torch.cat(attended)

    def _one_query(self, normed: Tensor, where: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Query of some tokens alone [Q, D], and keys and values of all [..., 2 D]."""
        d = normed.shape[-1]
        if type(self.qkv) is not nn.Linear:
            # Wrapped by an adapter (models/lora.py), which counts only where the layer is called.
            qkv = self.qkv(normed)
            return qkv[..., :d][where], qkv[..., d:]
        weights, biases = self.qkv.weight.split([d, 2 * d]), self.qkv.bias.split([d, 2 * d])
        return F.linear(normed[where], weights[0], biases[0]), F.linear(normed, weights[1], biases[1])
