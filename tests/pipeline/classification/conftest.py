"""A labelled folder of coloured squares, three classes, and a net small enough to be trained in a second."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyco.pipeline.classification.config import FitConfig

COLORS = {"blue": (40, 60, 220), "green": (30, 200, 60), "red": (220, 30, 30)}
SIDE = 10


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,test}/{blue,green,red}/*.png: a noisy ground with a square of the class's colour; 40 and 10 of each."""
    root = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
                top, left = random.integers(0, 4, 2)
                pixels[top : top + 6, left : left + 6] = color
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def tiny(squares: Path) -> FitConfig:
    """Thirty steps of 24 images at 8 pixels through a Euclidean net of a few channels."""
    return FitConfig(
        model="resnet20",
        data=f"folder:{squares}",
        widths=(2, 2, 4),
        image_size=8,
        batch_size=24,
        steps=30,
        lr=0.01,
        crop=1,
        log_every=1,
        checkpoint_steps=10,
    )
