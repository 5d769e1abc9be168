"""The tables of a study in Markdown, from the metrics and stored logits of its runs."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from hyco.pipeline.classification.evaluate import EvaluateConfig
from hyco.pipeline.classification.ood import SCORES
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap

Arm = tuple[str, str, str]  # model, head, training set
BALANCED = "balanced"
MINUS = "\N{MINUS SIGN}"


def tables(results: dict[str, Any], folder: Path, measure: EvaluateConfig) -> str:
    """All tables of the runs in `results` (name -> fit, train, metrics), whose directories are in `folder`.

    One seed: the interval is a 95 % bootstrap over test images. Several: mean and standard deviation over seeds.
    """
    arms: dict[Arm, list[str]] = {}
    for name, held in results.items():
        fit = held["fit"]
        arms.setdefault((fit["model"], fit["head"], _training_set(fit)), []).append(name)
    metrics = {arm: [results[name]["metrics"] for name in names] for arm, names in arms.items()}
    parts = [
        ("Accuracy, balanced test set (%)", _accuracy(arms, metrics, folder, measure)),
        ("Accuracy of many, medium and few-shot classes (%)", _shots(metrics)),
        ("Out-of-distribution detection (%)", _ood(metrics)),
        (f"Accuracy under attack (%), eps {measure.eps * 255:.3g}/255", _attack(metrics)),
        ("Training cost", _cost(arms, results)),
    ]
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts if table) + "\n"


def _accuracy(
    arms: dict[Arm, list[str]], metrics: dict[Arm, list[Any]], folder: Path, measure: EvaluateConfig
) -> str:
    heads = list(dict.fromkeys(head for _, head, _ in arms))
    rows = []
    for model, kept in dict.fromkeys((model, kept) for model, _, kept in arms):
        row = [model, kept]
        row += [_cell(metrics.get((model, head, kept)), "classification.accuracy") for head in heads]
        for head in heads[1:]:
            pair = [arms.get((model, h, kept)) for h in (heads[0], head)]
            row.append(_difference(pair[0], pair[1], folder, measure) if pair[0] and pair[1] else "")
        rows.append(row)
    return _markdown(
        ["net", "training set", *heads, *(f"{head} {MINUS} {heads[0]}" for head in heads[1:])], rows
    )


def _difference(first: Sequence[str], second: Sequence[str], folder: Path, measure: EvaluateConfig) -> str:
    """Second minus first, in points, over the same test images; the interval is over images, not trainings."""
    gap = _right(second, folder) - _right(first, folder)
    ((low, high),) = Bootstrap(measure.draws, seed=measure.seed).means(gap[:, None])
    return f"{_signed(gap.mean())} [{_signed(low)}, {_signed(high)}]"


def _right(names: Sequence[str], folder: Path) -> np.ndarray:
    """Fraction of seeds in which each test image was right: float64 [N]."""
    runs = [load_file(folder / name / "logits.safetensors") for name in names]
    return np.mean([(run["logits"].argmax(1) == run["labels"]) for run in runs], axis=0)


def _shots(metrics: dict[Arm, list[Any]]) -> str:
    rows = []
    for (model, head, kept), found in metrics.items():
        if kept == BALANCED:
            continue
        row = [model, head, kept]
        for group in ("many", "medium", "few"):
            held = found[0]["classification"].get(f"{group}_classes")
            row.append(f"{_cell(found, f'classification.{group}')} ({held} classes)" if held else "none")
        rows.append(row)
    return _markdown(["net", "head", "training set", "many", "medium", "few"], rows)


def _ood(metrics: dict[Arm, list[Any]]) -> str:
    rows = []
    for (model, head, kept), found in metrics.items():
        strange = {f"ood.{name}": name for name in found[0].get("ood", {})}
        strange |= {"open_set": "held-out classes"} if "open_set" in found[0] else {}
        for section, name in strange.items():
            for score in (one for one in SCORES if f"{section}.{one}.auroc" in found[0]["metrics"]):
                cells = [_cell(found, f"{section}.{score}.{key}") for key in ("fpr95", "auroc", "aupr")]
                rows.append([model, head, kept, name, score.replace("_", " "), *cells])
    return _markdown(["net", "head", "training set", "OOD set", "score", "FPR95", "AUROC", "AUPR"], rows)


def _attack(metrics: dict[Arm, list[Any]]) -> str:
    rows = [
        [model, head, kept, str(found[0]["attack"]["images"])]
        + [_cell(found, f"attack.{key}") for key in ("clean", "fgsm", "pgd")]
        for (model, head, kept), found in metrics.items()
        if "attack" in found[0]
    ]
    return _markdown(["net", "head", "training set", "images", "clean", "FGSM", "PGD"], rows)


def _cost(arms: dict[Arm, list[str]], results: dict[str, Any]) -> str:
    rows = []
    for (model, head, kept), names in arms.items():
        train = [results[name]["train"] for name in names]
        one = train[0]
        rows.append(
            [
                model,
                head,
                kept,
                f"{one['images']:,}",
                f"{one['steps']:,} ({one['epochs']:.1f} epochs)",
                f"{one['parameters']:,}",
                f"{statistics.mean(t['loss_last'] for t in train):.3f}",
                f"{statistics.mean(t['samples_per_second'] for t in train):.0f}",
            ]
        )
    names = [
        "net",
        "head",
        "training set",
        "images",
        "steps",
        "parameters",
        "last training loss",
        "samples/s",
    ]
    return _markdown(names, rows)


def _cell(found: list[Any] | None, key: str) -> str:
    """A fraction in percent with its interval, or its deviation over seeds."""
    if not found:
        return ""
    values = [100 * held["metrics"][key]["value"] for held in found]
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    low, high = (found[0]["metrics"][key][end] for end in ("low", "high"))
    return f"{values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _training_set(fit: dict[str, Any]) -> str:
    if fit["imbalance"] == 1:
        return BALANCED
    parts = ["step"] if fit.get("imbalance_profile") == "step" else []
    parts += [f"IF {fit['imbalance']:g}"]
    parts += ["published draw"] if fit.get("imbalance_draw") == "published" else []
    return ", ".join(parts)


def _signed(share: float) -> str:
    text = f"{100 * abs(share):.1f}"
    return f"{'+' if share >= 0 else MINUS}{text}"


def _markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])
