"""The meter: FLOPs are those that PyTorch counts; every figure reaches log, progress line and train.json."""

import dataclasses
import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hyco.models.clip import DualEncoder
from hyco.pipeline.runtime.device import matmul_rate
from hyco.pipeline.training import run_protocol
from hyco.pipeline.training.meter import (
    Meter,
    backward_factor,
    counted_flops,
    image_flops,
    peak_memory,
    text_flops,
)
from hyco.pipeline.training.recipes import by_name
from hyco.pipeline.training.step_log import read_log
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_flops_of_an_image_are_those_that_pytorch_counts(pooling):
    model = by_name("demo").model
    model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, pooling=pooling))
    assert image_flops(model) == counted_flops(model) + 2 * model.vision.width * model.dim
    assert image_flops(by_name("hycoclip_vit_s").model) == pytest.approx(8.6e9, rel=0.02)


@pytest.mark.parametrize("length", [2, 9, 16])
def test_flops_of_a_text_are_those_that_pytorch_counts(length):
    """Without attention's two products, which it does not count on a CPU."""
    config = tiny_recipe().model
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, depth=3))
    model = DualEncoder(config)
    model.textual.layout = "padded"  # equal texts are otherwise computed once
    tokens = torch.ones(4, length, dtype=torch.long)
    tokens[:, -1] = config.text.end_token
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.project_text(tokens)
    attention = (2 * 4 * length**2 + 4 * length) * config.text.width
    assert text_flops(config.text, config.dim, length) == counter.get_total_flops() / 4 + attention


def test_a_batch_counts_its_real_tokens():
    config = tiny_recipe().model
    meter = Meter(config, backward_factor("all"))
    meter.add(3, [4, 4, 9])
    texts = 2 * text_flops(config.text, config.dim, 4) + text_flops(config.text, config.dim, 9)
    assert meter.take() == [3 * 5 + 17, 3 * (3 * image_flops(config) + texts)]
    assert meter.take() == [0, 0]
    assert backward_factor("heads") == 1 and backward_factor("lora", 0.25) == 1.25
    poincare = by_name("demo_poincare_resnet").model
    assert image_flops(poincare) > 1e7 and Meter(poincare, 3).image_tokens == 0


def test_rate_and_memory_of_this_machine():
    state = torch.get_rng_state()
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < peak_memory(torch.device("cpu")) < 1e12


def test_every_figure_is_logged_shown_and_summed_up(tmp_path, capsys):
    make_home(tmp_path / "home")
    train(tmp_path / "run", Home(tmp_path / "home"), "latest", tiny_recipe(steps=4))
    lines = read_log(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "train.json").read_text())
    for name in ("tokens_per_second", "flops_per_second", "mfu", "peak_memory_mb"):
        assert all(line[name] > 0 for line in lines)
        assert min(line[name] for line in lines) <= result[name] <= max(line[name] for line in lines)
    # 16 samples and as many parts of 5 image tokens; texts of 3 to 16 tokens.
    for line in lines:
        tokens = line["tokens_per_second"] * line["seconds_here"]
        assert 32 * (5 + 3) <= tokens <= 32 * (5 + 16) and tokens == pytest.approx(round(tokens), abs=1e-3)
    shown = capsys.readouterr().err
    assert re.search(
        r"train, loss [\d.]+, [\d,]+ tokens/s, MFU \d+ %, waits for data \d+ %, [\d,]+ MB: 64/64", shown
    )


def test_a_log_of_an_earlier_version_has_no_speed():
    assert run_protocol.speed([{"seconds_here": 1.0}]) == {}
