"""A small home with a file of every kind: mined and packed by the real stages, with a registry beside it."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyco.models.grounding.detector import Detection
from hyco.pipeline.imaging.decode import ImageError, encode_jpeg
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.home import Home
from hyco.storage.layout import MODEL_RUNS, REPORTS
from hyco.storage.model_registry import (
    Decision,
    digest_of,
    file_entry,
    fingerprint,
    prove_folder,
)
from hyco.storage.store import Store
from hyco.storage.versions import Version
from tests.factories.files import named, tarred

SEED = 7
# Nothing in a home tells that one of these was there: it is made again, or its absence is what there was before.
_MAY_BE_ABSENT = {"mining configuration", "quarantine record", "proof", "cached table"}


class _Detector:
    """Two boxes in every image."""

    digest = "counting"
    images = 0

    def __call__(self, images: Any, phrases: Any) -> list[Detection]:
        self.images += len(images)
        boxes = np.array([(0.125, 1 / 3, 0.375, 2 / 3), (0.625, 1 / 3, 0.875, 2 / 3)], np.float32)
        return [Detection(boxes, np.array([0.9, 0.5], np.float32), np.zeros(2, np.int64)) for _ in images]


@dataclass
class SmallHome:
    """A home, and how its data was made."""

    home: Path
    source: Path
    detector: _Detector

    @property
    def mine(self) -> MineConfig:
        return MineConfig(
            source=str(self.source), grounder="transformers:none", weights="counting", error_budget=1.0
        )

    def make(self, threshold: float = 0.3, **gate: Any) -> Version:
        """Mine and pack, as `hyco mine` and `hyco pack` do."""
        mine_all(self.mine, Home(self.home), InProcess())
        config = PackConfig(
            image_size=32, shard_size=2, holdout=0.3, threshold=threshold, min_area_px=None,
            gate=QualityConfig(max_failed=None, **gate),
        )  # fmt: skip
        return pack(self.mine, config, Home(self.home))


@contextmanager
def small_home(folder: Path) -> Iterator[SmallHome]:
    """Make the home below a folder; while this is open, mining uses a detector that needs no weights."""
    with pytest.MonkeyPatch.context() as patch:
        detector = _Detector()
        patch.setattr(ground, "open_detector", lambda *_: detector)
        patch.setattr(ground, "grounder_digest", lambda spec: "counting")
        made = SmallHome(folder / "home", folder / "source", detector)
        (folder / "source").mkdir(parents=True)
        for unit in range(2):
            _write_unit(made.source / f"{unit}.tar", range(unit * 5, unit * 5 + 5))
        real = packing.decode

        def decode(data: bytes, *limits: int) -> np.ndarray:
            pixels = real(data, *limits)
            if pixels[0, 0, 0] > 240:  # mined, and not to be packed
                raise ImageError("undecodable", "the decoder of another machine refuses this one")
            return pixels

        patch.setattr(packing, "decode", decode)
        made.make()
        with pytest.raises(QualityError):
            made.make(threshold=0.6, min_images=1000)
        _fill_registry(made.home)
        yield made


def kind_of(home: Path, path: Path) -> str:
    """The kind of a file, by its place."""
    parts = path.relative_to(home).parts
    if parts[0] == "registry":
        if parts[1] == "models":
            return "run of a model" if parts[2] == "runs" else "model"
        return {"log": "registry row", "reports": "report", "assessed": "assessment"}[parts[1]]
    if parts[0] in ("shards", "quarantine"):
        return {"shards": "shard", "quarantine": "quarantine record"}[parts[0]]
    if parts[0] == "cache":
        return "cached table"
    if parts[0] == "versions":
        return "latest" if parts[1] == "latest" else "version"
    stage, what = parts[0], parts[2]
    if what == "config.json":
        return "mining configuration"
    if what == "records":
        return {"detections": "mining record", "packs": "pack record"}[stage]
    if stage == "packs":
        return "packing failures"
    return "mining failures" if _is_failures(path) else "detections"


def may_be_absent(home: Path, path: Path) -> bool:
    """Whether a home without this file is one that there may be."""
    if path.name == "proof.json" or kind_of(home, path) in _MAY_BE_ABSENT:
        return True
    if kind_of(home, path) == "registry row":
        return path.name == max(row.name for row in path.parent.iterdir())  # a shorter log is a log
    latest = (home / "versions" / "latest").read_text().split()[0]
    return kind_of(home, path) == "version" and path.stem != latest


def corruptions() -> dict[str, Callable[[bytes, random.Random], bytes | None]]:
    """What can happen to a file, by name; None deletes it."""

    def place(data: bytes, chance: random.Random, size: int = 1) -> tuple[bytes, bytes]:
        at = chance.randrange(max(1, len(data) - size + 1))
        return data[:at], data[at + size :]

    def flipped(data: bytes, chance: random.Random) -> bytes:
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]

    def overwritten(data: bytes, chance: random.Random) -> bytes:
        size = chance.randint(1, 64)
        left, right = place(data, chance, size)
        return left + chance.randbytes(min(size, len(data))) + right

    def zeroed(data: bytes, chance: random.Random) -> bytes:
        size = min(chance.randint(16, 4096), len(data))
        left, right = place(data, chance, size)
        return left + bytes(size) + right

    def inserted(data: bytes, chance: random.Random) -> bytes:
        left, right = place(data, chance, 0)
        return left + chance.randbytes(chance.randint(1, 32)) + right

    return {
        "bit flipped": flipped,
        "bytes overwritten": overwritten,
        "block of zeros": zeroed,
        "bytes inserted": inserted,
        "cut short": lambda data, chance: data[: chance.randrange(len(data))],
        "emptied": lambda data, chance: b"",
        "doubled": lambda data, chance: data + data,
        "deleted": lambda data, chance: None,
    }


def _is_failures(path: Path) -> bool:
    import pyarrow.parquet as pq

    return "stage" in pq.read_schema(path).names


def _write_unit(path: Path, numbers: range) -> None:
    members: dict[str, bytes | str] = {}
    for number in numbers:
        pixels = np.full((48, 64, 3), 250 if number == 3 else 20 * number, np.uint8)
        image = encode_jpeg(pixels, 95) if number != 4 else b"no image"
        told = {"captions": [f"a red square left of a blue square {number}", "two squares"]}
        members |= named(f"{number:09d}", {"jpg": image, "json": json.dumps(told)})
    tarred(path, members)


def _fill_registry(home: Path) -> None:
    """Two promoted models and a refused one, with what is kept of their runs, and the answers of the first."""
    registry = Home(home).registry
    for number, kind in enumerate(("promoted", "refused", "promoted")):
        run = home.parent / "runs" / str(number)
        (run / "model").mkdir(parents=True)
        (run / "model" / "model.safetensors").write_bytes(random.Random(number).randbytes(5000))
        (run / "model" / "config.json").write_text(json.dumps({"number": number}))
        files = fingerprint(run / "model")
        model, kept = digest_of(files), None
        if kind == "promoted":
            registry.keep(run / "model")
            beside = home / MODEL_RUNS / model
            beside.mkdir(parents=True)
            for name in ("config.json", "train.json", "log.jsonl"):
                (beside / name).write_text(json.dumps({"name": name, "number": number}))
            kept = [file_entry(path) for path in sorted(beside.iterdir())]
        report = (
            Store(home)
            .commit(REPORTS, ".html", lambda file, n=number: file.write(b"<p>report %d</p>" % n))
            .path
        )
        row = Decision(
            kind, model, files, "because", run=str(run), report=report, metrics='{"a": 0.5}', kept=kept
        )
        registry.append(row, number)
    answers = registry.assessment(f"exam-{model}")
    for name in ("metrics.json", "report.html"):
        answers.write(name, json.dumps({"name": name, "value": 0.25}).encode())
    prove_folder(answers)
