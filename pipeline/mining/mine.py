"""Mining: one source unit in, one detections file out, before any threshold. Only this stage needs a detector.

A unit is done when its record exists in HOME/detections/<digest of the MineConfig>/records. The digest excludes the
locations of source and weights, device and batch size; it depends on the bytes of unit and weights, so the same data
under another name is not mined again.
"""

import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import Field, ValidationInfo, field_validator, model_validator

from hyco.models.grounding.detector import Reader
from hyco.pipeline.config import Config, ConfigError, digest
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining.absence import Absence, AbsenceConfig
from hyco.pipeline.mining.detections_table import Clock, Rows, noting, remedy
from hyco.pipeline.mining.far_detector import open_far
from hyco.pipeline.mining.known_detections import KnownDetections
from hyco.pipeline.mining.mine_chunk import chunks, mine_chunk, take_boxes
from hyco.pipeline.mining.noun_phrases import NounConfig, NounExtractor
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.runtime.served import has_servers, waited_s
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.reading_rules import READING
from hyco.pipeline.sources.records import NOT_DOWNLOADED, Limits
from hyco.pipeline.sources.source import Source, Unit, look_again, open_source, open_unit
from hyco.storage.deletions import OPTED_OUT
from hyco.storage.detections import write_detections, write_failures
from hyco.storage.home import Home, UnitResults
from hyco.storage.sample import Failure
from hyco.storage.sealed import seal
from hyco.storage.summary import COUNTS, total, whole

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

if TYPE_CHECKING:
    from hyco.models.grounding.detector import Detector
    from hyco.pipeline.runtime.executor import Executor

Report = Callable[[int], None]


class MineConfig(Config):
    """Options of mining."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"source", "grounder", "batch_size", "chunk", "chunk_pixels", "device", "error_budget"}
    )
    derived: ClassVar[frozenset[str]] = frozenset({"weights"})
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"columns", "absent"})

    source: str
    """Captioned images: a folder, a file, a pattern, a range in braces or a list with commas, local or an fsspec URL;
    see docs/sources.md.
    """
    grounder: str
    """Detector, BACKEND:PLACE with a backend of transformers, owlv2, sam3, groundingdino or onnx, or a short name
    such as llmdet_base, see docs/sources.md; "source" takes the boxes that the source has (columns.boxes) and runs
    no detector.
    """
    weights: str = Field(default="", validate_default=True)
    """Digest of the grounder's files, so that other weights are another configuration. Set wherever the files
    are; elsewhere a stored value is kept (packing needs no detector).
    """
    columns: Columns = USUAL
    """Names of the source's columns and fields that are not the usual ones."""
    limits: Limits = Field(default_factory=Limits)
    """Maximum sizes of a sample; larger ones fail, by name."""
    nouns: NounConfig = Field(default_factory=NounConfig)
    """How noun phrases are found in captions."""
    absent: AbsenceConfig = AbsenceConfig()
    """Whether and how it is measured what the detector makes of phrases that are not in an image's captions."""
    per_phrase: int = Field(default=16, ge=1)
    """Maximum number of boxes per phrase, the best by score."""
    max_captions: int = Field(default=8, ge=1)
    """Maximum number of captions per image, the first ones."""
    dtype: ground.Dtype = "auto"
    """Precision of the detector's matrix products. "auto": bfloat16 on a GPU that has it, else float16;
    float32 on a CPU.
    """
    batch_size: int = Field(default=16, ge=1)
    """Images per forward pass."""
    chunk: int = Field(default=128, ge=1)
    """Maximum number of images decoded at once."""
    chunk_pixels: int = Field(default=128_000_000, ge=1)
    """Maximum sum of width * height of the images decoded at once; a pixel takes 3 bytes of memory. A single
    image may exceed it, up to limits.max_pixels.
    """
    device: str = "auto"
    """Where the detector runs: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"."""
    error_budget: float = Field(default=0.05, ge=0, le=1)
    """Maximum fraction of a unit's samples that may fail before the unit does."""

    @field_validator("weights")
    @classmethod
    def _weights(cls, given: str, info: ValidationInfo) -> str:
        try:
            return ground.grounder_digest(info.data.get("grounder", ""))
        except (FileNotFoundError, ValueError) as error:
            if given:
                return given
            raise error if isinstance(error, OSError) else ConfigError(str(error)) from None

    @model_validator(mode="after")
    def _has_boxes(self) -> "MineConfig":
        if self.grounder == ground.SOURCE and self.columns.boxes is None:
            raise ValueError("grounder 'source' needs the boxes of the source: give --boxes (columns.boxes)")
        return self


