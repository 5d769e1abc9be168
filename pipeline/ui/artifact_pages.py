"""Results as Markdown for the Prefect UI: mining, dataset version, training, evaluation, decision, lineage.

Pictures are links to `hyco serve`, whose address is HYCO_SERVE_URL: the UI shows pictures by address and removes
pictures embedded in the text or in a link. Texts that came from data are escaped.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hyco.pipeline.curation.describe import brief
from hyco.pipeline.curation.flags import flags
from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.evaluation.mined_boxes import phrase_quality
from hyco.pipeline.evaluation.report.page import gaps
from hyco.pipeline.evaluation.report.summary import rows as metric_rows
from hyco.pipeline.mining.absence import accepted_fraction
from hyco.pipeline.mining.mine import MineConfig, results
from hyco.pipeline.packing.dataset_gate import SCORE_BINS, Check, score_histogram, verdict
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.sources.records import objects_of
from hyco.pipeline.sources.source import open_source
from hyco.pipeline.training.step_log import read_log
from hyco.pipeline.ui.lineage import MOST
from hyco.pipeline.ui.markdown import bars, number, plain, serve_url, served
from hyco.pipeline.ui.pages import HomePages
from hyco.storage.detections import read_detections, read_failures
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.model_registry import Decision
from hyco.storage.objects import open_object
from hyco.storage.versions import Version

SCORE = 0.35  # packing's default threshold
NOISE = 0.1  # a grounder gives every phrase many boxes of low score
UNITS = 4  # of which scores, labels and failures are read: a page must be cheap compared with the work
PICTURES = 6
PARTS = 2  # columns; within a cell pictures are stacked
EXAMPLES = 3  # failures of one code


def mining(config: MineConfig, home: Home, found: dict[str, Any]) -> str:
    """Counts of a mined source, quality of its boxes where it is labelled, scores, failures with examples.

    Args:
        config: of the mining.
        home: holds the detections.
        found: the result of pipeline.mining.mine.summary.
    """
    images = max(1, found["images"])
    counts = {
        "shards": f"{found['units_done']:,} of {found['units']:,}",
        "images": f"{found['images']:,}",
        "captions": f"{found['captions']:,}",
        "phrases": f"{found['phrases']:,}",
        "boxes, before any threshold": f"{found['boxes']:,}",
        "boxes per image, before any threshold": f"{found['boxes'] / images:.2f}",
        "phrases of unknown tokens only, not asked": f"{found['phrases_unknown']:,}",
        "captions with hardly any word that the tokenizer knows": _unknown_captions(found),
        "images per second": ""
        if found["images_per_second"] is None
        else f"{found['images_per_second']:.2f}",
        "images that failed": f"{found['failures']:,}",
    }
    if found.get("reused"):
        counts["images whose detections were known"] = f"{found['reused']:,}"
    if found.get("not_downloaded"):
        counts["rows that img2dataset could not download"] = f"{found['not_downloaded']:,}"
    records = results(config, home)
    mined = set(records.units())  # the source may have more units since
    source = open_source(config.source, config.limits, config.columns, home.store)
    units = [unit for unit in source.units() if unit.name in mined]
    some = [(unit, record) for unit in units[:UNITS] if (record := records.record(unit.name))]
    if len(some) == min(UNITS, found["units"]) and not config.columns.boxes and _labelled(config, some[0][0]):
        quality = phrase_quality(config, home, SCORE, most=UNITS)
        for name in ("recall", "precision"):
            value = quality[name]
            note = f"{name} of boxes, by the labels of {quality['images']:,} images (score {SCORE}, IoU 0.5)"
            counts[note] = "none to measure" if value is None else f"{value:.1%}"
    counted = [record for _, record in some if record.get("captions_foreign") is not None]
    if foreign := sum(record["captions_foreign"] for record in counted):
        of = sum(record["captions"] for record in counted)
        counts[f"captions likely in another language than the parser's, of {of:,}"] = (
            f"{foreign:,} ({foreign / of:.1%})"
        )
    scores, best, keys = np.zeros(0), np.zeros(0), 0
    for _, record in some:
        with open_object(home.store, record["detections"]["path"]) as file:
            found_here = read_detections(file)
        scores = np.append(scores, found_here["score"].drop_null().to_numpy())
        phrases = found_here.filter(pc.field("phrase").is_valid()).group_by(
            ["key", "caption", "span_start", "phrase"]
        )
        best = np.append(best, phrases.aggregate([("score", "max")])["score_max"].fill_null(0.0).to_numpy())
        keys += len(found_here["key"].unique())
    of = f"of {keys:,} images"
    counts[f"boxes per image with a score of {SCORE} or more, {of}"] = (
        f"{(scores >= SCORE).sum() / max(1, keys):.2f}"
    )
    if len(best):
        counts[f"phrases with such a box, {of}"] = f"{(best >= SCORE).mean():.1%}"
    if config.absent.images and (told := accepted_fraction(records.records().values(), SCORE)):
        counts[f"given an absent phrase, fraction with a box of score {SCORE} or more, of {told[1]:,}"] = (
            f"{told[0]:.1%}"
        )
    lines = [*table(("", ""), counts.items())]
    if (scores >= NOISE).any():
        lines += [
            "",
            f"Scores of the boxes {of} ({(scores < NOISE).sum():,} below {NOISE} are left out):",
            "",
        ]
        lines += bars(np.histogram(scores[scores >= NOISE], SCORE_BINS, (0.0, 1.0))[0])
    return "\n".join(lines + _failures(records, found["failures_by_code"]))


def version(made: Version, checks: list[Check], home: Home) -> str:
    """Counts of a dataset version, the verdict of the quality gate, scores, and pictures of its first samples."""
    page = f"{serve_url()}/versions/{made.name}"
    failed = [check for check in checks if not check.passed]
    told = "is the latest" if home.versions.latest() == made.name else "is not the latest: an experiment"
    state = "is in quarantine" if failed else told
    changed = (
        f", [what changed]({serve_url()}/versions/{made.parent}/diff/{made.name})" if made.parent else ""
    )
    lines = [
        f"**{made.name}** {state}: [its page]({page}){changed}",
        "",
        plain(brief(made), 1000),
        "",
        *(f"- {plain(check.why)}" for check in failed),
        "",
    ]
    if failed:
        lines += ["Training refuses it. Check it, then fix the source, or:", ""]
        lines += [f"    hyco release {made.name} --home {home}", ""]
    head = ("check", "value", "previous", "limit", "verdict")
    lines += [*table(head, ([plain(row[name]) for name in head] for row in verdict(checks))), ""]
    lines += [*_samples(made, home, f"{page}/samples"), ""]
    counts = {name.replace("_", " "): f"{n:,}" for name, n in made.counts.items()}
    counts["accepted boxes per image"] = f"{made.counts['parts'] / max(1, made.counts['images']):.2f}"
    lines += [*table(("count", ""), counts.items()), ""]
    histogram = score_histogram(home, made)
    lines += ["Scores of the accepted boxes:", "", *bars(histogram), ""] if histogram.sum() else []
    return "\n".join(lines + served(home))


def training(result: dict[str, Any], folder: Folder, home: Home) -> str:
    """The numbers of a training run, its last logged steps and its curves."""
    lines = [
        *table(("", ""), ((plain(name), number(v)) for name, v in result.items() if not isinstance(v, dict)))
    ]
    logged = read_log(folder)[-5:]
    if logged:
        terms = sorted({name for line in logged for name in line.get("terms", {})})
        head = ("step", "loss", *terms, "samples per second")
        lines += ["", "The last steps that were logged:", ""]
        lines += table(head, ([str(line["step"]), number(line["loss"]),
                                *(number(line.get("terms", {}).get(name, "")) for name in terms),
                                number(line.get("samples_per_second", ""))] for line in logged))  # fmt: skip
    picture = f"{serve_url()}/runs/{folder.name}/curves.svg"
    return "\n".join([*lines, "", f"![curves]({picture})", *served(home)])


def assessment(metrics: dict[str, Any], folder: Folder, home: Home, champion: Decision | None) -> str:
    """The metrics with intervals and chance levels, and the champion's at its promotion."""
    beside: dict[str, str] = {}
    if champion is not None:
        with contextlib.suppress(KeyError, TypeError):  # metrics of an earlier Hyco may have another form
            beside = {row[0]: row[1] for row in metric_rows(upgrade(json.loads(champion.metrics)))}
    head = ("measure", "this run", *(("champion",) if champion else ()), "chance", "95 % interval")
    body = [
        [plain(cell) for cell in (*row[:2], *((beside.get(row[0], ""),) if champion else ()), row[3], row[2])]
        for row in metric_rows(metrics)
    ]
    lines = [
        f"[Report]({serve_url()}/runs/{folder.name}/report.html) of run {plain(folder.name)}",
        "",
        *table(head, body),
        "",
    ]
    if champion is not None:
        text = f"The champion {champion.model} is shown with its metrics at the promotion"
        lines += [f"{text}; the decision, where one follows, compares both on the same evaluation.", ""]
    lines += [f"- {plain(name)}: not complete, {plain(words)}" for name, words in gaps(metrics)]
    lines += [f"- {plain(name)}: not measured, {plain(why)}" for name, why in metrics["skipped"].items()]
    return "\n".join(lines + served(home))


