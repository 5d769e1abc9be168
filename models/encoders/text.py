"""Causal text transformer; the feature is that of the end-of-text token (Radford et al. 2021, CLIP).

Legend: B batch, N tokens, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.encoders.block import Activation, Block
from hyco.models.encoders.packing import pack


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of the text tower; the defaults are CLIP's vocabulary and the tower of MERU and HyCoCLIP."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    vocab_size: int = 49408
    """Number of tokens of the vocabulary."""
    context_length: int = 77
    """Maximum number of tokens of a text, begin and end token included."""
    width: int = 512
    """Dimensions of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads per block; they divide `width`."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer / `width`."""
    end_token: int = 49407
    """Id of the end-of-text token, where the feature is read."""
    activation: Activation = "gelu"
    """Activation of the blocks; OpenAI's CLIP has "quick_gelu"."""
    norm_eps: float = 1e-5
    """Term added to the variance in layer normalisation."""

    def __post_init__(self) -> None:
        if not 0 <= self.end_token < self.vocab_size:
            raise ValueError(f"end_token {self.end_token} is outside the vocabulary of {self.vocab_size}")


class TextTransformer(nn.Module):
    """Token ids [B, N], N up to context_length -> feature at the first end-of-text token [B, width].

    Attention is causal, so tokens after the end token (padding) change nothing, and a batch may be padded to its own
    longest text. Padding is not computed, and a beginning that several texts share is computed once
    (models/encoders/packing.py), except while torch.compile or torch.export traces the whole tower: it pads.

    Attributes:
        layout: "lengths" packs, with attention in a block for each length; "one" packs, with attention in one block
            padded to the longest, which is one graph where the transformer blocks are compiled; "padded" computes
            every row as it is (the reference implementation); None is "lengths" on a CPU and "one" elsewhere.
    """

    layout: Literal["lengths", "one", "padded"] | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.depth,
                config.mlp_ratio,
                causal=True,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        """Feature at the first end token of each row: [B, N] -> [B, width].

        The tokens may lie on the CPU while the tower is on a GPU: packing reads them there, and waits for no device.
        """
        device = self.positions.device
        layout = self.layout or ("lengths" if device.type == "cpu" else "one")
        if layout == "padded" or torch.compiler.is_compiling():
            return self.padded(tokens.to(device))
        packing = pack(tokens, self.config.end_token, equal_lengths=layout == "lengths").to(device)
        x = self.tokens(packing.tokens) + F.embedding(packing.positions, self.positions)
        for block in self.blocks[:-1]:
            x = block(x, packing=packing)
        return self.norm(self.blocks[-1](x, packing.ends, packing)).index_select(0, packing.text)

    def padded(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        """The same of every row as it is, padding included: [B, N] -> [B, width]."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        end = (tokens == self.config.end_token).int().argmax(-1)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, end)[:, 0])
