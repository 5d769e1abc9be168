# ruff: noqa: F811  (fixtures)
"""Sources at https://, hf:// and s3:// addresses are listed and read through fsspec as local ones are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.source import open_source
from hyco.storage.store import Store
from tests.factories.web import REPO, web
from tests.pipeline.sources import test_forms as forms
from tests.pipeline.sources.test_source import read
from tests.storage.conftest import s3  # noqa: F401  (a fixture is used by name)

PLACES = {
    "t": (3, {}),
    "t/*.tar": (3, {}),
    "t/{00000..00001}.tar": (2, {}),
    "c": (3, {}),
    "k": (3, {}),
    "coco": (3, {}),
    "coco/annotations/captions_val2017.json": (3, {}),
    "p": (3, {"image": "jpg", "caption": "alt"}),
    "d": (3, {}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    for name, make in {
        "t": forms.tars,
        "c": forms.csv_header,
        "k": forms.kohya,
        "coco": forms.coco,
        "p": forms.other_columns,
        "d": forms.saved_dataset,
    }.items():
        make(root / name)
    return root


def check(url: str) -> None:
    for place, (count, columns) in PLACES.items():
        source = open_source(f"{url}/{place}", columns=Columns(**columns))
        samples, failures = read(source)
        assert len(samples) == count and not failures, place
        assert {unit.name for unit in source.units()} == {unit.name for unit in source.units()}


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    with web(root) as address:
        yield address


def test_a_web_server(address: str) -> None:
    check(address)
    with pytest.raises(FileNotFoundError, match=r"gone\.tar does not exist"):
        open_source(f"{address}/t/gone.tar")
    with pytest.raises(ValueError, match="matches no file"):
        open_source(f"{address}/t/*.parquet")


def test_a_repository_of_the_hub(address: str) -> None:
    code = f"from tests.pipeline.sources.test_remote import check; check('hf://{REPO}')"
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def upload(root: Path, url: str) -> None:
    store = Store(url)
    for path in root.rglob("*"):
        if path.is_file():
            store.replace(path.relative_to(root).as_posix(), path.read_bytes())


def test_a_store_of_objects(root: Path) -> None:
    upload(root, "memory://hyco-forms")
    check("memory://hyco-forms")


@pytest.mark.slow
def test_a_bucket(root: Path, s3: str) -> None:
    upload(root, f"{s3}/forms")
    check(f"{s3}/forms")


@pytest.mark.slow
def test_a_listing_of_s3_tells_what_a_request_for_each_file_tells(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"{s3}/known-hashes")
    for number in range(3):
        store.replace(f"t/{number}.tar", bytes([number]) * 100)
    source = open_source(f"{store.url}/t")
    asked = [source._identity(unit.path) for unit in source.units()]
    monkeypatch.setattr(Store, "info", lambda *_: pytest.fail("a request for each file"))
    assert [unit.sha256 for unit in source.units()] == asked and len(set(asked)) == 3
