"""Dual encoder: an image tower and a text tower whose features are lifted into one space.

In Lorentz geometry an embedding is exp_0(exp(a) W f), a point of the hyperboloid given by its space part
(MERU, Desai et al. 2023); in a product of k hyperboloids W f is cut into k pieces and each is lifted into its
own factor (PHyCLIP, ICLR 2026); in Euclidean geometry it is W f / |W f| (CLIP, Radford et al. 2021). In a polar model
W f has one more row g: the point is exp_0(exp(a + s tanh(g)) u / sqrt(c)), u = W f / |W f| without that row, a and s
the middle and half the range of the logarithms of the allowed distances.
Legend: B batch, C channels, H W space, N tokens, D embedding dim, E projected dim (D, polar D + 1), F tower width.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.encoders.packing import together
from hyco.models.encoders.poincare_resnet import PoincareResNetConfig, PoincareResNetTower
from hyco.models.encoders.text import TextConfig, TextTransformer
from hyco.models.encoders.vit import VisionConfig, VisionTransformer
from hyco.models.files import read_json, read_safetensors
from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.objective import Geometry, scores

ImageConfig = VisionConfig | PoincareResNetConfig
"""Configurations of image towers, told apart by `kind`."""

RADIUS_GRADIENT = 0.03
"""Factor of the gradient that a polar model's radii give to the towers. In full, the large gradients of the first
steps, when all radii are wrong, turn the features of all inputs to one direction.
"""

IMAGE_CONFIGS = {"vit": VisionConfig, "poincare_resnet": PoincareResNetConfig}


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Towers, space and learned scalars of a dual encoder."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
    digest_if_set: ClassVar[frozenset[str]] = frozenset(
        {
            "temperatures",
            "sigmoid_bias",
            "factor_alphas",
            "projection_bias",
            "polar",
            "image_radii",
            "text_radii",
        }
    )

    vision: ImageConfig = field(default_factory=VisionConfig, metadata={"discriminator": "kind"})
    """Image tower; its `kind` selects the architecture."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text tower."""
    dim: int = 512
    """Dimensions of the embedding."""
    geometry: Geometry = "lorentz"
    """Embedding space: one hyperboloid ("lorentz"), a product of `factors` hyperboloids, or the Euclidean
    unit sphere.
    """
    factors: int = 1
    """Number of hyperboloids of geometry "product", each of dim / factors dimensions."""
    factor_alphas: bool = False
    """Whether every factor has an alpha of its own for images and for texts (PHyCLIP), instead of one for all."""
    polar: bool = False
    """Whether direction and radius of a point have outputs of their own (geometry "lorentz"): contrast and scores
    compare directions by their cosine, and the radius is left to the entailment cones.
    """
    image_radii: tuple[float, float] = (0.1, 2.0)
    """Least and greatest sqrt(c)|x| of the images and parts of a polar model."""
    text_radii: tuple[float, float] = (0.01, 0.1)
    """Least and greatest sqrt(c)|x| of the captions and phrases of a polar model."""
    curvature: float = 1.0
    """Initial c > 0 of the learned curvature -c."""
    curvature_min: float = 0.1
    """Minimum of the learned c."""
    curvature_max: float = 10.0
    """Maximum of the learned c."""
    temperature: float = 0.07
    """Initial softmax temperature; at least 1 / max_scale."""
    max_scale: float = 100.0
    """Maximum of the learned logit scale, 1 / temperature, and of the named ones."""
    temperatures: tuple[str, ...] = ()
    """Names of further learned temperatures, for rows of the objective that name one; all start at `temperature`."""
    sigmoid_bias: float | None = None
    """Initial value of the learned bias of sigmoid rows; None for a model without one."""
    projection_bias: bool = False
    """Whether the projections of both towers have a bias, as in Hyper3-CLIP."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each colour channel, for pixels in [0, 1]; ImageNet's by default."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each colour channel, for pixels in [0, 1]; ImageNet's by default."""

    def __post_init__(self) -> None:
        if self.geometry not in (known := get_args(Geometry)):
            one_of = f"{', '.join(known[:-1])} or {known[-1]}"
            raise ValueError(f"geometry '{self.geometry}' is unknown: use {one_of}")
        if not 0 < self.curvature_min <= self.curvature <= self.curvature_max:
            raise ValueError(
                f"curvature {self.curvature} must lie in [{self.curvature_min}, {self.curvature_max}] > 0"
            )
        if not 0 < 1 / self.max_scale <= self.temperature:
            raise ValueError(
                f"temperature {self.temperature} must be at least 1/max_scale = {1 / self.max_scale}"
            )
        if self.factors < 1 or self.dim % self.factors:
            raise ValueError(f"factors {self.factors} must divide dim {self.dim}")
        if self.factors > 1 and self.geometry != "product":
            raise ValueError(
                f"factors {self.factors} need geometry 'product', not '{self.geometry}': set it, or factors=1"
            )
        if self.factor_alphas and self.geometry != "product":
            raise ValueError(
                f"factor_alphas belong to geometry 'product', not '{self.geometry}': set it, or factor_alphas=false"
            )
        if self.polar and self.geometry != "lorentz":
            raise ValueError(f"polar needs geometry 'lorentz', not '{self.geometry}': set it, or polar=false")
        for name in ("image_radii", "text_radii"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} {low}, {high} must be 0 < least <= greatest")
        for name in self.temperatures:
            if not name.isidentifier() or self.temperatures.count(name) > 1:
                raise ValueError(
                    f"temperatures {self.temperatures}: '{name}' must be an identifier that occurs once"
                )
        if min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std {self.pixel_std} must be positive")

    @property
    def by_cosine(self) -> bool:
        """Whether the model's score is a cosine, not minus a distance."""
        return self.geometry == "euclid" or self.polar


