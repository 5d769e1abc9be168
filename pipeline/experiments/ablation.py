"""Ablation: the models of the family trained on the same samples, evaluated, and compared.

    python -m hyco.pipeline.experiments.ablation --world demo --home var/demo

Each run is a directory HOME/runs/ablation-... of `hyco train` and `hyco assess`: a killed ablation resumes where it
stopped, and finished runs are not repeated. The document is written from the metrics
(pipeline/experiments/comparison.py) after each round of seeds.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from hyco.pipeline.config import ConfigError, nearest
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.evaluate import evaluate
from hyco.pipeline.evaluation.metrics.document import read_metrics
from hyco.pipeline.experiments.comparison import Runs, section
from hyco.pipeline.experiments.grid import GridRun, add_engine, command, engine_of, run_grid, write_section
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.training.recipes import Recipe, by_name
from hyco.pipeline.training.run_dir import finished, prepare
from hyco.pipeline.training.train import train
from hyco.storage.home import Home

MODELS = ("clip", "clip_boxes", "meru", "lorentz_boxes", "hycoclip", "phyclip")
FURTHER = ("clip_box_pairs",)


@dataclass(frozen=True)
class World:
    """The setting of a comparison.

    Attributes:
        recipe: its HyCoCLIP recipe; the others are named after it.
        heldout: captioned images for the evaluation, below the home; None takes the val split.
        taxonomy: classes, below the home.
        steps: default number of steps of a run.
        seeds: default number of runs per model.
    """

    recipe: str
    heldout: str | None
    taxonomy: str | None
    steps: int
    seeds: int


WORLDS = {
    "demo": World("demo", "scenes/heldout", "scenes/taxonomy.json", 480, 3),
    "photos": World("photos", None, None, 240, 1),
}

TITLES = {"demo": "The embedded world", "photos": "Flickr8k"}
PREFACE = """# The effects of boxes and of geometry

CLIP, CLIP + part queries, MERU, hyperboloid + boxes, HyCoCLIP and PHyCLIP are rows of one trainer, with the same
towers, data, schedule and number of whole images seen. They differ in the rows of the objective and in the
space. Models with boxes encode a part and a phrase in addition to each image and caption, so equal samples
are not equal work. Each cell is the mean over the seeds [95 % bootstrap interval over the held-out images,
ends averaged over the seeds] (minimum and maximum over the seeds). These are small models after a short
training: the tables compare them with each other, not with the papers. pipeline/experiments/comparison.py
writes everything below a heading from the runs' metrics.json, sentences included. The command below a
heading makes it again, on a GPU if there is one; for the embedded world
`make ablation ABLATION='--steps 240'` makes the data first."""


def recipe_of(world: World, model: str, steps: int, seed: int) -> Recipe:
    """A member's recipe, `shortened`.

    Raises ConfigError for an unknown member.
    """
    if model not in (*MODELS, *FURTHER):
        raise ConfigError(f"unknown model '{model}'{nearest(model, (*MODELS, *FURTHER))}")
    return shortened(by_name(world.recipe if model == "hycoclip" else f"{world.recipe}_{model}"), steps, seed)


@dataclass(frozen=True)
class Run:
    """One training of one model: its recipe and directory."""

    model: str
    recipe: Recipe
    folder: Path

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json, None before the evaluation."""
        path = self.folder / "metrics.json"
        return read_metrics(path) if path.is_file() else None

    @property
    def seconds(self) -> float | None:
        """Seconds of training and evaluation; None unless both are done."""
        done, metrics = finished(self.folder), self.metrics
        return done["seconds"] + metrics["seconds"] if done and metrics else None


def plan(
    world: World, home: Home, version: str, models: tuple[str, ...], steps: int, seeds: int
) -> list[Run]:
    """The runs, seed by seed, so that an interrupted comparison still compares all models."""
    runs = []
    for seed in range(seeds):
        for model in models:
            recipe = recipe_of(world, model, steps, seed)
            budget = f"{recipe.steps}x{recipe.batch_size}"
            name = f"ablation-{recipe.name}-{budget}-s{seed}-{version.removeprefix('v-')[:8]}"
            runs.append(Run(model, recipe, home.runs.absolute() / name))
    return runs


def ablate(
    name: str,
    home: Home,
    out: Path,
    *,
    models: tuple[str, ...] = MODELS,
    steps: int | None = None,
    seeds: int | None = None,
    device: str = "auto",
    say: TextIO = sys.stderr,
    executor: Executor | None = None,
) -> list[Run]:
    """Train and evaluate the unfinished runs, and write the section of this world into `out`.

    Raises:
        FileNotFoundError: no dataset version in the home, no held-out images.
        ValueError: an unknown model, a run directory with another recipe, a training that diverged.
    """
    world = WORLDS[name]
    version = home.versions.load("latest").name
    heldout, taxonomy = (
        str(home.folder / part) if part else None for part in (world.heldout, world.taxonomy)
    )
    spec = EvaluationSpec(
        version=version, assess_source=heldout, taxonomy=taxonomy, config=AssessConfig(device=device)
    )
    runs = plan(world, home, version, models, steps or world.steps, seeds or world.seeds)

    perform_all(
        "ablation",
        runs,
        home,
        version,
        spec,
        device,
        len(models),
        lambda done: document(name, done, out),
        say,
        executor,
    )
    return runs


