"""The metrics as tables of the report: rows of text, with their bars."""

from typing import Any

from hyco.pipeline.evaluation.benchmarks.suite import evaluations
from hyco.pipeline.evaluation.metrics.catalog import CLASSIFIERS, WAYS, Metric
from hyco.pipeline.evaluation.metrics.document import context, measured
from hyco.pipeline.evaluation.report.charts import PER_CENT, interval_bar, number, share

SPACE = "\N{NO-BREAK SPACE}"
TABLES = {
    "zero_shot": "Zero-shot",
    "retrieval": "Retrieval",
    "parts": "Parts",
    "boxes": "Ground-truth boxes",
    "compositional": "Compositional",
    "traversal": "Walks",
    "hierarchy": "Hierarchy",
    "attribution": "Norm, angle and bias",
    "suite": "Evaluation suite",
}


def tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """{name, note, rows} of each section that has metrics with a chance level."""
    made = []
    for section, name in TABLES.items():
        found = [one for one in measured(metrics, section) if one[2]["chance"] is not None]
        if found:
            rows = [_row(metrics, *one) for one in found]
            note = _note(section, metrics[section])
            made.append({"name": name, "note": note, "rows": rows})
    return made


def value_text(metric: Metric, value: float) -> str:
    """A value in the unit of its metric: 63.2 %, 2.50."""
    return share(value) if metric.unit == "fraction" else number(value)


def interval_text(metric: Metric, held: dict[str, Any]) -> str:
    """The interval in words: 40.0 to 60.0 %; empty without one."""
    if held["low"] is None or held["high"] is None:
        return ""
    low, high = (value_text(metric, held[end]) for end in ("low", "high"))
    return f"{low.removesuffix(PER_CENT)} to {high}"


def bar(metric: Metric, held: dict[str, Any]) -> Any:
    """The value, its interval and its chance level as a bar."""
    span = None if held["low"] is None or held["high"] is None else (held["low"], held["high"])
    largest = max(held["value"], held["high"] or 0.0, held["chance"] or 0.0)
    top = 1.0 if metric.unit == "fraction" else largest * 1.15 or 1.0
    return interval_bar(held["value"], held["chance"], span, top=top)


def gain(metric: Metric, held: dict[str, Any]) -> str:
    """The distance of the value from chance: a ratio for fractions, else a difference."""
    value, chance = held["value"], held["chance"]
    if chance is None:
        return ""
    if metric.unit != "fraction" or chance <= 0:
        return f"{number(abs(value - chance), 2)} {'below' if value < chance else 'above'}"
    ratio = value / chance
    return f"{ratio:,.0f} times" if ratio >= 9.95 else f"{ratio:.1f} times"


def title(name: str, metric: Metric) -> str:
    """The title of a metric at the beginning of a line, with the data set in front of one of the suite."""
    if name.startswith("suite."):
        return f"{suite_name('.'.join(name.split('.')[:2]))}: {metric.title}"
    return metric.title[:1].upper() + metric.title[1:]


def _row(metrics: dict[str, Any], name: str, metric: Metric, held: dict[str, Any]) -> dict[str, Any]:
    around = context(metrics, name)
    notes = ["lower is better"] if metric.higher_is_better is False else []
    if name.startswith("suite.") and held["n"]:
        of = f" of {around['of']:,}" if around["of"] else ""
        notes.append(f"n{SPACE}={SPACE}{held['n']:,}{of}")
    if around["gallery"]:
        notes.append(f"among {around['gallery']:,} {metric.gallery}")
    return {
        "name": title(name, metric),
        "note": ", ".join(notes),
        "value": value_text(metric, held["value"]),
        "n": f"{held['n']:,}" if held["n"] else "",
        "unit": metric.counts_in(name),
        "bar": bar(metric, held),
        "interval": interval_text(metric, held),
        "chance": value_text(metric, held["chance"]),
        "chance_of": metric.chance,
        "gain": gain(metric, held),
    }


def _note(section: str, facts: dict[str, Any]) -> str:
    """The amount of data behind the metrics of a section."""
    match section:
        case "zero_shot":
            of = ""
            if "scenes" in facts:
                of = f" of {facts['scenes']:,}, {facts['labelled']:,} of them labelled,"
            return f"{facts['images']:,} scenes{of} with one kind of thing, {facts['classes']} classes"
        case "retrieval":
            return f"{facts['images']:,} images, {facts['captions']:,} captions, {facts['distinct']:,} of them distinct"
        case "parts":
            return f"{facts['crops']:,} cropped parts, {facts['phrases']:,} distinct phrases"
        case "boxes":
            size = facts["classification"]
            return f"{size['boxes']:,} boxes of {size['n']:,} images, {size['classes']} classes"
        case "compositional":
            pairs = sum(block["pairs"] for kind, block in facts.items() if kind != "mean")
            return f"the true caption scores above a foil with the same words, {pairs:,} pairs"
        case "traversal":
            return (
                f"{facts['texts']['n']:,} images to the root: the fraction of steps at which this is nearest"
            )
        case "hierarchy":
            return f"{facts['images']:,} answers on the tree"
        case "attribution":
            return f"{facts['hierarchical_retrieval']['n']:,} names of the tree and the images under them"
    sets = data_sets(facts)
    return f"{sets} data set{'s' * (sets != 1)}; n is the number of resampled units of an interval"


def suite_name(key: str) -> str:
    """A dotted key of the suite in words: suite.tiny_imagenet.probe is "Tiny-ImageNet: linear probe"."""
    _, dataset, *path = key.split(".")
    titles = {name: row.title for name, row in evaluations().items()} | {"paper": "Mean of the paper's sets"}
    blocks = CLASSIFIERS | {way: name for way, (name, _) in WAYS.items()} | {"probe": "linear probe"}
    words = ", ".join(blocks.get(step) or step.replace("_", " ") for step in path)
    return f"{titles.get(dataset, dataset)}: {words}".removesuffix(": ")


def data_sets(suite: dict[str, Any]) -> int:
    """Number of measured data sets, without the mean over those of the paper."""
    return len(set(suite) - {"paper"})
