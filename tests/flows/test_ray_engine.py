"""Flow runs and commands with the engine ray: the version of the local engine, and a deployment on the pool ray."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from hyco.demo.write import write_shard
from hyco.flows.deployment.reconcile import apply
from hyco.flows.deployment.spec import blueprint
from hyco.flows.mine import mine
from hyco.flows.pack import pack
from hyco.pipeline.end_to_end import JourneyConfig, compose
from hyco.pipeline.packing.pack import pack as pack_here
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.home import Home
from tests.factories.commands import GROUNDER, hyco
from tests.factories.ray_cluster import RayCluster
from tests.flows.deployment.test_reconcile import config as deployment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=1, cpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(2):
        write_shard(str(folder), "train", number, 12, seed=5, size=128)
    return folder / "train"


def test_flows_and_commands_on_ray_make_the_version_of_this_machine(
    cluster: RayCluster, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYCO_WORKERS", "1")
    engine = f"ray:{cluster.address}"
    config: JourneyConfig = compose(str(source), GROUNDER, "demo")
    mined = mine(config.mine, str(tmp_path / "flows"), engine=engine)
    packed = pack(config.mine, config.pack, str(tmp_path / "flows"), engine=engine)
    assert mined["images"] == 24 and mined["units_done"] == 2
    with get_client(sync_client=True) as client:
        names = [run.name for run in client.read_task_runs()]
    assert {"mine 00000.tar", "mine 00001.tar", "pack 00000.tar", "pack 00001.tar"} <= set(names)

    words = ["--home", tmp_path / "command", "--source", source, "--grounder", GROUNDER, "--engine", engine]
    far = json.loads(hyco("mine", *words, "--workers", "1", "--grounders", "1", "--quiet"))
    timed = ("seconds", "images_per_second")
    assert {name: far[name] for name in far if name not in timed} == {
        name: mined[name] for name in mined if name not in timed
    }
    here = pack_here(config.mine, config.pack, Home(tmp_path / "command"), InProcess())
    assert here.name == packed["version"]
    assert Home(tmp_path / "flows").versions.latest() == packed["version"]


def test_a_deployment_of_the_pool_ray_mines_on_the_cluster(cluster: RayCluster) -> None:
    apply(blueprint(deployment(heavy_pool="ray", ray_address=cluster.address, ray_workers=1)))
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name("mine/mine")
        pool = client.read_work_pool("ray")
    assert made.work_pool_name == "ray" and made.parameters["engine"] == f"ray:{cluster.address}"
    assert pool.type == "process"
    assert pool.base_job_template["variables"]["properties"]["env"]["default"]["HYCO_WORKERS"] == "1"
