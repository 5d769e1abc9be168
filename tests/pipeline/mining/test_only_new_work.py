"""5,000 real photographs: what is new is shown to the detector, and nothing else. The detector counts what it gets."""

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.known_detections import phrases_to_ask
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.mining.noun_phrases import NounConfig, NounExtractor
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.home import Home

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "flickr8k"
PER_SHARD, FIRST = 500, 450

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/flickr8k"),
]


class Counting:
    """One box for each phrase; `images` are the phrases that each image was asked for."""

    digest = "c" * 16

    def __init__(self) -> None:
        self.images: list[list[str]] = []

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        self.images += [list(texts) for texts in phrases]
        box = np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)
        scores = np.resize(np.array([0.2, 0.5], np.float32), 100)
        return [Detection(np.tile(box, (len(t), 1)), scores[: len(t)], np.arange(len(t))) for t in phrases]


class Remembering(NounExtractor):
    """Parses each caption once."""

    def __init__(self, config: NounConfig) -> None:
        super().__init__(config)
        self.read: dict[str, Any] = {}

    def __call__(self, captions: Iterable[str]) -> list[Any]:
        captions = list(captions)
        fresh = list(dict.fromkeys(text for text in captions if text not in self.read))
        self.read |= zip(fresh, super().__call__(fresh), strict=True)
        return [self.read[text] for text in captions]


def write_first(source: Path, most: int) -> None:
    """Write every shard with its first images only."""
    source.mkdir(exist_ok=True)
    for shard in sorted(PHOTOGRAPHS.glob("*.tar")):
        with tarfile.open(shard) as old, tarfile.open(source / shard.name, "w") as new:
            keys: dict[str, None] = {}
            for member in old:
                keys.setdefault(member.name.partition(".")[0])
                if len(keys) > most:
                    break
                new.addfile(member, old.extractfile(member))


def captions(source: Path) -> list[str]:
    """The first caption of every photograph."""
    found = []
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as file:
            texts = [file.extractfile(member) for member in file if member.name.endswith(".txt")]
            found += [text.read().decode().strip() for text in texts if text]
    return found


def test_the_detector_sees_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector, extractors = Counting(), dict[str, Remembering]()

    def extractor(text: str) -> Remembering:
        if text not in extractors:
            extractors[text] = Remembering(NounConfig.model_validate_json(text))
        return extractors[text]

    monkeypatch.setattr(ground, "grounder_digest", lambda spec: detector.digest)
    monkeypatch.setattr(mining, "_open_detector", lambda *options: detector)
    monkeypatch.setattr(mining, "_extractor", extractor)
    source, home, seen = tmp_path / "source", Home(tmp_path / "home"), dict[str, int]()

    def mine(what: str, **options: Any) -> tuple[MineConfig, dict[str, Any]]:
        detector.images.clear()
        config = MineConfig(source=str(source), grounder="onnx:none", max_captions=1, **options)
        found = mine_all(config, home, InProcess())
        seen[what] = len(detector.images)
        return config, found

    write_first(source, FIRST)
    _, found = mine("first")
    assert seen["first"] == found["images"] == 10 * FIRST
    write_first(source, PER_SHARD)
    config, found = mine("500 added inside the shards")
    assert seen["500 added inside the shards"] == 500 and found["images"] == 5000 and found["reused"] == 4500

    versions = []
    detector.images.clear()
    for threshold in (0.1, 0.3):
        options = PackConfig(image_size=16, threshold=threshold, min_area_px=None, holdout=0.1)
        versions.append(pack(config, options, home, InProcess(), latest=False, label=f"t{threshold * 10:g}"))
    seen["another threshold"] = len(detector.images)
    assert seen["another threshold"] == 0 and versions[0].counts["parts"] > versions[1].counts["parts"]

    words = Path(mining.__file__).with_name("abstract_nouns.txt").read_text() + "\ngrass\n"
    (tmp_path / "nouns.txt").write_text(words)
    other, found = mine("another noun rule", nouns=NounConfig(abstract=str(tmp_path / "nouns.txt")))
    texts = captions(source)
    asked = [
        [phrases_to_ask([phrases]) for phrases in extractor(nouns.model_dump_json())(texts)]
        for nouns in (config.nouns, other.nouns)
    ]
    changed = [after for before, after in zip(*asked, strict=True) if before != after]
    assert 0 < len(changed) < 1000 and sorted(detector.images) == sorted(changed)
    assert found["images"] == 5000 and found["reused"] == 5000 - len(changed)
    with capsys.disabled():
        print("\nimages shown to the detector: " + ", ".join(f"{what} {n:,}" for what, n in seen.items()))
