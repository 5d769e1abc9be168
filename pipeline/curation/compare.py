"""Two dataset versions side by side: configuration, counts, images and parts that came and went, phrases, scores.

Shards that both versions name are equal and are not read.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hyco.pipeline.curation.describe import differences
from hyco.pipeline.packing.dataset_gate import SCORE_BINS, score_histogram
from hyco.storage.home import Home
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.versions import ShardRef, Version, read_ref

PHRASES = 20
_Told = tuple[str, tuple[str, ...], frozenset[tuple[Any, ...]]]


@dataclass(slots=True)
class Side:
    """What one version has and the other lacks.

    Attributes:
        version: that version.
        keys: its images that the other lacks.
        parts: number of parts that the other lacks, of all images.
        images: the first of these images, whole.
        crops: the first of these parts of images that both have, with the image's key.
        scores: histogram of the version's accepted boxes, [SCORE_BINS].
    """

    version: Version
    keys: list[str] = field(default_factory=list)
    parts: int = 0
    images: list[TrainingSample] = field(default_factory=list)
    crops: list[tuple[str, Part]] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(SCORE_BINS))


@dataclass(frozen=True, slots=True)
class Difference:
    """The comparison of two versions.

    Attributes:
        went: what only the first has.
        came: what only the second has.
        configuration: the options in which they differ, by dotted name.
        counts: every count of either, by name: in the first and in the second.
        kept: number of images in both.
        changed: how many of them have another split, other captions or other parts.
        phrases: (phrase, change of its number of parts) of the largest changes.
        shared: number of shards that both name; they were not read.
    """

    went: Side
    came: Side
    configuration: dict[str, tuple[Any, Any]]
    counts: dict[str, tuple[int, int]]
    kept: int
    changed: int
    phrases: list[tuple[str, int]]
    shared: int


def compare(home: Home, a: str, b: str, examples: int = 0) -> Difference:
    """Compare two versions by name; ValueError when there is no such version.

    Args:
        home: holds them.
        a: the first, as `hyco versions` names it.
        b: the second.
        examples: maximum number of images and of parts kept for each side, in the order of the shards.

    Raises:
        DamagedError: a shard that only one of them names is missing or has changed.
    """
    went, came = Side(present(home, home.versions.load(a))), Side(present(home, home.versions.load(b)))
    before = dict(_read(home, went.version, came.version))
    phrases: Counter[str] = Counter()
    for _, _, parts in before.values():
        phrases.subtract(phrase for phrase, *_ in parts)
    changed, seen = 0, set[str]()
    for split, sample in _samples(home, came.version, went.version):
        told, old = _told(split, sample), before.get(sample.key)
        seen.add(sample.key)
        phrases.update(phrase for phrase, *_ in told[2])
        changed += old is not None and old != told
        _note(came, sample, None if old is None else old[2], examples)
    went.keys = [key for key in before if key not in seen]
    if went.keys or changed:
        after = {key: parts for key, (_, _, parts) in _read(home, came.version, went.version)}
        for _, sample in _samples(home, went.version, came.version):
            _note(went, sample, after.get(sample.key), examples, listed=True)
    for side in (went, came):
        side.scores = score_histogram(home, side.version)
    first, second = went.version.counts, came.version.counts
    images = sum(ref.samples for refs in went.version.shards.values() for ref in refs)
    return Difference(
        went, came, differences(went.version, came.version),
        {name: (first.get(name, 0), second.get(name, 0)) for name in {**first, **second}},
        images - len(went.keys), changed,
        sorted(((p, n) for p, n in phrases.items() if n), key=lambda item: (-abs(item[1]), item[0]))[:PHRASES],
        len(_shards(went.version) & _shards(came.version)),
    )  # fmt: skip


def present(home: Home, version: Version) -> Version:
    """The version with the shards that are left of it after deletions; counts stay as they were published."""
    erased = home.deletions.hashes()
    if not home.versions.superseded(version, erased):
        return version
    shards: dict[str, list[ShardRef]] = {}
    for split, refs in version.shards.items():
        heirs = [home.deletions.heir(ref.path)[0] if ref.sha256 in erased else asdict(ref) for ref in refs]
        shards[split] = [ShardRef(**heir) for heir in heirs if heir]
    return replace(version, shards=shards)


def _shards(version: Version) -> set[str]:
    return {ref.sha256 for refs in version.shards.values() for ref in refs}


def _samples(home: Home, version: Version, other: Version) -> Iterator[tuple[str, TrainingSample]]:
    """The split and the samples of the shards that the other version does not have in the same split."""
    for split, refs in version.shards.items():
        there = {ref.sha256 for ref in other.shards.get(split, [])}
        for ref in refs:
            if ref.sha256 not in there:
                yield from ((split, sample) for sample in _each(home, ref))


def _each(home: Home, ref: ShardRef) -> Iterator[TrainingSample]:
    yield from read_ref(home.store, ref)


def _read(home: Home, version: Version, other: Version) -> Iterator[tuple[str, _Told]]:
    for split, sample in _samples(home, version, other):
        yield sample.key, _told(split, sample)


def _told(split: str, sample: TrainingSample) -> _Told:
    return split, sample.captions, frozenset(map(_identity, sample.parts))


def _identity(part: Part) -> tuple[Any, ...]:
    """What makes a part the same in two versions; not its pixels, which depend on size and quality."""
    box = (None if math.isnan(side) else round(side, 5) for side in part.box)
    return (part.phrase, *box, part.caption, *part.span)


def _note(
    side: Side,
    sample: TrainingSample,
    other: frozenset[tuple[Any, ...]] | None,
    examples: int,
    listed: bool = False,
) -> None:
    """Count a sample and its parts that the other version (with the parts `other` of it) lacks; keep the first ones."""
    if other is None:
        side.parts += len(sample.parts)
        if not listed:
            side.keys.append(sample.key)
        if len(side.images) < examples:
            side.images.append(sample)
        return
    for part in sample.parts:
        if _identity(part) not in other:
            side.parts += 1
            if len(side.crops) < examples:
                side.crops.append((sample.key, part))


def as_json(found: Difference) -> dict[str, Any]:
    """A difference as plain values, without pictures."""
    sides = {name: getattr(found, name) for name in ("went", "came")}
    return {
        "a": found.went.version.name,
        "b": found.came.version.name,
        "configuration": {name: list(values) for name, values in found.configuration.items()},
        "counts": {name: list(values) for name, values in found.counts.items()},
        **{
            name: {"images": len(side.keys), "parts": side.parts, "keys": side.keys}
            for name, side in sides.items()
        },
        "kept": found.kept,
        "changed": found.changed,
        "phrases": dict(found.phrases),
        "scores": {name: side.scores.astype(int).tolist() for name, side in sides.items()},
        "shared_shards": found.shared,
    }


def lines(found: Difference) -> Iterator[str]:
    """A difference in lines for a person."""
    a, b = found.went, found.came
    yield f"{a.version.name} -> {b.version.name}"
    for name, (first, second) in found.configuration.items():
        yield f"option   {name}: {first} -> {second}"
    for name, (first, second) in found.counts.items():
        if first != second:
            yield f"count    {name.replace('_', ' ')}: {first:,} -> {second:,} ({second - first:+,})"
    both = f"{found.kept:,} in both, {found.changed:,} of them changed"
    yield f"images   {len(b.keys):,} came, {len(a.keys):,} went, {both}"
    yield f"parts    {b.parts:,} came, {a.parts:,} went"
    for phrase, change in found.phrases:
        yield f"phrase   {change:+,}  {phrase}"
    bins = len(a.scores)
    for place in np.flatnonzero(a.scores + b.scores):
        low, high = place / bins, (place + 1) / bins
        yield f"score    {low:.2f} to {high:.2f}: {int(a.scores[place]):,} -> {int(b.scores[place]):,} boxes"
