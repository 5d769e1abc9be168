"""One view of a sample: a random caption, random parts of it, random crops. The random generator is an argument."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Config
from pipeline.imaging.crop import letterbox
from pipeline.imaging.decode import ImageError, decode
from storage.sample import TrainingSample

Range = tuple[float, float]
Strength = Annotated[float, Field(ge=0)]
HueShift = Annotated[float, Field(ge=0, le=0.5)]


class DataConfig(Config):
    """How samples are drawn, cropped and read."""

    incidental: ClassVar[frozenset[str]] = frozenset({"cache_bytes", "threads", "prefetch"})
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
    prefetch: int = Field(default=4, ge=1)
    """Batches prepared ahead."""

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


def draw(
    sample: TrainingSample, config: DataConfig, size: int, rng: np.random.Generator, with_parts: bool = True
) -> View | None:
    """A view of a sample, or None if an image cannot be decoded.

    The parts come from the drawn caption where it has any, so that the caption contains the phrase.
    """
    caption = int(rng.integers(len(sample.captions)))
    own = [part for part in sample.parts if part.caption == caption] or list(sample.parts)
    picked = [own[i] for i in rng.permutation(len(own))[: config.parts]] if with_parts else []

    def crop(data: bytes, scale: Range, pad: bool = False) -> np.ndarray:
        image = decode(data)
        if pad:
            image = letterbox(image, max(image.shape[:2]))
        box = random_box(image.shape[1], image.shape[0], scale, config.crop_ratio, rng)
        # PIL widens its filter with the reduction, so shrinking does not alias, and crops in the same pass.
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
        if any(config.color_jitter) and rng.random() < config.color_jitter_chance:
            resized = jittered(resized, config.color_jitter, rng)
        pixels = np.asarray(resized)
        return pixels[:, ::-1] if rng.random() < config.flip else pixels

    try:
        image = crop(sample.image, config.crop_scale, config.letterbox)
        parts = [(crop(part.image, config.part_crop_scale), part.phrase) for part in picked]
    except ImageError:
        return None
    return View(image, sample.captions[caption], parts)


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


def random_box(
    width: int, height: int, scale: Range, ratio: Range, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """The box of RandomResizedCrop (Szegedy et al. 2015): x0, y0, x1, y1 in pixels.

    A uniform fraction of the area, sides in a log-uniform ratio; the whole image when ten draws do not fit.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if w <= width and h <= height:
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return x, y, min(x + w, width), min(y + h, height)
    return 0.0, 0.0, float(width), float(height)
