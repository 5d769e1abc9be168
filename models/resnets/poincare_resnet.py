"""Poincare ResNet (van Spengler et al., ICCV 2023): the network of `hyco.models.resnets.resnet` in hyperbolic layers.

Pixels are tangent vectors at the origin, so their lift exp_0 is part of the first layer; every convolution, batch
norm and residual sum takes and returns tangent vectors (`hyco.models.hyperbolic.nn`), and ReLU and the pooling act
on them directly. Legend: B batch, H W space, K classes, D width of the last stage.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.hyperplane_ops import FEATURE_ANGLE
from hyco.models.hyperbolic.nn.module import accepts_lean, full_precision
from hyco.models.resnets.published_poincare_resnet import published_layers
from hyco.models.resnets.resnet import Layers, ResNet


def poincare_layers(
    c: float | Curvature, init: str = "normal", fused: bool = True, max_angle: float = FEATURE_ANGLE
) -> Layers:
    """The layers of `hyco.models.hyperbolic.nn`, all of one curvature."""
    return Layers(
        conv=lambda i, o, k, s: hnn.Conv2d(
            i, o, k, s, k // 2, c=c, init=init, fused=fused, max_angle=max_angle
        ),
        norm=lambda width: hnn.BatchNorm2d(width, c=c, fused=fused),
        add=lambda: hnn.ResidualAdd(c=c, fused=fused),
        head=lambda width, classes: hnn.MLR(width, classes, c=c, max_angle=max_angle),
    )


class PoincareResNet(ResNet):
    """The residual network on the Poincare ball of curvature -c; 68,757 parameters at depth 20.

    Args:
        depth, widths, num_classes, stem_stride: see `ResNet`.
        head: see `ResNet`; the default is hyperbolic multinomial logistic regression.
        c: the curvature, or a `Curvature` that all layers use.
        learn_c: learn the curvature, initialised by c (`constrain_()` clamps it to its bounds; no weight decay).
        init: of the convolutions; "normal" is that of HNN++ and trains better (docs/classification.md), "identity"
            preserves norms and is the paper's.
        fused: hand-written backward passes; False: plain autograd.
        max_angle: of the points that go into convolutions and head, see `hnn.Conv2d`.
        compat: old spelling of `hyco.models.resnets.published_poincare_resnet.PublishedPoincareResNet`; warns.

    Raises:
        ValueError: see `ResNet`; compat with a curvature that is not a plain number.
    """

    @accepts_lean
    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        c: float | Curvature = 0.1,
        head: nn.Module | None = None,
        learn_c: bool = False,
        init: str = "normal",
        fused: bool = True,
        compat: bool = False,
        stem_stride: int = 1,
        max_angle: float = FEATURE_ANGLE,
    ) -> None:
        if learn_c and not isinstance(c, Curvature):
            c = Curvature(c, learnable=True)
        if not compat:
            layers = poincare_layers(c, init, fused, max_angle)
        elif isinstance(c, Curvature):
            raise ValueError("compat=True has the published, fixed curvature: give c as a number")
        else:
            warnings.warn(
                "PoincareResNet(compat=True) goes with the next release: use "
                "hyco.models.resnets.published_poincare_resnet.PublishedPoincareResNet",
                FutureWarning,
                stacklevel=2,
            )
            layers = published_layers(c)
        super().__init__(layers, depth, widths, num_classes, head, stem_stride)
        self.curvature = c if isinstance(c, Curvature) else None
        if self.curvature is not None:
            # Every layer holds the same curvature; a checkpoint needs it once (safetensors refuses copies).
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


def _copies(module: nn.Module, prefix: str) -> list[str]:
    """Names of the copies of log c, one per layer, of a common curvature."""
    shared = [name for name, m in module.named_modules(remove_duplicate=False) if m is module.curvature]
    return [f"{prefix}{name}.log_c" for name in shared if name != "curvature"]


def _once(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _copies(module, prefix):
        del state[name]


def _everywhere(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    kept = state.get(f"{prefix}curvature.log_c")
    if kept is not None:
        state |= dict.fromkeys(_copies(module, prefix), kept)
