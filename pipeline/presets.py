"""Sizes of a run, from a smoke test to the full recipe."""

from typing import Literal

from hyco.pipeline.config import nearest
from hyco.pipeline.evaluation.config import AssessConfig
from hyco.pipeline.training.recipes import Recipe

Preset = Literal["smoke", "small", "full"]
PRESETS: tuple[Preset, ...] = ("smoke", "small", "full")
_SHARE = 10  # a small run takes a tenth of the steps


def sized(recipe: Recipe, preset: str) -> Recipe:
    """The recipe in one of PRESETS: smoke has 20 small steps, small a tenth of the steps, full is the recipe itself.

    Raises ValueError for another name.
    """
    if preset == "full":
        return recipe
    if preset == "small":
        steps = max(20, recipe.steps // _SHARE)
        start, ramp = recipe.entailment_start // _SHARE, recipe.entailment_ramp // _SHARE
        warmup = min(recipe.optimiser.warmup_steps, steps // 5)
        return recipe.replace(
            steps=steps,
            entailment_start=start,
            entailment_ramp=ramp,
            optimiser=recipe.optimiser.replace(warmup_steps=warmup),
        )
    if preset == "smoke":
        steps = min(recipe.steps, 20)
        # Cones that are to come late would, from the first step on, make all features equal.
        start = steps * 3 // 4 if recipe.entailment_start else 0
        return recipe.replace(
            steps=steps,
            batch_size=min(recipe.batch_size, 32),
            entailment_start=start,
            entailment_ramp=(steps - start) // 2 if start else 0,
            optimiser=recipe.optimiser.replace(warmup_steps=min(recipe.optimiser.warmup_steps, 5)),
            log_every=1,
        )
    raise ValueError(f"unknown preset '{preset}'{nearest(preset, PRESETS)}")


def asked(config: AssessConfig, preset: str) -> AssessConfig:
    """The evaluation for a preset: a smoke run is evaluated on 200 images at most."""
    return config.replace(max_images=200, max_parts=200, draws=100) if preset == "smoke" else config
