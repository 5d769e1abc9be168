"""Pages of the Prefect UI: a quarantined version has one too, and a page that cannot be made stops no work."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from hyco.flows.__main__ import announce, announce_shelved
from hyco.flows.pack import pack
from hyco.flows.reporting import artifacts, events
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing.dataset_gate import Check, QualityError
from hyco.pipeline.packing.pack import PackConfig
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample


def data_of(key: str) -> Any:
    found: Any = Artifact.get(key)
    assert found is not None
    return found.data


def test_a_quarantine_is_told_with_the_whole_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, samples = Store(tmp_path), [sample(n) for n in range(3)]
    written = store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    counts = {"images": 3, "parts": 6, "train_images": 3}
    shards = {"train": [shard_ref(written, 3, 6)]}
    name = Versions(store).publish({}, {"mine": "m", "pack": "p"}, shards, counts, latest=False).name
    why = "3 training images, fewer than 100"
    checks = [
        Check("training images", 3, None, 100, False, why),
        Check("damaged shards", 0.0, None, 0.0, True),
    ]

    def refuse(*args: Any) -> None:
        raise QualityError(name, checks, tmp_path)

    monkeypatch.setattr("hyco.flows.pack.packing.pack", refuse)
    mine = MineConfig(source=str(tmp_path), grounder="transformers:none", weights="w1")
    with pytest.raises(QualityError, match="quarantined"):
        pack(mine, PackConfig(), str(tmp_path))
    text = data_of("version")
    assert f"hyco release {name}" in text and why in text and "| damaged shards |" in text


def test_a_page_that_cannot_be_made_stops_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    mine = MineConfig(source=str(tmp_path / "gone"), grounder="transformers:none", weights="w1")
    artifacts.mined({}, mine, Home(tmp_path))
    assert "no artifact, mined" in caplog.text


@pytest.fixture
def named_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a command that names the server of these tests, and no Prefect home."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"}
    monkeypatch.setattr(os, "environ", {**kept, "PREFECT_API_URL": str(PREFECT_API_URL.value())})


@pytest.mark.usefixtures("named_server")
def test_a_decision_about_a_run_that_lies_elsewhere_is_told_of_its_home(tmp_path: Path) -> None:
    home, run = tmp_path / "home", tmp_path / "other" / "folder" / "run"
    row = Home(home).registry.append(
        Decision("refused", "r" * 16, [], "by hand", version="v-9", run=str(run)), 0
    )
    announce(row, str(home))
    assert data_of("decision").startswith("# Refused: " + "r" * 16)
    assert (home / "prefect").is_dir() and not (tmp_path / "other").exists()


@pytest.mark.usefixtures("named_server")
def test_what_prefect_still_has_to_send_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = PrefectConsoleHandler(stream := io.StringIO())
    handler.setFormatter(logging.Formatter("%(message)s"))
    monkeypatch.setattr(logging.getLogger("prefect.EventsWorker"), "handlers", [handler])

    def late() -> None:
        logging.getLogger("prefect.EventsWorker").warning("Still processing items: 1 items remaining...")
        logging.getLogger("prefect.EventsWorker").warning("something else")

    monkeypatch.setattr(events, "flush", late)
    announce_shelved(False, "7.tar", "/data", "torn", str(tmp_path))
    assert stream.getvalue() == "something else\n"


@pytest.mark.usefixtures("named_server")
def test_a_decision_stands_where_prefect_gets_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prefect").touch()
    row = Home(tmp_path).registry.append(Decision("refused", "s" * 16, [], "by hand", run="/h/runs/r"), 0)
    announce(row, str(tmp_path))
    assert "no event and no artifact: " in capsys.readouterr().err


def test_a_decision_leaves_the_lineage_too(tmp_path: Path) -> None:
    row = Home(tmp_path).registry.append(
        Decision("refused", "m" * 16, [], "worse", version="v-9", run="/h/runs/r9"), 0
    )
    artifacts.decided(row, Home(tmp_path))
    assert data_of("decision").startswith("# Refused: " + "m" * 16)
    assert "lineage.svg" in data_of("lineage") and "[v-9](" in data_of("lineage")
