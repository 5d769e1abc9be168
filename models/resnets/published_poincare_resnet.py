"""The published Poincare ResNet's arithmetic, defects included, so that its checkpoints give their own numbers.

Written from the paper and from the described behaviour of the authors' code, which carries no licence; tensor
names and shapes are facts about its files. Defects that are reproduced, and that `PoincareResNet` does not have:

- the conformal factor in the hyperplane distances is 2 (1 - c|x|^2) where it should be 2 / (1 - c|x|^2);
- the residual sum takes the row of pixels along the image's width for the point, not the channels;
- batch norm uses the statistics of the current batch at test time too, and its variance may become negative;
- points are pulled back to 0.996 / sqrt(c) (float64: 0.99999 / sqrt(c)) after every step;
- the classifier is one more fully connected layer, whose tangent vector is read as logits.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import mean, poincare
from hyco.models.hyperbolic.isometry import lorentz_to_poincare, poincare_to_lorentz
from hyco.models.hyperbolic.nn.flatten import beta_ratio
from hyco.models.hyperbolic.nn.module import full_precision
from hyco.models.resnets.resnet import Layers, ResNet


def clip(x: Tensor, c: float) -> Tensor:
    """Clip ball points [..., D] to the maximum radius of the published code."""
    return poincare.project(x, c, margin=1e-5 if x.dtype == torch.float64 else 4e-3)


def exp0(v: Tensor, c: float) -> Tensor:
    """Exponential map at the origin, clipped: [..., D] -> [..., D]."""
    return clip(poincare.exp0(v, c), c)


def fully_connected(v: Tensor, weight: Tensor, bias: Tensor, c: float) -> Tensor:
    """Tangents [..., I] through hyperplanes [K, I] with offsets [K] -> tangents [..., K], by the inverted factor."""
    x, size, root = exp0(v, c), weight.norm(dim=1).clamp_min(1e-15), c**0.5
    factor = 2 * (1 - c * x.square().sum(-1, keepdim=True))
    offset = 2 * root * bias
    a = factor * root * (x @ weight.T) / size * torch.cosh(offset) - (factor - 1) * torch.sinh(offset)
    w = torch.sinh(2 * size * torch.asinh(a)) / root
    y = w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())
    return poincare.log0(clip(y, c), c)


class Conv2d(nn.Module):
    """[B, C, H, W] -> [B, K, H', W'] by unfolding; `weight` [K, C, k, k], `bias` [K]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, c: float) -> None:
        super().__init__()
        self.kernel, self.stride, self.c = kernel, stride, c
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.eye_(self.weight.data.flatten(1)).mul_(0.5)

    def forward(self, u: Tensor) -> Tensor:
        """Tangent vectors in and out."""
        height, width = (1 + (n + 2 * (self.kernel // 2) - self.kernel) // self.stride for n in u.shape[2:])
        gain = beta_ratio(self.weight[0].numel(), u.shape[1])
        patches = F.unfold(gain * u, self.kernel, padding=self.kernel // 2, stride=self.stride)
        out = fully_connected(patches.transpose(1, 2), self.weight.flatten(1), self.bias, self.c)
        return out.transpose(1, 2).unflatten(2, (height, width))


class BatchNorm2d(nn.Module):
    """[B, C, H, W] -> same, by the batch's midpoint and variance in training and at test alike.

    `weight` is the variance itself and `bias` [C] the mean's tangent vector.
    """

    def __init__(self, num_features: int, c: float) -> None:
        super().__init__()
        self.c = c
        self.weight, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(num_features))

    def forward(self, u: Tensor) -> Tensor:
        """Tangent vectors in and out."""
        c = self.c
        x = exp0(u.permute(0, 2, 3, 1).flatten(0, 2), c)
        target = exp0(self.bias, c)
        middle = lorentz_to_poincare(mean.midpoint(poincare_to_lorentz(x, c), c), c)
        variance = poincare.distance(x, middle, c).square().mean()
        v = poincare.transport(middle, target, poincare.log(middle, x, c), c)
        out = clip(poincare.exp(target, v * (self.weight / (variance + 1e-6)).sqrt(), c), c)
        return poincare.log0(out, c).unflatten(0, (u.shape[0], *u.shape[2:])).permute(0, 3, 1, 2)


class ResidualAdd(nn.Module):
    """f(x) + x by Mobius addition along the last dimension, as if a row of pixels were a point."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Two tensors [B, C, H, W] -> one."""
        return poincare.log0(poincare.add(exp0(y, self.c), exp0(x, self.c), self.c), self.c)


class Linear(nn.Module):
    """The classifier: pooled tangents [B, D] -> [B, K]; `weight` [K, D], `bias` [K]."""

    def __init__(self, in_features: int, out_features: int, c: float) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.normal_(self.weight, std=(2 * in_features * out_features) ** -0.5)

    def forward(self, u: Tensor) -> Tensor:
        """Logits."""
        return fully_connected(u, self.weight, self.bias, self.c)


def published_layers(c: float) -> Layers:
    """The layers above, all of curvature -c."""
    return Layers(
        conv=lambda i, o, k, s: Conv2d(i, o, k, s, c),
        norm=lambda width: BatchNorm2d(width, c),
        add=lambda: ResidualAdd(c),
        head=lambda width, classes: Linear(width, classes, c),
    )


class PublishedPoincareResNet(ResNet):
    """The residual network in the published arithmetic, for the checkpoints of its authors.

    Args:
        depth, widths, num_classes, head, stem_stride: see `ResNet`.
        c: the curvature, a plain number: published files with learned curvatures are incomplete.

    Raises:
        ValueError: see `ResNet`.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, ...] = (8, 16, 32),
        num_classes: int = 10,
        c: float = 0.1,
        head: nn.Module | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__(published_layers(c), depth, widths, num_classes, head, stem_stride)

    @full_precision
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> pooled tangent vectors [B, D]; float32 under autocast too."""
        return super().features(pixels)


# Published name -> ours; weights lie there as [inputs, outputs].
_PARTS = {"weights": "weight", "bias": "bias", "z": "weight", "norm.mean": "bias", "norm.var": "weight"}
_UNUSED = re.compile(r"(running_mean|running_var)$")
_NAME = re.compile(
    r"(?:group(?P<group>[123])\.(?P<block>\d+)\.)?(?P<layer>conv[12]?|bn[12]?|downsample|fc)\.(?P<part>.+)"
)


def load_published(state: dict[str, Tensor]) -> PublishedPoincareResNet:
    """A network with the published arithmetic from a state dict of the authors' `HyperbolicResNet`.

    Depth, widths, number of classes and curvature are read off the tensors (docs/poincare_resnet.md lists them).
    Running statistics, which that code stores and never uses, are ignored.

    Raises:
        ValueError: a tensor missing, unknown or of an unexpected shape, or layers of different curvatures.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    curvatures = {float(value) for name, value in state.items() if name.endswith("isp_c")}
    if len(curvatures) != 1:
        raise ValueError(
            f"the layers' curvatures (isp_c) are {sorted(curvatures)}: one is needed. Where they were learned, the "
            "residual sums' own are not in the file, so its results cannot be reproduced"
        )
    blocks = {(int(m["group"]), int(m["block"])) for m in map(_NAME.fullmatch, state) if m and m["group"]}
    per_group = len(blocks) // 3
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("isp_c") or _UNUSED.search(name):
            continue
        match = _NAME.fullmatch(name)
        if match is None or match["part"] not in _PARTS:
            raise ValueError(f"{name} is no tensor of a published Poincare ResNet")
        layer = {"downsample": "shortcut", "fc": "head"}.get(match["layer"], match["layer"])
        if match["group"]:
            layer = f"blocks.{(int(match['group']) - 1) * per_group + int(match['block'])}.{layer}"
        named[f"{layer}.{_PARTS[match['part']]}"] = value.T if value.dim() == 2 else value
    try:
        widths = [state["conv.bias"], state["group2.0.conv1.bias"], state["group3.0.conv1.bias"]]
        model = PublishedPoincareResNet(
            6 * per_group + 2,
            tuple(len(bias) for bias in widths),
            len(state["fc.bias"]),
            curvatures.pop(),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing from the state dict") from error
    own = model.state_dict()
    for name in own.keys() | named.keys():
        have, want = named.get(name), own.get(name)
        if have is None or want is None or have.numel() != want.numel():
            shapes = [None if t is None else tuple(t.shape) for t in (have, want)]
            raise ValueError(f"{name} is {shapes[0]} in the state dict and {shapes[1]} in the network")
        named[name] = have.reshape(want.shape)
    model.load_state_dict(named)
    return model
