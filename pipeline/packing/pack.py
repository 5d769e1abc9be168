"""Detections to training shards: select boxes, cut crops, write shards, publish a version. No detector runs.

Each source unit is packed separately into its own shards and one record, so units can run anywhere in any order, a
killed unit is done again, and a finished one is not touched. Re-packing with other thresholds reads the stored
detections and makes a new version; the old one remains.
"""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, ClassVar, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from hyco.pipeline.config import Config, digest
from hyco.pipeline.imaging.crop import Resizer, crop_box, shrink_to_short_side
from hyco.pipeline.imaging.decode import ImageError, decode, encode_jpeg, is_plain_jpeg
from hyco.pipeline.packing.as_mined import AsMined
from hyco.pipeline.packing.copies import CONTAMINATED, NEAR, LeftOut, LeftOutParts, left_out, marked
from hyco.pipeline.packing.dataset_gate import Check, QualityConfig, gate, scores_of
from hyco.pipeline.packing.filters import FILTERED, image_counts
from hyco.pipeline.packing.image_hashes import Place, evaluation_units, hash_all
from hyco.pipeline.packing.marks import MARKED, MARKED_PARTS, without_marked
from hyco.pipeline.packing.repeats import detections_of
from hyco.pipeline.packing.select_parts import AcceptedPart, SelectionConfig, select_parts, without_captions
from hyco.pipeline.packing.source_columns import read_columns
from hyco.pipeline.packing.verified import UNVERIFIED, refusals, unverified, verifying, with_verifier
from hyco.pipeline.runtime.executor import Executor, InProcess
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import Unit, look_again, open_source, open_unit
from hyco.storage.deletions import Tombstones
from hyco.storage.detections import read_detections, write_failures
from hyco.storage.home import Home, UnitResults
from hyco.storage.layout import SHARDS
from hyco.storage.objects import open_object
from hyco.storage.sample import Failure, Part, Sample, TrainingSample
from hyco.storage.shard import write_shard
from hyco.storage.versions import ShardRef, Version, check_label, shard_ref

SPLITS = ("train", "val")
EXAMPLES = 20  # images left out that the record of a unit names

Report = Callable[[int], None]


class PackConfig(SelectionConfig):
    """Options of packing: detections to training shards."""

    incidental: ClassVar[frozenset[str]] = frozenset({"gate"})
    digest_if_set: ClassVar[frozenset[str]] = SelectionConfig.digest_if_set | {
        "near_duplicates",
        "exclude",
        "resize",
    }
    foremost: ClassVar[tuple[str, ...]] = ("threshold", "max_parts", "image_size", "holdout")

    image_size: int = Field(default=224, ge=16, le=4096)
    """Side of the square crops, in pixels. Whole images keep their shape and are shrunk to this short side; a
    plain JPEG that is not larger is stored byte for byte.
    """
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the images in the "val" split, chosen by a hash of the key: an image is in the same split
    in every version.
    """
    shard_size: int = Field(default=1000, ge=1, le=100_000)
    """Maximum number of samples per shard. A shard never holds samples of two source units."""
    quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality of the images written."""
    resize: Resizer = "pillow"
    """Whose bicubic resizing is used; "torch" takes a sixth of the time (AVX2) and differs by 2 of 255 at most."""
    keep_partless: bool = False
    """Whether images without an accepted part are kept. The published HyCoCLIP data has none, and training
    draws a part of every image.
    """
    near_duplicates: int | None = Field(default=None, ge=0, le=127)
    """Maximum number of differing bits, of 255, of two perceptual hashes at which the later image counts as a copy and
    is left out; 64 finds copies that were encoded again, resized or cropped by up to 4 % a side. null compares bytes.
    """
    exclude: tuple[str, ...] = ()
    """Evaluation sources, captioned or folders of images: what is in them, or with near_duplicates a copy of an image
    in them, is left out.
    """
    gate: QualityConfig = QualityConfig()
    """What a version must satisfy before it becomes `latest`."""


