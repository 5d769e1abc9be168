"""hyco profile: a trace that can be read, the largest costs in words, and a run that stays as it was."""

import gzip
import json

import pytest
from typer.testing import CliRunner

from hyco.pipeline.cli.app import app
from hyco.pipeline.training.profiling import Costs, kind_of, profile_run
from hyco.pipeline.training.train import prepare, train
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_is_profiled_and_left_as_it_was(tmp_path):
    make_home(tmp_path)
    home = Home(tmp_path)
    run = home.run("tiny").path
    prepare(run, home, "latest", tiny_recipe(steps=10))
    done = CliRunner().invoke(app, ["profile", "tiny", "--home", str(tmp_path), "--steps", "2"])
    assert done.exit_code == 0, done.output
    found = json.loads((run / "profile" / "costs.json").read_text())
    assert found["largest"] == [line for line in done.output.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert found["seconds_per_step"] > 0 and 0 <= found["data_wait"] < 1
    events = json.loads(gzip.decompress((run / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)
    spent = sum(found["milliseconds"].values())
    assert 0.3 < spent / 1e3 / found["seconds_per_step"] < 1.5  # the operations are most of a step
    assert train(run)["steps"] == 10  # from its first step
    assert len((run / "log.jsonl").read_text().splitlines()) == 10


def test_operations_are_named_by_what_they_do():
    assert kind_of("aten::addmm") == kind_of("ampere_bf16_s16816gemm_128x64") == "matrix products"
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    assert kind_of("aten::native_layer_norm_backward") == "layer norms"
    assert kind_of("aten::_fused_adamw_") == "the optimiser"
    assert kind_of("aten::mul") == "sums and other elementwise operations"


def test_the_wait_for_data_is_one_of_the_costs():
    costs = Costs(
        1.0, 0.6, {"matrix products": 0.3, "attention": 0.1}, {"matrix products": "aten::mm"}, "cpu"
    )
    assert costs.words() == [
        "1. waiting for the next batch: 60 % (600.0 ms per step)",
        "2. matrix products: 30 % (300.0 ms per step, most of it in aten::mm)",
        "3. attention: 10 % (100.0 ms per step)",
    ]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no config.json: give the directory that `hyco train` printed"
    ):
        profile_run(tmp_path)
    with pytest.raises(ValueError, match="steps is 0: profile at least one"):
        profile_run(tmp_path, steps=0)
