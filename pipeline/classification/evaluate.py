"""Evaluation of a trained classifier on unseen images; writes metrics.json into its run.

Sections: classification (accuracy; many, medium and few-shot where the training set was long-tailed), ood (one entry
per out-of-distribution set), open_set (where classes were held out), attack. Intervals are percentile bootstraps over
test images, under "intervals" by "section.key"; "chance" holds the chance levels. No option is tuned on these images.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import save_file
from torch import nn

from pipeline.classification.adversarial import fgsm, pgd
from pipeline.classification.config import FitConfig
from pipeline.classification.in_memory import Images, load_captioned, load_images
from pipeline.classification.long_tail import shots
from pipeline.classification.model import load_classifier
from pipeline.classification.ood import NUMBERS, SCORES, detect
from pipeline.config import Config
from pipeline.datasets import LabelledSet, open_labelled
from pipeline.evaluation.coverage import MIN_COVERAGE, Coverage
from pipeline.evaluation.metrics.bootstrap import Bootstrap
from pipeline.runtime.device import resolve_device
from pipeline.runtime.progress import Progress
from pipeline.sources.source import Source, open_source
from storage.store import Store

CAPTIONED = "captioned"


class EvaluateConfig(Config):
    """Options of a classifier's evaluation."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"min_coverage"})

    data: str | None = None
    """Location of the test split, NAME:DIR; null takes the location of the training set."""
    ood: tuple[str, ...] = ()
    """Out-of-distribution sets, NAME:DIR as in pipeline.datasets (test split), or captioned:DIR for a
    captioned source; "scenes=captioned:DIR" names it scenes in the results.
    """
    ood_limit: int = Field(default=10_000, ge=1)
    """Maximum number of images per out-of-distribution set, the first in a seeded order."""
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
    """Minimum fraction of a captioned source's samples that must be usable."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap, of the orders and of the attacks."""


