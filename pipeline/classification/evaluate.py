"""Evaluation of a trained classifier on unseen images; writes metrics.json and metrics.csv into its run.

Sections: classification (accuracy; many, medium and few-shot where the training set was long-tailed), ood (one entry
per out-of-distribution set, and the means "near" and "far"), open_set (where classes were held out), attack. Intervals
are percentile bootstraps over test images. No option is tuned on these images.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import save_file
from torch import nn

from hyco.pipeline.classification.adversarial import fgsm, pgd
from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.classification.in_memory import Images, load_images
from hyco.pipeline.classification.long_tail import shots
from hyco.pipeline.classification.model import Classifier, curvature_of, load_classifier
from hyco.pipeline.classification.ood import (
    OF_FEATURES,
    Detected,
    ScoreName,
    Scorer,
    Seen,
    detect,
    mean_of_sets,
    require_neighbours,
    scorers,
)
from hyco.pipeline.classification.strange import GROUPS, Strange, load_strange, open_strange
from hyco.pipeline.classification.train import training_images, training_set
from hyco.pipeline.config import Config
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.evaluation.coverage import MIN_COVERAGE
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.document import new, put, write_numbers
from hyco.pipeline.runtime.device import resolve_device
from hyco.pipeline.runtime.progress import Progress


class EvaluateConfig(Config):
    """Options of a classifier's evaluation."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"min_coverage", "scores", "neighbours"})

    data: str | None = None
    """Location of the test split, NAME:DIR; null takes the location of the training set."""
    ood: tuple[str, ...] = ()
    """Out-of-distribution sets, NAME:DIR as in pipeline.datasets (test split), or captioned:DIR for a
    captioned source; "scenes=captioned:DIR" names it scenes in the results. "near/NAME:DIR" and "far/NAME:DIR" are
    also averaged over their group; openood:DIR is all near and far sets of an OpenOOD folder.
    """
    ood_limit: int = Field(default=10_000, ge=1)
    """Maximum number of images per out-of-distribution set, the first in a seeded order."""
    scores: tuple[ScoreName, ...] = ("energy", "max_softmax")
    """Scores of known against out-of-distribution images. "knn", "mahalanobis" and "distance" compare features with
    those of the training images, which must be present.
    """
    neighbours: int = Field(default=50, ge=1)
    """The k of the score "knn"; its paper takes 50 on CIFAR-10 and 200 on CIFAR-100."""
    attacked: int = Field(default=0, ge=0)
    """Number of test images that are attacked, the first in a seeded order; 0 leaves the attacks out."""
    eps: float = Field(default=8 / 255, gt=0, le=1)
    """Maximum perturbation of both attacks, for pixels in [0, 1]."""
    pgd_step: float = Field(default=2 / 255, gt=0)
    """Step size of PGD, for pixels in [0, 1]."""
    pgd_steps: int = Field(default=10, ge=1)
    """Steps of PGD."""
    batch_size: int = Field(default=250, ge=1)
    """Images per forward pass."""
    draws: int = Field(default=1000, ge=1)
    """Bootstrap draws behind each interval."""
    min_coverage: float = Field(default=MIN_COVERAGE, ge=0, le=1)
    """Minimum fraction of a captioned source's samples, and of the images of an OpenOOD list, that must be usable."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap, of the orders and of the attacks."""


