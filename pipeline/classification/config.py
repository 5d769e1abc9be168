"""Configuration of a classifier's training: net, head, data, optimiser; and the two published recipes."""

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from hyco.pipeline.classification.long_tail import Draw, Profile
from hyco.pipeline.config import Config, ConfigError, nearest

Model = Literal[
    "poincare_resnet20", "poincare_resnet32", "poincare_resnet44", "poincare_resnet56",
    "resnet20", "resnet32", "resnet44", "resnet56",
]  # fmt: skip


Head = Literal["softmax", "linear", "separation", "cosine", "ntce", "nonl", "balanced"]


class FitConfig(Config):
    """A training of `hyco fit`. The defaults are those of Poincare ResNet (van Spengler et al., ICCV 2023)."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"log_every", "checkpoint_minutes", "checkpoint_steps", "keep"}
    )
    digest_if_set: ClassVar[frozenset[str]] = frozenset(
        {"imbalance_profile", "imbalance_draw", "temperature", "hierarchy", "prototype_dim"}
    )

    model: Model = "poincare_resnet20"
    """Network: a Poincare ResNet or its Euclidean counterpart, with its depth."""
    data: str
    """Labelled set, NAME:DIR as in pipeline.datasets; its train split is used. DIR may change."""
    widths: tuple[int, int, int] = (8, 16, 32)
    """Channels of the three stages."""
    curvature: float = Field(default=0.1, gt=0)
    """c > 0 of a Poincare network, whose curvature is -c; the initial value with learn_curvature."""
    learn_curvature: bool = False
    """Whether the curvature is learned."""
    init: Literal["identity", "normal"] = "identity"
    """Initialisation of a Poincare network's convolutions: "identity" as in the paper, "normal" trains better
    (docs/classification.md).
    """
    head: Head = "softmax"
    """Last layer: "softmax" is the network's own last layer (linear, or hyperbolic logistic regression),
    "linear" a linear layer on the (tangent) features, "separation" maximum separation
    (models/heads/max_separation.py). "cosine", "ntce" and "nonl" are cosines with learned directions, trained by
    cross-entropy, NTCE and NONL (models/heads/cosine.py). "balanced" is the distance to fixed points of a hierarchy
    (models/heads/balanced_prototypes.py).
    """
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the heads "cosine", "ntce" and "nonl"."""
    hierarchy: str | None = None
    """File taxonomy.json whose leaves are the classes, for the head "balanced"."""
    prototype_dim: int = Field(default=64, ge=2)
    """Dimensions of the prototypes of the head "balanced"."""
    radius: float | Literal["equal", "learned"] = "equal"
    """Radius of the separation head, a positive number. "equal" gives logits as steep as the softmax head's,
    so that both have one temperature; "learned" starts there and is trained.
    """
    imbalance: float = Field(default=1.0, gt=0, le=1)
    """Imbalance factor IF of the long tail, n_c = n_max IF^(c / (C - 1)); 1 keeps every image."""
    imbalance_profile: Profile = "exponential"
    """Images per class of an imbalanced set: "exponential" is the long tail, "step" gives the first half of the
    classes n_max images and the others n_max IF.
    """
    imbalance_draw: Draw = "nested"
    """Which images an imbalanced set keeps: "nested" draws them by the seed, and a longer tail keeps a subset of
    what a shorter one keeps; "published" keeps the images of Cao et al. 2019 whatever the seed, and needs the
    binary version of CIFAR, whose order is the published one.
    """
    known: int | None = Field(default=None, ge=2)
    """Number of classes that are trained on, drawn by the seed; the others are unknown in open-set
    recognition. null takes all.
    """
    image_size: int = Field(default=32, ge=8)
    """Side of the images, in pixels; other sizes are resized."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the selected images."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, instead of `epochs`; null trains the epochs."""
    batch_size: int = Field(default=128, ge=2)
    """Images per step."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Optimiser."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """L2 penalty; a learned radius and curvature have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: "constant", or "cosine" down to zero."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of the linear warm-up."""
    crop: int = Field(default=4, ge=0)
    """Padding before the random crop, in pixels; 0 does not crop."""
    flip: bool = True
    """Whether half of the images are flipped horizontally."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, of the order and augmentation of the images, of the long tail and of the known
    classes.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass: "bfloat16" runs a Euclidean network under autocast; a Poincare network
    always computes in float32.
    """
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of log.jsonl."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """Maximum minutes between checkpoints; there is always one at the end."""
    checkpoint_steps: int = Field(default=2000, ge=1)
    """Maximum steps between checkpoints; the limit reached first applies."""
    keep: int = Field(default=2, ge=1)
    """Number of checkpoints that are kept, the latest ones."""

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
        """The set's name, without its location."""
        return self.data.partition(":")[0]

    @field_validator("radius")
    @classmethod
    def _positive(cls, radius: float | str) -> float | str:
        if isinstance(radius, float) and not radius > 0:
            raise ValueError("it must be positive, 'equal' or 'learned'")
        return radius


def poincare(model: str, data: str) -> FitConfig:
    """Poincare ResNet: Adam 1e-3, weight decay 1e-4, batch 128, 100 epochs, crop 4 and flip."""
    return FitConfig.model_validate({"model": model, "data": data})


def separation(model: str, data: str) -> FitConfig:
    """Kasarla et al. 2022: SGD 0.1, momentum 0.9, weight decay 5e-4, batch 512, 200 epochs of a cosine."""
    base = {"optimiser": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 512}
    return FitConfig.model_validate(
        {"model": model, "data": data, **base, "epochs": 200, "schedule": "cosine"}
    )


FIT_RECIPES: dict[str, Callable[[str, str], FitConfig]] = {"poincare": poincare, "separation": separation}


def fit_recipe(name: str, model: str, data: str) -> FitConfig:
    """The recipe of that name for a model and its data; ConfigError naming the nearest when there is none."""
    if name not in FIT_RECIPES:
        raise ConfigError(f"unknown recipe '{name}'{nearest(name, FIT_RECIPES)}")
    return FIT_RECIPES[name](model, data)
