import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hyco.pipeline.classification import in_memory as classify_images
from hyco.pipeline.imaging.crop import crop_box, letterbox, pixel_box, shrink_to_short_side, whole


def image(height: int, width: int, value: int = 0) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((50, 100), (16, 48), (0, 64)),
        ((100, 50), (0, 64), (16, 48)),
        ((10, 10), (0, 64), (0, 64)),
        ((1, 1000), (31, 32), (0, 64)),
    ],
)
def test_letterbox_keeps_the_shape_on_white(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    square = letterbox(image(*shape), 64)
    expected = np.full((64, 64, 3), 255, np.uint8)
    expected[slice(*rows), slice(*columns)] = 0
    assert (square == expected).all()


def test_letterbox_of_its_own_size_is_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert (letterbox(pixels, 32) == pixels).all()


def test_crop_box_takes_exactly_the_box() -> None:
    pixels = image(100, 200, 9)
    pixels[25:50, 50:75] = 200
    assert (crop_box(pixels, (0.25, 0.25, 0.375, 0.5), 25) == 200).all()
    assert (crop_box(pixels, (0.25, 0.25, 0.375, 0.5), 64) == 200).all()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 200, 100)),
        ((-0.5, -1, 2, 3), (0, 0, 200, 100)),
        ((0.101, 0.101, 0.101, 0.101), (20, 10, 21, 11)),
        ((1, 1, 1, 1), (199, 99, 200, 100)),
        ((0.001, 0.001, 0.499, 0.499), (0, 0, 100, 50)),
        ((0.25, 0.25, 0.375, 0.5), (50, 25, 75, 50)),
    ],
)
def test_pixel_box_is_inside_and_never_empty(
    box: tuple[float, float, float, float], expected: tuple[int, int, int, int]
) -> None:
    assert pixel_box(box, 200, 100) == expected


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (0, 0.5, 1, 0.4), (0, 0, float("nan"), 1)])
def test_impossible_boxes(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="is not x0 <= x1"):
        pixel_box(box, 10, 10)


def test_shrink_to_short_side() -> None:
    assert shrink_to_short_side(image(300, 600), 100).shape == (100, 200, 3)
    assert shrink_to_short_side(image(601, 301), 100).shape == (200, 100, 3)
    small = image(90, 600)
    assert shrink_to_short_side(small, 100) is small
    checks = np.indices((256, 256)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 255
    assert np.abs(shrink_to_short_side(checks, 64).astype(int) - 127).max() < 12, "shrinking must not alias"


def by_torchvision(array: np.ndarray, size: int) -> np.ndarray:
    """Resize(size, BICUBIC) and CenterCrop(size) on a PIL image, step by step as torchvision 0.20 computes them."""
    height, width = array.shape[:2]
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_w, new_h = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = np.asarray(Image.fromarray(array).resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = int(round((new_h - size) / 2.0)), int(round((new_w - size) / 2.0))  # noqa: RUF046
    return resized[top : top + size, left : left + size]


def by_transformers(array: np.ndarray, size: int) -> np.ndarray:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )
    return processor(Image.fromarray(array), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


# Long sides that int() and round() bring to other lengths, odd and even differences to cut, enlarged ones, a square.
SHAPES = [(480, 640), (500, 375), (427, 640), (333, 500), (640, 361), (335, 451), (20, 28), (50, 50), (3, 10)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 33])
def test_whole_images_are_resized_and_cut_as_torchvision_does(shape: tuple[int, int], size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    square = whole(pixels, size)
    assert square.shape == (size, size, 3)
    assert np.array_equal(square, by_torchvision(pixels, size))
    over = int(size * max(shape) / min(shape)) - size
    if round(over / 2) == over // 2:  # elsewhere the two libraries begin a pixel apart
        assert np.array_equal(square, by_transformers(pixels, size))


def test_the_classifier_and_the_embedder_see_the_same_squares() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (47, 64, 3), np.uint8)
    seen = classify_images._pixels(pixels, 24).permute(1, 2, 0).numpy()
    assert np.array_equal(seen, by_torchvision(pixels, 24))
