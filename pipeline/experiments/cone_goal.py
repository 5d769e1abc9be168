"""The goal of the entailment cones: which recipes of the embedded world reach it, at equal samples.

    python -m hyco.pipeline.experiments.cone_goal --home var/demo                    # the table
    python -m hyco.pipeline.experiments.cone_goal --home var/demo --phase search     # the arms that were tried
    python -m hyco.pipeline.experiments.cone_goal --home var/photos --phase photos   # photographs

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

from hyco.models.encoders.vit import VisionConfig
from hyco.models.losses.rows import (
    POLAR_BANDS,
    POLAR_NORMS,
    Node,
    ObjectiveConfig,
    cones_objective,
    polar_cones_objective,
)
from hyco.pipeline.config import ConfigError, nearest
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.experiments.ablation import Run, metrics_of, perform_all, shortened
from hyco.pipeline.experiments.comparison import NAMES, NODES, Runs, difference, value_at, wrapped
from hyco.pipeline.experiments.grid import add_engine, command, engine_of, write_section
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.training.recipes import Recipe, by_name
from hyco.storage.home import Home

BASELINE = "clip_boxes"
PATCHES, BATCH, STEPS = 4, 64, 1600  # patches on a side, so of 12 pixels in the demo and of 16 on photographs


def setting(recipe: Recipe, steps: int, seed: int) -> Recipe:
    """A recipe of the demo or of photographs at less cost: larger patches, batches of 64."""
    vision = recipe.model.vision
    assert isinstance(vision, VisionConfig)
    return shortened(recipe, steps, seed).replace(
        batch_size=BATCH,
        model=replace(recipe.model, vision=replace(vision, patch_size=vision.image_size // PATCHES)),
    )


@dataclass(frozen=True)
class Phase:
    """What is compared on which images.

    Attributes:
        arms: names of arms.
        heldout: captioned images for the evaluation, below the home; None takes the val split.
        first_seed: seed of the first of the runs.
        seeds: default number of runs per arm.
        photos: recipes `photos_ARM` instead of `demo_ARM`.
    """

    arms: tuple[str, ...]
    heldout: str | None
    first_seed: int
    seeds: int
    photos: bool = False


def box_box() -> Recipe:
    """CLIP + part queries with boxes against boxes."""
    recipe = by_name(f"demo_{BASELINE}")
    return recipe.replace(objective=ObjectiveConfig(contrast=cones_objective().contrast))


EARLIER: dict[str, Any] = {
    "weight": 1.0,
    "bands": POLAR_BANDS | {"text": (0.111, 0.0)},
    "norms": POLAR_NORMS | {"text_box": 10.0},
    "stressed": {},
}
"""Options of the polar arms before the last."""
CAPTIONS: dict[Node, float] = {**POLAR_NORMS, "text_box": 5.0, "text": 20.0}
NAMED = {("text_box", "image"): 1 / 3}


def earlier(start: float = 0.15, ramp: float = 0.25, least: float = 0.103, **options: Any) -> Recipe:
    """Polar cones as before the last arm, with options of the objective.

    Membership rises from `start` over `ramp` of the steps; `least` is the least radius of a part.
    """
    recipe = by_name("demo_polar_cones")
    return recipe.replace(
        model=replace(recipe.model, image_radii=(least, 2.0), text_radii=(0.0103, 0.112)),
        objective=polar_cones_objective(**(EARLIER | options)),
        entailment_start=round(start * recipe.steps),
        entailment_ramp=round(ramp * recipe.steps),
    )


ARMS: dict[str, Callable[[], Recipe]] = {
    **{name: partial(by_name, f"demo_{name}") for name in (BASELINE, "argent", "angle", "cones")},
    "hycoclip": partial(by_name, "demo_hycoclip"),
    "box_box": box_box,
    "polar_cones": partial(by_name, "demo_polar_cones"),
    "polar_late": partial(
        earlier, 0.2, 0.3, weight=0.5, bands=POLAR_BANDS | {"text": (0.106, 0.0)}, within=0.0
    ),
    "polar_within": earlier,
    "polar_names": partial(earlier, norms=CAPTIONS, least=0.107, stressed=NAMED),
    "polar_half": partial(earlier, norms=CAPTIONS, least=0.107, stressed=NAMED, weight=0.5),
}

PHASES = {
    "table": Phase((BASELINE, "polar_cones"), "scenes/heldout", 0, 3),
    "search": Phase(tuple(ARMS), "validation/heldout/00002.tar", 100, 1),
    "photos": Phase((BASELINE, "polar_cones"), None, 0, 1, photos=True),
}


def plan(home: Home, version: str, arms: tuple[str, ...], phase: str, steps: int, seeds: int) -> list[Run]:
    """The runs, seed by seed, so that an interrupted comparison still compares all arms."""
    runs = []
    for seed in range(PHASES[phase].first_seed, PHASES[phase].first_seed + seeds):
        for arm in arms:
            if arm not in ARMS:
                raise ConfigError(f"unknown arm '{arm}'{nearest(arm, ARMS)}")
            made = by_name(f"photos_{arm}") if PHASES[phase].photos else ARMS[arm]()
            recipe = setting(made, steps, seed)
            name = f"cones-{phase}-{arm}-{steps}x{BATCH}-s{seed}-{version.removeprefix('v-')[:8]}"
            runs.append(Run(arm, recipe, home.runs.absolute() / name))
    return runs


def compare(
    home: Home,
    out: Path,
    *,
    phase: str = "table",
    arms: tuple[str, ...] | None = None,
    steps: int = STEPS,
    seeds: int | None = None,
    device: str = "auto",
    say: TextIO = sys.stderr,
    executor: Executor | None = None,
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
        assess_source=str(home.folder / chosen.heldout) if chosen.heldout else None,
        taxonomy=None if chosen.photos else str(home.folder / "scenes/taxonomy.json"),
        config=AssessConfig(device=device),
    )
    arms = arms or chosen.arms
    runs = plan(home, version, arms, phase, steps, seeds or chosen.seeds)

    perform_all(
        "cone goal",
        runs,
        home,
        version,
        spec,
        device,
        len(arms),
        lambda done: document(phase, done, out),
        say,
        executor,
    )
    return runs


CONES = ("text>image", "text_box>image_box", "image_box>image", "text_box>text")
TRUE, SHUFFLED, SATURATED = 0.8, 0.1, 0.05
NO_LOSS = ("retrieval.image_to_text.r5", "retrieval.text_to_image.r5", "zero_shot.top1")
THREE_LEVELS, ANCESTOR, TIE = "traversal.names.three_levels", "traversal.names.ancestor", "hierarchy.tie"
TITLES = NAMES | {
    "box_box": "CLIP + part queries, boxes against boxes",
    "argent": "ARGENT",
    "angle": "cones with negatives",
    "cones": "membership",
    "polar_cones": "polar cones",
    "polar_late": "polar, six rows of contrast, membership .5",
    "polar_within": "polar, eight rows, membership 1",
    "polar_names": "the same, phrase > image doubled, captions held more",
    "polar_half": "the same, membership .5",
}
PREFACE = "# Cones that hold\n"


def titled(arm: str) -> str:
    """Name of an arm in the tables."""
    return TITLES.get(arm, arm.replace("_", " "))


def document(phase: str, runs: list[Run], out: Path) -> None:
    """Write the section of a phase from its finished runs."""
    by_arm = metrics_of(runs)
    recipe, first = runs[0].recipe, next(iter(by_arm.values()))[0]
    seeds = min(map(len, by_arm.values()))
    option = "" if phase == "table" else f" --phase {phase}"
    if set(by_arm) != set(PHASES[phase].arms):
        option += f" --arms {','.join(by_arm)}"
    world, vision = "photos" if PHASES[phase].photos else "demo", recipe.model.vision
    assert isinstance(vision, VisionConfig)
    note = (
        f"`python -m hyco.pipeline.experiments.cone_goal{option} --steps {recipe.steps} --seeds {seeds}`: recipes "
        f"`{world}*` with patches of {vision.patch_size} pixels, {recipe.steps} steps of {recipe.batch_size}, "
        f"so every run saw {recipe.steps * recipe.batch_size:,} images; seeds {recipe.seed} to "
        f"{recipe.seed + seeds - 1}; data version {first['train']['version']}; "
        f"{first['assessed']['images']:,} held-out images with "
        f"{first['assessed']['captions']:,} captions and {first['assessed']['parts']:,} parts."
    )
    write_section(out, marks(phase), section(phase, note, by_arm), PREFACE)


def marks(phase: str) -> tuple[str, str]:
    """The lines before and after the section of a phase."""
    name = f"cone goal, {phase}"
    return f"<!-- {name}: written by pipeline.experiments.cone_goal -->", f"<!-- end of {name} -->"


def section(phase: str, note: str, runs: Runs) -> str:
    """The markdown of a phase: the figures of every arm, and what each reaches of the goal."""
    title = {
        "table": "Cones that hold: the goal",
        "search": "Cones that hold: the arms of the search",
        "photos": "Cones that hold: photographs",
    }[phase]
    parts = [f"### {title}", wrapped(note), _figures(runs)]
    parts += [
        "True / shuffled pairs inside their cones, and in brackets the true pairs that the best threshold on the score "
        "keeps if a tenth of the shuffled pairs pass it, %:",
        _cones(runs),
    ]
    compared = () if PHASES[phase].photos else tuple(arm for arm in runs if arm != BASELINE)
    verdicts = [line for arm in compared for line in _verdicts(runs, arm)]
    return "\n\n".join([*map(wrapped, parts[:2]), *_unwrapped(parts[2:]), "\n".join(verdicts)])


def _unwrapped(parts: list[str]) -> list[str]:
    return [part if part.startswith("|") else wrapped(part) for part in parts]


def _cell(values: list[float], factor: float = 100, digits: int = 1) -> str:
    """Mean (minimum-maximum) over the seeds; "-" without values."""
    if not values:
        return "-"
    mean, low, high = (
        f"{factor * v:.{digits}f}" for v in (sum(values) / len(values), min(values), max(values))
    )
    return f"{mean} ({low}-{high})" if len(values) > 1 else mean


def _held(seeds: list[dict[str, Any]], path: str) -> list[float]:
    return [value for metrics in seeds if (value := value_at(metrics, path)) is not None]


def _metric(seeds: list[dict[str, Any]], name: str, key: str = "value") -> list[float]:
    found = (metrics["metrics"].get(name) for metrics in seeds)
    return [entry[key] for entry in found if entry is not None]


def _figures(runs: Runs) -> str:
    head = ("arm", "zero-shot top-1, %", "image to caption R@5, %", "caption to image R@5, %", "TIE",
            "walks over three depths, %", "steps at an ancestor / chance, %")  # fmt: skip
    rows = []
    for arm, seeds in runs.items():
        cells = [_cell(_metric(seeds, name)) for name in (NO_LOSS[2], *NO_LOSS[:2])]
        chance = _cell(_metric(seeds, ANCESTOR, "chance"))
        cells += [_cell(_metric(seeds, TIE), 1, 2), _cell(_metric(seeds, THREE_LEVELS))]
        rows.append([titled(arm), *cells, f"{_cell(_metric(seeds, ANCESTOR))} / {chance}"])
    return "\n".join(table(head, rows))


def _cones(runs: Runs) -> str:
    names = [" > ".join(NODES[n] for n in cone.split(">")) for cone in CONES]
    rows = []
    for arm, seeds in runs.items():
        row = [titled(arm)]
        for cone in CONES:
            inside = (
                _cell(_held(seeds, f"geometry.satisfied.{cone}.{kind}"), digits=0)
                for kind in ("true", "shuffled")
            )
            best = _cell(_held(seeds, f"attribution.separation.{cone}.score"), digits=0)
            row.append(f"{' / '.join(inside)} [{best}]")
        row += [
            _cell(_held(seeds, f"geometry.saturated.{n}"), digits=0)
            for n in ("text_box", "image_box", "text")
        ]
        widths = ("text_box>image_box", "image_box>image", "text>image")
        row.append(" / ".join(_cell(_held(seeds, f"geometry.satisfied.{c}.aperture"), 1, 0) for c in widths))
        rows.append(row)
    saturated = (f"saturated {NODES[n]} %" for n in ("text_box", "image_box", "text"))
    head = ("arm", *names, *saturated, "mean half-aperture: phrase / part / caption, degrees")
    return "\n".join(table(head, rows))


def _verdicts(runs: Runs, arm: str) -> list[str]:
    """What an arm reaches of each part of the goal, one list item each."""
    seeds = runs[arm]
    parts = {}
    for kind, limit in (("true", TRUE), ("shuffled", SHUFFLED)):
        held = {
            c: (max if kind == "shuffled" else min)(_held(seeds, f"geometry.satisfied.{c}.{kind}"))
            for c in CONES
        }
        missed = [c for c, v in held.items() if (v > limit if kind == "shuffled" else v < limit)]
        sign = "at most" if kind == "shuffled" else "at least"
        parts[f"{kind} pairs {sign} {limit:.0%}"] = [
            f"{' > '.join(NODES[n] for n in c.split('>'))} {held[c]:.1%}" for c in missed
        ]
    full = {n: max(_held(seeds, f"geometry.saturated.{n}")) for n in ("text_box", "image_box", "text")}
    parts[f"saturated cones at most {SATURATED:.0%}"] = [
        f"{NODES[n]} {v:.1%}" for n, v in full.items() if v > SATURATED
    ]
    three = min(_metric(seeds, THREE_LEVELS), default=0.0)
    parts["three depths in half of the walks"] = [] if three >= 0.5 else [f"{three:.0%}"]
    low = [
        (v, g)
        for v, g in zip(_metric(seeds, ANCESTOR, "low"), _metric(seeds, ANCESTOR, "chance"), strict=True)
    ]
    parts["an ancestor named above chance"] = [f"{v:.1%} against {g:.1%}" for v, g in low if v <= g]
    if BASELINE in runs:
        for name in NO_LOSS:
            change = difference(runs, name, BASELINE, arm)
            parts[f"no loss in {name}"] = [change.text(name)] if change.high < 0 else []
        change = difference(runs, TIE, BASELINE, arm)
        parts["TIE better than the baseline's"] = [] if change.high < 0 else [change.text(TIE)]
    return [
        wrapped(f"{titled(arm)}: {what}: {'missed: ' + ', '.join(missed) if missed else 'reached'}.", "- ")
        for what, missed in parts.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Which recipes reach the goal of the entailment cones; writes a section of docs/ablation.md."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.experiments.cone_goal", description=main.__doc__)
    parser.add_argument("--home", default="var/demo", help="home of the dataset version and the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="path of the document")
    parser.add_argument(
        "--phase", choices=list(PHASES), default="table", help="the goal's table, or the search"
    )
    parser.add_argument("--arms", help=f"some of {','.join(ARMS)}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run, of {BATCH} samples")
    parser.add_argument("--seeds", type=int, help="runs of each arm; table 3, search 1")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_engine(parser)
    given = parser.parse_args(arguments)

    def work() -> None:
        with engine_of(given) as executor:
            compare(
                Home(given.home),
                given.out,
                phase=given.phase,
                arms=tuple(given.arms.split(",")) if given.arms else None,
                steps=given.steps,
                seeds=given.seeds,
                device=given.device,
                executor=executor,
            )
        print(f"{given.out} is written")

    return command(work)


if __name__ == "__main__":
    from hyco.pipeline.experiments import cone_goal  # a worker cannot import what is defined in __main__

    sys.exit(cone_goal.main())
