"""A residual network for small images, built from a set of layers, and its Euclidean form of torch's own layers.

`poincare_resnet`, `lorentz_resnet` and `published_poincare_resnet` are the same topology with other layers.
Legend: B batch, C channels, H W space, K classes, D width of the last stage.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layers:
    """The layers of a residual network.

    Attributes:
        conv: (in, out, kernel, stride), pads by kernel // 2.
        norm: (width).
        add: joins f(x) and x, in that order.
        head: (width, classes), maps pooled features [B, D] to logits [B, K].
    """

    conv: Callable[[int, int, int, int], nn.Module]
    norm: Callable[[int], nn.Module]
    add: Callable[[], nn.Module]
    head: Callable[[int, int], nn.Module]


class Block(nn.Module):
    """relu(add(norm(conv(relu(norm(conv(x))))), shortcut(x))): [B, C, H, W] -> [B, C', H', W'].

    The shortcut is a 1 x 1 convolution where the shape changes (without a norm, as published), else the identity.
    """

    def __init__(self, layers: Layers, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(width_in, width, 3, stride)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, 1)
        self.bn2 = layers.norm(width)
        changes = stride != 1 or width_in != width
        self.shortcut = layers.conv(width_in, width, 1, stride) if changes else nn.Identity()
        self.add = layers.add()

    def forward(self, x: Tensor) -> Tensor:
        """Features of one resolution -> features of the next."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.add(y, self.shortcut(x)))


class ResNet(nn.Module):
    """Pixels [B, 3, H, W] -> logits [B, K], for images of any size of at least one position after all strides.

    Args:
        layers: the layers to build it from.
        depth: 2 S n + 2 for S widths: a first convolution, S stages of n blocks of two convolutions, a classifier.
        widths: channels of the stages; each stage after the first halves the resolution.
        num_classes: K.
        head: takes pooled features [B, widths[-1]] to logits, in place of the head of `layers`.
        stem_stride: of the first convolution, for images larger than 32 pixels.

    Raises:
        ValueError: a depth that is not 2 S n + 2, widths that are not positive numbers, a stride below 1.
    """

    def __init__(
        self,
        layers: Layers,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        head: nn.Module | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths {tuple(widths)} must be positive numbers, such as (8, 16, 32)")
        layers_each = 2 * len(widths)
        if depth < layers_each + 2 or depth % layers_each != 2:
            fitting = ", ".join(str(n * layers_each + 2) for n in (1, 2, 3))
            raise ValueError(
                f"depth {depth} is not {layers_each}n + 2, for n blocks at each of the widths {tuple(widths)}: "
                f"{fitting}, ... are"
            )
        if stem_stride < 1:
            raise ValueError(f"stem_stride {stem_stride} must be at least 1")
        self.depth, self.widths = depth, tuple(widths)
        # Wide enough that neighbouring windows overlap: 3 at strides 1 and 2, 7 at 4.
        self.conv = layers.conv(3, widths[0], max(3, 2 * stem_stride - 1), stem_stride)
        self.bn = layers.norm(widths[0])
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for place in range((depth - 2) // layers_each):
                blocks.append(Block(layers, before, width, 2 if stage and not place else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = head if head is not None else layers.head(before, num_classes)

    def grid(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> [B, D, H', W'], the output of the last block."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"expected pixels of shape [B, 3, H, W], got {list(pixels.shape)}")
        return self.blocks(torch.relu(self.bn(self.conv(pixels))))

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> [B, D], the mean over the last grid (of tangent vectors)."""
        return self.grid(pixels).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> logits [B, K]."""
        return self.head(self.features(pixels))


class EuclideanResNet(ResNet):
    """The same network of torch's own layers: He et al. 2016 for small images, with the 1 x 1 shortcuts above.

    Pixels in channels-last order keep it (a quarter faster on a CPU) where all widths are multiples of 8. With others
    oneDNN's strided 1 x 1 convolution writes outside its memory (torch 2.13, AVX2, one thread), so they are copied.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        head: nn.Module | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__(EUCLIDEAN, depth, widths, num_classes, head, stem_stride)

    def grid(self, pixels: Tensor) -> Tensor:
        """As `ResNet.grid`."""
        whole = all(width % 8 == 0 for width in self.widths)
        return super().grid(pixels if whole else pixels.contiguous())


class _Sum(nn.Module):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x


EUCLIDEAN = Layers(
    # A norm follows all convolutions but the shortcuts, so only the shortcuts need a bias.
    conv=lambda i, o, k, s: nn.Conv2d(i, o, k, s, k // 2, bias=k == 1),
    norm=nn.BatchNorm2d,
    add=_Sum,
    head=nn.Linear,
)