@dataclass(frozen=True, slots=True)
class Plan:
    """The units of a source, mined and not mined.

    `young` are those that changed too recently, where they were asked for.
    """

    done: list[Unit]
    pending: list[Unit]
    young: list[Unit] = field(default_factory=list)


def origin_of(config: MineConfig) -> str:
    """Return what stands for the detector in the rows of the source's own boxes, "source:FIELDS"; "" without them."""
    return f"{ground.SOURCE}:{config.columns.boxes.field}" if config.columns.boxes else ""


def results(config: MineConfig, home: Home) -> UnitResults:
    """Return the mining results of a configuration."""
    return home.detections(digest(config))


def plan(config: MineConfig, home: Home, settle_s: float = 0.0, young: bool = False) -> Plan:
    """Return the units to mine, and write the resolved configuration next to the records.

    Units that are set aside are left out; those that were repaired are no longer set aside. Records made with older
    reading rules are deleted where the present rules read the unit differently.

    Args:
        config: names source, detector and rules.
        home: holds the records.
        settle_s: local files that changed less than this many seconds ago are left out.
        young: hash these too, and name their units.
    """
    mined = results(config, home)
    source = open_source(config.source, config.limits, config.columns, home.store)
    units, unsettled = source.listed(settle_s, young)
    names = {unit.path: unit.name for unit in (*units, *unsettled)}
    home.shelf.settle(source.store.url, names, set(source.files))
    units, unsettled = home.shelf.without(units), home.shelf.without(unsettled)
    finished = done_units(mined, _forget_misread(mined, source, units, mined.summary()))
    home.store.create(mined.config, seal(config.model_dump(mode="json")))
    return Plan(
        [unit for unit in units if unit.name in finished],
        [unit for unit in units if unit.name not in finished],
        unsettled,
    )


def done_units(mined: UnitResults, records: pa.Table) -> set[str]:
    """Return the names of the units that are done, of rows of `UnitResults.summary`."""
    return set(whole(mined, records)["unit"].to_pylist())


def _forget_misread(mined: UnitResults, source: Source, units: list[Unit], records: pa.Table) -> pa.Table:
    """Delete the records of units that older rules read differently, and return the rows of the others.

    Each unit of an old home is checked once.
    """
    older = records.filter(pc.less(records["reading"], READING))
    rules = dict(zip(older["unit"].to_pylist(), older["reading"].to_pylist(), strict=True))
    if not rules:
        return records
    looked = mined.reading(READING)
    seen = {path.rpartition("/")[2] for path in mined.store.list(looked)}
    misread = []
    for unit in units:
        if unit.name in seen or unit.name not in rules:
            continue
        if source.read_otherwise(unit, rules[unit.name]):
            misread.append(unit.name)
            mined.forget(unit.name)
        else:
            mined.store.create(f"{looked}/{unit.name}", b"")
    return records.filter(pc.invert(pc.is_in(records["unit"], value_set=pa.array(misread, pa.string()))))


