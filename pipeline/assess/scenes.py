"""What a model is asked about: scenes with their captions, parts and labels, and the points it gives them.

Held-out labelled sources name their parts by ground-truth boxes ("objects" of the source layout); the val
split of a dataset version has the parts that were mined, already cut out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.assess.data import Embedder, Report, whole
from pipeline.assess.geometry import Points
from pipeline.assess.retrieval import Pairing, same_text
from pipeline.crop import crop_box, letterbox
from pipeline.images import ImageError, decode
from storage.sample import Sample, TrainingSample

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Region:
    """One part of a scene: its phrases, each with the index of its caption, and its box or packed crop."""

    phrases: tuple[tuple[str, int], ...]
    box: Box | None = None
    image: bytes | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One image; `labels` are the kinds of thing in it, None where nobody says."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    labels: tuple[str, ...] | None = None

    @classmethod
    def of_sample(cls, sample: Sample) -> "Scene":
        """From a source: parts and labels as its json says, entries without phrase and box passed over."""
        found = []
        objects = sample.meta.get("objects")
        for item in objects if isinstance(objects, list) else ():
            box = _box(item.get("box")) if isinstance(item, dict) else None
            if box and isinstance(item.get("phrase"), str) and item["phrase"].strip():
                found.append((box, None, item["phrase"], item.get("caption")))
        return cls(sample.key, sample.image, sample.captions, _merge(found), _labels(sample.meta))

    @classmethod
    def of_training(cls, sample: TrainingSample) -> "Scene":
        """From a packed shard: the mined parts."""
        found = [
            (_box(p.box) or (index,), p.image, p.phrase, p.caption) for index, p in enumerate(sample.parts)
        ]
        return cls(sample.key, sample.image, sample.captions, _merge(found), _labels(sample.meta))


def _box(value: Any) -> Box | None:
    """Four finite numbers in order, rounded so that the same box from two captions is one part; else None."""
    try:
        x0, y0, x1, y1 = (round(float(v), 4) for v in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 2 else None


def _labels(meta: dict[str, Any]) -> tuple[str, ...] | None:
    labels = meta.get("labels")
    return tuple(map(str, labels)) if isinstance(labels, list) and labels else None


def _merge(found: Iterable[tuple[tuple, bytes | None, str, Any]]) -> tuple[Region, ...]:
    regions: dict[tuple, Region] = {}
    for box, image, phrase, caption in found:
        entry = (phrase, caption if isinstance(caption, int) else -1)
        known = regions.get(box) or Region((), box if len(box) == 4 else None, image)
        regions[box] = replace(known, phrases=(*known.phrases, entry))
    return tuple(regions.values())


def limit_regions(scenes: Sequence[Scene], most: int, seed: int) -> list[Scene]:
    """The scenes with at most `most` regions in all, drawn at random from the seed; order kept."""
    count = np.cumsum([0, *(len(scene.regions) for scene in scenes)])
    if count[-1] <= most:
        return list(scenes)
    kept = set(np.random.default_rng(seed).choice(int(count[-1]), most, replace=False).tolist())
    return [
        replace(scene, regions=tuple(r for n, r in enumerate(scene.regions) if int(start) + n in kept))
        for scene, start in zip(scenes, count, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Scenes and the points of everything in them. `scene_of_crop` [P]; phrases pairs crops with phrases."""

    scenes: tuple[Scene, ...]
    images: Float[Tensor, "B D"]
    captions: Pairing
    texts: Float[Tensor, "K D"]
    crops: Float[Tensor, "P D"]
    scene_of_crop: Int[np.ndarray, " P"]
    phrases: Pairing
    phrase_points: Float[Tensor, "Q D"]
    phrase_caption: Int[np.ndarray, "M 2"]  # (phrase, caption it is from), indices of distinct texts
    undecodable: int

    def nodes(self) -> dict[str, Points]:
        """The four node types for the geometry report."""
        return {
            "image": Points(self.images, np.arange(len(self.images))),
            "text": Points(self.texts, self.captions.text),
            "image_box": Points(self.crops, np.arange(len(self.crops))),
            "text_box": Points(self.phrase_points, self.phrases.text),
        }

    def pairs(self) -> dict[tuple[str, str], Int[np.ndarray, "N 2"]]:
        """True (general, specific) pairs of the four entailments, and the captions' whole."""
        crop = np.arange(len(self.crops))
        return {
            ("text", "image"): np.stack([self.captions.text, self.captions.image], 1),
            ("text_box", "image_box"): np.stack([self.phrases.text, self.phrases.image], 1),
            ("image_box", "image"): np.stack([crop, self.scene_of_crop], 1),
            ("text_box", "text"): self.phrase_caption,
        }


