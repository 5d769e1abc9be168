"""The fast cut and resize is PIL's bicubic, to the rounding of its weights."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from hyco.pipeline.imaging import resize
from hyco.pipeline.imaging.crop import crop_box, shrink_to_short_side, stretch
from hyco.pipeline.imaging.resize import by_pil, by_torch, cut_and_resize

BOXES = [
    (0, 0, 97, 71),
    (3, 5, 80, 64),
    (10, 0, 11, 71),  # one pixel wide
    (40, 30, 41, 31),
    (0, 7, 64, 71),  # 64 x 64
    (20, 20, 84, 70),
]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def photograph(*shape: int) -> np.ndarray:
    return stretch(noise(9, 11, 3), max(shape))[: shape[0], : shape[1]].copy()


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (13, 29), (1, 1)])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("make", [noise, photograph])
def test_pixels_are_those_of_pil(make, box, size):
    image = make(71, 97, 3)
    ours, theirs = np.zeros((2, *size, 3), np.uint8)
    cut_and_resize(image, box, ours)
    by_pil(image, box, theirs)
    off = np.abs(ours.astype(int) - theirs)
    assert off.max() <= 2 and off.mean() < 0.03
    assert theirs.any()


def test_shrinking_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    out = np.zeros((60, 60, 3), np.uint8)
    cut_and_resize(stripes, (0, 0, 256, 256), out)
    assert np.abs(out[3:-3, 3:-3].astype(int) - 127).max() <= 12


@pytest.mark.parametrize("vector", [True, False])
def test_read_only_images_and_slots_of_a_batch(monkeypatch, vector):
    monkeypatch.setattr(resize, "_has_vector_code", lambda: vector)
    image = noise(40, 50, 3)
    image.flags.writeable = False
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    cut_and_resize(image, (1, 2, 33, 30), batch[1])
    assert batch[1].any() and not batch[0].any() and not batch[2].any()
    expected = np.zeros((16, 16, 3), np.uint8)
    by_pil(image, (1, 2, 33, 30), expected)
    assert np.abs(batch[1].astype(int) - expected).max() <= 2


def test_mirrored_images_are_resized_by_torch():
    image, out, expected = noise(40, 50, 3)[:, ::-1], *np.zeros((2, 16, 16, 3), np.uint8)
    resize.by_torch(image, out)
    resize.by_torch(image.copy(), expected)
    assert out.any() and np.array_equal(out, expected)


def test_a_box_of_the_right_size_is_only_copied():
    image, out = noise(40, 50, 3), np.zeros((20, 30, 3), np.uint8)
    cut_and_resize(image, (5, 6, 35, 26), out)
    assert np.array_equal(out, image[6:26, 5:35])


@pytest.mark.parametrize("box", [(0.1, 0.1, 0.6, 0.9), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.505, 0.9)])
@pytest.mark.parametrize("size", [16, 33, 200])
def test_crops_by_torch_are_those_by_pillow(box, size):
    image = photograph(71, 97, 3)
    image.flags.writeable = False  # as decoders return it
    for ours, theirs in (
        (crop_box(image, box, size, by="torch"), crop_box(image, box, size)),
        (shrink_to_short_side(image, size, "torch"), shrink_to_short_side(image, size)),
    ):
        assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max() <= 2


def hash_of_resized() -> str:
    """A hash of images resized by PyTorch to several sizes."""
    total = hashlib.sha256()
    for size in ((64, 64), (224, 131), (13, 29), (1, 1)):
        for make in (noise, photograph):
            out = np.zeros((*size, 3), np.uint8)
            by_torch(make(71, 97, 3), out)
            total.update(out.tobytes())
    return total.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_torch_gives_equal_bytes_on_every_cpu(capability):
    code = "from tests.pipeline.imaging.test_resize import hash_of_resized; print(hash_of_resized())"
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == hash_of_resized()