def mine_shard(
    config: MineConfig, home: Home, unit: Unit, report: Report = lambda done: None
) -> dict[str, Any]:
    """Mine one unit and return its record; a unit that has a record is not mined again.

    Args:
        config: options of mining.
        home: where the results are written.
        unit: from `plan`.
        report: called with the number of newly finished samples.

    Raises:
        UnitGoneError: its file was removed or changed since it was listed.
        ValueError: naming the unit: it is damaged, or more samples failed than the error budget allows. No result is
            written then.
    """
    mined = results(config, home)
    if (record := mined.done(unit.name)) is not None:
        return record
    if home.local and not home.store.exists(mined.config):
        raise ValueError(
            f"{home.url} is not the home that the mining was planned in ({mined.config} is not there): on a cluster, "
            "it must be the same folder on every node"
        )
    started, clock, waited = time.time(), Clock(), waited_s()
    extractor = detector = None
    known = _known(home.url, config.model_dump_json())
    if config.grounder != ground.SOURCE:
        with clock("load"), _LOADING:
            extractor, detector = _extractor(config.nouns.model_dump_json()), _detector(config)
            known.look()
    rows, failures, counts = Rows(), [], Counter()
    source = open_unit(config.source, unit, config.limits, config.columns)
    source.deleted = home.deletions.tombstones()
    samples = clock.iterate("source", source.samples(unit, noting(failures, counts)))
    try:
        limits, most = config.limits, config.max_captions
        if extractor is None or detector is None:
            take_boxes(samples, limits, origin_of(config), rows, counts, report)
        else:
            absence = _absence(config.absent.model_dump_json()) if config.absent.images else None
            for chunk in chunks(samples, limits, config.chunk, config.chunk_pixels):
                origin = origin_of(config)
                mine_chunk(
                    chunk,
                    limits,
                    most,
                    extractor,
                    detector,
                    known,
                    rows,
                    failures,
                    counts,
                    clock,
                    origin,
                    absence,
                )
                report(len(chunk))
    except (ValueError, OSError) as error:
        if unit.path in str(error):
            raise
        raise ValueError(f"{unit.path}: {error}") from error
    if home.deletions.number() != source.deleted.number:  # an image was deleted meanwhile
        return mine_shard(config, home, unit, report)
    _check_budget(unit, failures, counts["images"], config.error_budget)
    clock.move("ground", "wait", waited_s() - waited)
    with clock("write"):
        found_by = detector.digest if detector else origin_of(config)
        rules = extractor.config.rules if extractor else ground.SOURCE
        table = rows.table(found_by, rules)
        commit = functools.partial(home.store.commit, mined.objects, ".parquet")
        written = commit(lambda file: write_detections(file, table))
        failed = commit(lambda file: write_failures(file, failures))
    record = {
        "unit": unit.name,
        "path": unit.path,
        "sha256": unit.sha256,
        "detections": {"path": written.path, "sha256": written.sha256, "rows": table.num_rows},
        "failures": {"path": failed.path, "sha256": failed.sha256, "rows": len(failures)},
        "images": counts["images"],
        "reused": counts["reused"],
        "captions": counts["captions"],
        "phrases": counts["phrases"],
        "boxes": counts["boxes"],
        "phrases_with_boxes": counts["phrases_with_boxes"],
        "phrases_unknown": counts["phrases_unknown"],
        # None: a detector with a closed vocabulary has no tokenizer
        "captions_unknown": counts["captions_unknown"] if isinstance(detector, Reader) else None,
        "captions_foreign": counts["captions_foreign"],
        "failed": len(failures),
        "failed_by_code": dict(sorted(Counter(failure.code for failure in failures).items())),
        NOT_DOWNLOADED: counts[NOT_DOWNLOADED],
        **({OPTED_OUT: counts[OPTED_OUT]} if counts[OPTED_OUT] else {}),
        **({"absent": _absent_of(counts)} if counts["absent"] else {}),
        "detector": found_by,
        "rules": rules,
        "reading": READING,
        "started": round(started, 3),
        "finished": round(time.time(), 3),
        "seconds": clock.seconds(),
    }
    if mined.commit(unit.name, record):
        if detector:
            known.add(written.path, table)
        return record
    winner = mined.record(unit.name)  # another worker was faster; its result is used
    assert winner is not None
    return winner


def mine_all(
    config: MineConfig,
    home: Home,
    executor: "Executor",
    listener: Listener | None = None,
    settle_s: float = 0.0,
) -> dict[str, Any]:
    """Mine every unit that is not mined, and return the summary of the source as listed at the beginning.

    A unit whose worker was killed is tried once more; other units continue after a failure. The first error is raised
    when all have ended. A unit that is removed or changed meanwhile is left out.

    Args:
        config: names source, detector and rules.
        home: receives the detections.
        executor: runs one unit per task.
        listener: gets the progress.
        settle_s: local files that changed less than this many seconds ago are left out.
    """
    work = plan(config, home, settle_s)
    records = _rows_of(results(config, home).summary(), work.done)
    done = total(records, "images") + total(records, "failed")
    if work.pending and config.grounder != ground.SOURCE:
        _known(home.url, config.model_dump_json()).refresh()
    with Progress(None if work.pending else done, "mine", "images", listener, done=done) as progress:
        expect = _Expectation(progress, len(work.done), len(work.pending), done)

        def submit(unit: Unit) -> Future[Any]:
            return executor.submit(mine_shard, config, home, unit, report=progress.advance)

        gone = run_units(submit, work.pending, expect.unit_done)
    look_again(config.source, home.store, gone)
    return summary(config, home, [unit for unit in (*work.done, *work.pending) if unit not in gone])


