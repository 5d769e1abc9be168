"""The study of docs/classification.md: nets x heads x balanced and long-tailed; training, evaluation, tables.

    python -m hyco.pipeline.experiments.classification_study cpu --data cifar10:DIR --ood tiny_imagenet:DIR \
        --home var/classification --doc docs/classification.md

Every training is a run of `hyco fit` in HOME/fits, resumed where it stopped; finished runs are not repeated. The heads
of a net finish together, and the tables are written after each run, so that an interrupted study has its results so
far.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from hyco.pipeline.classification.config import FitConfig, Head, Model, poincare, separation
from hyco.pipeline.classification.evaluate import EvaluateConfig, evaluate
from hyco.pipeline.classification.strange import open_strange
from hyco.pipeline.classification.tables import tables
from hyco.pipeline.classification.train import fit
from hyco.pipeline.config import Config, ConfigError, override
from hyco.pipeline.evaluation.metrics.document import read_metrics
from hyco.pipeline.experiments.grid import GridRun, add_engine, command, engine_of, run_grid, write_section
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.training.run_dir import finished
from hyco.storage.home import Home


class StudyConfig(Config):
    """The arms of a study and their training and evaluation."""

    name: str
    """Name of the study: the prefix of its runs, and the name in its marks in the document."""
    base: FitConfig
    """The training that all arms share; model, head, imbalance and seed are replaced by the arm's."""
    models: tuple[Model, ...]
    """Networks of the arms."""
    heads: tuple[Head, ...] = ("softmax", "separation")
    """Heads of the arms."""
    imbalances: tuple[float, ...] = (1.0, 0.01)
    """Imbalance factors of the arms; 1 keeps every image."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the arms."""
    measure: EvaluateConfig = Field(default_factory=EvaluateConfig)
    """Evaluation of each run."""

    def arms(self) -> Iterator[tuple[str, FitConfig]]:
        """(run's name, configuration), ordered so that the heads of one net follow one another."""
        for model in self.models:
            for imbalance in self.imbalances:
                for seed in self.seeds:
                    for head in self.heads:
                        changed = {"model": model, "head": head, "imbalance": imbalance, "seed": seed}
                        name = f"{self.name}-{model}-{head}-{imbalance:g}-{seed}"
                        yield name, self.base.replace(**changed)


def cpu(data: str, ood: tuple[str, ...]) -> StudyConfig:
    """A study that takes three hours on one core: 3,900 steps of 128 images, ten epochs of CIFAR-10."""
    return StudyConfig(
        name="cpu",
        base=poincare("resnet20", data).replace(steps=3900, schedule="cosine"),
        models=("resnet20", "poincare_resnet20"),
        measure=EvaluateConfig(ood=ood, ood_limit=1000, attacked=1000, draws=500),
    )


def heads(data: str, ood: tuple[str, ...]) -> StudyConfig:
    """Only the heads, on the cheaper net: five epochs at 16 pixels, with three seeds."""
    whole = cpu(data, ood)
    base = whole.base.replace(steps=1950, image_size=16, crop=2)
    return whole.replace(name="heads", base=base, models=("resnet20",), seeds=(0, 1, 2))


def normal(data: str, ood: tuple[str, ...]) -> StudyConfig:
    """The Poincare net from normal kernels, at the budget of `heads`, balanced."""
    small = heads(data, ood)
    base = small.base.replace(init="normal")
    return small.replace(
        name="normal", base=base, models=("poincare_resnet20",), imbalances=(1.0,), seeds=(0,)
    )


def full(data: str, ood: tuple[str, ...]) -> StudyConfig:
    """On a GPU: depth 32, 100 epochs at the published rate, all four imbalances, three seeds (60 trainings)."""
    return StudyConfig(
        name="full",
        base=poincare("resnet32", data),
        models=("resnet32", "poincare_resnet32"),
        imbalances=(1.0, 0.2, 0.1, 0.02, 0.01),
        seeds=(0, 1, 2),
        measure=EvaluateConfig(ood=ood, attacked=10_000),
    )


