"""Scenes and the model's embeddings of their images, captions, parts and phrases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.pipeline.embedder import Embedder, Report, whole
from hyco.pipeline.evaluation.metrics.geometry import Points
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, same_text
from hyco.pipeline.evaluation.scenes import Region, Scene
from hyco.pipeline.imaging.crop import crop_box, letterbox
from hyco.pipeline.imaging.decode import ImageError, decode


@dataclass(frozen=True, slots=True)
class Embedded:
    """Scenes and the points of their images, texts and parts.

    Attributes:
        captions: pairs images with captions, `texts` are their points.
        crops: of the parts; `scene_of_crop` and `label_of_crop` are their scene and class (None: unknown).
        phrases: pairs crops with phrases, `phrase_points` are their points.
        phrase_caption: (phrase, its caption), indices of distinct texts.
        foils: (image, caption, foil), indices of distinct texts; `foil_kinds` names the change.
    """

    scenes: tuple[Scene, ...]
    images: Float[Tensor, "B D"]
    captions: Pairing
    texts: Float[Tensor, "K D"]
    crops: Float[Tensor, "P D"]
    scene_of_crop: Int[np.ndarray, " P"]
    phrases: Pairing
    phrase_points: Float[Tensor, "Q D"]
    phrase_caption: Int[np.ndarray, "M 2"]
    label_of_crop: tuple[str | None, ...]
    foils: Int[np.ndarray, "F 3"]
    foil_kinds: tuple[str, ...]
    foil_points: Float[Tensor, "L D"]
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
    """Embed scenes and their contents; each image is decoded once, undecodable ones are counted.

    `report` is called for each image and each batch of texts (see `work`). ValueError when no image is left.
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
            cut = [cut_region(array, region, embedder.size) for region in scene.regions]
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
    untrue = Pairing.of([[foil.text for foil in scene.foils] for scene in good])
    # A text that is both caption and phrase is embedded once: two points, equal up to rounding, would
    # have an exterior angle that is only rounding error.
    texts = {same_text(text): text for text in (*phrases.texts, *captions.texts, *untrue.texts)}
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
        tuple(region.label for _, region in regions),
        _foils(good, captions, untrue),
        tuple(foil.kind for scene in good for foil in scene.foils),
        points[[place[same_text(text)] for text in untrue.texts]],
        undecodable,
    )


def work(scenes: Sequence[Scene]) -> int:
    """The total that `embed` reports: images and distinct texts."""
    captions = {same_text(caption) for scene in scenes for caption in scene.captions}
    parts = (region for scene in scenes for region in scene.regions)
    phrases = {same_text(phrase) for region in parts for phrase, _ in region.phrases}
    foils = {same_text(foil.text) for scene in scenes for foil in scene.foils}
    return len(scenes) + len((captions | phrases | foils) - {""})


def cut_region(array: np.ndarray, region: Region, size: int) -> np.ndarray:
    """The input image of a part: its packed crop, or its box cropped from the image, letterboxed."""
    if region.image is not None:
        return letterbox(decode(region.image), size)
    assert region.box is not None, "a region has a crop or a box"
    return crop_box(array, region.box, size)


def _foils(scenes: Sequence[Scene], captions: Pairing, foils: Pairing) -> Int[np.ndarray, "F 3"]:
    number = {same_text(text): n for n, text in enumerate(captions.texts)}
    said = [number[same_text(scene.captions[foil.caption])] for scene in scenes for foil in scene.foils]
    return np.stack([foils.image, np.array(said, np.int64), foils.text], 1)


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
