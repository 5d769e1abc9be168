"""Poincare ResNet as an image tower: its pooled tangent vector is the feature that the dual encoder lifts.

van Spengler et al. 2023; the network itself is `models.resnets.poincare_resnet`.
Legend: B batch, C channels, H W space, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from models.resnets.poincare_resnet import PoincareResNet


@dataclass(frozen=True, kw_only=True)
class PoincareResNetConfig:
    """Shape of the tower; the defaults are the ResNet-20 of the paper, whose images have 32 pixels.

    Attributes:
        image_size: of the images it is given in training; pooling adapts, so other sizes work.
        depth: 6n + 2. widths: channels of the three stages. c: curvature of its layers is -c, apart from that
            of the space the feature is lifted into. learn_c: learn c. stem_stride: of the first convolution; 2
            or 4 where images are large. init: of its convolutions, see `PoincareResNet`.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    kind: Literal["poincare_resnet"] = "poincare_resnet"
    image_size: int = 32
    depth: int = 20
    widths: tuple[int, int, int] = (8, 16, 32)
    c: float = 0.1
    learn_c: bool = False
    stem_stride: int = 1
    init: Literal["identity", "normal"] = "identity"

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

        Tangent vectors behind batch norms of variance 1 have lengths about 1; times sqrt(D) they have the size of a
        layer norm's output, for which the dual encoder's lift starts near radius one.
        """
        return self.features(pixels) * self.config.width**0.5
