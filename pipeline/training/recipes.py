"""Recipes: functions that return the configuration of a training run, by name.

HyCoCLIP, PHyCLIP, MERU, CLIP, CLIP + boxes, CLIP + part queries, ARGENT, UNCHA-lite, two kinds of cones with negatives
and hyperbolic SigLIP use one trainer with different rows of the objective and different geometries.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hyco.models.clip import ClipConfig
from hyco.models.encoders.poincare_resnet import PoincareResNetConfig
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.losses.objective import (
    Geometry,
    ObjectiveConfig,
    angle_objective,
    argent_objective,
    clip_box_pairs_objective,
    clip_objective,
    cones_objective,
    hycoclip_objective,
    meru_objective,
    polar_cones_objective,
    siglip_objective,
    uncha_objective,
)
from hyco.pipeline.config import Config, ConfigError, nearest
from hyco.pipeline.training.augment import DataConfig

WARMUP = 0.05
"""Fraction of the steps that is proposed where a warm-up does not fit into them; `demo` has it."""
POLAR_START, POLAR_WHOLE = 0.15, 0.4
"""Fractions of a polar training after which the weights of its cones begin to rise, and are whole."""


class OptimiserConfig(Config):
    """AdamW with a linear warm-up and a half-cosine to zero; the defaults are the paper's.

    Weight decay spares norms, biases and scalars (all tensors of fewer than two dimensions); the embeddings
    of tokens, positions and the class token are decayed, as in MERU.
    """

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"clip_norm", "ema"})

    lr: float = Field(default=5e-4, gt=0)
    """Maximum learning rate, reached at the end of the warm-up."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of AdamW's mean of gradients."""
    beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay rate of AdamW's mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Term added to AdamW's denominator."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Decoupled weight decay of tensors with two or more dimensions."""
    warmup_steps: int = Field(default=4000, ge=0)
    """Steps of the linear warm-up; at most `steps` of the recipe."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Maximum norm of the gradient of all parameters together; a longer one is scaled down to it. 0 clips nothing."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, for example 0.9995; the model that is evaluated and
    exported then has the averaged weights. After t steps the decay is at most (1 + t) / (10 + t). 0 averages nothing.
    """


class ExecutionConfig(Config):
    """How a step is computed: memory and speed. The results change by rounding alone."""

    micro_batch: int = Field(default=0, ge=0)
    """Maximum number of samples per process whose activations are in memory at once; the loss still sees the whole
    batch (GradCache, Gao et al. 2021), at the cost of a second forward pass. 0 takes all at once. Towers with batch
    norm see a batch as a whole and cannot be divided.
    """
    checkpoint_activations: bool = False
    """Whether the blocks of the towers keep their input only and compute their activations again in the backward
    pass.
    """
    compile: bool = False
    """Whether the blocks of the towers are compiled by torch.compile, with any number of rows; needs a C++ compiler.
    The first steps take minutes.
    """
    sharded: bool = False
    """Whether several processes divide the parameters, their gradients and the optimiser's state among them (FSDP2)
    instead of copying them, for towers that are too large otherwise. Needs ViT towers that are learned whole.
    """


class StartConfig(Config):
    """The initial weights: random, or those of a trained CLIP."""

    derived: ClassVar[frozenset[str]] = frozenset({"digest"})

    checkpoint: str = ""
    """Directory of a CLIP of Hugging Face, OpenCLIP or Hyco, or a published state dict; empty for random
    weights. Its towers, dim and pixel statistics replace the recipe's.
    """
    learn: Literal["all", "heads", "lora"] = "all"
    """Trained parameters: "all"; "heads" (projections and scalars, frozen towers); "lora" (heads, and
    adapters in the last blocks).
    """
    digest: str = ""
    """Digest of the checkpoint's weights; set when the run is prepared, so that it always resumes from the
    same weights.
    """
    lora_rank: int = Field(default=16, ge=1)
    """Rank of an adapter, r of Hu et al. 2022."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of an adapter: its output is multiplied by lora_alpha / lora_rank."""
    lora_blocks: int = Field(default=4, ge=1)
    """Number of the last blocks of each tower that have adapters."""


