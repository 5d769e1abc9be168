"""A source of coloured blocks, a detector that counts its calls, and fixtures of both."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig
from hyco.storage.detections import read_detections, read_failures
from hyco.storage.store import Store
from tests.factories.files import named, tarred

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


class ColourDetector:
    """Finds the pixels of the colour a phrase names, well or badly: two boxes, the right one first."""

    digest = "0123456789abcdef"

    def __init__(self):
        self.calls, self.asked, self.refuse = 0, [], None

    def __call__(self, images, phrases):
        self.calls += 1
        if self.refuse:
            self.refuse(images)
        self.asked += phrases
        return [self._look(image, texts) for image, texts in zip(images, phrases, strict=True)]

    def _look(self, image, texts):
        boxes, scores, owners = [], [], []
        for number, text in enumerate(texts):
            colour = next((value for name, value in COLOURS.items() if name in text), None)
            if colour is None:
                continue
            ys, xs = np.nonzero(np.abs(image.astype(int) - colour).max(2) < 60)
            if not len(ys):
                continue
            height, width = image.shape[:2]
            right = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
            boxes += [right, [0.0, 0.0, 1.0, 1.0]]
            scores += [0.9, 0.2]
            owners += [number, number]
        if not boxes:
            return Detection.empty()
        return Detection(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(owners))


@pytest.fixture
def detector(monkeypatch):
    detector = ColourDetector()
    monkeypatch.setattr(ground, "open_detector", lambda *args, **options: detector)
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: detector.digest)
    mining._open_detector.cache_clear()
    yield detector
    mining._open_detector.cache_clear()


def picture(colour, seed=0):
    """A 60 x 40 picture with a block at x 10-30, y 5-25, lossless."""
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[-1, -1] = seed  # so that no two pictures are equal
    pixels[5:25, 10:30] = COLOURS[colour]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


BOX = [10 / 60, 5 / 40, 30 / 60, 25 / 40]


def write_tar(path, samples):
    """samples: (name, image bytes, meta with captions)."""
    members = {}
    for name, image, meta in samples:
        members |= named(name, {"png": image, "txt": meta["captions"][0], "json": json.dumps(meta)})
    tarred(path, members)


def samples(count, start=0):
    for number in range(start, start + count):
        colour = list(COLOURS)[number % 3]
        yield (
            f"{number:05d}",
            picture(colour, number),
            {"captions": [f"a {colour} block on the wall", f"a {colour} block"]},
        )


@pytest.fixture
def source(tmp_path):
    write_tar(tmp_path / "source" / "00000.tar", samples(5))
    write_tar(tmp_path / "source" / "00001.tar", samples(4, start=5))
    return tmp_path / "source"


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def config(source, **options):
    return MineConfig(source=str(source), grounder="onnx:counting", **options)


def rows_of(record, home):
    with Store(home).open(record["detections"]["path"]) as file:
        return read_detections(file)


def failures_of(record, home):
    with Store(home).open(record["failures"]["path"]) as file:
        return read_failures(file)
