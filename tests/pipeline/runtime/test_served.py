"""Servers of a Ray cluster: turns, deaths, time limits, and mining with a detector that a server holds."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import mine_all, results
from hyco.pipeline.runtime import served
from hyco.pipeline.runtime.executor import InProcess, WorkerDiedError
from hyco.pipeline.runtime.ray_executor import RayExecutor
from hyco.storage.home import Home
from tests.chaos import cheap
from tests.chaos.kills import write_source
from tests.factories import paced
from tests.factories.ray_cluster import RayCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=1, cpus=6) as made:
        yield made


@pytest.fixture(autouse=True)
def cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `cheap.config` sets is put back."""
    for module, names in ((cheap.ground, ("grounder_digest", "open_detector")), (mining, ("_extractor",))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))


def start(cluster: RayCluster, workers: int, servers: int, **options: float) -> RayExecutor:
    return RayExecutor(cluster.address, workers, gpus=0.0, servers=servers, **options)  # type: ignore[arg-type]


def double(value: int) -> tuple[int, int]:
    time.sleep(0.05)
    return 2 * value, os.getpid()


def complain(value: int) -> None:
    raise KeyError(f"no {value} here")


def die(folder: str) -> None:
    Path(folder, f"died-{os.getpid()}").touch()
    time.sleep(0.3)  # others wait for their turn
    os.kill(os.getpid(), signal.SIGKILL)


def hang(seconds: float) -> None:
    time.sleep(seconds)


def ask(value: int) -> tuple[int, int]:
    return served.call(double, value)


def ask_in_vain(value: int) -> None:
    served.call(complain, value)


def ask_to_die(folder: str) -> None:
    served.call(die, folder)


def ask_to_hang(seconds: float) -> str:
    return served.call(hang, seconds)


def ask_quickly(folder: str) -> tuple[int, int]:
    """Ask at once while the server is busy with something long."""
    Path(folder, "asks").touch()
    return served.quick_call(double, 4)


def test_workers_share_a_server_and_its_errors_come_back(cluster: RayCluster) -> None:
    with start(cluster, 3, 1) as executor:
        told = [executor.submit(ask, value) for value in range(12)]
        assert [future.result(60)[0] for future in told] == [2 * value for value in range(12)]
        assert len({future.result()[1] for future in told}) == 1
        with pytest.raises(KeyError, match="no 7 here"):
            executor.submit(ask_in_vain, 7).result(60)
        busy, since, calls = executor.usage()[0]
        assert calls == 13 and 0.6 <= busy <= since, "one call after another"


def test_a_call_that_kills_a_server_is_told_and_those_that_waited_are_not(
    cluster: RayCluster, tmp_path: Path
) -> None:
    with start(cluster, 3, 1) as executor:
        executor.submit(ask, 0).result(60)
        doomed = executor.submit(ask_to_die, str(tmp_path))
        while not any(tmp_path.iterdir()):
            time.sleep(0.01)
        waiting = [executor.submit(ask, value) for value in range(2)]
        with pytest.raises(WorkerDiedError, match=r"a server died in .*die"):
            doomed.result(60)
        assert [future.result(60)[0] for future in waiting] == [0, 2]
        assert len(list(tmp_path.iterdir())) == 1, "what killed a server is not sent again"


@pytest.mark.slow
def test_a_call_that_hangs_ends_with_its_server_and_quick_calls_do_not_wait(
    cluster: RayCluster, tmp_path: Path
) -> None:
    with start(cluster, 2, 1, timeout_s=24.0) as executor:
        executor.submit(ask, 0).result(60)
        stuck = executor.submit(ask_to_hang, 90.0)
        assert executor.submit(ask_quickly, str(tmp_path)).result(60)[0] == 8
        assert not stuck.done()
        with pytest.raises(WorkerDiedError, match=r"a server was killed \(longer than 12 s\)"):
            stuck.result(60)
        assert executor.submit(ask, 5).result(60)[0] == 10


@pytest.mark.slow
def test_a_grounder_of_many_workers_waits_less_and_finds_the_same(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", 12, 8)
    (tmp_path / "first").mkdir()
    for path in sorted(source.iterdir())[:3]:  # the first unit of a worker imports for seconds
        path.rename(tmp_path / "first" / path.name)
    mine, first = cheap.config(str(source)), cheap.config(str(tmp_path / "first"))
    mine_all(mine, Home(tmp_path / "local"), InProcess())
    local = results(mine, Home(tmp_path / "local"))
    monkeypatch.setattr(mining, "mine_shard", paced.mine_paced)
    worked = {}
    for servers in (1, 0):
        home = Home(tmp_path / f"servers{servers}")
        with start(cluster, 3, servers) as executor:
            mine_all(first, home, executor)
            before, began = executor.usage(), time.monotonic()
            mine_all(mine, home, executor)
            wall, after = time.monotonic() - began, executor.usage()
        far = results(mine, home)
        for unit in local.units():
            here, there = local.record(unit), far.record(unit)
            assert here and there and here["detections"] == there["detections"]
            assert here["failures"] == there["failures"]
            assert ("wait" in there["seconds"]) == bool(servers)
        if servers:
            worked[servers] = (after[0][0] - before[0][0]) / wall
        else:  # three detectors, each in its worker
            spent = [there["seconds"]["ground"] for there in map(far.record, local.units()) if there]
            worked[servers] = sum(spent) / 3 / wall
    told = f"grounder works {worked[1]:.0%} of the time beside three workers, {worked[0]:.0%} inside each of them"
    with capsys.disabled():
        print(f"\n{told}")
    assert worked[1] > 1.3 * worked[0], told


def test_without_a_gpu_or_with_servers_0_workers_hold_their_own(cluster: RayCluster) -> None:
    with contextlib.ExitStack() as stack:
        for servers in (None, 0):
            executor = stack.enter_context(RayExecutor(cluster.address, 1, servers=servers))
            assert executor.servers == []
            assert executor.submit(served.has_servers).result(60) is False


def test_a_worker_whose_servers_are_all_gone_does_not_load_a_model_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "_mine", served.Servers())
    served.use(["a server"], None)
    served._mine.actors.clear()
    assert served.has_servers()
    with pytest.raises(WorkerDiedError, match=r"no server is left for .*double"):
        served.call(double, 1)