def long_tail(data: str, ood: tuple[str, ...]) -> StudyConfig:
    """CIFAR-100-LT on a GPU: the published draw (Cao et al. 2019) at its three imbalances, three seeds.

    The last width holds the 99 dimensions of 100 separated classes.
    """
    base = separation("resnet32", data).replace(widths=(32, 64, 128), imbalance_draw="published")
    return StudyConfig(
        name="long_tail",
        base=base,
        models=("resnet32",),
        imbalances=(0.1, 0.02, 0.01),
        seeds=(0, 1, 2),
        measure=EvaluateConfig(ood=ood),
    )


STUDIES = {"cpu": cpu, "heads": heads, "normal": normal, "full": full, "long_tail": long_tail}


def run_study(
    study: StudyConfig,
    home: Home,
    device: str = "auto",
    doc: str | Path | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Train and evaluate the unfinished arms; returns the metrics of every arm by run name.

    HOME/STUDY.md gets the tables after each run; `doc`, where given, gets them between its marks at the end of it.
    """
    for spec in study.measure.ood:  # report a missing document before an hour of training, not after
        open_strange(spec, study.base.data_name)
    folder, results, arms = home.fits, dict[str, Any](), list(study.arms())

    def seconds(name: str) -> float | None:
        done = finished(folder / name)
        return done["seconds"] if done and _measured(folder / name, study.measure) else None

    def after(number: int) -> None:
        name, config = arms[number - 1]
        results[name] = {
            "fit": json.loads(config.model_dump_json()),
            "train": finished(folder / name),
            "metrics": _measured(folder / name, study.measure),
        }
        text = tables(results, folder, study.measure)
        home.store.replace(f"{study.name}.md", text.encode())
        if doc is not None:
            write_section(Path(doc), marks(study.name), text)

    runs = [
        GridRun(
            folder / name,
            config.model,
            partial(perform, folder / name, config, study.measure, device),
            partial(seconds, name),
        )
        for name, config in arms
    ]
    run_grid(f"study {study.name}", runs, after, executor=executor)
    return results


def perform(folder: Path, config: FitConfig, measure: EvaluateConfig, device: str) -> None:
    """Train and evaluate an arm unless that is done."""
    fit(folder, config, device=device)
    if _measured(folder, measure) is None:
        evaluate(folder, measure, device)


def marks(name: str) -> tuple[str, str]:
    """The lines before and after the tables of a study in a document."""
    return f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"


def _measured(run_dir: Path, asked: EvaluateConfig) -> dict[str, Any] | None:
    """metrics.json of a run that was evaluated with the same options."""
    path = run_dir / "metrics.json"
    if finished(run_dir) is None or not path.is_file():
        return None
    found = read_metrics(path)
    try:  # fields that were added since have their defaults
        measured = EvaluateConfig.model_validate(found["config"])
    except ConfigError:
        return None
    return found if measured == asked else None


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate and tabulate a study; the same command resumes where it stopped."""
    parser = argparse.ArgumentParser(
        prog="hyco.pipeline.experiments.classification_study", description=main.__doc__
    )
    parser.add_argument("study", choices=STUDIES, help="name of the study")
    parser.add_argument("--data", required=True, help="labelled set NAME:DIR")
    parser.add_argument("--ood", action="append", default=[], help="out-of-distribution set; may be repeated")
    parser.add_argument("--home", default="var/classification", help="home of the runs")
    parser.add_argument("--doc", help="document for the tables")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of StudyConfig")
    add_engine(parser)
    options = parser.parse_args(arguments)

    def work() -> None:
        study = override(STUDIES[options.study](options.data, tuple(options.ood)), options.set)
        with engine_of(options) as executor:
            run_study(study, Home(options.home), options.device, options.doc, executor)

    return command(work)


if __name__ == "__main__":
    from hyco.pipeline.experiments import classification_study  # a worker cannot import from __main__

    sys.exit(classification_study.main())
