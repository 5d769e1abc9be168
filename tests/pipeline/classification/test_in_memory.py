"""Images in memory: batch augmentation against one-pixel loops, statistics, and epochs that can be entered midway."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyco.pipeline.classification.in_memory import Epoch, Images, crops, load_captioned, statistics
from hyco.pipeline.classification.strange import load_strange, open_strange
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.sources.source import open_source
from tests.oracle import classification_metrics as twin


@pytest.mark.parametrize("padding", [0, 2])
def test_crops_are_the_twins(padding: int) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (7, 3, 6, 6), generator=random, dtype=torch.uint8)
    shifts = torch.randint(2 * padding + 1, (7, 2), generator=random)
    flips = torch.arange(7) % 2 == 0
    got = crops(pixels, shifts, flips, padding)
    for image, (down, right), mirrored, out in zip(pixels, shifts.tolist(), flips.tolist(), got, strict=True):
        assert np.array_equal(out.numpy(), twin.crop(image.numpy(), down, right, mirrored, padding))


def test_statistics_are_those_of_all_pixels() -> None:
    pixels = torch.randint(256, (50, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = pixels.double() / 255
    mean, std = statistics(pixels)
    assert mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def numbered(count: int = 23) -> Images:
    values = torch.arange(count, dtype=torch.uint8)
    return Images(values[:, None, None, None].expand(-1, 3, 4, 4).contiguous(), values.long())


def draw(images: Images, epoch: int, seed: int = 5, **changes) -> Epoch:
    options = {"batch_size": 5, "crop": 1, "flip": True, **changes}
    return Epoch.draw(images, seed, epoch, **options)


def test_an_epoch_shows_each_image_once_and_can_be_entered_midway() -> None:
    images = numbered()
    whole = list(draw(images, 2).batches())
    assert len(whole) == 4
    seen = torch.cat([labels for _, labels in whole])
    assert len(seen.unique()) == 20
    late = list(draw(images, 2).batches(start=3))
    assert len(late) == 1 and torch.equal(late[0][0], whole[3][0]) and torch.equal(late[0][1], whole[3][1])


def test_epochs_and_seeds_differ_and_pixels_stay_with_their_labels() -> None:
    images = numbered()
    first, *others = (draw(images, epoch, seed) for epoch, seed in ((0, 5), (1, 5), (0, 6)))
    for other in others:
        assert not torch.equal(first.order, other.order) and not torch.equal(first.shifts, other.shifts)
    for pixels, labels in draw(images, 0, crop=0).batches():
        assert pixels.dtype == torch.float32
        assert torch.equal((pixels[:, 0, 0, 0] * 255).round().long(), labels)
    assert not draw(images, 0, flip=False).flips.any() and first.flips.float().mean() < 0.9


def test_a_captioned_set_gives_the_central_squares_and_its_own_pixels_where_they_fit(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    for name, image in (("a", wide), ("b", wide[:, :8] + 7)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        with (tmp_path / "set.jsonl").open("a") as file:
            file.write(json.dumps({"image": f"{name}.png", "caption": "a wall"}) + "\n")
    found, unusable = load_captioned(open_source(str(tmp_path)), 8, limit=9)
    assert found.pixels.shape == (2, 3, 8, 8) and unusable == 0
    assert (found.pixels[0] == 200).all() and (found.pixels[1] == 7).all()


def strange(folder: Path, count: int, there: int) -> str:
    """A captioned source of which `there` of `count` images are on the disk."""
    for n in range(there):
        (folder / f"{n}.jpg").write_bytes(encode_jpeg(np.full((9, 9, 3), 10 * n, np.uint8)))
    lines = [json.dumps({"file": f"{n}.jpg", "caption": "a thing"}) for n in range(count)]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return f"scenes=captioned:{folder}"


def test_out_of_distribution_images_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    def load(spec: str, least: float) -> tuple[str, Images, dict[str, int]]:
        (one,) = open_strange(spec, "cifar10")
        return one.name, *load_strange(one, 8, 100, 0, least)

    name, images, counts = load(strange(tmp_path, 21, 20), 0.95)
    assert (name, len(images), counts) == ("scenes", 20, {"unusable": 1})
    spec = strange(tmp_path, 40, 20)
    with pytest.raises(ValueError, match=r"20 of 40 samples of scenes .*below min_coverage 0\.95"):
        load(spec, 0.95)
    assert load(spec, 0)[2] == {"unusable": 20}
