"""Lorentz ResNet-18: the network of `hyco.models.resnets.resnet` with linear growth (van der Klis et al. 2026).

Between its layers a point is its space part on the unit hyperboloid, not a tangent vector. In these coordinates
`LorentzConv2d` without bias is torch's own convolution, the Lorentz activation is torch's ReLU, and the residual sum of
the paper is the sum of space parts; only norm and classifier compute in tangent vectors. Legend: B batch, H W space, K
classes, D width of the last stage.
"""

from torch import Tensor, nn

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.functional import to_space, to_tangent
from hyco.models.hyperbolic.nn.module import full_precision
from hyco.models.resnets.resnet import EUCLIDEAN, Layers, ResNet


class SpaceBatchNorm2d(hnn.BatchNorm2d):
    """`BatchNorm2d` of points given by their space parts on the unit hyperboloid, [B, C, H, W]; same arguments."""

    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [B, C, H, W] space parts."""
        rate = self.rate()
        return to_space(super().forward(to_tangent(u, rate, 1)), rate, 1)


def lorentz_layers(c: float) -> Layers:
    """Layers of space parts, the head of tangent vectors, all of one curvature."""
    return Layers(
        conv=lambda i, o, k, s: nn.Conv2d(i, o, k, s, k // 2, bias=False),
        norm=lambda width: SpaceBatchNorm2d(width, c=c, model="lorentz"),
        add=EUCLIDEAN.add,
        head=lambda width, classes: hnn.LorentzMLR(width, classes, c=c),
    )


class LorentzResNet(ResNet):
    """The residual network on the hyperboloid of curvature -c; the default is ResNet-18 for small images.

    Differences from van der Klis et al.: features are pooled as tangent vectors before the classifier, not logits
    behind it; shortcuts have no norm, as in the other networks of this kit.

    Args:
        depth, widths, num_classes, stem_stride: see `ResNet`.
        c: the curvature, a positive number.
        head: of tangent vectors; see `ResNet`; the default is `LorentzMLR`.

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
        self.rate = c**0.5

    @full_precision
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> pooled tangent vectors [B, D]; float32 under autocast too."""
        return to_tangent(self.grid(to_space(pixels, self.rate, 1)), self.rate, 1).mean((2, 3))
