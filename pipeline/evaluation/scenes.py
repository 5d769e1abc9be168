"""Scenes for an evaluation: images with captions, parts, labels and foils.

Held-out labelled sources name their parts by ground-truth boxes ("objects" of the source layout); the val
split of a dataset version has the parts that were mined, already cut out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyco.pipeline.evaluation.metrics.retrieval import same_text
from hyco.pipeline.sources.records import Box, box_of, objects_of
from hyco.storage.sample import Sample, TrainingSample


@dataclass(frozen=True, slots=True)
class Region:
    """One part of a scene: its phrases, each with the index of its caption, and its box or packed crop.

    `label` is the kind of thing in it, None where it is unknown.
    """

    phrases: tuple[tuple[str, int], ...]
    box: Box | None = None
    image: bytes | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Foil:
    """A false sentence made from the caption of that index by a change of a kind, such as "color"."""

    kind: str
    caption: int
    text: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One image; `labels` are the kinds of thing in it, None where they are unknown.

    `entries` counts the objects and foils of its json, `odd` those of them that are invalid.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    labels: tuple[str, ...] | None = None
    foils: tuple[Foil, ...] = ()
    entries: int = 0
    odd: int = 0

    @classmethod
    def of_sample(cls, sample: Sample) -> "Scene":
        """From a source: parts and labels of its json; entries without phrase and box are `odd`."""
        found = [
            (box, None, item["phrase"], item.get("caption"), item.get("leaf"))
            for item in objects_of(sample.meta) or ()
            if (box := box_of(item["box"]))
        ]
        return cls._of(sample, found)

    @classmethod
    def of_training(cls, sample: TrainingSample) -> "Scene":
        """From a packed shard: the mined parts."""
        found = [
            (box_of(p.box) or (index,), p.image, p.phrase, p.caption, None)
            for index, p in enumerate(sample.parts)
        ]
        return cls._of(sample, found)

    @classmethod
    def _of(cls, sample: Sample | TrainingSample, found: Iterable["Found"]) -> "Scene":
        foils, found = _foils(sample.meta, sample.captions), list(found)
        entries = _count(sample.meta, "foils")
        odd = entries - len(foils)
        if isinstance(
            sample, Sample
        ):  # the parts of a packed scene come from mining, its objects do not count
            objects = _count(sample.meta, "objects")
            entries, odd = entries + objects, odd + objects - len(found)
        labels = _labels(sample.meta)
        return cls(sample.key, sample.image, sample.captions, _merge(found), labels, foils, entries, odd)


Found = tuple[tuple, bytes | None, str, Any, Any]  # box or number, crop, phrase, caption, label


def _count(meta: dict[str, Any], name: str) -> int:
    """Number of entries of a list in the json; a value that is not a list counts as one invalid entry."""
    value = meta.get(name)
    return len(value) if isinstance(value, list) else int(value is not None)


def _labels(meta: dict[str, Any]) -> tuple[str, ...] | None:
    labels = meta.get("labels")
    return tuple(map(str, labels)) if isinstance(labels, list) and labels else None


def _foils(meta: dict[str, Any], captions: Sequence[str]) -> tuple[Foil, ...]:
    """From "foils" of the json; incomplete entries are left out and counted by `Scene.odd`."""
    found = meta.get("foils")
    return tuple(
        Foil(str(item["kind"]), item["caption"], item["foil"])
        for item in (found if isinstance(found, list) else ())
        if isinstance(item, dict)
        and {"kind", "caption", "foil"} <= item.keys()
        and isinstance(item["caption"], int)
        and 0 <= item["caption"] < len(captions)
        and isinstance(item["foil"], str)
        and same_text(item["foil"])
        and same_text(captions[item["caption"]])
    )


def _merge(found: Iterable[Found]) -> tuple[Region, ...]:
    regions: dict[tuple, Region] = {}
    for box, image, phrase, caption, label in found:
        entry = (phrase, caption if isinstance(caption, int) else -1)
        label = label if isinstance(label, str) else None
        known = regions.get(box) or Region((), box if len(box) == 4 else None, image, label)
        regions[box] = replace(known, phrases=(*known.phrases, entry))
    return tuple(regions.values())


def limit_regions(scenes: Sequence[Scene], most: int, seed: int) -> list[Scene]:
    """The scenes with at most `most` regions in all, drawn at random by the seed, in the same order."""
    count = np.cumsum([0, *(len(scene.regions) for scene in scenes)])
    if count[-1] <= most:
        return list(scenes)
    kept = set(np.random.default_rng(seed).choice(int(count[-1]), most, replace=False).tolist())
    return [
        replace(scene, regions=tuple(r for n, r in enumerate(scene.regions) if int(start) + n in kept))
        for scene, start in zip(scenes, count[:-1], strict=True)
    ]