def embed(embedder: Embedder, scenes: Iterable[Scene], report: Report = lambda n: None) -> Embedded:
    """Embed scenes and all that is in them; each image is decoded once, those that cannot be are counted.

    `report` is told of each image and of each batch of texts (see `work`). ValueError when no image is left.
    """
    good: list[Scene] = []
    regions: list[tuple[int, Region]] = []
    images, crops = [torch.zeros(0, embedder.model.config.dim, device=embedder.device)], []
    crops.append(images[0])
    pending: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    undecodable = 0

    def flush(least: int) -> None:
        for queue, out in zip(pending, (images, crops), strict=True):
            if len(queue) >= least:
                out.append(embedder.encode_pixels(queue))
                queue.clear()

    for scene in scenes:
        try:
            array = decode(scene.image)
            cut = [_cut(array, region, embedder.size) for region in scene.regions]
        except ImageError:
            undecodable += 1
            report(1)
            continue
        pending[0].append(whole(array, embedder.size))
        pending[1].extend(cut)
        regions += [(len(good), region) for region in scene.regions]
        good.append(scene)
        flush(embedder.batch_size)
        report(1)
    flush(1)
    if not good:
        raise ValueError(f"none of the {undecodable} images to assess on can be decoded: give another source")
    captions = Pairing.of([scene.captions for scene in good])
    phrases = Pairing.of([[phrase for phrase, _ in region.phrases] for _, region in regions])
    # A text that is both a caption and a phrase is embedded once: two points of it, equal up to rounding, would
    # have an exterior angle made of rounding alone.
    texts = {same_text(text): text for text in (*phrases.texts, *captions.texts)}
    place = {name: n for n, name in enumerate(texts)}
    points = embedder.encode_text(list(texts.values()), report)
    return Embedded(
        tuple(good),
        torch.cat(images),
        captions,
        points[[place[same_text(text)] for text in captions.texts]],
        torch.cat(crops),
        np.array([scene for scene, _ in regions], np.int64),
        phrases,
        points[[place[same_text(text)] for text in phrases.texts]],
        _phrase_captions(good, regions, captions, phrases),
        undecodable,
    )


def work(scenes: Sequence[Scene]) -> int:
    """How much `embed` will report: images and distinct texts."""
    captions = {same_text(caption) for scene in scenes for caption in scene.captions}
    parts = (region for scene in scenes for region in scene.regions)
    phrases = {same_text(phrase) for region in parts for phrase, _ in region.phrases}
    return len(scenes) + len((captions | phrases) - {""})


def _cut(array: np.ndarray, region: Region, size: int) -> np.ndarray:
    if region.image is not None:
        return letterbox(decode(region.image), size)
    assert region.box is not None, "a region has a crop or a box"
    return crop_box(array, region.box, size)


def _phrase_captions(
    scenes: Sequence[Scene], regions: Sequence[tuple[int, Region]], captions: Pairing, phrases: Pairing
) -> Int[np.ndarray, "M 2"]:
    caption_index = {same_text(text): n for n, text in enumerate(captions.texts)}
    phrase_index = {same_text(text): n for n, text in enumerate(phrases.texts)}
    found = []
    for owner, region in regions:
        own = scenes[owner].captions
        for phrase, caption in region.phrases:
            if 0 <= caption < len(own) and same_text(own[caption]) and same_text(phrase):
                found.append((phrase_index[same_text(phrase)], caption_index[same_text(own[caption])]))
    return np.array(found, np.int64).reshape(-1, 2)
