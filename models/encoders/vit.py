"""Vision transformer; the feature is that of the class token, or the mean of the patches.

Dosovitskiy et al. 2021 (ViT); by default fixed 2-D sine-cosine positions as in MoCo v3 (Chen et al. 2021), which
MERU and HyCoCLIP use; learned positions and a norm before the first block make it CLIP's (Radford et al. 2021).
Legend: B batch, C channels, H W space, N tokens, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hyco.models.encoders.block import Activation, Block


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Shape of the image tower; the defaults are ViT-S/16 at 224 pixels with the paper's 12 heads."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"init", "pooling"})

    kind: Literal["vit"] = "vit"
    """Architecture of the tower."""
    image_size: int = 224
    """Side of the images, in pixels; a multiple of `patch_size`."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    width: int = 384
    """Dimensions of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads per block; they divide `width`."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer / `width`."""
    positions: Literal["sincos", "fixed", "learned"] = "sincos"
    """Position embeddings: "sincos" (computed, not stored), "fixed" (not learned, stored with the weights:
    those of a published checkpoint, whose grid may be laid out otherwise) or "learned".
    """
    activation: Activation = "gelu"
    """Activation of the blocks; OpenAI's CLIP has "quick_gelu"."""
    norm_eps: float = 1e-5
    """Term added to the variance in layer normalisation."""
    first_norm: bool = False
    """Whether the tokens are normalised before the first block, as in CLIP."""
    patch_bias: bool = True
    """Whether the patch embedding has a bias; CLIP's has none."""
    init: Literal["clip", "truncated"] = "clip"
    """Initial weights: "clip" (Radford et al. 2021), or "truncated", those of MERU and HyCoCLIP: normal with a standard
    deviation of .02, truncated at 2, and a patch embedding with a convolution's uniform weights.
    """
    pooling: Literal["class", "mean"] = "class"
    """Token that is normalised into the feature: the class token, or the mean of the patches."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"{self.image_size // self.patch_size * self.patch_size} is"
            )
        if self.positions != "learned" and self.width % 4:
            raise ValueError(
                f"vision width {self.width} must be a multiple of 4 for 2-D sine-cosine positions"
            )


def sincos_positions(side: int, width: int) -> Float[Tensor, "N D"]:
    """Positions of a side x side grid, row by row, after zeros for the class token: [1 + side^2, width].

    A quarter of the width each for the sine and cosine of the column and of the row, at frequencies 10000^-i
    with i evenly spaced in [0, 1).
    """
    frequency = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency  # [side, width / 4]
    one = torch.cat([angle.sin(), angle.cos()], -1)
    column = one[None, :].expand(side, side, -1)
    row = one[:, None].expand(side, side, -1)
    grid = torch.cat([column, row], -1).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width), grid])


class VisionTransformer(nn.Module):
    """Normalised pixels [B, 3, S, S] -> feature of the class token, or of the mean patch [B, width]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        values = 3 * config.patch_size**2
        self.patch = nn.Linear(values, config.width, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions: Tensor
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(1 + side**2, config.width))
            nn.init.normal_(self.positions, std=config.width**-0.5)
        else:  # "sincos" follows from the config and is not saved
            saved = config.positions == "fixed"
            self.register_buffer("positions", sincos_positions(side, config.width), persistent=saved)
        self.first_norm = nn.LayerNorm(config.width, config.norm_eps) if config.first_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.depth,
                config.mlp_ratio,
                causal=False,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        nn.init.normal_(self.patch.weight, std=values**-0.5)
        if config.patch_bias:
            nn.init.zeros_(self.patch.bias)
        nn.init.normal_(self.class_token, std=0.02)
        if config.init == "truncated":
            self._truncated(values)

    def _truncated(self, values: int) -> None:
        """Initial weights of timm's ViT: Linear layers of blocks, kernel of the patches, class token."""
        for name, weight in self.blocks.named_parameters():
            if weight.dim() == 2:
                nn.init.trunc_normal_(weight, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)
        for weight in self.patch.parameters():
            nn.init.uniform_(weight, -(values**-0.5), values**-0.5)
        nn.init.normal_(self.class_token, std=1e-6)

    def patches(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N V"]:
        """Cut into patches, row by row, with values in the order channel, row, column (that of a convolution kernel).

        A matrix product over these equals the usual strided convolution and is faster on a CPU.
        """
        b, c, h, w = pixels.shape
        p = self.config.patch_size
        if (h, w) != (self.config.image_size, self.config.image_size):
            size = self.config.image_size
            raise ValueError(f"image of {w} x {h} pixels for a model of {size} x {size}; resize it first")
        cut = pixels.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(b, (h // p) * (w // p), c * p * p)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Normalised pixels [B, 3, S, S] -> [B, width]."""
        x = self.patch(self.patches(pixels))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        x = self.first_norm(x + self.positions.to(x.dtype))
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        for block in self.blocks[:-1]:
            x = block(x)
        if self.config.pooling == "mean":
            return self.norm(self.blocks[-1](x)[:, 1:].mean(1))
        return self.norm(self.blocks[-1](x, first)[:, 0])
