"""Crops of boxes, and whole images resized for training and inference."""

import math
from typing import Literal

import numpy as np
from PIL import Image

WHITE = 255

Resizer = Literal["pillow", "torch"]
"""Whose bicubic resizing with antialiasing is used; see pipeline.imaging.resize."""


def letterbox(array: np.ndarray, size: int, fill: int = WHITE, by: Resizer = "pillow") -> np.ndarray:
    """Fit an image into a square, keeping its aspect ratio, centred on a plain background.

    Args:
        array: uint8 [H, W, 3].
        size: side of the square in pixels; smaller images are enlarged.
        fill: value of the background; white as in the published HyCoCLIP data.
        by: whose resizing.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = array.shape[:2]
    scale = size / max(height, width)
    new_h, new_w = max(1, round(height * scale)), max(1, round(width * scale))
    square = np.full((size, size, 3), fill, np.uint8)
    top, left = (size - new_h) // 2, (size - new_w) // 2
    square[top : top + new_h, left : left + new_w] = _resize(array, new_w, new_h, by)
    return square


def crop_box(
    array: np.ndarray,
    box: tuple[float, float, float, float],
    size: int,
    fill: int = WHITE,
    by: Resizer = "pillow",
) -> np.ndarray:
    """Cut a box out of an image and letterbox it.

    Args:
        array: uint8 [H, W, 3].
        box: x0, y0, x1, y1 as fractions of width and height; clipped to the image, and at least one pixel large.
        size: side of the result in pixels.
        fill: value of the background.
        by: whose resizing.

    Returns:
        uint8 [size, size, 3].
    """
    left, top, right, bottom = pixel_box(box, array.shape[1], array.shape[0])
    return letterbox(array[top:bottom, left:right], size, fill, by)


def pixel_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom in pixels: the smallest whole-pixel box around a normalised one.

    Always inside the image and never empty. ValueError for a box that is not finite or is upside down.
    """
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)) or x1 < x0 or y1 < y0:
        raise ValueError(f"box {box} is not x0 <= x1, y0 <= y1 in finite numbers")
    left = min(max(math.floor(x0 * width), 0), width - 1)
    top = min(max(math.floor(y0 * height), 0), height - 1)
    right = min(max(math.ceil(x1 * width), left + 1), width)
    bottom = min(max(math.ceil(y1 * height), top + 1), height)
    return left, top, right, bottom


def shrink_to_short_side(array: np.ndarray, size: int, by: Resizer = "pillow") -> np.ndarray:
    """Return uint8 [H, W, 3] scaled down to a shorter side of `size` pixels; unchanged when not larger."""
    height, width = array.shape[:2]
    if min(height, width) <= size:
        return array
    scale = size / min(height, width)
    return _resize(array, max(1, round(width * scale)), max(1, round(height * scale)), by)


def whole(array: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side to `size` pixels (enlarging smaller images) and cut the central square.

    The arithmetic is torchvision's Resize and CenterCrop on PIL images, which the published MERU, HyCoCLIP and
    OpenCLIP models are evaluated with: the long side is int(size * long / short), the square begins at
    round((long - size) / 2), halves rounded to the even number.

    Args:
        array: uint8 [H, W, 3].
        size: side of the square in pixels.

    Returns:
        uint8 [size, size, 3], read-only where it can share memory.
    """
    height, width = array.shape[:2]
    short, long = min(height, width), max(height, width)
    new_long = int(size * long / short)
    new_w, new_h = (size, new_long) if width <= height else (new_long, size)
    if (new_h, new_w) != (height, width):
        image = Image.fromarray(np.ascontiguousarray(array))
        array = np.asarray(image.resize((new_w, new_h), Image.Resampling.BICUBIC))
    left, top = round((new_w - size) / 2), round((new_h - size) / 2)
    return array[top : top + size, left : left + size]


def stretch(array: np.ndarray, size: int) -> np.ndarray:
    """Resize bicubically to [size, size], the aspect ratio not kept, as MERU's evaluation of retrieval does.

    The arithmetic is torchvision's Resize((size, size)) on PIL images, bicubic.

    Args:
        array: uint8 [H, W, 3].
        size: side of the square in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    if array.shape[:2] == (size, size):
        return array
    image = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _resize(array: np.ndarray, width: int, height: int, by: Resizer) -> np.ndarray:
    if array.shape[:2] == (height, width):
        return array
    if by == "torch":
        from hyco.pipeline.imaging.resize import by_torch  # packing with Pillow does not load PyTorch

        out = np.empty((height, width, 3), np.uint8)
        by_torch(array, out)
        return out
    image = Image.fromarray(np.ascontiguousarray(array))
    # PIL's filters widen with the reduction factor, so shrinking does not alias.
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))
