"""The perceptual hash equals its definition, and pairs are those of a comparison one by one."""

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from hyco.pipeline.imaging.perceptual_hash import BITS, near_pairs, perceptual_hash


def smooth(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """A picture of soft shapes."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


def differing(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.unpackbits(a ^ b).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_bits_are_the_low_frequencies_above_their_median(seed: int) -> None:
    pixels = smooth(seed)
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    low = dctn(grey, type=2)[:16, :16].ravel()
    expected = low > np.median(low[1:])
    expected[0] = False
    assert (np.unpackbits(perceptual_hash(pixels)) == expected).all() and expected.sum() == BITS // 2


def test_copies_differ_in_few_bits_and_other_pictures_in_half() -> None:
    one = smooth(0)
    larger = np.asarray(Image.fromarray(one).resize((200, 150), Image.Resampling.BICUBIC))
    assert differing(perceptual_hash(one), perceptual_hash(larger)) <= 24
    assert differing(perceptual_hash(one), perceptual_hash(one[2:-2, 3:-2])) <= 64
    others = [differing(perceptual_hash(one), perceptual_hash(smooth(seed))) for seed in range(1, 20)]
    assert min(others) > 80 and 110 < np.mean(others) < 145


def test_a_picture_of_one_colour_has_a_hash() -> None:
    assert perceptual_hash(np.full((1, 1, 3), 7, np.uint8)).shape == (32,)


@pytest.mark.parametrize("most", [0, 40, 120])
def test_pairs_are_those_of_every_comparison(monkeypatch, most: int) -> None:
    monkeypatch.setattr("hyco.pipeline.imaging.perceptual_hash._BLOCK", 7)
    draw = np.random.default_rng(most)
    first = draw.integers(0, 256, (23, 32), np.uint8)
    first[11], first[22] = first[3], first[3]
    second = np.concatenate(
        [draw.integers(0, 256, (16, 32), np.uint8), first[5:6] ^ np.eye(1, 32, dtype=np.uint8)]
    )
    every = {(i, j, differing(a, b)) for i, a in enumerate(first) for j, b in enumerate(second)}
    assert set(near_pairs(first, second, most)) == {pair for pair in every if pair[2] <= most}
    earlier = {(i, j, differing(a, first[j])) for i, a in enumerate(first) for j in range(i)}
    found = list(near_pairs(first, first, most, earlier=True))
    assert set(found) == {pair for pair in earlier if pair[2] <= most} and len(found) == len(set(found)) >= 3
