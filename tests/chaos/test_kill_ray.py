"""Two nodes of a Ray cluster mine and pack, and actors, nodes and drivers are killed: same version as without it all.

The head node has no workers. `make chaos` prints the counts of the 300 kills.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.packing.pack import pack
from hyco.pipeline.runtime.executor import InProcess, open_executor
from hyco.storage.home import Home
from hyco.storage.store import Store
from tests.chaos import cheap
from tests.chaos.forked import PASSING
from tests.chaos.kills import KillCounts, Reference, Workers, check, write_source
from tests.factories.ray_cluster import RayCluster, alive, kill, wait_until

UNITS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=2) as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("ray") / "source", UNITS, 6)


@pytest.fixture(autouse=True)
def cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mine with a detector and nouns that cost nothing, here and in the workers."""
    monkeypatch.setattr(cheap.ground, "grounder_digest", None)
    monkeypatch.setattr(cheap.ground, "open_detector", None)
    monkeypatch.setattr(mining, "_extractor", None)
    monkeypatch.setattr(mining, "mine_shard", mining.mine_shard)


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What the local engine makes of the source."""
    home = tmp_path_factory.mktemp("local") / "home"
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (cheap.ground, "grounder_digest"),
            (cheap.ground, "open_detector"),
            (mining, "_extractor"),
        ):
            patch.setattr(module, name, None)
        mine = cheap.config(str(source))
        mine_all(mine, Home(home), InProcess())
        pack(mine, cheap.PACK, Home(home), InProcess())
    return Reference.of(Store(home))


def seen(home: Path) -> list[tuple[str, int]]:
    """The nodes and process ids of the workers that have begun a unit."""
    folder = Path(f"{home}.seen")
    return [
        (one.name.rpartition("-")[0], int(one.name.rpartition("-")[2])) for one in sorted(folder.glob("*-*"))
    ]


def done(home: Path) -> int:
    return len(list(home.glob("detections/*/records/*.json")))


def test_two_nodes_make_the_version_that_one_process_makes_with_an_actor_and_a_node_killed(
    cluster: RayCluster, source: Path, reference: Reference, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    Path(f"{home}.slow").write_text("0.4")
    mining.mine_shard = cheap.mine_on_a_cluster
    mine = cheap.config(str(source))
    killed = []

    def strike() -> None:
        """Kill a worker in the middle of its unit, then a node with all that is on it."""
        wait_until(lambda: len({node for node, _ in seen(home)}) == 2)
        kill(seen(home)[0][1])
        before = done(home)
        wait_until(lambda: done(home) > before)
        cluster.kill_node(cluster.nodes[-1])
        killed.append(done(home))

    thread = threading.Thread(target=strike)
    with open_executor(2, engine=f"ray:{cluster.address}") as executor:
        thread.start()
        found = mine_all(mine, Home(home), executor)
        thread.join()
        version = pack(mine, cheap.PACK, Home(home), executor)
    assert killed and killed[0] < UNITS, "the node died while there was work"
    assert found["units_done"] == UNITS and version.name == reference.version
    cluster.nodes.append(cluster.add_node())
    check(Store(home), reference, UNITS, KillCounts())


@pytest.mark.chaos
def test_a_driver_that_is_killed_is_resumed(
    cluster: RayCluster, source: Path, reference: Reference, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    Path(f"{home}.slow").write_text("0.3")
    with Workers(source, tmp_path / "log", {}) as workers:
        driver = workers.start(str(home), f"ray:{cluster.address}")
        wait_until(lambda: done(home) >= 2)
        kill(driver)
        workers.wait(driver)
        mined = {path: path.stat().st_mtime for path in home.glob("detections/*/records/*.json")}
        assert 2 <= len(mined) < UNITS
        code = workers.wait(workers.start(str(home), f"ray:{cluster.address}"))
    assert code == 0, (tmp_path / "log").read_text()
    assert all(path.stat().st_mtime == when for path, when in mined.items()), (
        "what was mined is not mined again"
    )
    check(Store(home), reference, UNITS, KillCounts())


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_three_hundred_kills_on_ray(
    cluster: RayCluster,
    source: Path,
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of actors, drivers and nodes, at random instants; HYCO_KILLS sets another number."""
    chance, tally, struck = random.Random(0), KillCounts(), Counter[str]()
    wanted = int(os.environ.get("HYCO_KILLS", "300"))
    with Workers(source, tmp_path / "log", {}) as workers:
        while tally.kills < wanted:
            tally.rounds += 1
            home = tmp_path / f"home{tally.rounds}"
            Path(f"{home}.slow").write_text("0.2")
            code, told = 1, set()
            while code != 0:
                driver = workers.start(str(home), f"ray:{cluster.address}")
                code = -9
                until = time.monotonic() + chance.uniform(0.5, 8.0)
                while time.monotonic() < until and alive(driver):
                    time.sleep(chance.uniform(0.0, 0.6))
                    fresh = [one for one in seen(home) if one not in told]
                    if fresh and chance.random() < 0.6:
                        kill(fresh[-1][1])
                        told.add(fresh[-1])
                        struck["actors"] += 1
                    elif fresh and chance.random() < 0.1:
                        cluster.kill_node(chance.choice(cluster.nodes))
                        cluster.nodes.append(cluster.add_node())
                        struck["nodes"] += 1
                if chance.random() < 0.7 and alive(driver):
                    kill(driver)
                    struck["drivers"] += 1
                code = workers.wait(driver)
                assert code in (0, 1, PASSING, -9), code
                tally.kills = struck.total()
            check(Store(home), reference, UNITS, tally)
    told_of = ", ".join(f"{number} {what}" for what, number in sorted(struck.items()))
    with capsys.disabled():
        print(f"\nRay: {told_of} killed in {tally.rounds} whole runs: {tally.lost} lost, {tally.torn} torn, "
              f"{tally.doubled} doubled")  # fmt: skip
    assert (tally.lost, tally.torn, tally.doubled) == (0, 0, 0)
