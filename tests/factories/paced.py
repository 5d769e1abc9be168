"""Mining whose nouns and whose detector take a set time, asleep, in workers of a cluster: a GPU beside slow parsing."""

import functools
import time
from typing import Any

from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.mining.noun_phrases import Phrase
from hyco.pipeline.sources.source import Unit
from hyco.storage.home import Home
from tests.chaos import cheap

NOUNS_S, GROUND_S = 0.06, 0.03
"""Seconds per image."""


class Paced(cheap.Cheap):
    """The cheap detector at the pace of a GPU."""

    def __call__(self, images: Any, phrases: Any) -> list[Detection]:
        time.sleep(GROUND_S * len(images))
        return super().__call__(images, phrases)


class Parsing(cheap.Words):
    """The cheap nouns at the pace of spaCy and a decoder."""

    def __call__(self, captions: list[str]) -> list[list[Phrase]]:
        time.sleep(NOUNS_S * len(captions))
        return super().__call__(captions)


@functools.lru_cache
def open_paced(*options: Any) -> Paced:
    """Return the detector; a server finds this function by its name."""
    return Paced()


def mine_paced(mine: MineConfig, home: Home, unit: Unit, report: Any = None) -> dict[str, Any]:
    """Mine a unit at that pace in a worker."""
    cheap.config(mine.source)
    parsing = Parsing()
    mining._extractor = lambda text: parsing  # type: ignore[assignment]
    mining._open_detector = open_paced  # type: ignore[assignment]
    return cheap._mine_shard(mine, home, unit, report)