def evaluate(run_dir: str | Path, config: EvaluateConfig, device: str = "auto") -> dict[str, Any]:
    """Evaluate a finished run; returns the content of metrics.json. logits.safetensors stores all logits behind it.

    Raises:
        FileNotFoundError: a run that is not finished, or absent data.
        ValueError: test data of other classes than the training's.
    """
    run_dir, where = Path(run_dir), resolve_device(device)
    model, fit, facts = load_classifier(run_dir / "model", where)
    bootstrap = Bootstrap(config.draws, seed=config.seed)
    found = open_labelled(config.data or fit.data, "test")
    if list(found.classes) != facts["classes"]:
        raise ValueError(
            f"{config.data or fit.data} has other classes than the set that {run_dir} was trained on"
        )
    known = np.array(facts["known"])
    images = load_images(found, fit.image_size)
    is_known = np.isin(found.labels, known)
    labels = np.searchsorted(known, found.labels[is_known])

    everything = logits_of(model, images, config.batch_size, "test")
    logits = everything[is_known]
    kept = {"logits": logits, "labels": labels}
    metrics: dict[str, Any] = {"run": run_dir.name, "chance": {}, "intervals": {}}
    _put(
        metrics, "classification", *classification(logits, labels, np.array(facts["counts"]), fit, bootstrap)
    )
    metrics["chance"] |= {"classification.accuracy": 1 / len(known)}

    if len(known) < len(found.classes):
        unknown = everything[~is_known]
        kept["open_set"] = unknown
        _put(metrics, "open_set", *detect(logits, unknown, bootstrap))
        _put(metrics, "open_set", {"images": len(unknown)}, {})
        metrics["chance"] |= _chance("open_set", len(logits), len(unknown))
    for spec in config.ood:
        name, strange, counts = strange_images(spec, fit.image_size, config)
        out = logits_of(model, strange, config.batch_size, name)
        kept[f"ood.{name}"] = out
        _put(metrics, f"ood.{name}", *detect(logits, out, bootstrap))
        _put(metrics, f"ood.{name}", {"images": len(out), **counts}, {})
        metrics["chance"] |= _chance(f"ood.{name}", len(logits), len(out))
    if config.attacked:
        clean = Images(images.pixels[torch.from_numpy(is_known)], torch.from_numpy(labels))
        _put(metrics, "attack", *attack(model, clean, config, bootstrap))
        metrics["chance"] |= {f"attack.{key}": 1 / len(known) for key in ("clean", "fgsm", "pgd")}
    metrics["config"] = json.loads(config.model_dump_json())

    save_file(
        {name: np.ascontiguousarray(value) for name, value in kept.items()}, run_dir / "logits.safetensors"
    )
    Store(run_dir).replace("metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    return metrics


def classification(
    logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, fit: FitConfig, bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """Accuracy over images, negative log-likelihood, and accuracy per group of classes of a long tail."""
    right = (logits.argmax(1) == labels).astype(np.float64)
    wide = logits.astype(np.float64)
    picked = wide[np.arange(len(labels)), labels]
    top = wide.max(1)
    loss = np.log(np.exp(wide - top[:, None]).sum(1)) + top - picked
    numbers: dict[str, Any] = {"accuracy": right.mean(), "nll": loss.mean(), "images": len(labels)}
    spans = bootstrap.means(np.stack([right, loss], 1))
    intervals: dict[str, tuple[float, float]] = {"accuracy": spans[0], "nll": spans[1]}
    if fit.imbalance < 1:
        group_of = np.array(shots(counts))
        for group in ("many", "medium", "few"):
            inside = group_of[labels] == group
            if inside.any():
                numbers[group] = right[inside].mean()
                numbers[f"{group}_classes"] = int((group_of == group).sum())
                intervals[group] = bootstrap.means(right[inside][:, None])[0]
    return {key: float(v) if isinstance(v, np.floating) else v for key, v in numbers.items()}, intervals


def attack(
    model: nn.Module, images: Images, config: EvaluateConfig, bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
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
    return numbers | {"images": len(right)}, dict(zip(names, bootstrap.means(right), strict=True))


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, batch_size: int, label: str = "images") -> np.ndarray:
    """Logits of every image, float32 [N, C]; the model in eval mode, so that no image depends on its batch."""
    assert not model.training
    device, rows = next(model.parameters()).device, []
    with Progress(len(images), label) as progress:
        for start in range(0, len(images), batch_size):
            pixels = images.pixels[start : start + batch_size].to(device)
            rows.append(model(pixels.float() / 255).float().cpu())
            progress.advance(len(pixels))
    return torch.cat(rows).numpy()


def open_strange(spec: str) -> tuple[str, LabelledSet | Source]:
    """(name, set) of an out-of-distribution set: the name before "=", else the set's own. Reads no images."""
    parts = re.fullmatch(r"(?:(\w+)=)?(\w+):(.+)", spec)
    if not parts:
        raise ValueError(
            f"out-of-distribution set '{spec}' is not NAME:DIR, such as tiny_imagenet:DIR or scenes=captioned:DIR"
        )
    alias, name, place = parts.groups()
    found = open_source(place) if name == CAPTIONED else open_labelled(f"{name}:{place}", "test")
    return alias or name, found


def strange_images(spec: str, size: int, config: EvaluateConfig) -> tuple[str, Images, dict[str, int]]:
    """(name, images, counts) of an out-of-distribution set, at most `config.ood_limit` images.

    The counts are "listed", the images of a labelled set; or "unusable", samples of a captioned source.
    """
    name, found = open_strange(spec)
    if isinstance(found, Source):
        images, unusable = load_captioned(found, size, config.ood_limit)
        Coverage(f"samples of {spec}", len(images) + unusable, unusable=unusable).require(config.min_coverage)
        return name, images, {"unusable": unusable}
    index = np.random.default_rng(config.seed).permutation(len(found))[: config.ood_limit]
    return name, load_images(found, size, np.sort(index)), {"listed": len(found)}


def _put(metrics: dict[str, Any], section: str, numbers: dict[str, Any], intervals: dict[str, Any]) -> None:
    """Add numbers nested by their dotted names; intervals by the dotted names themselves."""
    for key, value in numbers.items():
        *parents, last = f"{section}.{key}".split(".")
        place = metrics
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    metrics["intervals"] |= {f"{section}.{key}": list(span) for key, span in intervals.items()}


def _chance(section: str, known: int, strange: int) -> dict[str, float]:
    values = dict(zip(NUMBERS, (0.95, 0.5, known / (known + strange)), strict=True))
    return {f"{section}.{score}.{key}": value for score in SCORES for key, value in values.items()}
