"""One view of a sample: a random caption, random parts of it, random crops. The random generator is an argument."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field, ValidationInfo, field_validator

from hyco.pipeline.config import Config
from hyco.pipeline.imaging.crop import letterbox
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.imaging.resize import Box, cut_and_resize
from hyco.storage.sample import Part, TrainingSample

Range = tuple[float, float]
Strength = Annotated[float, Field(ge=0)]
HueShift = Annotated[float, Field(ge=0, le=0.5)]


class DataConfig(Config):
    """How samples are drawn, cropped and read."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache_bytes", "threads", "workers", "prefetch"})
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"letterbox", "color_jitter", "color_jitter_chance"})

    crop_scale: Range = (0.5, 1.0)
    """Minimum and maximum fraction of a whole image's area that RandomResizedCrop keeps."""
    part_crop_scale: Range = (0.5, 1.0)
    """Minimum and maximum fraction of a part's area that RandomResizedCrop keeps."""
    letterbox: bool = False
    """Whether a whole image is padded to a white square before it is cropped, as in the published HyCoCLIP."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Minimum and maximum width / height of a crop."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip; 0 by default, since captions may speak of left and right."""
    color_jitter: tuple[Strength, Strength, Strength, HueShift] = (0.0, 0.0, 0.0, 0.0)
    """Maximum change of brightness, contrast and saturation as a fraction, and of the hue as a fraction of the colour
    circle (0.5 reaches every hue). A hue above 0 contradicts captions that name colours.
    """
    color_jitter_chance: float = Field(default=0.8, ge=0, le=1)
    """Probability that an image or a part gets the colour jitter."""
    parts: int = Field(default=1, ge=1)
    """Maximum number of parts per image and view."""
    window: int = Field(default=16, ge=1)
    """Shards whose samples are shuffled together; a set with fewer shards is shuffled as a whole."""
    cache_bytes: int = Field(default=2 << 30, ge=0)
    """Memory for shards kept as encoded bytes, in bytes per process."""
    threads: int = Field(default=2, ge=1)
    """Decoding threads per process."""
    workers: int = Field(default=0, ge=0)
    """Processes that make batches for a process of the training, each with its own threads and cache; 0: threads of the
    training alone make them.
    """
    prefetch: int = Field(default=4, ge=1)
    """Batches prepared ahead; from 2 on one of them is decoded while the one before is put together."""

    @field_validator("crop_scale", "part_crop_scale", "crop_ratio")
    @classmethod
    def _in_order(cls, given: Range, info: ValidationInfo) -> Range:
        (low, high), share = given, info.field_name != "crop_ratio"
        if not 0 < low <= high or (share and high > 1):
            raise ValueError("expected 0 < from <= to" + share * " <= 1")
        return given


@dataclass(frozen=True)
class View:
    """A sample as drawn once: uint8 [S, S, 3] pixels and texts, of the whole image and of each part."""

    image: np.ndarray
    caption: str
    parts: list[tuple[np.ndarray, str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a view shows: the number of a caption, and the parts."""

    caption: int
    parts: list[Part]


def choose(
    sample: TrainingSample, config: DataConfig, rng: np.random.Generator, with_parts: bool = True
) -> Choice:
    """Draw a caption and parts: those of the caption where it has any, so that the caption contains the phrase."""
    caption = int(rng.integers(len(sample.captions)))
    if not with_parts:
        return Choice(caption, [])
    own = [part for part in sample.parts if part.caption == caption] or list(sample.parts)
    if len(own) > 1:  # a permutation of one draws nothing
        own = [own[i] for i in rng.permutation(len(own))[: config.parts]]
    return Choice(caption, own)


def render(
    sample: TrainingSample,
    choice: Choice,
    config: DataConfig,
    rng: np.random.Generator,
    image: np.ndarray,
    parts: Iterable[np.ndarray],
) -> bool:
    """Write random crops of a sample's image and of the chosen parts; return False if one cannot be decoded.

    Args:
        sample: has the whole image.
        choice: of `choose`, with the same `rng` after it.
        config: see DataConfig.
        rng: draws the crops.
        image: uint8 [S, S, 3] for the whole image.
        parts: as many of these as parts were chosen.
    """

    def crop(data: bytes, scale: Range, out: np.ndarray, pad: bool = False) -> None:
        pixels = decode(data)
        if pad:
            pixels = letterbox(pixels, max(pixels.shape[:2]))
        box = random_box(pixels.shape[1], pixels.shape[0], scale, config.crop_ratio, rng)
        cut_and_resize(pixels, box, out)
        if any(config.color_jitter) and rng.random() < config.color_jitter_chance:
            out[:] = np.asarray(jittered(Image.fromarray(out), config.color_jitter, rng))
        if rng.random() < config.flip:
            out[:] = out[:, ::-1].copy()

    try:
        crop(sample.image, config.crop_scale, image, config.letterbox)
        for part, out in zip(choice.parts, parts, strict=True):
            crop(part.image, config.part_crop_scale, out)
    except ImageError:
        return False
    return True


def draw(
    sample: TrainingSample, config: DataConfig, size: int, rng: np.random.Generator, with_parts: bool = True
) -> View | None:
    """A view of a sample, or None if an image cannot be decoded."""
    choice = choose(sample, config, rng, with_parts)
    image, *parts = np.empty((1 + len(choice.parts), size, size, 3), np.uint8)
    if not render(sample, choice, config, rng, image, parts):
        return None
    phrases = [part.phrase for part in choice.parts]
    return View(image, sample.captions[choice.caption], list(zip(parts, phrases, strict=True)))


def jittered(
    image: Image.Image, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """The image with random brightness, contrast, saturation and hue, changed in random order.

    The first three are multiplied by uniform factors in [max(0, 1 - strength), 1 + strength], as in torchvision's
    ColorJitter; the hue is turned by a uniform fraction of the circle in [-strength, strength].
    """
    for which in rng.permutation(4).tolist():
        most = strength[which]
        if most and which < 3:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            image = enhance(image).enhance(rng.uniform(max(0.0, 1 - most), 1 + most))
        elif most:
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] += np.uint8(round(rng.uniform(-most, most) * 256) % 256)
            image = Image.fromarray(hsv, "HSV").convert("RGB")
    return image


def random_box(width: int, height: int, scale: Range, ratio: Range, rng: np.random.Generator) -> Box:
    """The box of RandomResizedCrop (Szegedy et al. 2015): left, top, right, bottom in whole pixels.

    A uniform fraction of the area, sides in a log-uniform ratio, each edge rounded to the next pixel; the whole image
    when ten draws do not fit.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # a + (b - a) * rng.random() is rng.uniform(a, b), in a quarter of the time under Python's lock.
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        shape = math.exp(low + (high - low) * rng.random())
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if w <= width and h <= height:
            x, y = (width - w) * rng.random(), (height - h) * rng.random()
            left, top = min(round(x), width - 1), min(round(y), height - 1)
            return left, top, max(min(round(x + w), width), left + 1), max(min(round(y + h), height), top + 1)
    return 0, 0, width, height