class Recipe(Config):
    """Everything a training run depends on except the data."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"execution", "log_to", "log_every", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints"}
    )
    foremost: ClassVar[tuple[str, ...]] = ("steps", "batch_size", "optimiser", "seed", "precision")
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"entailment_start"})

    name: str
    """Name of the function of pipeline/training/recipes.py that made it."""
    model: ClipConfig
    """Towers and embedding space. The vocabulary and the end token come from the tokenizer; `text.vocab_size`
    is the maximum size of a trained one.
    """
    objective: ObjectiveConfig
    """Rows of the loss."""
    data: DataConfig = DataConfig()
    """How training samples are drawn, cropped and read."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """Optimiser and learning-rate schedule."""
    start: StartConfig = StartConfig()
    """Initial weights, and which of them are trained."""
    execution: ExecutionConfig = ExecutionConfig()
    """Memory and speed of a step."""
    tokenizer: str = "train"
    """Tokenizer: "train" (on the training captions, or the one of `start.checkpoint`), or a directory or hub
    name of a CLIP tokenizer.
    """
    batch_size: int = Field(ge=2)
    """Samples per step, over all processes."""
    steps: int = Field(ge=1)
    """Optimiser steps of the training."""
    entailment_ramp: int = Field(default=0, ge=0)
    """Steps over which the entailment weights rise linearly from 0; 0 uses them in full from the first step,
    as in the paper.
    """
    entailment_start: int = Field(default=0, ge=0)
    """Steps before the entailment weights begin to rise: the contrast comes first."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and of the order, captions, parts and crops of the samples."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the towers; the geometry and the loss are always float32. A CPU that multiplies no faster in
    bfloat16, measured when a run begins, computes in float32 in either case.
    """
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of log.jsonl."""
    log_to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Further places that get the lines of log.jsonl: "wandb" (Weights & Biases) and "mlflow", see docs/training.md."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Maximum minutes between checkpoints; there is always one at the end."""
    checkpoint_steps: int = Field(default=10_000, ge=1)
    """Maximum steps between checkpoints; the limit reached first applies."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints that are kept, the latest ones."""

    def entailment_share(self, step: int) -> float:
        """Factor of the entailment weights after `step` steps."""
        late = step - self.entailment_start
        return min(1.0, max(0, late) / self.entailment_ramp) if self.entailment_ramp else float(late >= 0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        objective, model = self.objective, self.model
        if (objective.entailment or objective.norm) and model.geometry == "euclid":
            raise ValueError(
                "norm and entailment rows need geometry 'lorentz' or 'product': drop the rows or change the geometry"
            )
        if not self.objective.contrast:
            raise ValueError(
                "an objective without contrast rows learns nothing: add (image, text), (text, image)"
            )
        if objective.contrast and all(row.temperature for row in objective.contrast):
            raise ValueError(
                "all contrast rows name a temperature of their own, so that the model's learns nothing: leave it out "
                "of one row"
            )
        if set(objective.temperatures) != set(model.temperatures):
            raise ValueError(
                f"model.temperatures {list(model.temperatures)} must be those that rows of the objective name, "
                f"{list(objective.temperatures)}"
            )
        if objective.uses_bias != (model.sigmoid_bias is not None):
            remedy = "set it, for example to 10" if objective.uses_bias else "set it to null"
            raise ValueError(
                f"model.sigmoid_bias {model.sigmoid_bias} belongs to contrast rows with loss 'sigmoid': {remedy}"
            )
        if self.execution.micro_batch and not isinstance(model.vision, VisionConfig):
            raise ValueError(
                f"execution.micro_batch {self.execution.micro_batch} needs towers without batch norm: set it to 0, or "
                "take a ViT"
            )
        if self.execution.sharded and not (
            isinstance(model.vision, VisionConfig) and self.start.learn == "all"
        ):
            raise ValueError(
                "execution.sharded true needs a ViT and start.learn=all: set execution.sharded=false, or change them"
            )
        self._refuse_what_ends_too_late()
        return self

    def _refuse_what_ends_too_late(self) -> None:
        """ValueError for schedules that do not fit into `steps`, with values of all of them that do.

        A ramp from the first step may be longer than the training: older runs have it, and must stay readable.
        """
        warmup, start, ramp = self.optimiser.warmup_steps, self.entailment_start, self.entailment_ramp
        why: list[str] = []
        remedies: dict[str, float] = {}
        if warmup > self.steps:
            why.append(f"warmup_steps {warmup} exceeds steps {self.steps}")
            remedies["optimiser.warmup_steps"] = WARMUP * self.steps
        if start and start + ramp > self.steps:
            why.append(
                f"entailment_start {start} and entailment_ramp {ramp} exceed steps {self.steps}, so that the cones "
                "would hardly be trained"
            )
            scale = POLAR_WHOLE * self.steps / (start + ramp)
            remedies |= {"entailment_start": start * scale, "entailment_ramp": ramp * scale}
        if why:
            fitting = " ".join(f"--set {name}={round(value)}" for name, value in remedies.items())
            raise ValueError(f"{'; '.join(why)}: add {fitting}")


def hycoclip_vit_s() -> Recipe:
    """The paper's ViT-S/16: 500k steps of 768 on GRIT (HyCoCLIP, section 4 and appendix)."""
    return Recipe(
        name="hycoclip_vit_s",
        model=ClipConfig(),
        objective=hycoclip_objective(),
        tokenizer="openai/clip-vit-base-patch16",
        batch_size=768,
        steps=500_000,
    )


def hycoclip_vit_b() -> Recipe:
    """The paper's ViT-B/16."""
    small = hycoclip_vit_s()
    return small.replace(
        name="hycoclip_vit_b", model=replace(small.model, vision=replace(small.model.vision, width=768))
    )


def hycoclip_vit_l() -> Recipe:
    """The paper's recipe with a ViT-L/16."""
    small = hycoclip_vit_s()
    large = replace(small.model.vision, width=1024, depth=24, heads=16)
    return small.replace(name="hycoclip_vit_l", model=replace(small.model, vision=large))


def hycoclip_from_clip() -> Recipe:
    """HyCoCLIP from a trained CLIP (--set start.checkpoint=DIR), with adapters in its last blocks.

    The towers are the checkpoint's; the ViT-B/16 here only makes packing cut crops of 224 pixels. Rate and length are a
    first guess and not tuned.
    """
    big = hycoclip_vit_b()
    return big.replace(
        name="hycoclip_from_clip",
        start=StartConfig(learn="lora"),
        tokenizer="train",
        data=DataConfig(crop_scale=(0.5, 1.0)),
        optimiser=OptimiserConfig(lr=3e-4, warmup_steps=500, weight_decay=0.01),
        entailment_ramp=2000,
        batch_size=256,
        steps=20_000,
    )


def demo_hycoclip() -> Recipe:
    """HyCoCLIP on the embedded world in about four minutes on two cores: the same code at a small size.

    About 25 epochs of 6,000 scenes. With the entailment at full weight from the first step, untrained towers collapse
    to one point and the contrastive loss stays at log B; so the weight rises over half the run.
    """
    return Recipe(
        name="demo_hycoclip",
        model=ClipConfig(
            vision=VisionConfig(image_size=48, patch_size=8, width=128, depth=4, heads=4),
            text=TextConfig(vocab_size=2048, context_length=32, width=128, depth=3, heads=4, end_token=0),
            dim=128,
        ),
        objective=hycoclip_objective(),
        data=DataConfig(crop_scale=(0.7, 1.0), part_crop_scale=(0.7, 1.0)),
        optimiser=OptimiserConfig(lr=1e-3, warmup_steps=60),
        entailment_ramp=600,
        batch_size=128,
        steps=1200,
        precision="bfloat16",
        log_every=1,
        checkpoint_minutes=0.5,
    )


def demo() -> Recipe:
    """The embedded world in about three minutes on two cores, with cones that hold (docs/ablation.md).

    polar_cones at two thirds of the samples of demo_hycoclip, in more steps of half the size.
    """
    base = demo_hycoclip()
    optimiser = base.optimiser.replace(lr=1.5e-3, warmup_steps=80)
    shorter = base.replace(batch_size=64, steps=1600, optimiser=optimiser)
    return _family(shorter, "demo", polar_cones_objective(), "lorentz", POLAR)


def demo_poincare_resnet() -> Recipe:
    """HyCoCLIP with a Poincare ResNet-8 for images: with a stride of 4 a step costs about as much as the ViT's."""
    base = demo_hycoclip()
    vision = PoincareResNetConfig(image_size=48, depth=8, widths=(32, 64, 128), init="normal", stem_stride=4)
    return base.replace(name="demo_poincare_resnet", model=replace(base.model, vision=vision))


def photos() -> Recipe:
    """A few thousand photographs in about half an hour on two cores; they are few, so augmentation is strong."""
    return demo_hycoclip().replace(
        name="photos",
        model=ClipConfig(
            vision=VisionConfig(image_size=64, patch_size=8, width=128, depth=4, heads=4),
            text=TextConfig(vocab_size=4096, context_length=40, width=128, depth=3, heads=4, end_token=0),
            dim=128,
        ),
        data=DataConfig(crop_scale=(0.4, 1.0), part_crop_scale=(0.5, 1.0), flip=0.5),
        optimiser=OptimiserConfig(lr=1e-3, warmup_steps=60, weight_decay=0.5),
        entailment_ramp=300,
        batch_size=256,
        steps=600,
    )


SIGLIP_TEMPERATURE = 0.1
"""Initial temperature of sigmoid rows (Zhai et al. 2023, section 4)."""
START_DISTANCE = math.acosh(math.cosh(1) ** 2)
"""Distance of two points at a distance of 1 from the origin, in orthogonal directions."""
FACTOR_DIM = 8
"""Dimensions of a PHyCLIP factor; an embedding of 512 has 64 of them."""


POLAR = {"polar": True, "image_radii": (0.11, 2.0), "text_radii": (0.0103, 0.118)}
"""Model of the polar recipes: no part and no phrase is so near the origin that its cone is a half-space."""


def _family(
    base: Recipe,
    name: str,
    objective: ObjectiveConfig,
    geometry: Geometry,
    space: Mapping[str, Any] | None = None,
) -> Recipe:
    """The same towers and schedule under another objective or in another space; `space` changes the model further."""
    factors = base.model.dim // FACTOR_DIM if geometry == "product" else 1
    changes = {
        "geometry": geometry,
        "factors": factors,
        "temperatures": objective.temperatures,
        **(space or {}),
    }
    model = replace(base.model, **changes)
    if objective.uses_bias:
        # SigLIP's temperature; at the start, with points 1 from the origin and so START_DISTANCE from each other, the
        # probability of a pair is that of a right one among the batch (their bias of -10 is for cosines).
        bias = round(START_DISTANCE / SIGLIP_TEMPERATURE - math.log(base.batch_size), 1)
        model = replace(model, temperature=SIGLIP_TEMPERATURE, sigmoid_bias=bias)
    recipe = base.replace(name=name, objective=objective, model=model)
    if (
        model.polar
    ):  # the radii and the contrast come first, and the membership is whole before half of the run
        start, ramp = round(POLAR_START * base.steps), round((POLAR_WHOLE - POLAR_START) * base.steps)
        recipe = recipe.replace(entailment_start=start, entailment_ramp=ramp)
    return recipe


def _siblings(base: Callable[[], Recipe], stem: str) -> dict[str, Callable[[], Recipe]]:
    """The other members of the family in one size; `stem` has a placeholder for the member's name."""

    def named(
        family: str, objective: ObjectiveConfig, geometry: Geometry, space: Mapping[str, Any] | None = None
    ):
        name = stem.format(family)
        return name, lambda: _family(base(), name, objective, geometry, space)

    return dict(
        [
            named("phyclip", hycoclip_objective(), "product"),
            named("meru", meru_objective(), "lorentz"),
            named("clip", clip_objective(), "euclid"),
            # From no paper: HyCoCLIP's queries on whole keys, with cosines ("CLIP + part queries").
            named("clip_boxes", clip_objective(boxes=True), "euclid"),
            # "CLIP + boxes" of the papers.
            named("clip_box_pairs", clip_box_pairs_objective(), "euclid"),
            # From no paper: HyCoCLIP's contrast on its hyperboloid without cones, to separate geometry from entailment.
            named("lorentz_boxes", clip_objective(boxes=True), "lorentz"),
            named("argent", argent_objective(), "lorentz"),
            named("uncha", uncha_objective(), "lorentz"),
            named("angle", angle_objective(), "lorentz"),
            named("cones", cones_objective(), "lorentz"),
            named("polar_cones", polar_cones_objective(), "lorentz", POLAR),
            named("siglip", siglip_objective(), "lorentz"),
        ]
    )


MERU_BUDGET = {"batch_size": 2048, "steps": 120_000}
"""Samples of MERU's own training (Desai et al. 2023, section 4)."""


def _published(base: Callable[[], Recipe], size: str) -> dict[str, Callable[[], Recipe]]:
    """The family in a size of the papers; and as published, MERU at its own budget and PHyCLIP with its own alphas."""
    made, stem = _siblings(base, f"{{}}_vit_{size}"), f"{{}}_vit_{size}"
    meru, phyclip = made[stem.format("meru")], made[stem.format("phyclip")]
    own_meru, own_phyclip = stem.format("meru_own"), stem.format("phyclip_own")

    def own_alphas() -> Recipe:
        recipe = phyclip()
        return recipe.replace(name=own_phyclip, model=replace(recipe.model, factor_alphas=True))

    return made | {own_meru: lambda: meru().replace(name=own_meru, **MERU_BUDGET), own_phyclip: own_alphas}


# The first two families have a packing of their own (pipeline.end_to_end).
DEMO: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "demo_hycoclip": demo_hycoclip,
    "demo_poincare_resnet": demo_poincare_resnet,
    **_siblings(demo_hycoclip, "demo_{}"),
}
PHOTOS: dict[str, Callable[[], Recipe]] = {"photos": photos, **_siblings(photos, "photos_{}")}
RECIPES: dict[str, Callable[[], Recipe]] = {
    **DEMO,
    **PHOTOS,
    "hycoclip_vit_s": hycoclip_vit_s,
    "hycoclip_vit_b": hycoclip_vit_b,
    "hycoclip_from_clip": hycoclip_from_clip,
    "hycoclip_vit_l": hycoclip_vit_l,
    **_published(hycoclip_vit_s, "s"),
    **_published(hycoclip_vit_b, "b"),
    **_published(hycoclip_vit_l, "l"),
}


def by_name(name: str) -> Recipe:
    """The recipe of that name; ConfigError naming the nearest when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name]()
