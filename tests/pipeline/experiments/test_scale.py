"""The simulation of many units, the table of a large run, and the requests that a unit costs an S3 home."""

from collections import Counter
from pathlib import Path

import pytest

from hyco.pipeline.experiments.scale import simulate
from hyco.pipeline.experiments.scale_estimate import REQUESTS, estimate, training_flops, unit_costs
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.packing.pack import pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.training.recipes import hycoclip_vit_b
from hyco.storage.home import Home
from hyco.storage.store import Store
from tests.chaos import cheap
from tests.chaos.faulty_s3 import FaultyS3
from tests.chaos.kills import write_source


@pytest.fixture(autouse=True)
def cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `cheap.config` sets is put back."""
    for module, name in (
        (cheap.ground, "grounder_digest"),
        (cheap.ground, "open_detector"),
        (mining, "_extractor"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


def test_the_simulation_does_every_unit_once_and_says_what_took_how_long(tmp_path: Path) -> None:
    found = simulate(20, "local", 1, tmp_path)
    assert found["units"] == 20 and found["workers"] == 1
    assert found["ms_per_unit"]["worker: two objects"] > 0 and found["seconds"]["units"] > 0
    records = list((tmp_path / "home").glob("detections/*/records/*.json"))
    assert len(records) == 20


def test_a_large_run_is_priced_from_the_records_of_a_home(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    with pytest.raises(ValueError, match="no mined and packed images: run hyco mine"):
        unit_costs(home)
    mine = cheap.config(str(write_source(tmp_path / "source", 2, 10)))
    mine_all(mine, home, InProcess())
    pack(mine, cheap.PACK, home, InProcess())
    cost = unit_costs(home)
    assert cost.images == 20 and cost.pack_s > 0 and cost.shard_bytes > 500 and cost.mine_s["ground"] >= 0
    table = estimate(home, 1_000_000, 10_000, [1, 128, 512], gpu_rate=10.0, gpu_tflops=300.0, image_bytes=5e4)
    hours = next(line for line in table.splitlines() if "mining, hours" in line).split("|")[2:5]
    assert float(hours[0]) > 27.7 and float(hours[1]) == pytest.approx(float(hours[0]) / 100, rel=0.01)
    assert hours[1] == hours[2], "no more workers than units"
    # ViT-B/16: 6 operations per parameter of a block and token, here checked from the width alone
    assert training_flops(hycoclip_vit_b()) > 6 * 12 * 12 * 768**2 * 197 * 2 * hycoclip_vit_b().batch_size


@pytest.mark.slow
def test_requests_of_a_unit_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: Counter[str] = Counter()

    class Counting(FaultyS3):
        def _app(self, environ, start_response):
            met["requests"] += 1
            return super()._app(environ, start_response)

    server, spent = Counting(), {}
    for name, value in (
        ("ENDPOINT_URL", server.steady_url),
        ("ACCESS_KEY_ID", "test"),
        ("SECRET_ACCESS_KEY", "test"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        Store("s3://scale").fs.mkdir("scale")
        for units in (1, 3):
            home = Home(f"s3://scale/home{units}")
            mine = cheap.config(str(write_source(tmp_path / f"source{units}", units, 12)))
            for stage, work in (
                ("mine", mine_all),
                ("pack", lambda *args: pack(args[0], cheap.PACK, *args[1:])),
            ):
                met.clear()
                work(mine, home, InProcess())
                spent[stage, units] = met["requests"]
    finally:
        server.close()
    for stage, most in REQUESTS.items():
        each = (spent[stage, 3] - spent[stage, 1]) / 2
        assert most / 2 < each < most * 1.3, f"{stage}: {each} requests per unit, the table says {most}"