def summary(config: MineConfig, home: Home, units: list[Unit] | None = None) -> dict[str, Any]:
    """Return the counts of a source's mined units, or of `units`.

    Keys: units, units_done, images, reused (of them, those that were known and not shown to the detector), captions,
    phrases, boxes, phrases_with_boxes, phrases_unknown (not asked: the
    detector's tokenizer knows nothing in them), captions_unknown (it knows a smaller fraction of their words than
    mine_chunk.HARDLY), captions_read (how many were checked for that; 0 for a closed vocabulary, and for units mined
    before this was counted), failures (number), failures_by_code, not_downloaded (img2dataset's own failed rows, which
    are no failures), opted_out (images that a deletion names), seconds (of work, all workers together),
    images_per_second (while at least one worker worked).
    """
    if units is None:
        units = home.shelf.without(
            open_source(config.source, config.limits, config.columns, home.store).units()
        )
    records = _rows_of(results(config, home).whole_summary(), units)
    read = records.filter(pc.is_valid(records["captions_unknown"]))
    codes: Counter[str] = Counter()
    for row in pc.value_counts(records["codes"]).to_pylist():
        codes.update({code: number * row["counts"] for code, number in json.loads(row["values"]).items()})
    busy = busy_seconds(records)
    images = total(records, "images")
    return {
        "units": len(units),
        "units_done": records.num_rows,
        **{name: total(records, name) for name in COUNTS if name != "failed"},
        "captions_read": total(read, "captions"),
        "failures": codes.total(),
        "failures_by_code": dict(sorted(codes.items())),
        "seconds": round(float(pc.sum(records["seconds"]).as_py() or 0.0), 3),
        "images_per_second": round(images / busy, 2) if busy else None,
    }


def _rows_of(records: pa.Table, units: list[Unit]) -> pa.Table:
    return records.filter(
        pc.is_in(records["unit"], value_set=pa.array([one.name for one in units], pa.string()))
    )


class _Expectation:
    """Estimates the number of images of a source from the finished units: they are not counted in advance."""

    def __init__(self, progress: Progress, done: int, pending: int, images: int) -> None:
        self.progress, self.done, self.units, self.images = progress, done, done + pending, images

    def unit_done(self, record: dict[str, Any]) -> None:
        self.done += 1
        self.images += record["images"] + record["failed"]
        self.progress.expect(round(self.images / self.done * self.units))


def _check_budget(unit: Unit, failures: list[Failure], good: int, budget: float) -> None:
    total = good + len(failures)
    if len(failures) <= budget * total:
        return
    codes = ", ".join(f"{code} {number}" for code, number in Counter(f.code for f in failures).most_common(4))
    raise ValueError(
        f"{unit.path}: {len(failures)} of {total} samples failed ({codes}), more than the error budget of "
        f"{budget:.0%}; the first is {failures[0].key}: {failures[0].message}. {remedy(failures, good)}"
    )


def busy_seconds(records: pa.Table) -> float:
    """Return the seconds in which at least one of the units was being mined."""
    starts, ends = records["started"].to_numpy(), records["finished"].to_numpy()
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reached = np.concatenate([[-np.inf], np.maximum.accumulate(ends)])[:-1]
    return float(np.maximum(0.0, ends - np.maximum(starts, reached)).sum())


_LOADING = threading.Lock()  # units may share a process: transformers cannot load two models at once


@functools.lru_cache(maxsize=2)
def _known(home: str, config: str) -> KnownDetections:
    """Cached in a worker, so that it learns only what is new."""
    opened, options = Home(home), MineConfig.model_validate_json(config)
    return KnownDetections(opened, results(options, opened), options.model_dump(mode="json"))


@functools.lru_cache(maxsize=2)
def _extractor(config: str) -> NounExtractor:
    """Cached in a worker by the configuration's JSON: loading takes seconds."""
    return NounExtractor(NounConfig.model_validate_json(config))


@functools.lru_cache(maxsize=2)
def _absence(config: str) -> Absence:
    """Cached likewise: WordNet takes a second to read."""
    return Absence(AbsenceConfig.model_validate_json(config))


def _absent_of(counts: Counter[str]) -> dict[str, Any]:
    """What a record says of absent phrases: how many were asked, and the histogram of their best scores."""
    bins = {
        name.removeprefix("absent:"): n for name, n in sorted(counts.items()) if name.startswith("absent:")
    }
    return {"asked": counts["absent"], "scores": bins}


def _detector(config: MineConfig) -> "Detector":
    options = (
        config.grounder,
        config.device,
        config.dtype,
        config.per_phrase,
        config.batch_size,
        config.weights,
    )
    detector = open_far(_open_detector, options) if has_servers() else _open_detector(*options)
    if config.weights not in ("", detector.digest) and not config.weights.startswith("hub:"):
        raise ValueError(
            f"grounder {config.grounder} has digest {detector.digest}, the configuration was made for "
            f"{config.weights}: the files have changed since; start again to mine with these"
        )
    return detector


@functools.lru_cache(maxsize=2)
def _open_detector(
    spec: str, device: str, dtype: str, per_phrase: int, batch_size: int, weights: str
) -> "Detector":
    """Cached likewise; `weights` is an argument so that changed files at the same path are loaded again."""
    return ground.open_detector(spec, device, dtype, per_phrase, batch_size)
