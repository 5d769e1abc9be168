"""A home that Hyco 0.1 made (tests/data) opens: nothing is mined again, every stage and every page goes on with it."""

import csv
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from hyco.flows.deployment.config import DeployConfig
from hyco.models.grounding.detector import Detection
from hyco.pipeline.__main__ import main
from hyco.pipeline.config import digest
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.grounder import open_detector
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.ui.server import create_app
from hyco.storage.detections import read_detections
from hyco.storage.home import Home
from hyco.storage.versions import Version
from tests.factories.commands import GROUNDER, ROOT

VERSION = "v-ea9efb6f4d86"
SHARD = "shards/objects/45440657fa4762ec1ec46cda75b072a4050e7118523aebad2f77e5ffa16bac24.tar"
DETECTIONS = "detections/082de46734976a8d"
TRAIN = "a8e8e46d58d7"  # the unit of scenes/train
MODEL = "85d43c67c954f762"
SOURCE = ("--source", "scenes/train", "--grounder", GROUNDER)
EXAM = ("--assess-source", "scenes/heldout", "--taxonomy", "scenes/taxonomy.json")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ROOT / "tests" / "data" / "home_0_1.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def home(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the home, and its sources where they were: beside it, named by relative paths."""
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setattr(ground, "open_detector", _no_detector)
    mining._open_detector.cache_clear()  # of other tests
    yield Path("home")
    mining._open_detector.cache_clear()