def evaluate(run_dir: str | Path, config: EvaluateConfig, device: str = "auto") -> dict[str, Any]:
    """Evaluate a finished run; returns the content of metrics.json. logits.safetensors stores all logits behind it.

    Raises:
        FileNotFoundError: a run that is not finished, or absent data.
        ValueError: test data of other classes than the training's, or two out-of-distribution sets of one name.
    """
    run_dir, where = Path(run_dir), resolve_device(device)
    model, fit, facts = load_classifier(run_dir / "model", where)
    bootstrap = Bootstrap(config.draws, seed=config.seed)
    source = config.data or fit.data
    found = open_labelled(source, "test")
    if list(found.classes) != facts["classes"]:
        raise ValueError(f"{source} has other classes than the set that {run_dir} was trained on")
    known = np.array(facts["known"])
    strange = open_all(config, fit)
    asked = strange or len(known) < len(found.classes)
    wants = bool(asked) and not OF_FEATURES.isdisjoint(config.scores)
    images = load_images(found, fit.image_size)
    is_known = np.isin(found.labels, known)
    labels = np.searchsorted(known, found.labels[is_known])

    everything = see(model, images, config.batch_size, wants, "test")
    seen = everything.take(is_known)
    kept = {"logits": seen.logits, "labels": labels}
    metrics = new(run_dir.name)
    metrics["assessed"] = {"source": source}
    counts = np.array(facts["counts"])
    put(metrics, "classification", classification(seen.logits, labels, counts, fit, bootstrap))
    if asked:
        scores = _scores(model, fit.replace(data=source), config, wants)
        if len(known) < len(found.classes):
            unknown = everything.take(~is_known)
            kept["open_set"] = unknown.logits
            outcome = detect(seen, unknown, scores, bootstrap).result(bootstrap)
            outcome.numbers["images"] = len(unknown.logits)
            put(metrics, "open_set", outcome)
        if strange:
            put(metrics, "ood", _detect_all(model, fit, config, seen, strange, scores, kept))
    if config.attacked:
        clean = Images(images.pixels[torch.from_numpy(is_known)], torch.from_numpy(labels))
        put(metrics, "attack", attack(model, clean, len(known), config, bootstrap))
    metrics["config"] = config.model_dump(mode="json")

    save_file(
        {name: np.ascontiguousarray(value) for name, value in kept.items()}, run_dir / "logits.safetensors"
    )
    write_numbers(run_dir, metrics)
    return metrics


def check(config: EvaluateConfig, fit: FitConfig) -> None:
    """Raise the FileNotFoundError or ValueError of an evaluation after this training: its sets and `neighbours`."""
    if "knn" in config.scores and (config.ood or fit.known):
        require_neighbours(config.neighbours, len(training_set(fit).index))
    open_all(config, fit)


def open_all(config: EvaluateConfig, fit: FitConfig) -> list[Strange]:
    """All out-of-distribution sets; FileNotFoundError for an absent one, ValueError for two of one name."""
    found = [one for spec in config.ood for one in open_strange(spec, fit.data_name, config.min_coverage)]
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(
            f"two out-of-distribution sets are called {twice}: name one of them, other={twice}:DIR"
        )
    return found


def _scores(model: Classifier, fit: FitConfig, config: EvaluateConfig, wants: bool) -> dict[str, Scorer]:
    """The scores; where they need them, with the features of the training images."""
    if not wants:
        return scorers(config.scores, None, np.zeros(0, np.int64), config.neighbours, None)
    try:
        images, _ = training_images(fit)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the scores {', '.join(config.scores)} need the training images ({error}): add them, or leave out "
            f"{', '.join(sorted(OF_FEATURES))}"
        ) from None
    train = see(model, images, config.batch_size, True, "training images")
    return scorers(config.scores, train, images.labels.numpy(), config.neighbours, curvature_of(model, fit))


def _detect_all(
    model: Classifier,
    fit: FitConfig,
    config: EvaluateConfig,
    seen: Seen,
    strange: list[Strange],
    scores: dict[str, Scorer],
    kept: dict[str, np.ndarray],
) -> MetricResult:
    """A block per set, and the means "near" and "far" over the sets of these groups; logits go into `kept`."""
    bootstrap = Bootstrap(config.draws, seed=config.seed)
    numbers: dict[str, Any] = {}
    spans: dict[str, Any] = {}
    grouped: dict[str, dict[str, Detected]] = {group: {} for group in GROUPS}
    wants = bool(seen.features.size)

    def add(name: str, outcome: MetricResult) -> None:
        numbers[name] = outcome.numbers
        spans.update({f"{name}.{key}": span for key, span in outcome.intervals.items()})

    for one in strange:
        images, counts = load_strange(one, fit.image_size, config.ood_limit, config.seed, config.min_coverage)
        out = see(model, images, config.batch_size, wants, one.name)
        kept[f"ood.{one.name}"] = out.logits
        detected = detect(seen, out, scores, bootstrap)
        outcome = detected.result(bootstrap)
        outcome.numbers.update(images=len(images), **counts, **({"group": one.group} if one.group else {}))
        add(one.name, outcome)
        if one.group:
            grouped[one.group][one.name] = detected
    for group, found in grouped.items():
        if found:
            add(group, mean_of_sets(list(found.values()), list(found), bootstrap))
    return MetricResult(numbers, spans)


