"""The goal of the entailment cones: which recipes of the embedded world reach it, at equal samples.

    python -m hyco.pipeline.experiments.cone_goal --home var/demo                    # the table
    python -m hyco.pipeline.experiments.cone_goal --home var/demo --phase search     # the arms that were tried

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
from hyco.pipeline.config import ConfigError, nearest
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.experiments.ablation import Run, metrics_of, perform_all, shortened
from hyco.pipeline.experiments.comparison import NAMES, NODES, Runs, difference, value_at, wrapped
from hyco.pipeline.experiments.grid import add_engine, command, engine_of, write_section
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.training.recipes import Recipe, by_name
from hyco.storage.home import Home

BASELINE = "clip_boxes"
PATCH, BATCH, STEPS = 12, 64, 240


def setting(recipe: Recipe, steps: int, seed: int) -> Recipe:
    """A recipe of the demo at half the cost: patches of 12 pixels, batches of 64, in float32.

    In float32, since bfloat16 is slow on CPUs without instructions for it.
    """
    vision = recipe.model.vision
    assert isinstance(vision, VisionConfig)
    return shortened(recipe, steps, seed).replace(
        batch_size=BATCH,
        precision="float32",
        model=replace(recipe.model, vision=replace(vision, patch_size=PATCH)),
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


def plan(home: Home, version: str, arms: tuple[str, ...], phase: str, steps: int, seeds: int) -> list[Run]:
    """The runs, seed by seed, so that an interrupted comparison still compares all arms."""
    runs = []
    for seed in range(PHASES[phase].first_seed, PHASES[phase].first_seed + seeds):
        for arm in arms:
            if arm not in ARMS:
                raise ConfigError(f"unknown arm '{arm}'{nearest(arm, ARMS)}")
            recipe = setting(ARMS[arm](), steps, seed)
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
        assess_source=str(home.folder / chosen.heldout),
        taxonomy=str(home.folder / "scenes/taxonomy.json"),
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
TITLES = NAMES | {"argent": "ARGENT", "angle": "cones with negatives", "cones": "membership"}
PREFACE = "# Cones that hold\n"


def document(phase: str, runs: list[Run], out: Path) -> None:
    """Write the section of a phase from its finished runs."""
    by_arm = metrics_of(runs)
    recipe, first = runs[0].recipe, next(iter(by_arm.values()))[0]
    seeds = min(map(len, by_arm.values()))
    option = " --phase search" if phase == "search" else ""
    note = (
        f"`python -m hyco.pipeline.experiments.cone_goal{option} --steps {recipe.steps} --seeds {seeds}`: "
        f"recipes `demo*` with patches of {PATCH} pixels in float32, {recipe.steps} steps of {recipe.batch_size}, "
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
    title = {"table": "Cones that hold: the goal", "search": "Cones that hold: the arms of the search"}[phase]
    parts = [f"### {title}", wrapped(note), _figures(runs)]
    parts += [
        "True / shuffled pairs inside their cones, and in brackets the true pairs that the best threshold on the score "
        "keeps if a tenth of the shuffled pairs pass it, %:",
        _cones(runs),
    ]
    verdicts = [line for arm in runs if arm != BASELINE for line in _verdicts(runs, arm)]
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


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _figures(runs: Runs) -> str:
    head = ("arm", "zero-shot top-1, %", "image to caption R@5, %", "caption to image R@5, %", "TIE",
            "walks over three depths, %", "steps at an ancestor / chance, %")  # fmt: skip
    rows = []
    for arm, seeds in runs.items():
        cells = [_cell(_metric(seeds, name)) for name in (NO_LOSS[2], *NO_LOSS[:2])]
        chance = _cell(_metric(seeds, ANCESTOR, "chance"))
        cells += [_cell(_metric(seeds, TIE), 1, 2), _cell(_metric(seeds, THREE_LEVELS))]
        rows.append([TITLES[arm], *cells, f"{_cell(_metric(seeds, ANCESTOR))} / {chance}"])
    return _table(head, rows)


def _cones(runs: Runs) -> str:
    names = [" > ".join(NODES[n] for n in cone.split(">")) for cone in CONES]
    rows = []
    for arm, seeds in runs.items():
        row = [TITLES[arm]]
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
        rows.append(row)
    return _table(
        ("arm", *names, *(f"saturated {NODES[n]} %" for n in ("text_box", "image_box", "text"))), rows
    )


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
            f"{' > '.join(NODES[n] for n in c.split('>'))} {held[c]:.0%}" for c in missed
        ]
    full = {n: max(_held(seeds, f"geometry.saturated.{n}")) for n in ("text_box", "image_box", "text")}
    parts[f"saturated cones at most {SATURATED:.0%}"] = [
        f"{NODES[n]} {v:.0%}" for n, v in full.items() if v > SATURATED
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
        wrapped(f"{TITLES[arm]}: {what}: {'missed: ' + ', '.join(missed) if missed else 'reached'}.", "- ")
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

    code = command(work)
    if code == 0:
        print(f"{given.out} is written")
    return code


if __name__ == "__main__":
    from hyco.pipeline.experiments import cone_goal  # a worker cannot import what is defined in __main__

    sys.exit(cone_goal.main())