def pack(
    mine: Config,
    config: PackConfig,
    home: Home,
    executor: Executor | None = None,
    listener: Listener | None = None,
    judged: Callable[[list[Check]], None] = lambda checks: None,
    mined_only: bool = False,
    latest: bool = True,
    label: str | None = None,
) -> Version:
    """Pack every mined unit that is not packed, publish the version, and make it `latest` if it is fit.

    Args:
        mine: the MineConfig the source was mined with.
        config: options of packing.
        home: where the detections are and the shards are written.
        executor: where the units are packed, see pipeline.runtime.executor; in this process when None.
        listener: gets the progress, see pipeline.runtime.progress.
        judged: called with the checks that the version passed.
        mined_only: leave out units that were added to the source after it was mined.
        latest: whether a fit version becomes `latest`; an experiment does not.
        label: a name for the version, also in quarantine. An experiment with a name does not become `latest`.

    The source is listed once at the beginning. A unit that is removed or changed before it is packed is left out.

    Raises:
        QualityError: the version was quarantined, see pipeline.packing.dataset_gate.
    """
    executor = executor or InProcess()
    if label is not None:
        check_label(label)
    units = listing(mine, home, mined_only)
    _check_verified(mine, config, home, units)
    if config.near_duplicates is not None or config.exclude:
        hash_all(home, _hashed(mine, config, units), executor, listener)
    if config.filters.where:
        read_columns(home, _place(mine), units, config.filters.where, executor, listener)
    marks = home.marks.names()  # once: a mark that is made meanwhile is for the next packing
    pending = _unpacked(units, mine, config, home, marks)
    mined = _mined(home, mine).records()
    others = _repeats(home, mine, config, units, marks)
    total = sum(mined[unit.name].get("images", 0) for unit in pending)
    with Progress(total, "pack", "images", listener) as progress:

        def submit(unit: Unit) -> Future[Any]:
            without = others.get(unit.name, {})
            return executor.submit(pack_shard, mine, config, home, unit, without, report=progress.advance)

        gone = run_units(submit, pending, lambda record: None)
    _look_again(mine, home, gone)
    version = publish(mine, config, home, [unit for unit in units if unit not in gone], marks)
    if label is not None:
        home.versions.label(label, version.name)
    judged(gate(home, version, config.gate, latest and label is None))
    return version


def plan(mine: Config, config: PackConfig, home: Home, mined_only: bool = False) -> list[Unit]:
    """Return the units that are not packed yet, in order; ValueError when some are not mined.

    A unit is mined or packed when every object that its record names exists.
    """
    return _unpacked(listing(mine, home, mined_only), mine, config, home)


def listing(mine: Config, home: Home, mined_only: bool = False) -> list[Unit]:
    """Return the units of the source; ValueError when some are not mined, or none is with `mined_only`.

    Args:
        mine: the mining configuration, which names the source.
        home: holds the records.
        mined_only: return only the mined ones.
    """
    units, mined = units_of(mine, home), _mined(home, mine).whole()
    missing = [unit.path for unit in units if unit.name not in mined]
    if missing and not (mined_only and len(missing) < len(units)):
        names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{len(missing)} of {len(units)} units are not mined ({names}): run mine with this config first"
        )
    return [unit for unit in units if unit.name in mined]


def _unpacked(
    units: list[Unit], mine: Config, config: PackConfig, home: Home, marks: set[str] | None = None
) -> list[Unit]:
    packed, mined = _packed(home, mine, config).whole(), _records(home, mine, config)
    others = _repeats(home, mine, config, units, marks)
    return [
        unit
        for unit in units
        if not _is_current(packed.get(unit.name), mined.get(unit.name), others.get(unit.name, {}))
    ]