def classification(
    logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, fit: FitConfig, bootstrap: Bootstrap
) -> MetricResult:
    """Accuracy over images, negative log-likelihood, and accuracy per group of classes of a long tail."""
    right = (logits.argmax(1) == labels).astype(np.float64)
    wide = logits.astype(np.float64)
    picked = wide[np.arange(len(labels)), labels]
    top = wide.max(1)
    loss = np.log(np.exp(wide - top[:, None]).sum(1)) + top - picked
    numbers: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "nll": float(loss.mean()),
        "images": len(labels),
    }
    numbers["chance"] = {"accuracy": 1 / logits.shape[1]}
    intervals: dict[str, tuple[float, float]] = {
        "accuracy": bootstrap.hits(right[:, None])[0],
        "nll": bootstrap.means(loss[:, None])[0],
    }
    if fit.imbalance < 1:
        group_of = np.array(shots(counts))
        for group in ("many", "medium", "few"):
            inside = group_of[labels] == group
            if inside.any():
                numbers[group] = float(right[inside].mean())
                numbers[f"{group}_classes"] = int((group_of == group).sum())
                intervals[group] = bootstrap.hits(right[inside][:, None])[0]
    return MetricResult(numbers, intervals)


def attack(
    model: nn.Module, images: Images, classes: int, config: EvaluateConfig, bootstrap: Bootstrap
) -> MetricResult:
    """Accuracy on the same images clean, after FGSM and after PGD."""
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(images), generator=random)[: config.attacked]
    subset, rows = images.take(chosen), []
    with Progress(len(subset), "attack", "images") as progress:
        for start in range(0, len(subset), config.batch_size):
            part = slice(start, start + config.batch_size)
            pixels, labels = subset.pixels[part].to(device).float() / 255, subset.labels[part].to(device)
            tried = [
                pixels,
                fgsm(model, pixels, labels, config.eps),
                pgd(model, pixels, labels, config.eps, config.pgd_step, config.pgd_steps, random),
            ]
            with torch.no_grad():
                rows.append(torch.stack([model(p).argmax(-1) == labels for p in tried], 1).cpu())
            progress.advance(len(labels))
    right = torch.cat(rows).double().numpy()
    names = ("clean", "fgsm", "pgd")
    numbers: dict[str, Any] = dict(zip(names, right.mean(0).tolist(), strict=True))
    chance = dict.fromkeys(names, 1 / classes)
    numbers |= {"images": len(right), "chance": chance}
    return MetricResult(numbers, dict(zip(names, bootstrap.hits(right), strict=True)))


@torch.no_grad()
def see(
    model: Classifier, images: Images, batch_size: int, features: bool = False, label: str = "images"
) -> Seen:
    """Logits of every image, float32 [N, C], and its features [N, D] where they are asked for.

    The model is in eval mode, so that no image depends on its batch.
    """
    assert not model.training
    device = next(model.parameters()).device
    rows: list[torch.Tensor] = []
    pooled: list[torch.Tensor] = []
    with Progress(len(images), label) as progress:
        for start in range(0, len(images), batch_size):
            pixels = images.pixels[start : start + batch_size].to(device).float() / 255
            if features:
                found = model.features(pixels)
                pooled.append(found.float().cpu())
                rows.append(model.classify(found).float().cpu())
            else:
                rows.append(model(pixels).float().cpu())
            progress.advance(len(pixels))
    held = torch.cat(pooled) if features else torch.zeros(len(images), 0)
    return Seen(torch.cat(rows).numpy(), held.numpy())