def decision(row: Decision, home: Home) -> str:
    """A promotion, refusal or rollback: the reason, each metric with the champion's, and the model's lineage."""
    lines = [f"# {row.kind.replace('_', ' ').capitalize()}: {row.model}", "", plain(row.reason, 2000), ""]
    if comparisons := json.loads(row.verdict).get("comparisons"):
        body = (
            [one["metric"], *("" if one[who] is None else f"{one[who]:.4g}" for who in ("challenger", "champion")),
             "yes" if one["worse"] else "no",
             " to ".join(f"{end:.4g}" for end in one["interval"]) if one["interval"] else "",
             *("" if one.get(what) is None else f"{one[what]:.3g}" for what in ("chance", "sees", "n"))]
            for one in comparisons
        )  # fmt: skip
        head = (
            "metric",
            "challenger",
            "champion",
            "worse",
            "95 % interval",
            "chance",
            "smallest visible loss",
            "n",
        )
        lines += [*table(head, body), ""]
    told = _origin(row)
    if flag := flags(home, home.registry.rows()).get(row.number):
        told["flag"] = flag
    return "\n".join(lines + table(("lineage", ""), told.items()) + served(home))


def lineage(decisions: list[Decision], home: Home) -> str:
    """The lineage of the newest models, as a picture and as a table; `decisions` newest first."""
    rows = [
        {
            "when": row.time[:16].replace("T", " "),
            "what": row.kind.replace("_", " "),
            "model": row.model,
            **_origin(row),
        }
        for row in decisions[:MOST]
    ]
    flagged = flags(home, decisions)
    for row, shown in zip(decisions, rows, strict=False):
        shown["flag"] = flagged.get(row.number, "")
    lines = [f"![lineage]({serve_url()}/lineage.svg)", ""]
    lines += table(rows[0], (row.values() for row in rows)) if rows else []
    return "\n".join(lines + served(home))


