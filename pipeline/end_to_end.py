"""The whole journey as one configuration: mining, packing, training and evaluation, and the directory of the run."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from hyco.models.checkpoints import read_checkpoint
from hyco.pipeline.config import Config, ConfigError, digest
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.mined_boxes import phrase_quality
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.source import open_source
from hyco.pipeline.training.init_from import start_path
from hyco.pipeline.training.recipes import DEMO, PHOTOS, Recipe, by_name
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.versions import Version


class JourneyConfig(Config):
    """From captioned images to a report."""

    incidental: ClassVar[frozenset[str]] = frozenset({"run", "processes"})
    foremost: ClassVar[tuple[str, ...]] = ("run", "processes", "assess_source", "taxonomy", "recipe")

    mine: MineConfig
    """The source, the grounder and how they are mined."""
    pack: PackConfig = PackConfig()
    """How boxes are selected and how training shards are written."""
    recipe: Recipe
    """What is trained."""
    assess: AssessConfig = AssessConfig()
    """How the run is evaluated."""
    assess_source: str | None = None
    """Held-out captioned images, mined and labelled like the source. null evaluates on the val split; then
    pack.holdout must be above 0.
    """
    taxonomy: str | None = None
    """File taxonomy.json with the classes of zero-shot and hierarchy; null leaves both out."""
    run: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Name of the run. null derives it from recipe, version and configuration, so that the same journey
    resumes the same run.
    """
    processes: int = Field(default=1, ge=1)
    """Training processes, one per GPU."""


HELD_OUT = 0.1  # fraction of the images held out for evaluation where no other images are given for it

_PACKING: dict[str, PackConfig] = {
    **dict.fromkeys(DEMO, PackConfig(image_size=96, threshold=0.3, min_area_px=None, quality=92)),
    **dict.fromkeys(PHOTOS, PackConfig(image_size=128, threshold=0.35, holdout=HELD_OUT)),
}
"""Packing by the full name of a recipe. All others get crops of their model's image size."""


def packing_for(recipe: str, assess_source: str | None) -> PackConfig:
    """The packing for a recipe: crops of the size it trains on or larger, thresholds for its detector.

    ConfigError for an unknown recipe. Without an assess_source the fraction HELD_OUT of the images is held out: a model
    without metrics can be neither judged nor promoted.
    """
    size = by_name(recipe).model.vision.image_size
    packing = _PACKING.get(recipe) or PackConfig(image_size=size)
    return packing if assess_source or packing.holdout else packing.replace(holdout=HELD_OUT)


def compose(
    source: str, grounder: str, recipe: str, filled: bool = True, columns: Columns = USUAL, **rest: Any
) -> JourneyConfig:
    """A journey with the packing for the recipe of that name; `rest` are further fields of JourneyConfig.

    The source must not be empty, unless `filled` is False: a watched folder may still be empty.
    Raises ConfigError for an unknown recipe, ValueError or FileNotFoundError for an absent source or grounder.
    """
    found = by_name(recipe)
    if filled or "://" in source or not Path(source).is_dir():
        open_source(source)
    packing = packing_for(recipe, rest.get("assess_source"))
    mine = MineConfig(source=source, grounder=grounder, columns=columns)
    return JourneyConfig(mine=mine, pack=packing, recipe=found, **rest)


def checked(config: JourneyConfig, option: str = "pack.image_size") -> JourneyConfig:
    """The configuration itself; ConfigError when it packs smaller images than it trains on.

    `option` is the name of the option in the remedy. The size is the recipe's, or that of the checkpoint that training
    starts from if it is on this machine. Not a validator of JourneyConfig, so that configurations of an older Hyco can
    still be read.
    """
    size, start = config.recipe.model.vision.image_size, config.recipe.start.checkpoint
    if start and ("://" in start or Path(start).expanduser().exists()):
        size = read_checkpoint(start_path(start)).config.vision.image_size
    if small := enlarged(config.pack.image_size, size):
        raise ConfigError(f"{small}: add --set {option}={size}")
    return config


def enlarged(packed: int, trained: int) -> str | None:
    """The error when packed images are smaller than the training size; None when they are not."""
    if packed >= trained:
        return None
    return f"pack.image_size is {packed}, but the model is trained on images of {trained} pixels"


def held_out(config: JourneyConfig) -> MineConfig | None:
    """How the held-out source is mined: like the source itself. None when there is none."""
    if config.assess_source is None:
        return None
    return config.mine.replace(source=config.assess_source)


def evaluation_of(config: JourneyConfig, version: str) -> EvaluationSpec:
    """The evaluation of a model of the journey that was trained on that dataset version."""
    return EvaluationSpec(
        version=version,
        assess_source=config.assess_source,
        columns=config.mine.columns,
        taxonomy=config.taxonomy,
        config=config.assess,
    )


def run_dir(home: Home, recipe: Recipe, version: str, name: str | None = None) -> Folder:
    """The folder of a run; without a name, that of the run of this recipe and version."""
    chosen = name or f"{recipe.name}-{version.removeprefix('v-')[:8]}-{digest(recipe)[:8]}"
    return home.run(chosen)


def mining_report(
    config: MineConfig, pack: PackConfig, home: Home, version: Version, held: MineConfig | None
) -> dict[str, Any]:
    """The "mining" section of metrics.json: counts of the mined boxes, and their quality where the source has labels.

    `boxes` counts the boxes that packing accepted, `candidates` those that mining stored. Recall and precision are
    those of the held-out source when it is given and labelled, else of the source; null without labels.
    """
    found = mining.summary(config, home)
    quality = phrase_quality(held or config, home, threshold=pack.threshold, nms_iou=pack.nms_iou)
    return {
        **{name: found[name] for name in ("images", "captions", "phrases", "phrases_with_boxes", "failures")},
        "candidates": found["boxes"],
        "boxes": version.counts["parts"],
        "recall": quality["recall"],
        "precision": quality["precision"],
        "quality": {**quality, "source": (held or config).source, "threshold": pack.threshold, "iou": 0.5},
        "images_per_second": found["images_per_second"],
        "failures_by_code": found["failures_by_code"],
    }


def mined_of(version: str, home: Home) -> tuple[MineConfig, PackConfig, Version]:
    """The configurations that a dataset version was made with; ValueError for one that was neither mined nor packed."""
    found = home.versions.load(version)
    if "mine" not in found.config:
        raise ValueError(f"{found.name} was adopted from {found.source}: it was not mined here")
    return (
        MineConfig.model_validate(found.config["mine"]),
        PackConfig.model_validate(found.config["pack"]),
        found,
    )