@pytest.fixture
def hyco(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `hyco WORDS` in this process; what it says."""

    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["hyco", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        assert left.value.code == code, told.err
        return told.out

    return run


def _no_detector(*_: object) -> None:
    raise AssertionError("a detector was loaded: something is mined again")


def _version(home: Path) -> Version:
    return Home(home).versions.load("latest")


def _table(home: Path) -> pa.Table:
    """The stored detections of scenes/train."""
    record = json.loads((home / DETECTIONS / "records" / f"{TRAIN}.json").read_bytes())
    return read_detections(io.BytesIO((home / record["detections"]["path"]).read_bytes()))


def test_nothing_is_mined_again(home: Path, hyco: Callable[..., str]) -> None:
    left = mining.plan(MineConfig(source="scenes/train", grounder=GROUNDER), Home(home))
    assert ([unit.name for unit in left.done], left.pending) == ([TRAIN], [])
    told = json.loads(hyco("mine", *SOURCE, "--home", str(home), "--workers", "0"))
    assert (told["units_done"], told["images"], told["boxes"]) == (1, 10, 832)
    held = ("--source", "scenes/heldout", "--grounder", GROUNDER)
    assert json.loads(hyco("mine", *held, "--home", str(home), "--workers", "0"))["units_done"] == 1


def test_the_grounder_may_be_gone(home: Path) -> None:
    """The stored configuration names weights on another machine; packing needs none."""
    stored = _version(home).config["mine"]
    assert not mining.plan(
        MineConfig.model_validate({**stored, "grounder": "transformers:gone"}), Home(home)
    ).pending


@pytest.mark.parametrize("lost", [(), ("packs",), ("packs", "shards", "versions")])
def test_packing_makes_the_version_that_there_was(
    home: Path, hyco: Callable[..., str], lost: tuple[str, ...]
) -> None:
    there = (home / SHARD).read_bytes()
    for folder in lost:
        shutil.rmtree(home / folder)
    words = (*SOURCE, "--recipe", "demo", "--assess-source", "scenes/heldout", "--home", str(home))
    assert json.loads(hyco("pack", *words, "--workers", "0"))["version"] == VERSION
    assert [shard.path for shard in _version(home).shards["train"]] == [SHARD]
    assert (home / SHARD).read_bytes() == there


def test_the_home_is_intact_and_nothing_is_collected(home: Path, hyco: Callable[..., str]) -> None:
    assert hyco("verify", "all", "--home", str(home)) == "home: intact\n"
    before = {path for path in home.rglob("*") if path.is_file()}
    assert "nothing is damaged" in hyco("verify", "--repair", "--home", str(home))
    hyco("collect", "--home", str(home), "--older-than-hours", "0")
    assert {path for path in home.rglob("*") if path.is_file()} == before
    said = hyco("status", "--home", str(home))
    assert "2 units, 16 images, 0 failed" in said and VERSION in said and "assessed" in said


def test_its_run_is_evaluated_beside_its_own_old_numbers(home: Path, hyco: Callable[..., str]) -> None:
    """All numbers of the old metrics.csv are measured again, by the same names, over as many, with the same chance."""
    shutil.copytree(home / "runs" / "old", home / "runs" / "again")
    hyco("assess", "--run", "again", "--beside", "old", "--home", str(home), *EXAM, "--set", "draws=100")
    old, new = (_numbers(home / "runs" / name) for name in ("old", "again"))
    assert old and not old.keys() - new.keys()
    for name, (n, chance) in old.items():
        assert new[name] == (n, pytest.approx(chance, abs=1e-6, nan_ok=True)), name


def _numbers(run: Path) -> dict[str, tuple[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["name"]: (row["n"], float(row["chance"] or "nan")) for row in csv.DictReader(file)}


def test_every_page_is_served(home: Path) -> None:
    client = TestClient(create_app(Home(home)), base_url="http://localhost")
    seen: set[str] = set()
    waiting = ["/", "/runs/old/metrics.json", "/runs/old/metrics.csv", "/runs/old/train.json"]
    waiting += [f"/versions/{VERSION}/samples/0/whole.jpg", "/versions/latest"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "unreadable" not in answer.text, path
        if path == "/" or path.startswith("/versions/"):
            waiting += re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)
    pages = {f"/versions/{VERSION}", "/runs/old/report.html", "/runs/old/curves.svg", "/lineage.svg"}
    assert pages < seen


def test_its_champion_is_known_challenged_and_put_back(home: Path, hyco: Callable[..., str]) -> None:
    champion = json.loads(hyco("champion", "--home", str(home)))
    assert (champion["model"], champion["version"]) == (MODEL, VERSION)
    assert (Path(champion["path"]) / "model.safetensors").is_file()
    assert f"promoted    {MODEL}" in hyco("registry", "--home", str(home))

    shutil.copytree(home / "runs" / "old", home / "runs" / "other")
    settings = home / "runs" / "other" / "model" / "preprocessor_config.json"
    settings.write_text(settings.read_text() + "\n")  # other bytes, another model
    took = hyco("promote", "other", "--home", str(home), *EXAM[:2], "--anyway")
    assert took.startswith("promoted: ")
    assert json.loads(hyco("champion", "--home", str(home)))["model"] != MODEL
    hyco("rollback", "--home", str(home))
    assert json.loads(hyco("champion", "--home", str(home)))["model"] == MODEL
    hyco("refuse", "other", "--reason", "by hand", "--home", str(home))
    assert len(hyco("registry", "--home", str(home)).splitlines()) == 4
    assert hyco("verify", "all", "--home", str(home)) == "home: intact\n"


def test_its_deployment_opens(home: Path) -> None:
    """Another digest would train every challenger again."""
    config = DeployConfig.model_validate_json((home / "deploy.json").read_bytes())
    journey = config.retrain.journey
    assert (journey.mine.source, journey.recipe.name, journey.pack.image_size) == (
        "/tmp/oldhome/scenes/train",
        "demo",
        96,
    )
    assert (digest(config.retrain), digest(journey)) == ("144d7502e21779a8", "ba773f1d1cd3a7c8")
    assert f"detections/{digest(journey.mine)}" == DETECTIONS


class _Recorded:
    """Answers with the stored boxes: floating-point sums, and so the last bits of boxes, differ from CPU to CPU."""

    def __init__(self, table: pa.Table) -> None:
        self.digest = table["detector"][0].as_py()
        images: dict[str, dict[str, dict[int, list[dict]]]] = {}
        for row in table.to_pylist():
            if row["score"] is not None:
                place = images.setdefault(row["key"], {}).setdefault(row["phrase"].lower(), {})
                place.setdefault((row["caption"], row["span_start"]), []).append(row)
        # Several captions may hold a phrase; each has the same boxes.
        self.answers: Iterator[dict[str, list[dict]]] = iter(
            {text: next(iter(rows.values())) for text, rows in found.items()} for found in images.values()
        )

    def __call__(self, images: list[np.ndarray], phrases: list[list[str]]) -> list[Detection]:
        found = []
        for texts, answer in zip(phrases, islice(self.answers, len(images)), strict=True):
            rows = [(index, row) for index, text in enumerate(texts) for row in answer[text]]
            boxes = np.array(
                [[row[name] for name in ("x0", "y0", "x1", "y1")] for _, row in rows], np.float32
            )
            scores = np.array([row["score"] for _, row in rows], np.float32)
            found.append(Detection(boxes, scores, np.array([index for index, _ in rows])))
        return found


def test_a_fresh_home_gets_the_same_version(
    home: Path, hyco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same scenes, same configuration, same boxes: the bytes of the old home to the last one."""
    recorded = _Recorded(_table(home))
    monkeypatch.setattr(ground, "open_detector", lambda *_: recorded)
    hyco("mine", *SOURCE, "--home", "fresh", "--workers", "0")
    words = (*SOURCE, "--recipe", "demo", "--assess-source", "scenes/heldout", "--home", "fresh")
    assert json.loads(hyco("pack", *words, "--workers", "0"))["version"] == VERSION
    assert (Path("fresh") / SHARD).read_bytes() == (home / SHARD).read_bytes()
    assert _table(Path("fresh")).equals(_table(home))


def test_the_grounder_finds_the_boxes_it_found(
    home: Path, hyco: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phrases to the letter, boxes up to the arithmetic of this CPU."""
    monkeypatch.setattr(ground, "open_detector", open_detector)
    hyco("mine", *SOURCE, "--home", "fresh", "--workers", "0")
    old, new = _table(home), _table(Path("fresh"))
    words = [
        "key",
        "image_sha256",
        "caption",
        "text",
        "phrase",
        "span_start",
        "rule",
        "expression",
        "detector",
    ]
    assert new.select(words).equals(old.select(words))
    best = [[row["score"] for row in table.to_pylist() if (row["score"] or 0) > 0.3] for table in (old, new)]
    assert best[0] == pytest.approx(best[1], abs=0.01)