def pack_shard(
    mine: Config,
    config: PackConfig,
    home: Home,
    unit: Unit,
    without: dict[str, LeftOut] | None = None,
    report: Report = lambda done: None,
) -> dict[str, Any]:
    """Pack one mined unit into training shards and return its record; the existing record when the unit is done.

    `without` says which images or boxes are left out and why, see pipeline.packing.copies; None computes it.

    The record holds "left_out" (the first copies, as dicts), "marks" (names of the marks that it was packed with),
    "shards" (split to ShardRefs as dicts), "failures" (a table's path, or None), "counts", "scores" (a histogram of the
    parts' scores), "detectors" and "seconds".
    """
    store, records = home.store, _packed(home, mine, config)
    if without is None:
        without = _repeats(home, mine, config, units_of(mine, home)).get(unit.name, {})
    began = time.monotonic()
    mined = _mined(home, mine).record(unit.name)
    if mined is None:
        raise ValueError(f"unit {unit.path} is not mined: run mine with this config first")
    if config.verify.grounder:
        if (other := _verifier(home, mine, config).done(unit.name)) is None:
            raise unverified(config.verify.grounder, [unit.path], 1)
        mined = with_verifier(mined, other)
    done = records.done(unit.name)
    if _is_current(done, mined, without):
        return done
    if done is not None:  # mined again since, with other boxes, or packed when the source had other units
        records.forget(unit.name)
    with open_object(store, mined["detections"]["path"], mined["detections"].get("sha256", "")) as file:
        table = read_detections(file)
    failures: list[Failure] = []
    counts: Counter[str] = Counter(mined_images=len(table["key"].unique()))
    shards: dict[str, list[ShardRef]] = {split: [] for split in SPLITS}
    waiting: dict[str, list[TrainingSample]] = {split: [] for split in SPLITS}
    scores: list[float] = []

    def write(split: str) -> None:
        samples, waiting[split] = waiting[split], []
        made = store.commit(SHARDS, ".tar", lambda file: write_shard(file, samples))
        shards[split].append(shard_ref(made, len(samples), sum(len(sample.parts) for sample in samples)))

    deleted = home.deletions.tombstones()
    as_mined = AsMined(store, unit, mined, table)
    verified = detections_of(store, mined, config) if config.verify.grounder else table
    if refused := refusals(table, verified):
        counts[UNVERIFIED] = refused
    chosen = select_parts(verified, config)
    bad = {key: why.boxes for key, why in without.items() if isinstance(why, LeftOutParts)}
    images = {key: why for key, why in without.items() if key not in bad}
    for key in images:
        chosen.pop(key, None)
    counts.update(
        image_counts(table.filter(~pc.field("key").isin(pa.array(list(images), pa.string()))), config.filters)
    )
    counts.update(why.reason for why in images.values())
    if removed := without_marked(verified, chosen, bad):
        counts[MARKED_PARTS] = removed
    for sample in _training_samples(mine, config, unit, chosen, as_mined, failures, counts, report, deleted):
        split = split_of(sample.key, config.holdout)
        counts.update(
            {"images": 1, f"{split}_images": 1, "captions": len(sample.captions), "parts": len(sample.parts)}
        )
        scores += [part.score for part in sample.parts]
        waiting[split].append(sample)
        if len(waiting[split]) == config.shard_size:
            write(split)
    for split in SPLITS:
        if waiting[split]:
            write(split)
    if home.deletions.number() != deleted.number:  # an image was deleted meanwhile
        return pack_shard(mine, config, home, unit, without, report)
    counts["pack_failures"] = len(failures)
    table_of_failures = None
    if failures:
        made = store.commit(records.objects, ".parquet", lambda file: write_failures(file, failures))
        table_of_failures = made.path
    examples = [
        {"key": key, **dataclasses.asdict(why)}
        for key, why in sorted(without.items())
        if why.reason in (NEAR, CONTAMINATED)
    ][:EXAMPLES]
    marks = sorted(
        [key for key in images if images[key].reason == MARKED] + [n for names in bad.values() for n in names]
    )
    records.commit(
        unit.name,
        {
            "unit": unit.name,
            "path": unit.path,
            "sha256": unit.sha256,
            "detections": mined["detections"]["path"],
            **({"verify": mined["verify"]} if "verify" in mined else {}),
            "shards": {split: [dataclasses.asdict(shard) for shard in shards[split]] for split in SPLITS},
            "failures": table_of_failures,
            "without": marked(without),
            **({"left_out": examples} if examples else {}),
            **({"marks": marks} if marks else {}),
            "counts": {name: n for name, n in counts.items() if n or name != "captions_left_out"},
            "scores": scores_of(scores),
            "detectors": sorted(table["detector"].unique().to_pylist()),
            "seconds": round(time.monotonic() - began, 3),
        },
    )
    record = records.record(unit.name)  # another worker's record, if it was faster
    assert record is not None
    return record


