"""The flows do what the plain functions do, and leave what one wants to see in the Prefect UI."""

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema

from hyco.demo import taxonomy
from hyco.demo.write import write_shard
from hyco.flows.journey import journey
from hyco.flows.mine import mine
from hyco.pipeline.config import override
from hyco.pipeline.end_to_end import compose
from tests.factories.commands import GROUNDER

SMALL = ["steps=6", "batch_size=16", "log_every=1", "optimiser.warmup_steps=2"]
SMALL += ["entailment_start=0", "entailment_ramp=0"]
SMALL += ["model.vision.width=64", "model.vision.depth=1", "model.text.depth=1"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any], list[Any]]:
    """A journey over two small shards: its home, its result, its artifacts and its task runs."""
    home = tmp_path_factory.mktemp("journey")
    for number in range(2):
        write_shard(str(home / "scenes"), "train", number, 30, seed=5, size=128)
    write_shard(str(home / "scenes"), "heldout", 0, 30, seed=5, size=128)
    (home / "taxonomy.json").write_text(json.dumps(taxonomy.load().to_json()))
    config = compose(
        str(home / "scenes" / "train"),
        GROUNDER,
        "demo",
        assess_source=str(home / "scenes" / "heldout"),
        taxonomy=str(home / "taxonomy.json"),
    )
    small = [f"recipe.{assignment}" for assignment in SMALL]
    result = journey(override(config, [*small, "assess.draws=100"]), str(home / "home"))

    async def seen() -> tuple[list[Any], list[Any]]:
        async with get_client() as client:
            return await client.read_artifacts(), await client.read_task_runs()

    return home / "home", result, *asyncio.run(seen())


def test_the_journey_ends_with_metrics_and_a_report(ran: Any) -> None:
    home, result, _, _ = ran
    run = Path(result["run_dir"])
    assert run.parent == home / "runs"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["mining"]["images"] == 60
    assert metrics["mining"]["quality"]["images"] == 30
    assert metrics["train"]["samples_seen"] == 96
    assert 0 <= metrics["metrics"]["zero_shot.top1"]["value"] <= 1
    assert metrics["metrics"]["zero_shot.top1"]["chance"] == pytest.approx(1 / len(taxonomy.load().leaves))
    assert "<html" in (run / "report.html").read_text()


def test_every_shard_is_a_task_run_named_after_it(ran: Any) -> None:
    names = sorted(
        run.name for run in ran[3] if run.name.endswith(".tar")
    )  # the others stand for the subflows
    assert names == ["mine 00000.tar", "mine 00000.tar", "mine 00001.tar", "pack 00000.tar", "pack 00001.tar"]


def test_each_stage_leaves_its_artifacts(ran: Any) -> None:
    by_key = {artifact.key: artifact for artifact in ran[2]}
    stages = ("mine", "pack", "train", "assess")
    assert {f"{stage}-progress" for stage in stages} <= by_key.keys()
    assert {"mining", "version", "training", "metrics"} <= by_key.keys()
    assert by_key["mine-progress"].data == 100.0
    assert "Zero-shot" in by_key["metrics"].data


def test_a_second_mining_does_nothing(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ran[0]
    records = {path: path.stat().st_mtime_ns for path in home.glob("detections/*/records/*")}
    config = compose(str(home.parent / "scenes" / "train"), GROUNDER, "demo").mine
    monkeypatch.setattr("hyco.pipeline.mining.mine.mine_shard", None)
    assert mine(config, str(home))["images"] == 60
    assert {path: path.stat().st_mtime_ns for path in home.glob("detections/*/records/*")} == records


def test_the_form_of_the_journey_shows_typed_fields() -> None:
    schema = parameter_schema(journey).model_dump()
    definitions = schema["definitions"]
    assert definitions["PackConfig"]["properties"]["threshold"]["type"] == "number"
    assert definitions["MineConfig"]["properties"]["source"]["type"] == "string"
    assert definitions["Recipe"]["properties"]["steps"]["minimum"] == 1


def test_what_the_report_needs_of_mining_is_read_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = MagicMock()
    for name in ("mine", "pack", "train", "assess", "journeys", "Home"):
        monkeypatch.setattr(f"hyco.flows.journey.{name}", getattr(stages, name))
    journey.fn(MagicMock(), "home")
    names = [call[0] for call in stages.method_calls]
    assert names.index("mine") < names.index("journeys.mining_report") < names.index("train")
