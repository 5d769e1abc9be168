"""Poincare ResNet (van Spengler et al., ICCV 2023) and its Euclidean twin: one topology, two kits of layers.

Pixels are tangent vectors at the origin, so their lift exp_0 is the first layer's own input; every convolution,
batch norm and residual sum after it takes tangent vectors and gives them (`models.hyperbolic.nn`), and ReLU and
the pooling act on them directly. Legend: B batch, C channels, H W space, K classes, D width of the last stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.hyperbolic import nn as hnn
from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.module import full_precision


@dataclass(frozen=True)
class Layers:
    """What a residual network is made of.

    conv(in, out, kernel, stride) pads by kernel // 2; norm(width); add() joins f(x) and x, in that order; head
    (width, classes) maps pooled features [B, D] to logits [B, K].
    """

    conv: Callable[[int, int, int, int], nn.Module]
    norm: Callable[[int], nn.Module]
    add: Callable[[], nn.Module]
    head: Callable[[int, int], nn.Module]


class Block(nn.Module):
    """relu(add(norm(conv(relu(norm(conv(x))))), shortcut(x))): [B, C, H, W] -> [B, C', H', W'].

    The shortcut is a 1 x 1 convolution where the shape changes (without a norm, as published), else nothing.
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
        """Features of one resolution to those of the next."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.add(y, self.shortcut(x)))


class ResNet(nn.Module):
    """Pixels [B, 3, H, W] -> logits [B, K], for images of any size that the strides leave something of.

    Args:
        layers: the kit. depth: 6n + 2, that is a first convolution, three stages of n blocks, a classifier.
        widths: channels of the three stages; each after the first halves the resolution. num_classes: K.
        head: takes pooled features [B, widths[-1]] to logits, in place of the kit's own. stem_stride: of the
        first convolution, for images larger than 32 pixels.

    Raises:
        ValueError: a depth that is not 6n + 2, widths that are not three positive numbers, a stride below 1.
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
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth {depth} is not 6n + 2 with n >= 1: 20, 32, 44 and 56 are")
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"widths {tuple(widths)} must be three positive numbers, such as (8, 16, 32)")
        if stem_stride < 1:
            raise ValueError(f"stem_stride {stem_stride} must be at least 1")
        self.depth, self.widths = depth, tuple(widths)
        # Wide enough that neighbouring windows overlap: 3 at strides 1 and 2, 7 at 4.
        self.conv = layers.conv(3, widths[0], max(3, 2 * stem_stride - 1), stem_stride)
        self.bn = layers.norm(widths[0])
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for place in range((depth - 2) // 6):
                blocks.append(Block(layers, before, width, 2 if stage and not place else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = head if head is not None else layers.head(before, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> [B, D], the mean over the last grid (of tangent vectors)."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"expected pixels of shape [B, 3, H, W], got {list(pixels.shape)}")
        return self.blocks(torch.relu(self.bn(self.conv(pixels)))).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> logits [B, K]."""
        return self.head(self.features(pixels))


def poincare_layers(c: float | Curvature, init: str = "identity", lean: bool = True) -> Layers:
    """The layers of `models.hyperbolic.nn`, all of one curvature."""
    return Layers(
        conv=lambda i, o, k, s: hnn.Conv2d(i, o, k, s, k // 2, c=c, init=init, lean=lean),
        norm=lambda width: hnn.BatchNorm2d(width, c=c, lean=lean),
        add=lambda: hnn.ResidualAdd(c=c, lean=lean),
        head=lambda width, classes: hnn.MLR(width, classes, c=c),
    )


class PoincareResNet(ResNet):
    """The residual network on the Poincare ball of curvature -c; 68,757 parameters at depth 20.

    Args:
        depth, widths, num_classes, head, stem_stride: see `ResNet`; the default head is hyperbolic multinomial logistic
        regression. c: the curvature, or a `Curvature` that all layers share. learn_c: learn it from there on
        (`constrain_()` keeps it in bounds; no weight decay). init: of the convolutions; "identity" keeps norms,
        "normal" is that of HNN++. lean: hand-written backward passes; False is plain autograd. compat: the
        published arithmetic with its defects (`models.resnets.published_poincare_resnet`), for its checkpoints.

    Raises:
        ValueError: see `ResNet`; compat with a curvature that is not a plain number.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        c: float | Curvature = 0.1,
        head: nn.Module | None = None,
        learn_c: bool = False,
        init: str = "identity",
        lean: bool = True,
        compat: bool = False,
        stem_stride: int = 1,
    ) -> None:
        if learn_c and not isinstance(c, Curvature):
            c = Curvature(c, learnable=True)
        if not compat:
            layers = poincare_layers(c, init, lean)
        elif isinstance(c, Curvature):
            raise ValueError("compat=True has the published, fixed curvature: give c as a number")
        else:
            from models.resnets.published_poincare_resnet import published_layers  # it builds on this module

            layers = published_layers(c)
        super().__init__(layers, depth, widths, num_classes, head, stem_stride)
        self.curvature = c if isinstance(c, Curvature) else None
        if self.curvature is not None:
            # Every layer holds the one curvature; a checkpoint needs it once (safetensors refuses copies).
            self.register_state_dict_post_hook(_once)
            self.register_load_state_dict_pre_hook(_everywhere)

    @full_precision
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> pooled tangent vectors [B, D]; float32 under autocast too."""
        return super().features(pixels)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring a learned curvature back into its bounds; call it after the optimiser's step."""
        if self.curvature is not None:
            self.curvature.constrain_()


class EuclideanResNet(ResNet):
    """The same network of torch's own layers: He et al. 2016 for small images, with the 1 x 1 shortcuts above."""

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        head: nn.Module | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__(EUCLIDEAN, depth, widths, num_classes, head, stem_stride)


class _Sum(nn.Module):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x


EUCLIDEAN = Layers(
    # A norm follows all convolutions but the shortcuts, so only these have a use for a bias.
    conv=lambda i, o, k, s: nn.Conv2d(i, o, k, s, k // 2, bias=k == 1),
    norm=nn.BatchNorm2d,
    add=_Sum,
    head=nn.Linear,
)


def _copies(module: nn.Module, prefix: str) -> list[str]:
    """Names that the layers give to log c of the curvature they share."""
    shared = [name for name, m in module.named_modules(remove_duplicate=False) if m is module.curvature]
    return [f"{prefix}{name}.log_c" for name in shared if name != "curvature"]


def _once(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _copies(module, prefix):
        del state[name]


def _everywhere(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    kept = state.get(f"{prefix}curvature.log_c")
    if kept is not None:
        state |= dict.fromkeys(_copies(module, prefix), kept)