def publish(
    mine: Config,
    config: PackConfig,
    home: Home,
    units: list[Unit] | None = None,
    marks: set[str] | None = None,
) -> Version:
    """Publish the version of all units, or of those given, not yet as `latest`; ValueError if one is not packed.

    `marks` are those that the units were packed with; None for the present ones.
    """
    units = units_of(mine, home) if units is None else units
    packed, mined = _packed(home, mine, config).whole(), _mined(home, mine).records()
    if missing := [unit.path for unit in _unpacked(units, mine, config, home, marks)]:
        raise ValueError(
            f"{len(missing)} of {len(units)} units are not packed ({missing[0]} ...): run pack first"
        )
    shards: dict[str, list[ShardRef]] = {split: [] for split in SPLITS}
    counts: Counter[str] = Counter(
        dict.fromkeys(("images", "captions", "parts", "train_images", "val_images"), 0)
    )
    detectors: set[str] = set()
    for unit in units:
        record = packed[unit.name]
        for split in SPLITS:
            shards[split] += [ShardRef(**shard) for shard in record["shards"][split]]
        counts.update(record["counts"])
        counts["mine_failures"] += mined.get(unit.name, {}).get("failed", 0)
        detectors.update(record["detectors"])
    counts["failures"] = counts["mine_failures"] + counts["pack_failures"]
    if not shards["train"] and not any(mined.get(unit.name, {}).get("phrases", 1) for unit in units):
        raise ValueError(
            f"no noun was found in any caption of {counts['mined_images']} images, so there is nothing to train on: "
            "give captions in the language of the spaCy pipeline (nouns.model), or choose a pipeline for their language"
        )
    left = {name: n for name, n in counts.items() if name.startswith(FILTERED) and n}
    if not shards["train"] and left:
        told = ", ".join(f"{name} {n:,}" for name, n in sorted(left.items()))
        raise ValueError(
            f"no training sample is left to publish: the filters left out {told}: relax pack.filters"
        )
    if not shards["train"] and (copies := counts["near_duplicates"] + counts["contaminated"]):
        raise ValueError(
            f"no training sample is left to publish: {copies} images are left out as copies of each other or of "
            f"evaluation images: lower near_duplicates ({config.near_duplicates}), or exclude other sources "
            f"({', '.join(config.exclude) or 'none'})"
        )
    if not shards["train"] and (away := counts[MARKED] + counts[MARKED_PARTS]):
        raise ValueError(
            f"no training sample is left to publish: {away:,} images and boxes are marked as bad: take marks back at "
            "/marks of hyco serve --marks"
        )
    config_of = {"mine": mine.model_dump(mode="json"), "pack": config.model_dump(mode="json")}
    digests = {"mine": digest(mine), "pack": pack_digest(mine, config)}
    names = [unit.name for unit in units]
    return home.versions.publish(
        config_of, digests, shards, dict(counts), sorted(detectors), latest=False, units=names
    )


def pack_digest(mine: Config, config: PackConfig) -> str:
    """Digest of a packing result: the mining and the packing configuration."""
    return digest({"mine": digest(mine), "pack": digest(config)})


def split_of(key: str, holdout: float) -> str:
    """Return "val" for a fraction `holdout` of all keys and "train" for the rest, by hash."""
    place = int.from_bytes(hashlib.sha256(f"holdout {key}".encode()).digest()[:8], "big") / 2**64
    return "val" if place < holdout else "train"


def units_of(mine: Any, home: Home) -> list[Unit]:
    """Return the units of the source that a MineConfig names, without those that are set aside."""
    return home.shelf.without(open_source(mine.source, mine.limits, mine.columns, home.store).units())


def _look_again(mine: Any, home: Home, gone: list[Unit]) -> None:
    look_again(mine.source, home.store, gone)


def _repeats(
    home: Home, mine: Config, config: PackConfig, units: list[Unit], marks: set[str] | None = None
) -> dict[str, dict[str, LeftOut]]:
    place, near, exclude = _place(mine), config.near_duplicates, config.exclude
    records = _records(home, mine, config)
    return left_out(home, place, units, records, config, config.keep_partless, near, exclude, marks)


