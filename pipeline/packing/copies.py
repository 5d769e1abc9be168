"""Images that a packing leaves out: another one has the same content or looks the same, or they evaluate models.

Those for which the condition on the source's columns is not true (FilterConfig.where) are left out first, so that
their copies are not left out for their sake.

Exact repetitions are found by content key (pipeline.packing.repeats), near ones by perceptual hash
(pipeline.imaging.perceptual_hash): PackConfig.near_duplicates, and PackConfig.exclude for evaluation sources.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyco.pipeline.imaging.perceptual_hash import near_pairs
from hyco.pipeline.packing.filters import FILTERED
from hyco.pipeline.packing.image_hashes import Hashes, Place, evaluation_units, hashes_of
from hyco.pipeline.packing.repeats import detections_of, mark, repeats, usable_keys
from hyco.pipeline.packing.select_parts import SelectionConfig
from hyco.pipeline.packing.source_columns import refused as refused_by
from hyco.pipeline.sources.source import Unit
from hyco.storage.home import Home

REPEATED, NEAR, CONTAMINATED = "repeated", "near_duplicates", "contaminated"
WHERE = f"{FILTERED}_where"
"""Reasons, and the names of their counts."""
REASONS = (REPEATED, NEAR, CONTAMINATED, WHERE)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why an image is left out.

    Attributes:
        reason: one of REASONS.
        name: of the image in its source; "" for a repeated one.
        of: the image it is a copy of, by its name in its source, after the evaluation source where it lies there.
        bits: number of differing bits of the hashes; 0 for equal bytes.
    """

    reason: str
    name: str = ""
    of: str = ""
    bits: int = 0


def left_out(
    home: Home,
    place: Place,
    units: list[Unit],
    records: dict[str, dict[str, Any]],
    config: SelectionConfig,
    partless: bool,
    near: int | None,
    exclude: tuple[str, ...],
) -> dict[str, dict[str, LeftOut]]:
    """Return by unit name the images that it must not pack, by key; units without any are left out.

    Depends only on the mining results, the hashes and the order of the units. Of near copies the first that can be used
    is kept; a copy of a copy that was left out is not left out for its sake.

    Args:
        home: holds detections and hashes; an image without a hash is compared by its bytes alone.
        place: how the units are read.
        units: of the source, in order.
        records: mining records by unit name.
        config: the rules by which boxes are selected.
        partless: whether images without parts are packed.
        near: maximum number of differing bits of a copy; None looks for equal bytes only.
        exclude: evaluation sources.
    """
    refused = refused_by(home, place, units, config.filters.where)
    others = repeats(home.store, units, records, config, partless, refused)
    found = {
        name: {key: LeftOut(WHERE, named) for key, named in keys.items()} for name, keys in refused.items()
    }
    for name, keys in others.items():
        found.setdefault(name, {}).update({key: LeftOut(REPEATED) for key in keys})
    if near is None and not exclude:
        return {name: keys for name, keys in found.items() if keys}
    images = _images(home, place, units, records, found)
    _contaminated(home, place, images, near, exclude, found)
    if near is not None:
        _near(home, images, records, config, partless, near, found)
    return {name: keys for name, keys in found.items() if keys}


def marked(keys: dict[str, LeftOut]) -> str:
    """Digest of the images that a unit leaves out, for a pack record; of repeated ones alone as in older records."""
    if all(why.reason == REPEATED for why in keys.values()):
        return mark(sorted(keys))
    text = " ".join(f"{key}:{why.reason}" for key, why in sorted(keys.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of all units that are not repeated: unit, key, name and hash of each, in order."""

    units: list[str]
    held: Hashes


def _images(
    home: Home,
    place: Place,
    units: list[Unit],
    records: dict[str, dict[str, Any]],
    found: dict[str, dict[str, LeftOut]],
) -> _Images:
    hashed = hashes_of(home, place, units)
    owners, keys, names, values = [], [], [], [np.zeros((0, 32), np.uint8)]
    for unit in units:
        if unit.name not in hashed or unit.name not in records:
            continue
        one, gone = hashed[unit.name], found.get(unit.name, {})
        kept = [n for n, key in enumerate(one.keys) if key not in gone]
        owners += [unit.name] * len(kept)
        keys += [one.keys[n] for n in kept]
        names += [one.names[n] for n in kept]
        values.append(one.values[kept])
    return _Images(owners, Hashes(keys, names, np.concatenate(values)))


def _contaminated(
    home: Home,
    place: Place,
    images: _Images,
    near: int | None,
    exclude: tuple[str, ...],
    found: dict[str, dict[str, LeftOut]],
) -> None:
    """Note the images that are in an evaluation source, or look like one there."""
    for source in exclude:
        beside = Place(source, place.limits)
        for held in hashes_of(home, beside, evaluation_units(beside)).values():
            names = dict(zip(held.keys, held.names, strict=True))
            for owner, key, name in zip(images.units, images.held.keys, images.held.names, strict=True):
                if key in names:
                    why = LeftOut(CONTAMINATED, name, f"{source}: {names[key]}")
                    found.setdefault(owner, {}).setdefault(key, why)
            if near is None:
                continue
            for i, j, bits in near_pairs(images.held.values, held.values, near):
                why = LeftOut(CONTAMINATED, images.held.names[i], f"{source}: {held.names[j]}", bits)
                found.setdefault(images.units[i], {}).setdefault(images.held.keys[i], why)


def _near(
    home: Home,
    images: _Images,
    records: dict[str, dict[str, Any]],
    config: SelectionConfig,
    partless: bool,
    near: int,
    found: dict[str, dict[str, LeftOut]],
) -> None:
    """Note the images that look like an earlier one that is kept."""
    held = images.held
    pairs = list(near_pairs(held.values, held.values, near, earlier=True))
    suspects = defaultdict[str, set[str]](set)
    for i, j, _ in pairs:
        for n in (i, j):
            suspects[images.units[n]].add(held.keys[n])
    usable = {
        (unit, key)
        for unit, keys in suspects.items()
        for key, good in usable_keys(detections_of(home.store, records[unit]), keys, config, partless).items()
        if good and key not in found.get(unit, {})
    }
    dropped = set[int]()
    for i, j, bits in sorted(pairs):
        good = (images.units[i], held.keys[i]) in usable and (images.units[j], held.keys[j]) in usable
        if good and i not in dropped and j not in dropped:
            dropped.add(i)
            why = LeftOut(NEAR, held.names[i], held.names[j], bits)
            found.setdefault(images.units[i], {})[held.keys[i]] = why
