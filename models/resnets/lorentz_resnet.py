"""Lorentz ResNet-18: the network of `models.resnets.resnet` in layers with linear growth (van der Klis et al. 2026).

Pixels are tangent vectors at the origin; every layer takes and returns tangent vectors of the Lorentz model. ReLU and
the pooling act on them directly. Legend: B batch, H W space, K classes, D width of the last stage.
"""

from torch import Tensor, nn

from models.hyperbolic import nn as hnn
from models.hyperbolic.nn.module import full_precision
from models.resnets.resnet import Layers, ResNet


def lorentz_layers(c: float) -> Layers:
    """Lorentz convolutions and MLR; batch norm about the midpoint and gyrovector sums, all of one curvature."""
    return Layers(
        # A norm follows all convolutions but the shortcuts; without bias they need no time part.
        conv=lambda i, o, k, s: hnn.LorentzConv2d(i, o, k, s, k // 2, bias=k == 1, c=c),
        norm=lambda width: hnn.BatchNorm2d(width, c=c, model="lorentz"),
        add=lambda: hnn.ResidualAdd(c=c, model="lorentz"),
        head=lambda width, classes: hnn.LorentzMLR(width, classes, c=c),
    )


class LorentzResNet(ResNet):
    """The residual network on the hyperboloid of curvature -c; the default is ResNet-18 for small images.

    The difference to van der Klis et al.: ReLU acts on tangent vectors, not on space parts, and the residual sum is the
    gyrovector sum, not the sum of space parts.

    Args:
        depth, widths, num_classes, stem_stride: see `ResNet`.
        c: the curvature, a positive number.
        head: see `ResNet`; the default is `LorentzMLR`.

    Raises:
        ValueError: see `ResNet`; c not positive.
    """

    def __init__(
        self,
        depth: int = 18,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        num_classes: int = 10,
        c: float = 0.1,
        head: nn.Module | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__(lorentz_layers(c), depth, widths, num_classes, head, stem_stride)

    @full_precision
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> pooled tangent vectors [B, D]; float32 under autocast too."""
        return super().features(pixels)