def _hashed(mine: Any, config: PackConfig, units: list[Unit]) -> list[tuple[Place, Unit]]:
    """Every unit that has to be hashed: of the source, and of the evaluation sources."""
    beside = [Place(source, mine.limits) for source in config.exclude]
    return [(_place(mine), unit) for unit in units] + [
        (place, unit) for place in beside for unit in evaluation_units(place)
    ]


def _place(mine: Any) -> Place:
    return Place(mine.source, mine.limits, mine.columns)


def _is_current(
    packed: dict[str, Any] | None, mined: dict[str, Any] | None, without: dict[str, LeftOut]
) -> TypeGuard[dict[str, Any]]:
    """Whether a unit was packed from its present detections, and without exactly the images that it must leave out."""
    if packed is None or packed.get("without", "") != marked(without):
        return False
    if mined is None:
        return True
    same = packed.get("detections") in (None, mined["detections"]["path"])
    return same and packed.get("verify") == mined.get("verify")


def _mined(home: Home, mine: Config) -> UnitResults:
    return home.detections(digest(mine))


def _verifier(home: Home, mine: Config, config: PackConfig) -> UnitResults:
    return _mined(home, verifying(mine, config.verify))


def _records(home: Home, mine: Config, config: PackConfig) -> dict[str, dict[str, Any]]:
    """Mining records by unit name, with the verifier's detections where boxes are verified."""
    records = _mined(home, mine).records()
    if not config.verify.grounder:
        return records
    others = _verifier(home, mine, config).records()
    return {name: with_verifier(record, others.get(name)) for name, record in records.items()}


def _check_verified(mine: Any, config: PackConfig, home: Home, units: list[Unit]) -> None:
    """Raise ValueError unless the verifier has mined every unit."""
    if not config.verify.grounder:
        return
    whole = _verifier(home, mine, config).whole()
    if missing := [unit.path for unit in units if unit.name not in whole]:
        raise unverified(config.verify.grounder, missing, len(units))


def _packed(home: Home, mine: Config, config: PackConfig) -> UnitResults:
    return home.packs(pack_digest(mine, config))


def _training_samples(
    mine: Any,
    config: PackConfig,
    unit: Unit,
    chosen: dict[str, list[AcceptedPart]],
    as_mined: AsMined,
    failures: list[Failure],
    counts: Counter[str],
    report: Report,
    deleted: Tombstones,
) -> Iterator[TrainingSample]:
    """Read the unit's images again and cut their parts; images that failed in mining are skipped."""
    source = open_unit(mine.source, unit, mine.limits, mine.columns)
    source.deleted = deleted
    for sample in source.samples(unit, as_mined.note):
        changed = as_mined.check(sample)
        if sample.key not in chosen:
            continue
        report(1)
        if changed:
            failures.append(changed)
            continue
        captions = len(sample.captions)
        sample, parts = without_captions(sample, chosen[sample.key], config.filters)
        if not sample.captions:
            counts[f"{FILTERED}_captions"] += 1
            continue
        if not parts:
            counts["partless"] += 1
            if not config.keep_partless:
                continue
        counts["captions_left_out"] += captions - len(sample.captions)
        try:
            yield _training_sample(sample, parts, config, mine.limits)
        except ImageError as error:
            failures.append(Failure(sample.key, "pack", error.code, str(error)))
    failures += as_mined.rest()


def _training_sample(
    sample: Sample, choices: list[AcceptedPart], config: PackConfig, limits: Limits
) -> TrainingSample:
    pixels = decode(sample.image, limits.max_pixels, limits.max_bytes)
    crops: dict[tuple[float, ...], bytes] = {}  # several captions often refer to one box
    for box in {choice.box for choice in choices}:
        crops[box] = encode_jpeg(crop_box(pixels, box, config.image_size, by=config.resize), config.quality)
    parts = tuple(_part(crops[choice.box], choice) for choice in choices)
    whole = sample.image
    if min(pixels.shape[:2]) > config.image_size or not is_plain_jpeg(whole):
        whole = encode_jpeg(shrink_to_short_side(pixels, config.image_size, config.resize), config.quality)
    return TrainingSample(sample.key, whole, sample.captions, parts, sample.meta)


def _part(crop: bytes, choice: AcceptedPart) -> Part:
    where = (choice.box, choice.score, choice.span, choice.caption)
    return Part(crop, choice.phrase, *where, choice.rule, choice.origin)
