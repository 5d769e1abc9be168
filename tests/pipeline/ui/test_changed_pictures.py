"""The comparison of two runs shows the images whose answers changed, read from what was evaluated."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hyco.pipeline.evaluation.answers import Answers, write
from hyco.pipeline.evaluation.config import VAL
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.sample import content_key
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.files import named, noise, tarred
from tests.factories.training import sample

IMAGES = [noise(seed, 200, 300) for seed in range(3)]
KEYS = [content_key(image) for image in IMAGES]


def add_runs(home: Path, keys: list[str], assessed: dict) -> None:
    """Run a names the first two images wrong, run b the last two."""
    for name, answered in (("a", [1, 1, 0]), ("b", [0, 1, 1])):
        run = home / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        (run / "metrics.json").write_text(json.dumps({"schema": 2, "metrics": {}, "assessed": assessed}))
        write(run, Answers(["cat", "dog"], keys, [0, 0, 0], answered))


def shown(home: Path, keys: list[str]) -> list[int]:
    client = TestClient(create_app(Home(home)), base_url="http://localhost")
    page = client.get("/runs/a/compare/b").text
    assert [f"/runs/a/compare/b/{key}.jpg" in page for key in keys] == [True, False, True], "what changed"
    found = [client.get(f"/runs/a/compare/b/{key}.jpg") for key in keys]
    for answer in found:
        if answer.status_code == 200:
            assert answer.headers["content-type"] == "image/jpeg"
            assert min(Image.open(io.BytesIO(answer.content)).size) <= 96
    return [answer.status_code for answer in found]


def test_the_images_of_a_source_are_shown_until_it_is_gone_or_they_are_deleted(tmp_path: Path) -> None:
    held, home = tmp_path / "held", tmp_path / "home"
    held.mkdir()
    members = [named(f"{n:05d}", {"png": image, "txt": "a cat"}) for n, image in enumerate(IMAGES)]
    tarred(held / "00000.tar", members[0] | members[1] | members[2])
    add_runs(home, KEYS, {"source": str(held), "images": 3, "undecodable": 0})
    assert shown(home, KEYS) == [200, 404, 200]
    Home(home).deletions.append([KEYS[2]], (), "asked")
    assert shown(home, KEYS) == [200, 404, 404]
    (held / "00000.tar").rename(tmp_path / "elsewhere.tar")
    assert shown(home, KEYS) == [404, 404, 404]


def test_columns_that_were_named_are_read_again(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    table = pa.table({"photo": IMAGES, "photo_small": [b""] * 3, "said": ["a cat"] * 3})
    pq.write_table(table, held / "00000.parquet")
    columns = {"image": "photo", "caption": "said"}
    add_runs(tmp_path / "home", KEYS, {"source": str(held), "images": 3, "columns": columns})
    assert shown(tmp_path / "home", KEYS) == [200, 404, 200]


@pytest.mark.parametrize("gone", [False, True])
def test_the_images_of_a_val_split_are_shown(tmp_path: Path, gone: bool) -> None:
    samples = [sample(number, size=120) for number in range(3)]
    store = Store(tmp_path)
    made = store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    ref = shard_ref(made, 3, 6)
    version = Versions(store).publish({}, {}, {"train": [ref], "val": [ref]}, {})
    keys = [one.key for one in samples]
    add_runs(tmp_path, keys, {"source": f"{VAL}{version.name}", "images": 3})
    if gone:
        (tmp_path / made.path).unlink()
    assert shown(tmp_path, keys) == ([404] * 3 if gone else [200, 404, 200])


@pytest.mark.parametrize(
    "assessed",
    [
        "a word",
        {"source": "held", "images": None},
        {"source": "held", "images": 3, "columns": None},
        {"source": "held", "images": 3, "columns": {"unknown": "a"}},
        {"source": "unreachable", "images": 3},
    ],
)
def test_what_was_evaluated_cannot_be_read(tmp_path: Path, monkeypatch, assessed) -> None:
    def refuse(*args, **options):
        raise PermissionError("no credentials")

    monkeypatch.setattr("hyco.pipeline.evaluation.held_out.open_source", refuse)
    add_runs(tmp_path, KEYS, assessed)
    assert shown(tmp_path, KEYS) == [404, 404, 404]
