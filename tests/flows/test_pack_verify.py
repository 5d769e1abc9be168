"""The pack flow runs the verifier of its parameter, or of its configuration, before it packs."""

import importlib
from contextlib import nullcontext

import pytest

from hyco.flows.deployment.spec import blueprint
from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.packing.verified import VerifyConfig
from hyco.pipeline.runtime.executor import InProcess
from tests.flows.deployment.test_reconcile import config
from tests.pipeline.packing.test_verified import GATE, detectors, mined

__all__ = ["detectors", "mined"]

flow = importlib.import_module("hyco.flows.pack")


@pytest.mark.parametrize("by", ["parameter", "configuration"])
def test_the_flow_mines_with_the_verifier_and_packs_what_it_confirms(by, mined, monkeypatch):
    mine, home = mined
    asked = []

    def mine_here(wanted, address, engine):
        asked.append((wanted.grounder, wanted.weights))
        mine_all(wanted, home, InProcess())

    monkeypatch.setattr(flow, "mine_flow", mine_here)
    monkeypatch.setattr(flow, "task_engine", lambda *args, **options: nullcontext(InProcess()))
    verify = VerifyConfig(grounder="onnx:second") if by == "configuration" else VerifyConfig()
    packing = PackConfig(image_size=32, min_area_px=None, gate=GATE, verify=verify)
    found = flow.pack(mine, packing, home.url, verify="onnx:second" if by == "parameter" else "")
    assert asked == [("onnx:second", "fedcba9876543210")]
    assert found["counts"]["images"] == 3 and found["counts"]["unverified"] == 12
    without = flow.pack(mine, packing.replace(verify=VerifyConfig()), home.url)
    assert without["counts"]["images"] == 9 and len(asked) == 1


def test_a_deployment_that_verifies_goes_where_detectors_run():
    asked = config(heavy_pool="gpu")
    journey = asked.retrain.journey
    verify = VerifyConfig.model_construct(grounder="owlv2_base", weights="0", threshold=0.2, min_iou=0.5)
    retrain = asked.retrain.replace(
        journey=journey.model_copy(update={"pack": journey.pack.model_copy(update={"verify": verify})})
    )
    for wanted, pool in ((asked, "cpu"), (asked.model_copy(update={"retrain": retrain}), "gpu")):
        assert {one.full_name: one.pool for one in blueprint(wanted).deployments}["pack/pack"] == pool