def perform_all(
    title: str,
    runs: list[Run],
    home: Home,
    version: str,
    spec: EvaluationSpec,
    device: str,
    each: int,
    write: Callable[[list[Run]], object],
    say: TextIO,
    executor: Executor | None = None,
) -> None:
    """Train and evaluate the unfinished runs in order; `write` gets the finished ones after each round of `each`."""

    def after(number: int) -> None:
        if number % each == 0:
            write(runs[:number])

    grid = [
        GridRun(
            r.folder,
            r.model,
            partial(perform, r, home, version, spec, device),
            partial(getattr, r, "seconds"),
        )
        for r in runs
    ]
    run_grid(title, grid, after, say, executor)


def perform(run: Run, home: Home, version: str, spec: EvaluationSpec, device: str) -> None:
    """Train and evaluate a run unless that is done; an error if its directory holds another recipe."""
    prepare(run.folder, home, version, run.recipe)
    if run.seconds is None:
        train(run.folder, home, version, run.recipe, device=device)
        evaluate(run.folder, home, spec)


def metrics_of(runs: list[Run]) -> Runs:
    """The metrics of the evaluated runs, by model."""
    found: Runs = {}
    for run in runs:
        if metrics := run.metrics:
            found.setdefault(run.model, []).append(metrics)
    return found


def shortened(recipe: Recipe, steps: int, seed: int) -> Recipe:
    """A recipe of so many steps: warm-up, start and ramp keep their fraction of the run."""
    share = steps / recipe.steps
    return recipe.replace(
        steps=steps,
        seed=seed,
        optimiser=recipe.optimiser.replace(warmup_steps=round(recipe.optimiser.warmup_steps * share)),
        entailment_ramp=round(recipe.entailment_ramp * share),
        entailment_start=round(recipe.entailment_start * share),
        keep_checkpoints=1,
    )


def marks(name: str) -> tuple[str, str]:
    """The lines before and after the section of a world."""
    return f"<!-- {name}: written by pipeline.experiments.ablation -->", f"<!-- end of {name} -->"


def document(name: str, runs: list[Run], out: Path) -> None:
    """Write the section of a world from its finished runs."""
    by_model = metrics_of(runs)
    first, recipe = runs[0].metrics, runs[0].recipe
    assert first is not None and first["train"] is not None, "a run of the document is finished"
    seeds = len(runs) // len(by_model)
    seen, held = recipe.steps * recipe.batch_size, first["assessed"]
    note = (
        f"`python -m hyco.pipeline.experiments.ablation --world {name} --steps {recipe.steps}`: "
        f"recipes `{WORLDS[name].recipe}*`, "
        f"{recipe.steps} steps of {recipe.batch_size}, so every run saw {seen:,} images "
        f"({first['train']['epochs']:.1f} epochs); {seeds} seed{'s' * (seeds != 1)}; on "
        f"{first['train']['device']}, data version {first['train']['version']}. Evaluated on {held['images']:,} "
        f"held-out images with {held['captions']:,} captions and {held['parts']:,} parts."
    )
    write_section(out, marks(name), section(TITLES[name], note, by_model), PREFACE)


def main(arguments: list[str] | None = None) -> int:
    """Compare CLIP, CLIP + part queries, MERU, hyperboloid + boxes, HyCoCLIP and PHyCLIP; writes docs/ablation.md."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.experiments.ablation", description=main.__doc__)
    parser.add_argument("--world", choices=list(WORLDS), default="demo", help="recipes and data")
    parser.add_argument("--home", help="home of the dataset version and the runs; var/WORLD by default")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="path of the document")
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of %(default)s,{','.join(FURTHER)}")
    parser.add_argument("--steps", type=int, help="of each run; demo 480 of 128 samples, photos 240 of 256")
    parser.add_argument("--seeds", type=int, help="runs of each model; demo 3, photos 1")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_engine(parser)
    given = parser.parse_args(arguments)

    def work() -> None:
        with engine_of(given) as executor:
            ablate(
                given.world,
                Home(given.home or f"var/{given.world}"),
                given.out,
                models=tuple(given.models.split(",")),
                steps=given.steps,
                seeds=given.seeds,
                device=given.device,
                executor=executor,
            )
        print(f"{given.out} is written")

    return command(work)


if __name__ == "__main__":
    from hyco.pipeline.experiments import ablation  # a worker cannot import what is defined in __main__

    sys.exit(ablation.main())
