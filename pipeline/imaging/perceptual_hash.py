"""A hash of what an image looks like: copies that were encoded again, resized or cropped a little differ in few bits.

The image becomes 32 x 32 grey pixels; of their two-dimensional discrete cosine transform (type II) the 16 x 16 lowest
frequencies are kept, and each gives one bit: whether it lies above the median of all but the constant one (pHash:
C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, there with 8 x 8). Two different
photographs differ in about half of the 255 bits.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

VERSION = "dct-32-16"
BYTES = 32
BITS = 255
_SIDE, _KEPT = 32, 16
_BLOCK = 4096


def perceptual_hash(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, " 32"]:
    """Return the hash of an image as 32 bytes; the bit of the constant term is always 0."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = (_COSINES @ np.asarray(grey, np.float64) @ _COSINES.T).reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False
    return np.packbits(bits)


def near_pairs(
    first: UInt8[np.ndarray, "N 32"], second: UInt8[np.ndarray, "M 32"], most: int, earlier: bool = False
) -> Iterator[tuple[int, int, int]]:
    """Yield (i, j, number of differing bits) of every pair of hashes that differ in at most `most` bits.

    All pairs are compared, in blocks: 512 N M operations of a matrix product.

    Args:
        first: hashes, i in order.
        second: the hashes to compare with, j in order.
        most: maximum number of differing bits.
        earlier: yield only pairs with j < i; `second` is `first`.
    """
    columns = _signs(second)
    for start in range(0, len(first), _BLOCK):
        rows = _signs(first[start : start + _BLOCK])
        for other in range(0, min(len(second), start + _BLOCK) if earlier else len(second), _BLOCK):
            differing = (8 * BYTES - rows @ columns[other : other + _BLOCK].T) / 2
            for i, j in np.argwhere(differing <= most + 0.25).tolist():
                if not earlier or other + j < start + i:
                    yield start + i, other + j, round(float(differing[i, j]))


def _signs(hashes: UInt8[np.ndarray, "N 32"]) -> Float32[np.ndarray, "N 256"]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def _cosines() -> np.ndarray:
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE))


_COSINES = _cosines()