def image_tower(config: ImageConfig) -> VisionTransformer | PoincareResNetTower:
    """The image tower of a configuration: normalised pixels [B, 3, H, W] -> [B, config.width]."""
    if isinstance(config, PoincareResNetConfig):
        return PoincareResNetTower(config)
    return VisionTransformer(config)


class DualEncoder(nn.Module):
    """Dual encoder: images and texts -> embeddings [B, dim], always float32."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = image_tower(config.vision)
        self.textual = TextTransformer(config.text)
        self.visual_projection = nn.Linear(config.vision.width, self.projected, bias=config.projection_bias)
        self.textual_projection = nn.Linear(config.text.width, self.projected, bias=config.projection_bias)
        for projection in (self.visual_projection, self.textual_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            if config.polar:
                nn.init.zeros_(projection.weight[-1])
            if config.projection_bias:
                nn.init.zeros_(projection.bias)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        for name in config.temperatures:
            self.register_parameter(_scale_name(name), nn.Parameter(self.log_scale.detach().clone()))
        if config.sigmoid_bias is not None:
            self.sigmoid_bias = nn.Parameter(torch.tensor(float(config.sigmoid_bias)))
        if config.geometry != "euclid":
            # At the start a point is about 1 from the origin, in every factor of a product.
            alpha = -0.5 * math.log(config.dim // config.factors)
            shape = (config.factors,) if config.geometry == "product" else ()
            scaled = shape if config.factor_alphas else ()
            self.visual_alpha = nn.Parameter(torch.full(scaled, alpha))
            self.textual_alpha = nn.Parameter(torch.full(scaled, alpha))
            if config.polar:  # the middle of the logarithms of the radii, which stays
                for scalar, radii in (
                    (self.visual_alpha, config.image_radii),
                    (self.textual_alpha, config.text_radii),
                ):
                    scalar.requires_grad_(False).fill_(sum(map(math.log, map(math.asinh, radii))) / 2)
            self.log_curvature = nn.Parameter(torch.full(shape, math.log(config.curvature)))
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    @property
    def projected(self) -> int:
        """Outputs of the projections: dim, and the radius of a polar model."""
        return self.config.dim + self.config.polar

    @property
    def curvature(self) -> Tensor:
        """c > 0 of the space, 0-dim, or [k] of the factors; the constant 0 in Euclidean geometry."""
        if self.config.geometry == "euclid":
            return self.log_scale.new_zeros(())
        return self.log_curvature.float().exp()

    @property
    def scale(self) -> Tensor:
        """Inverse temperature, 0-dim."""
        return self.log_scale.float().exp()

    @property
    def scales(self) -> dict[str, Tensor]:
        """Inverse temperatures by name, those of the configuration's `temperatures`."""
        names = self.config.temperatures
        return {name: self.get_parameter(_scale_name(name)).float().exp() for name in names}

    @property
    def bias(self) -> Tensor | None:
        """Learned bias of sigmoid rows, 0-dim; None without."""
        return None if self.config.sigmoid_bias is None else self.sigmoid_bias.float()

    def normalise(self, images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
        """RGB bytes -> pixels, normalised by this model's mean and standard deviation."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return (pixels - self.pixel_mean) / self.pixel_std

    def lift(
        self, projected: Float[Tensor, "*B E"], log_alpha: Tensor | None, span: float = 0.0
    ) -> Float[Tensor, "*B D"]:
        """Projected features -> points of the space, always in float32; `span` is half the range of log radii."""
        with torch.autocast(projected.device.type, enabled=False):
            projected = projected.float()
            if log_alpha is None:
                return F.normalize(projected, dim=-1)
            alpha = log_alpha.float().exp()
            if self.config.polar:
                direction, height = F.normalize(projected[..., :-1], dim=-1), projected[..., -1:]
                length = alpha * (span * torch.tanh(height)).exp()
                return lorentz.exp0(length * direction / self.curvature.sqrt(), self.curvature)
            if alpha.dim():  # one for each factor
                alpha = alpha.repeat_interleave(projected.shape[-1] // len(alpha))
            scaled = alpha * projected
            if self.config.geometry == "product":
                return product.exp0(scaled, self.curvature, self.config.factors)
            return lorentz.exp0(scaled, self.curvature)

    def project_image(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """W f of normalised pixels, before the lift."""
        return _project(self.visual_projection, self.visual(pixels), self.config.polar)

    def project_text(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B E"]:
        """W f of token ids, before the lift. Prompts are averaged here (zero-shot class vectors)."""
        return _project(self.textual_projection, self.textual(tokens), self.config.polar)

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Normalised pixels -> space components of Lorentz points, or unit vectors."""
        return self.lift_image(self.project_image(pixels))

    def encode_text(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        """Token ids -> space components of Lorentz points, or unit vectors."""
        return self.lift_text(self.project_text(tokens))

    def lift_image(self, projected: Float[Tensor, "*B E"]) -> Float[Tensor, "*B D"]:
        """`lift` with the images' alpha."""
        alpha = None if self.config.geometry == "euclid" else self.visual_alpha
        return self.lift(projected, alpha, _span(self.config.image_radii))

    def lift_text(self, projected: Float[Tensor, "*B E"]) -> Float[Tensor, "*B D"]:
        """`lift` with the texts' alpha."""
        alpha = None if self.config.geometry == "euclid" else self.textual_alpha
        return self.lift(projected, alpha, _span(self.config.text_radii))

    def score(self, a: Float[Tensor, "Q D"], b: Float[Tensor, "K D"]) -> Float[Tensor, "Q K"]:
        """Similarity of all pairs: minus distance, or the cosine of a Euclidean or polar model."""
        if self.config.polar:
            return scores("euclid", F.normalize(a, dim=-1), F.normalize(b, dim=-1))
        return self.nearness(a, b)

    def nearness(self, a: Float[Tensor, "Q D"], b: Float[Tensor, "K D"]) -> Float[Tensor, "Q K"]:
        """Minus the distance of all pairs in the space, or Euclidean cosine: `score` except in a polar model."""
        return scores(self.config.geometry, a, b, self.curvature)

    def forward(
        self,
        images: UInt8[Tensor, "B H W 3"],
        tokens: Int[Tensor, "B N"],
        image_boxes: UInt8[Tensor, "P H W 3"] | None = None,
        token_boxes: Int[Tensor, "P M"] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Embeddings by node name, with the scale and the curvature for the loss.

        Images and boxes go through their tower in one pass, and so do captions and phrases.
        """
        if image_boxes is None or token_boxes is None or not len(image_boxes):
            nodes = {"text": self.encode_text(tokens), "image": self.encode_image(self.normalise(images))}
            empty = nodes["image"].new_zeros(0, self.config.dim)
            return nodes | {"image_box": empty, "text_box": empty}, self.scale, self.curvature
        texts = self.encode_text(together([tokens, token_boxes], self.config.text.end_token))
        images_boxes = self.encode_image(self.normalise(torch.cat([images, image_boxes])))
        nodes = {"text": texts[: len(tokens)], "image": images_boxes[: len(images)]}
        nodes |= {"image_box": images_boxes[len(images) :], "text_box": texts[len(tokens) :]}
        return nodes, self.scale, self.curvature

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring the learned scalars back into their ranges; called after each optimiser step."""
        for log_scale in (
            self.log_scale,
            *(self.get_parameter(_scale_name(n)) for n in self.config.temperatures),
        ):
            log_scale.clamp_(max=math.log(self.config.max_scale))
        if isinstance(self.visual, PoincareResNetTower):
            self.visual.constrain_()
        if self.config.geometry != "euclid":
            if not self.config.polar:
                self.visual_alpha.clamp_(max=0)
                self.textual_alpha.clamp_(max=0)
            self.log_curvature.clamp_(
                math.log(self.config.curvature_min), math.log(self.config.curvature_max)
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into a directory (made if absent)."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "DualEncoder":
        """Read a directory written by `save_pretrained`; FileNotFoundError or ValueError naming the faulty file."""
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; give the model directory of a finished run")
        config = folder / "config.json"
        model = cls(config_from_dict(read_json(config), str(config)))
        load_weights(model, read_safetensors(folder / "model.safetensors"), str(folder))
        return model.to(device)


def config_from_dict(values: dict[str, Any], source: str) -> ClipConfig:
    """ClipConfig from its `asdict` form as read from JSON; ValueError naming `source`."""
    values = dict(values)
    try:
        for name in ("pixel_mean", "pixel_std", "temperatures", "image_radii", "text_radii"):
            if name in values:
                values[name] = tuple(values[name])
        text = TextConfig(**values.pop("text"))
        return ClipConfig(vision=_image_config(values.pop("vision")), text=text, **values)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} is not a dual encoder's: {error}") from error


def _image_config(values: dict[str, Any]) -> ImageConfig:
    kind = values.get("kind", "vit")
    if kind not in IMAGE_CONFIGS:
        raise ValueError(f"an image tower of kind '{kind}' is unknown: use {' or '.join(IMAGE_CONFIGS)}")
    return IMAGE_CONFIGS[kind](**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a state dict; ValueError naming the first tensor missing, left over or of another shape."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else "nothing"
        want = tuple(own[name].shape) if name in own else "nothing"
        if have != want:
            raise ValueError(
                f"{source} holds another architecture: {name} is {have} there and {want} here; "
                "use the configuration it was trained with, or another run directory"
            )
    model.load_state_dict(weights)


def _scale_name(temperature: str) -> str:
    return f"log_scale_{temperature}"


def _project(projection: nn.Linear, features: Tensor, polar: bool) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        if not polar:
            return projection(features)
        told = RADIUS_GRADIENT * features + (1 - RADIUS_GRADIENT) * features.detach()
        return torch.cat([projection(features)[..., :-1], projection(told)[..., -1:]], dim=-1)


def _span(radii: tuple[float, float]) -> float:
    """Half the difference of the logarithms of two distances from the origin, given as radii sqrt(c)|x|."""
    low, high = map(math.asinh, radii)
    return math.log(high / low) / 2
