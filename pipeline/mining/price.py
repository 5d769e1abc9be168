"""The price of a mining run before it starts: new images, detector calls, hours at the measured rate, bytes.

Units that are mined cost nothing. New units are read and their captions parsed, as mining does, until some seconds have
passed; the others are estimated from these by their bytes. Nothing is mined, and no detector is loaded.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.compute

from hyco.pipeline.mining.grounder import SOURCE
from hyco.pipeline.mining.known_detections import KnownDetections, phrases_to_ask
from hyco.pipeline.mining.mine import MineConfig, busy_seconds, done_units, results
from hyco.pipeline.mining.noun_phrases import NounExtractor
from hyco.pipeline.sources.source import Source, Unit, UnitGoneError, open_source
from hyco.storage.home import Home
from hyco.storage.summary import total

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

_AT_ONCE = 128  # images whose captions are parsed together
_SIZES = 32  # detections files whose size is looked up


@dataclass(frozen=True, slots=True)
class Price:
    """What a run would do.

    Attributes:
        units: of the source.
        units_new: those that are not mined.
        units_read: those of the new ones that were read for this; the others are estimated.
        bytes_to_read: of the new units' files, and of the images that they name.
        bytes_to_write: of their detections, at the mean size of those that are there; None when there are none.
        images_new: good samples in the new units.
        images_known: of them, those whose detections are taken over.
        detector_images: of them, those that the detector is shown.
        images_per_second: rate at which this detector was shown images so far, all workers together; None when it has
            not been used in this home, the boxes are those of the source, or nothing is new.
        hours: detector_images at this rate; None without a rate.
    """

    units: int
    units_new: int
    units_read: int
    bytes_to_read: int
    bytes_to_write: int | None
    images_new: int
    images_known: int
    detector_images: int
    images_per_second: float | None
    hours: float | None

    @property
    def estimated(self) -> bool:
        """Whether some of the new units were not read."""
        return self.units_read < self.units_new


def price(config: MineConfig, home: Home, seconds: float = 20.0) -> Price:
    """Return the price of mining what is not mined.

    Args:
        config: names source, detector and rules.
        home: holds what was mined before.
        seconds: time for reading new units; at least one is read.
    """
    mined = results(config, home)
    source = open_source(config.source, config.limits, config.columns, home.store)
    units = source.units()
    records = mined.summary()
    done = done_units(mined, records)
    new = [unit for unit in units if unit.name not in done]
    known = KnownDetections(home, mined, config.model_dump(mode="json"))
    sizes = {unit.name: source.size_of(unit) for unit in new}
    read, images, asked, taken = _read(config, source, new, known, seconds)
    every, some = sum(sizes.values()), sum(sizes[unit.name] for unit in read)
    scale = every / some if some else 1.0
    rate = _rate(known) if new and config.grounder != SOURCE else None
    shown = round(asked * scale)
    return Price(
        units=len(units),
        units_new=len(new),
        units_read=len(read),
        bytes_to_read=every,
        bytes_to_write=_to_write(home, records, round(images * scale)),
        images_new=round(images * scale),
        images_known=round(taken * scale),
        detector_images=shown,
        images_per_second=round(rate, 3) if rate else None,
        hours=round(shown / rate / 3600, 4) if rate else None,
    )


def lines(found: Price) -> list[str]:
    """Return a price as lines for a person."""
    new = f"{found.units - found.units_new:,} units are mined, {found.units_new:,} are new"
    told = [f"source    {new} ({found.bytes_to_read / 1e6:,.1f} MB to read)"]
    if not found.units_new:
        return told
    how = f", estimated from {found.units_read:,} of the new units" if found.estimated else ""
    told.append(f"images    {found.images_new:,} in the new units, {found.images_known:,} of them known{how}")
    if found.images_per_second is None:
        rate = "no rate was measured in this home: mine a little first"
    else:
        rate = f"{found.hours:,.2f} hours at {found.images_per_second:,.2f} images/s as measured in this home"
    told.append(f"detector  {found.detector_images:,} images, {rate}")
    if found.bytes_to_write is not None:
        told.append(f"writes    {found.bytes_to_write / 1e6:,.1f} MB of detections")
    return told


def _read(
    config: MineConfig, source: Source, new: list[Unit], known: KnownDetections, seconds: float
) -> tuple[list[Unit], int, int, int]:
    """Read new units for a while; return them and their numbers of images: all, to be shown, known."""
    deadline, read = time.monotonic() + seconds, list[Unit]()
    images = asked = taken = 0
    extractor, detector = None, ""
    if new and config.grounder != SOURCE:
        known.refresh()
        known.look()
        extractor, detector = NounExtractor(config.nouns), known.detector(config.weights)
    seen: set[int] = set()
    for unit in new:
        if read and time.monotonic() > deadline:
            break
        waiting: list[tuple[str, tuple[str, ...]]] = []
        try:
            for sample in source.samples(unit, lambda failure: None):
                images += 1
                if extractor is not None:
                    waiting.append(
                        (hashlib.sha256(sample.image).hexdigest(), sample.captions[: config.max_captions])
                    )
        except (UnitGoneError, ValueError, OSError):
            continue  # mining names it
        read.append(unit)
        for first in range(0, len(waiting), _AT_ONCE):
            part = waiting[first : first + _AT_ONCE]
            assert extractor is not None
            phrases = iter(extractor([caption for _, captions in part for caption in captions]))
            wanted = [(image, phrases_to_ask([next(phrases) for _ in captions])) for image, captions in part]
            for key, there in known.among(detector, wanted):
                taken += there or key in seen
                asked += not (there or key in seen)
                seen.add(key)
    return read, images, asked, taken


def _rate(known: KnownDetections) -> float | None:
    """Return the images per second that the detector was shown in the home, by the mining closest to this one."""
    for folder in known.folders():
        rows = folder.summary()
        rows = rows.filter(pc.is_valid(rows["started"]))
        shown = total(rows, "images") - total(rows, "reused")
        if shown > 0 and (busy := busy_seconds(rows)):
            return shown / busy
    return None


def _to_write(home: Home, records: Any, images: int) -> int | None:
    some = records.slice(0, _SIZES)
    paths, mined = [path for path in some["detections"].to_pylist() if path], total(some, "images")
    try:
        return round(sum(home.store.size(path) for path in paths) / mined * images) if mined else None
    except FileNotFoundError:  # collected meanwhile
        return None
