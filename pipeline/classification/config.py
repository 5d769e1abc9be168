"""What a classifier's training is: net, head, data, optimiser; and the two published recipes."""

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config import Config, ConfigError, nearest

DEPTHS = (20, 32, 44, 56)
MODELS = tuple(f"{family}{depth}" for family in ("poincare_resnet", "resnet") for depth in DEPTHS)


class FitConfig(Config):
    """A training of `hyco fit`. The defaults are those of Poincare ResNet (van Spengler et al., ICCV 2023).

    Attributes:
        model: poincare_resnet20, resnet20 (its Euclidean twin) and depths 32, 44, 56.
        data: labelled set, NAME:DIR as in pipeline.datasets; its train split is trained on. DIR may change.
        widths: channels of the three stages.
        curvature: c > 0 of a Poincare net, -c being its curvature; learn_curvature learns it from there on.
        init: of a Poincare net's convolutions; "identity" or "normal" (docs/poincare_resnet.md).
        head: "softmax" is the net's own last layer (linear, or hyperbolic logistic regression), "linear" a linear
            layer on the (tangent) features, "separation" maximum separation (models/heads/max_separation.py).
        radius: of the separation head. "equal" gives logits as steep as the softmax head's, so that both have one
            temperature (see pipeline.classification.model); "learned" starts there and learns it; or a number.
        imbalance: IF of the long tail, n_c = n_max IF^(c / (C - 1)); 1 keeps every image.
        known: train on this many classes only, drawn by the seed; the others are unknown in open-set recognition.
        image_size: side in pixels; other sizes are brought to it.
        epochs: over the images that are kept. steps: train this many steps instead.
        schedule: of the rate after warmup_steps: "constant", or "cosine" down to zero.
        crop: random crop after padding by this many pixels; flip: mirror half of the images.
        precision: "bfloat16" runs a Euclidean net under autocast; a Poincare net computes in float32 anyway.
    """

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"log_every", "checkpoint_minutes", "checkpoint_steps", "keep"}
    )

    model: str = "poincare_resnet20"
    data: str
    widths: tuple[int, int, int] = (8, 16, 32)
    curvature: float = Field(default=0.1, gt=0)
    learn_curvature: bool = False
    init: Literal["identity", "normal"] = "identity"
    head: Literal["softmax", "linear", "separation"] = "softmax"
    radius: float | Literal["equal", "learned"] = "equal"
    imbalance: float = Field(default=1.0, gt=0, le=1)
    known: int | None = Field(default=None, ge=2)
    image_size: int = Field(default=32, ge=8)
    epochs: int = Field(default=100, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    crop: int = Field(default=4, ge=0)
    flip: bool = True
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = Field(default=20, ge=1)
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    checkpoint_steps: int = Field(default=2000, ge=1)
    keep: int = Field(default=2, ge=1)

    @property
    def hyperbolic(self) -> bool:
        """Whether the net is a Poincare ResNet."""
        return self.model.startswith("poincare")

    @property
    def depth(self) -> int:
        """6n + 2."""
        return int(self.model.rpartition("resnet")[2])

    @property
    def data_name(self) -> str:
        """The set's name, without where it lies."""
        return self.data.partition(":")[0]

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if model not in MODELS:
            raise ValueError(f"there is no such model{nearest(model, MODELS)}")
        return model

    @field_validator("radius")
    @classmethod
    def _positive(cls, radius: float | str) -> float | str:
        if isinstance(radius, float) and not radius > 0:
            raise ValueError("it must be positive, 'equal' or 'learned'")
        return radius


def poincare(model: str, data: str) -> FitConfig:
    """Poincare ResNet: Adam 1e-3, weight decay 1e-4, batch 128, 100 epochs, crop 4 and flip."""
    return FitConfig(model=model, data=data)


def separation(model: str, data: str) -> FitConfig:
    """Kasarla et al. 2022: SGD 0.1, momentum 0.9, weight decay 5e-4, batch 512, 200 epochs of a cosine."""
    base = {"optimiser": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 512}
    return FitConfig(model=model, data=data, **base, epochs=200, schedule="cosine")


FIT_RECIPES: dict[str, Callable[[str, str], FitConfig]] = {"poincare": poincare, "separation": separation}


def fit_recipe(name: str, model: str, data: str) -> FitConfig:
    """The recipe of that name for a model and its data; ConfigError naming the nearest when there is none."""
    if name not in FIT_RECIPES:
        raise ConfigError(f"unknown recipe '{name}'{nearest(name, FIT_RECIPES)}")
    return FIT_RECIPES[name](model, data)
