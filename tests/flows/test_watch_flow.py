"""The look at a growing source: one training for what is due, another after a dead one, none after a cancelled one."""

import os
import time
from dataclasses import asdict, replace

import pyarrow as pa
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed

from hyco.flows.deployment.reconcile import apply
from hyco.flows.deployment.spec import blueprint
from hyco.flows.maintain import MaintainConfig, maintain
from hyco.flows.watch import attempts_without_progress, start, watch
from hyco.pipeline.config import digest
from hyco.pipeline.end_to_end import run_dir
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.pack import pack_digest
from hyco.pipeline.registry.retraining import RetrainDecision
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.detections import SCHEMA, write_detections
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample
from tests.flows.deployment.test_reconcile import config

SIGHT = RetrainDecision("v-000000000000", 1000, "train:v-000000000000:abc", True, "1000 new samples")


@pytest.fixture(scope="module")
def retrain():
    apply(blueprint(config()))
    return config().retrain


def end(state):
    """End every run of the retrain deployment that is under way, and return how many there were."""
    with get_client(sync_client=True) as client:
        runs = [
            run
            for run in client.read_flow_runs()
            if (run.idempotency_key or "").startswith("train:") and not run.state.is_final()
        ]
        for run in runs:
            client.set_flow_run_state(run.id, state, force=True)
    return len(runs)


def test_one_training_at_a_time_and_each_once(retrain):
    assert start(retrain, Home("home"), SIGHT) == "started v-000000000000 attempt 1"
    assert (
        start(retrain, Home("home"), SIGHT) == "v-000000000000 attempt 1 is running; another check follows it"
    )
    later = replace(SIGHT, version="v-111111111111", key="train:v-111111111111:abc")
    assert "is running" in start(retrain, Home("home"), later), "what comes meanwhile waits"
    assert end(Completed()) == 1
    assert start(retrain, Home("home"), later) == "started v-111111111111 attempt 1"
    assert end(Completed()) == 1


def test_a_dead_training_is_followed_until_the_attempts_are_used_up(retrain):
    sight = replace(SIGHT, key="train:v-222222222222:abc")
    for attempt in range(1, retrain.attempts + 1):
        assert start(retrain, Home("home"), sight).endswith(f"attempt {attempt}")
        assert end(Crashed()) == 1
    assert start(retrain, Home("home"), sight).startswith("3 attempts have failed without progress: fix")
    assert end(Crashed()) == 0


def test_attempts_that_get_further_do_not_count(retrain, tmp_path):
    """Three stops of a machine that each left a later checkpoint end no training; three without progress do."""
    sight = replace(SIGHT, key="train:v-444444444444:abc")
    folder = run_dir(Home(tmp_path), retrain.journey.recipe, sight.version).path
    for attempt in range(1, 6):
        assert start(retrain, Home(tmp_path), sight).endswith(f"attempt {attempt}")
        assert end(Crashed()) == 1
        Checkpoints(folder / "checkpoints").save(100 * attempt, {"state.json": b"{}"})
    harmed = Checkpoints(folder / "checkpoints").save(600, {"state.json": b"{}"}) / "state.json"
    harmed.write_bytes(b"}{")  # it looks like progress, and training will pass it over
    assert start(retrain, Home(tmp_path), sight).endswith("attempt 6"), "from step 500, the first one there"
    assert end(Crashed()) == 1
    for attempt in (7, 8):
        assert start(retrain, Home(tmp_path), sight).endswith(f"attempt {attempt}")
        assert end(Crashed()) == 1
    assert "3 attempts have failed without progress" in start(retrain, Home(tmp_path), sight)


@pytest.mark.parametrize(
    ("steps", "counted"),
    [([0], 1), ([0, 0], 2), ([0, 500, 900], 1), ([0, 500, 500], 2), ([0, 500, 0, 500], 3), ([500, 500], 2)],
)
def test_what_counts_as_an_attempt_without_progress(steps, counted):
    assert attempts_without_progress(steps) == counted


def test_a_training_that_a_person_cancelled_is_not_started_again(retrain):
    sight = replace(SIGHT, key="train:v-333333333333:abc")
    start(retrain, Home("home"), sight)
    assert end(Crashed()) == 1
    name = start(retrain, Home("home"), sight).removeprefix("started ")
    assert end(Cancelled()) == 1
    told = start(retrain, Home("home"), sight)
    assert told == f"{name} was cancelled: to train anyway, run the deployment retrain/retrain by hand"
    assert end(Cancelled()) == 0


def watching(folder):
    journey = config().retrain.journey
    return config().retrain.replace(journey=journey.replace(mine=journey.mine.replace(source=str(folder))))


def test_a_remote_home_is_watched_like_a_local_one(tmp_path):
    home, asked = f"memory://{tmp_path.name}", watching(tmp_path)
    assert watch(asked, home)["version"] is None
    store, samples = Store(home), [sample(n) for n in range(3)]
    written = store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    digests = {
        "mine": digest(asked.journey.mine),
        "pack": pack_digest(asked.journey.mine, asked.journey.pack),
    }
    shards = {"train": [shard_ref(written, 3, 6)]}
    name = Versions(store).publish({}, digests, shards, {"images": 3}).name
    state = watch(asked, home, return_state=True)
    found = state.result()
    assert found["version"] == name and state.message == f"nothing new since {name}: {found['training']}"
    assert found["training"] == f"3 new samples, training begins at {asked.min_new}"


