"""Slots: a job on GPUs holds as many as it uses, one on a CPU holds one; nobody waits outside a deployment."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prefect.client.orchestration import get_client

from hyco.flows.assess import assess
from hyco.flows.retrain import retrain
from hyco.flows.runtime import concurrency as slots
from hyco.flows.train import train
from hyco.pipeline.registry.retraining import RetrainDecision
from hyco.pipeline.training.recipes import demo
from tests.flows.deployment.test_reconcile import config


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A deployed run on a host with GPUs; `cuda` may be set to False."""
    host = SimpleNamespace(cuda=True)
    monkeypatch.setattr(slots, "deployment", SimpleNamespace(id="one"))
    monkeypatch.setattr(slots, "resolve_device", lambda name: torch.device("cuda" if host.cuda else "cpu"))
    with get_client(sync_client=True) as client:
        for name in (slots.GPU_LIMIT, slots.CPU_LIMIT):
            client.upsert_global_concurrency_limit_by_name(name, 3)
    return host


def held() -> tuple[int, int]:
    """Slots held of the limits of GPUs and of CPUs."""
    with get_client(sync_client=True) as client:
        found = [
            client.read_global_concurrency_limit_by_name(name) for name in (slots.GPU_LIMIT, slots.CPU_LIMIT)
        ]
    return found[0].active_slots, found[1].active_slots


def test_a_job_holds_a_slot_for_each_of_its_gpus(deployed: Any) -> None:
    with slots.slot(gpus=2):
        assert held() == (2, 0)
        with slots.slot(gpu_only=True):
            assert held() == (3, 0)
    with slots.slot(gpus=8):
        assert held() == (3, 0), "all there are"
    assert held() == (0, 0)


def test_without_a_gpu_training_holds_one_slot_and_the_rest_none(deployed: Any) -> None:
    deployed.cuda = False
    with slots.slot(gpus=2), slots.slot(gpu_only=True):
        assert held() == (0, 1)


def test_a_flow_started_by_hand_does_not_wait(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "deployment", SimpleNamespace(id=None))
    with slots.slot(gpus=2):
        assert held() == (0, 0)


def test_training_assessment_and_judging_hold_what_they_use(
    deployed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def work(name: str, result: Any) -> Any:
        return lambda *given, **named: seen.update({name: held()}) or result

    versions = SimpleNamespace(load=lambda name: SimpleNamespace(name="v-1"))
    for name, stand_in in {
        "hyco.flows.train.Home.versions": versions,
        "hyco.flows.train.prepare": lambda *given: None,
        "hyco.flows.train.training": work("train", {}),
        "hyco.flows.assess.evaluate": work("assess", {}),
        "hyco.flows.retrain.check": lambda *given: RetrainDecision("v-1", 1, "key", True, "due"),
        "hyco.flows.retrain.recipe_for": lambda *given: demo(),
        "hyco.flows.retrain._mining": lambda *given: None,
        "hyco.flows.retrain.judge": work(
            "judge", SimpleNamespace(kind="", reason="", model="", run="", version="")
        ),
        "hyco.flows.retrain.artifacts.decided": lambda *given: None,
        "hyco.flows.reporting.artifacts.trained": lambda *given: None,
        "hyco.flows.reporting.artifacts.assessed": lambda *given: None,
    }.items():
        monkeypatch.setattr(name, stand_in)
    train(demo(), str(tmp_path), processes=2)
    assess("run", str(tmp_path))
    assert seen == {"train": (2, 0), "assess": (1, 0)}
    retrain(config().retrain, str(tmp_path))
    assert seen == {"train": (1, 0), "assess": (1, 0), "judge": (1, 0)}
