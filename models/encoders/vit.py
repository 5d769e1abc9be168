"""Vision transformer with class-token pooling and fixed 2-D sine-cosine positions.

Dosovitskiy et al. 2021 (ViT); positions and pooling as in MoCo v3 (Chen et al. 2021), which MERU and HyCoCLIP
use. Legend: B batch, C channels, H W space, N tokens, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.encoders.block import Block


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Shape of the image tower; the defaults are ViT-S/16 at 224 pixels with the paper's 12 heads."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"{self.image_size // self.patch_size * self.patch_size} is"
            )
        if self.width % 4:
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
    """Normalised pixels [B, 3, S, S] -> class-token feature [B, width]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        values = 3 * config.patch_size**2
        self.patch = nn.Linear(values, config.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        # Fixed and derived from the config, so neither learned nor saved.
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(side, config.width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.depth, config.mlp_ratio, causal=False)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.patch.weight, std=values**-0.5)
        nn.init.zeros_(self.patch.bias)
        nn.init.normal_(self.class_token, std=0.02)

    def patches(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N V"]:
        """Cut into patches, row by row, values in the order channel, row, column (a convolution kernel's).

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
        x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x = x + self.positions.to(x.dtype)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, first)[:, 0])
