"""The look at a growing source starts one training for what is due, follows a dead one with another, and then stops."""

from dataclasses import replace

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Crashed

from flows.blueprint import blueprint
from flows.deploy import apply
from flows.maintain import MaintainConfig, maintain
from flows.watch import start
from pipeline.watch import Sight
from storage.store import Store
from tests.flows.test_deploy import config

SIGHT = Sight("v-000000000000", 1000, "train:v-000000000000:abc", True, "1000 new samples")


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
    assert start(retrain, "home", SIGHT) == "started v-000000000000 attempt 1"
    assert start(retrain, "home", SIGHT) == "v-000000000000 attempt 1 is under way; another look follows it"
    later = replace(SIGHT, version="v-111111111111", key="train:v-111111111111:abc")
    assert "is under way" in start(retrain, "home", later), "what comes meanwhile waits"
    assert end(Completed()) == 1
    assert start(retrain, "home", later) == "started v-111111111111 attempt 1"
    assert end(Completed()) == 1


def test_a_dead_training_is_followed_until_the_attempts_are_used_up(retrain):
    sight = replace(SIGHT, key="train:v-222222222222:abc")
    for attempt in range(1, retrain.attempts + 1):
        assert start(retrain, "home", sight).endswith(f"attempt {attempt}")
        assert end(Crashed()) == 1
    assert start(retrain, "home", sight).startswith("3 attempts have failed: mend the cause")
    assert end(Crashed()) == 0


def test_maintenance_deletes_what_is_old_and_leaves_the_rest(tmp_path):
    @flow(name="soon old")
    def soon_old():
        return 1

    store = Store(tmp_path)
    kept = store.commit("shards/objects", ".tar", lambda file: file.write(b"named"))
    lost = store.commit("shards/objects", ".tar", lambda file: file.write(b"orphan"))
    store.create("versions/v-1.json", f'{{"shards": ["{kept.path}"]}}'.encode())
    state = soon_old(return_state=True)
    with get_client(sync_client=True) as client:
        young = maintain(MaintainConfig(files_hours=1), str(tmp_path))
        assert young == {"files of the home": 0, "flow runs": 0, "result files": 0}
        assert client.read_flow_run(state.state_details.flow_run_id).state.is_completed()
        done = maintain(MaintainConfig(files_hours=1e-9, runs_days=1e-9, results_days=1e-9), str(tmp_path))
        assert done["files of the home"] == 1 and done["flow runs"] >= 2
        assert store.exists(kept.path) and not store.exists(lost.path)
        with pytest.raises(ObjectNotFound):
            client.read_flow_run(state.state_details.flow_run_id)
