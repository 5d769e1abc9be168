"""Poincare ResNet as an image tower: its pooled tangent vector is the feature that the dual encoder lifts.

van Spengler et al. 2023; the network itself is `hyco.models.resnets.poincare_resnet`.
Legend: B batch, C channels, H W space, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from hyco.models.resnets.poincare_resnet import PoincareResNet


@dataclass(frozen=True, kw_only=True)
class PoincareResNetConfig:
    """Shape of the tower; the defaults are the ResNet-20 of the paper, whose images have 32 pixels, but for `init`."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["poincare_resnet"] = "poincare_resnet"
    """Architecture of the tower."""
    image_size: int = 32
    """Side of the training images, in pixels. Pooling adapts, so other sizes work."""
    depth: int = 20
    """Number of layers, 6n + 2."""
    widths: tuple[int, int, int] = (8, 16, 32)
    """Channels of the three stages; the last one is the width of the feature."""
    c: float = 0.1
    """c > 0 of the layers, whose curvature is -c; independent of that of the embedding space."""
    learn_c: bool = False
    """Whether c is learned."""
    stem_stride: int = 1
    """Stride of the first convolution; 2 or 4 for large images."""
    init: Literal["identity", "normal"] = "normal"
    """Initialisation of the convolutions, see models.resnets.poincare_resnet.PoincareResNet."""

    def __post_init__(self) -> None:
        if self.image_size < 4 * self.stem_stride:
            raise ValueError(
                f"image_size {self.image_size} leaves nothing after strides of {4 * self.stem_stride}: "
                "lower stem_stride or enlarge the images"
            )

    @property
    def width(self) -> int:
        """D, the size of the feature: the channels of the last stage."""
        return self.widths[-1]


class PoincareResNetTower(PoincareResNet):
    """Normalised pixels [B, 3, H, W] -> pooled tangent vectors [B, D], always float32."""

    def __init__(self, config: PoincareResNetConfig) -> None:
        super().__init__(
            config.depth,
            config.widths,
            c=config.c,
            head=nn.Identity(),
            learn_c=config.learn_c,
            init=config.init,
            stem_stride=config.stem_stride,
        )
        self.config = config

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Normalised pixels [B, 3, H, W] -> [B, width].

        Tangent vectors behind batch norms of variance 1 have lengths of about 1; times sqrt(D) they have the size of a
        layer norm's output, for which the dual encoder's lift starts near radius 1.
        """
        return self.features(pixels) * self.config.width**0.5
