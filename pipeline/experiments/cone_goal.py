"""The goal of the entailment cones: which recipes of the embedded world reach it, at equal samples.

    python -m pipeline.experiments.cone_goal --home var/demo                    # the table
    python -m pipeline.experiments.cone_goal --home var/demo --phase search     # the arms that were tried

The search has seeds and held-out scenes of its own, which the table does not use. Every run is a directory of `hyco
train` and `hyco assess` below HOME/runs, so that a killed command resumes where it stopped. A part of the goal is
reached if every seed reaches it, and a comparison with CLIP + boxes if its interval over the seeds does not exclude it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from models.encoders.vit import VisionConfig
from models.losses.rows import ContrastRow
from pipeline.config import ConfigError, nearest
from pipeline.end_to_end import run_dir
from pipeline.evaluation.config import AssessConfig, EvaluationSpec
from pipeline.evaluation.evaluate import evaluate
from pipeline.experiments.ablation import Run
from pipeline.experiments.comparison import NODES, Runs, difference, value_at, wrapped
from pipeline.experiments.grid import GridRun, command, run_grid, write_section
from pipeline.training.recipes import Recipe, by_name
from pipeline.training.run_dir import prepare
from pipeline.training.train import train
from storage.home import Home

BASELINE = "clip_boxes"
PATCH, BATCH = 12, 64


def setting(recipe: Recipe, steps: int, seed: int) -> Recipe:
    """A recipe of the demo at half the cost: patches of 12 pixels, batches of 64, in float32.

    Warm-up and ramp keep their fraction of the run. In float32, since bfloat16 is slow on CPUs without instructions
    for it.
    """
    share, vision = steps / recipe.steps, recipe.model.vision
    assert isinstance(vision, VisionConfig)
    return recipe.replace(
        steps=steps,
        seed=seed,
        batch_size=BATCH,
        precision="float32",
        model=replace(recipe.model, vision=replace(vision, patch_size=PATCH)),
        optimiser=recipe.optimiser.replace(warmup_steps=round(recipe.optimiser.warmup_steps * share)),
        entailment_ramp=round(recipe.entailment_ramp * share),
        keep_checkpoints=1,
    )


@dataclass(frozen=True)
class Phase:
    """What is compared on which scenes.

    Attributes:
        arms: recipes of the world by the name of an arm.
        heldout: captioned images for the evaluation, below the home.
        first_seed: seed of the first of the runs.
        seeds: default number of runs per arm.
    """

    arms: tuple[str, ...]
    heldout: str
    first_seed: int
    seeds: int


ARMS: dict[str, Callable[[], Recipe]] = {
    name: partial(by_name, f"demo_{name}") for name in (BASELINE, "argent", "angle", "cones")
} | {"hycoclip": partial(by_name, "demo")}

PHASES = {
    "table": Phase((BASELINE, "cones"), "scenes/heldout", 0, 3),
    "search": Phase(tuple(ARMS), "validation/heldout/00002.tar", 100, 1),
}


def plan(
    home: Home, version: str, arms: tuple[str, ...], phase: str, steps: int, seeds: int
) -> list[Run]:
    """The runs, seed by seed, so that an interrupted comparison still compares all arms."""
    runs = []
    for seed in range(PHASES[phase].first_seed, PHASES[phase].first_seed + seeds):
        for arm in arms:
            if arm not in ARMS:
                raise ConfigError(f"unknown arm '{arm}'{nearest(arm, ARMS)}")
            recipe = setting(ARMS[arm](), steps, seed)
            name = f"cones-{phase}-{arm}-{steps}x{BATCH}-s{seed}-{version.removeprefix('v-')[:8]}"
            runs.append(Run(arm, recipe, run_dir(home, recipe, version, name)))
    return runs


def compare(
    home: Home,
    out: Path,
    *,
    phase: str = "table",
    arms: tuple[str, ...] | None = None,
    steps: int = 240,
    seeds: int | None = None,
    device: str = "auto",
    say: TextIO = sys.stderr,
) -> list[Run]:
    """Train and evaluate the unfinished runs, and write the section of this phase into `out`.

    Raises:
        FileNotFoundError: no dataset version in the home, no held-out images.
        ValueError: an unknown arm, a run directory with another recipe, a training that diverged.
    """
    chosen = PHASES[phase]
    version = home.versions.load("latest").name
    spec = EvaluationSpec(
        version=version,
        assess_source=str(home.folder / chosen.heldout),
        taxonomy=str(home.folder / "scenes/taxonomy.json"),
        config=AssessConfig(device=device),
    )
    arms = arms or chosen.arms
    runs = plan(home, version, arms, phase, steps, seeds or chosen.seeds)

    def perform(run: Run) -> None:
        prepare(run.folder, home, version, run.recipe)
        if run.seconds is None:
            train(run.folder, home, version, run.recipe, device=device)
            evaluate(run.folder, home, spec)

    def after(number: int) -> None:
        if number % len(arms) == 0:
            document(phase, runs[:number], out)

    grid = [GridRun(r.folder, r.model, partial(perform, r), partial(getattr, r, "seconds")) for r in runs]
    run_grid("cone goal", grid, after, say)
    return runs
