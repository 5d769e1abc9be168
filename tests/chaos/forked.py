"""A warm process that forks one worker for each line it reads: `python -m tests.chaos.forked SOURCE`.

A worker mines and packs the whole source into a home, as `hyco mine` and `hyco pack` do, with a detector and nouns that
cost nothing; importing everything anew for each of hundreds of kills would cost most of the time.

Lines in: {"start": home, "environment": {...}} or {"wait": pid}; lines out: the process id, or how it ended: 0 when the
version was published, PASSING after a fault of the store that another start may survive, another exit code for an error
that should not be, minus the signal that killed it.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import s3fs  # noqa: F401  (imported before the fork, not after each)

from models.grounding.detector import Detection
from pipeline.mining import grounder as ground
from pipeline.mining import mine as mining
from pipeline.mining.mine import MineConfig, mine_all
from pipeline.mining.noun_phrases import NounConfig, Phrase
from pipeline.packing.pack import PackConfig, pack
from pipeline.runtime.executor import InProcess
from storage.home import Home

PASSING = 75  # EX_TEMPFAIL
NOUN = "block"
PACK = PackConfig(image_size=16, threshold=0.1, min_area_px=None, shard_size=4, holdout=0.2)


class Cheap:
    """One box for each phrase."""

    digest = "c" * 16

    def __call__(self, images: Any, phrases: Any) -> list[Detection]:
        return [self._look(len(texts)) for texts in phrases]

    def _look(self, count: int) -> Detection:
        boxes = np.tile(np.array([[0.1, 0.1, 0.9, 0.9]], np.float32), (count, 1))
        return Detection(boxes, np.full(count, 0.9, np.float32), np.arange(count))


class Words:
    """The word `block` of each caption, without spaCy."""

    config = NounConfig()

    def __call__(self, captions: list[str]) -> list[list[Phrase]]:
        return [[self._phrase(caption)] for caption in captions]

    def _phrase(self, caption: str) -> Phrase:
        start = caption.index(NOUN)
        end = start + len(NOUN)
        return Phrase(NOUN, start, end, NOUN, NOUN, start, end, True)


def config(source: str) -> MineConfig:
    """Return the configuration that every worker mines with."""
    ground.grounder_digest = lambda spec: Cheap.digest
    ground.open_detector = lambda *args, **options: Cheap()
    mining._extractor = lambda text: Words()  # type: ignore[assignment]
    return MineConfig(source=source, grounder="onnx:cheap")


def work(mine: MineConfig, home: str) -> int:
    """Mine and pack into a home, and return the exit code."""
    try:
        mine_all(mine, Home(home), InProcess())
        pack(mine, PACK, Home(home), InProcess())
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return PASSING
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Serve the lines of stdin until it closes."""
    mine = config(sys.argv[1])
    os.dup2(os.open(Path(sys.argv[2]), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.environ |= order["environment"]
            os._exit(work(mine, order["start"]))
        print(child, flush=True)


if __name__ == "__main__":
    main()
