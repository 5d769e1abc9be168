"""The evaluation suite as one table of the report: a row for each number, set by set."""

from typing import Any

from pipeline.evaluation.benchmarks.suite import evaluations
from pipeline.evaluation.metrics.catalog import Figure, figures
from pipeline.evaluation.report.charts import interval_bar, number, share

SPACE = "\N{NO-BREAK SPACE}"
LOWER_IS_BETTER = ("tie", "lca")
COUNTS = ("distinct",)  # neither shares nor better when lower
WORDS = {
    "tie": "tree distance (TIE)",
    "lca": "height of the common ancestor (LCA)",
    "jaccard": "shared ancestors (Jaccard)",
    "p_h": "hierarchical precision",
    "r_h": "hierarchical recall",
    "top1": "top 1",
    "top5": "top 5",
    "map": "mean average precision",
    "map_distance": "mean average precision by distance",
    "mean_per_class": "mean per class",
    "zero_shot": "zero-shot",
    "probe": "linear probe",
    "probe_softmax": "linear probe",
    "probe_maximum_separation": "linear probe, maximum separation",
    "probe_prototypes": "prototypes on the hyperboloid",
    "image_to_text": "image to caption",
    "text_to_image": "caption to image",
}


def suite_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Name, note and rows as the template shows them; None where the suite was not run."""
    found = [figure for figure in figures(metrics) if figure.name.startswith("suite.")]
    if not found:
        return None
    titles = _titles()
    sets = data_sets(metrics)
    note = f"{sets} data set{'s' * (sets != 1)}; n is what an interval is drawn over"
    rows = [_row(figure, titles) for figure in found]
    return {"name": "Evaluation suite", "note": note, "rows": rows, "named": True}  # rows name their data set


def suite_name(key: str) -> str:
    """A dotted key of the suite in words: suite.tiny_imagenet.probe is "Tiny-ImageNet: linear probe"."""
    _, dataset, *path = key.split(".")
    return f"{_titles().get(dataset, dataset)}: {', '.join(map(word, path))}".removesuffix(": ")


def data_sets(metrics: dict[str, Any]) -> int:
    """How many data sets were measured; the mean over those of the paper is none."""
    return len(set(metrics["suite"]) - {"paper"})


def _row(figure: Figure, titles: dict[str, str]) -> dict[str, Any]:
    _, dataset, *path = figure.name.split(".")
    low = path[-1] in LOWER_IS_BETTER
    told = number if low else share
    top = max(figure.value, figure.high or 0.0, figure.chance or 0.0) * 1.15 if low else 1.0
    span = None if figure.low is None or figure.high is None else (figure.low, figure.high)
    return {
        "name": f"{titles.get(dataset, dataset)}: {', '.join(map(word, path[:-1]))}".removesuffix(": "),
        "note": ", ".join(
            [
                word(path[-1]),
                *(["lower is better"] if low else []),
                *([f"n{SPACE}={SPACE}{figure.n:,}{_of(figure)}"] if figure.n else []),
                *([f"among {figure.gallery:,}"] if figure.gallery else []),
            ]
        ),
        "value": told(figure.value),
        "bar": interval_bar(figure.value, figure.chance, span, top=top or 1.0),
        "interval": f"{told(span[0])} to {told(span[1])}" if span else "",
        "chance": "" if figure.chance is None else told(figure.chance),
        "gain": "" if figure.chance is None else _gain(figure.value, figure.chance, low),
    }


def _of(figure: Figure) -> str:
    return f" of {figure.of:,}" if figure.of else ""


def _titles() -> dict[str, str]:
    return {name: row.title for name, row in evaluations().items()} | {"paper": "Mean of the paper's sets"}


def word(key: str) -> str:
    """A key of metrics.json in words."""
    return WORDS.get(key) or (
        f"R@{key[1:]}" if key[:1] == "r" and key[1:].isdigit() else key.replace("_", " ")
    )


def _gain(value: float, chance: float, low: bool) -> str:
    if low or chance <= 0:
        return f"{number(abs(value - chance), 2)} {'below' if value < chance else 'above'}"
    return f"{number(value / chance, 2)} times"