def test_with_a_steady_feeder_a_look_ends_and_makes_a_version(tmp_path, monkeypatch):
    """Files keep coming in every stage, and the last is always young: what is listed at the beginning is used."""
    source, home = tmp_path / "source", str(tmp_path / "home")
    source.mkdir()
    asked = watching(source).replace(settle_s=0.3)
    settled, used = [], []

    def feed(age_s=0.0):
        path = source / f"{len(list(source.iterdir())):05d}.jsonl"
        path.write_text(f'{{"{path.name}": 1}}\n')
        os.utime(path, (time.time() - age_s,) * 2)

    def mine(config, home, settle_s=0.0, engine="local"):
        feed(age_s=60), feed()
        work = mining.plan(config, Home(home), settle_s)
        feed(age_s=60), feed()
        settled.append([unit.path for unit in work.pending])
        nothing = pa.Table.from_pylist([], schema=SCHEMA)
        boxes = Store(home).commit(
            "detections/0/objects", ".parquet", lambda file: write_detections(file, nothing)
        )
        for unit in work.pending:
            record = {"images": 1, "failed": 0, "detections": {"path": boxes.path}}
            mining.results(config, Home(home)).commit(unit.name, record)

    def packed(mine, config, home, unit, without, report=None):
        feed(age_s=60)
        used.append(unit.path)
        written = home.store.commit(
            "shards/objects", ".tar", lambda file: write_shard(file, [sample(len(used))])
        )
        record = {"counts": {"images": 1}, "detectors": [], "shards": {"val": []}}
        record["shards"]["train"] = [asdict(shard_ref(written, 1, 2))]
        home.packs(pack_digest(mine, config)).commit(unit.name, record)

    def pack(mine, config, home, mined_only=False, engine="local"):
        feed(age_s=60), feed()
        monkeypatch.setattr("hyco.pipeline.packing.pack.pack_shard", packed)
        monkeypatch.setattr(
            "hyco.pipeline.packing.pack.gate",
            lambda home, version, *_: home.versions.point(version.name) or [],
        )
        packing.pack(mine, config, Home(home), mined_only=mined_only)

    feed(age_s=60)
    monkeypatch.setattr("hyco.flows.watch.mine", mine)
    monkeypatch.setattr("hyco.flows.watch.pack", pack)
    monkeypatch.setattr("hyco.flows.watch.MOST_ROUNDS", 3)
    found = watch(asked, home)
    assert found["rounds"] == 3 and len(Versions(Store(home)).names()) == 3, "every round makes a version"
    assert used == [path for paths in settled for path in paths], "each unit once, in the look that listed it"
    assert found["version"] == Versions(Store(home)).load("latest").name


def test_a_decision_that_was_killed_before_it_was_told_is_told_once(tmp_path):
    def told():
        with get_client(sync_client=True) as client:
            return [one for one in client.read_artifacts() if one.description == f"refused {model}"]

    (tmp_path / "source").mkdir()
    asked, home = watching(tmp_path / "source"), str(tmp_path / "home")
    model, registry = "d" * 16, Home(home).registry
    registry.append(Decision("refused", model, [], "worse", key="train:v-9:x", version="v-9", run="/h/r"), 0)
    for _ in range(2):
        watch(asked, home)
        assert len(told()) == 1
    model = "e" * 16
    registry.append(Decision("refused", model, [], "by hand", version="v-9", run="/h/r"), 1)
    watch(asked, home)
    assert told() == [], "the command that made it tells of it"


def test_maintenance_deletes_what_is_old_and_leaves_the_rest(tmp_path):
    @flow(name="soon old")
    def soon_old():
        return 1

    store = Store(tmp_path)
    kept = store.commit("shards/objects", ".tar", lambda file: file.write(b"named"))
    lost = store.commit("shards/objects", ".tar", lambda file: file.write(b"orphan"))
    store.create("versions/v-1.json", f'{{"shards": ["{kept.path}"]}}'.encode())
    soon_old()
    newest = soon_old(return_state=True).state_details.flow_run_id
    with get_client(sync_client=True) as client:
        ended = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES)))
        )
        [oldest] = client.read_flow_runs(flow_run_filter=ended, sort=FlowRunSort.START_TIME_ASC, limit=1)
        young = maintain(MaintainConfig(files_hours=1), str(tmp_path))
        assert young == {"files of the home": 0, "flow runs": 0, "result files": 0}
        assert client.read_flow_run(oldest.id).state.is_final()
        config = MaintainConfig(files_hours=1e-9, runs_days=1e-9, results_days=1e-9, most_runs=1)
        done = maintain(config, str(tmp_path))
        assert done["files of the home"] == 1 and done["flow runs"] == 1
        assert store.exists(kept.path) and not store.exists(lost.path)
        with pytest.raises(ObjectNotFound):
            client.read_flow_run(oldest.id)
        assert client.read_flow_run(newest).state.is_final()