def _origin(row: Decision) -> dict[str, str]:
    """The lineage of a model, with links to the pages of its version and run, and the champion before it."""
    run = f"{serve_url()}/runs/{Path(row.run).name}"
    return {
        "source": plain(row.source),
        "detections": plain(row.detections),
        "version": f"[{row.version}]({serve_url()}/versions/{row.version})",
        "run": f"{plain(row.run)}: [report]({run}/report.html), [curves]({run}/curves.svg)",
        "champion before": row.before or "",
    }


def _samples(made: Version, home: Home, url: str) -> list[str]:
    """The first images of a version with a caption each and their cropped parts."""
    body = []
    for place, sample in enumerate(HomePages(home).samples(made.name)[:PICTURES]):
        parts = [
            f"![{plain(part.phrase)}]({url}/{place}/{n}.jpg)" for n, part in enumerate(sample.parts[:PARTS])
        ]
        parts += [""] * (PARTS - len(parts))
        body.append((f"![{place}]({url}/{place}/whole.jpg)", *parts, plain(sample.captions[0])))
    return table(("image", *["part"] * PARTS, "caption"), body) if body else []


def _failures(records: Manifest, codes: dict[str, int]) -> list[str]:
    if not codes:
        return []
    examples: dict[str, list[str]] = {code: [] for code in codes}
    failing = (record for record in records.records().values() if record["failed"])
    for _, record in zip(range(UNITS * 4), failing, strict=False):
        with open_object(records.store, record["failures"]["path"]) as file:
            for failure in read_failures(file):
                examples.setdefault(failure.code, []).append(
                    f"{plain(failure.key)}: {plain(failure.message)}"
                )
    body = ((plain(code), f"{n:,}", "<br>".join(examples[code][:EXAMPLES])) for code, n in codes.items())
    return [
        "",
        "Failures, with the keys of the first ones:",
        "",
        *table(("code", "images", "examples"), body),
    ]


def _unknown_captions(found: dict[str, Any]) -> str:
    unknown, read = found["captions_unknown"], found["captions_read"]
    return f"{unknown:,} of {read:,} ({unknown / read:.1%})" if read else "not counted"


def _labelled(config: MineConfig, unit: Any) -> bool:
    source = open_source(config.source, config.limits, config.columns)
    first = next(iter(source.samples(unit, lambda failure: None)), None)
    return first is not None and objects_of(first.meta) is not None
