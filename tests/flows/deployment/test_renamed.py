"""The page of deployments: ten with names that say what they are, and what was deployed under other names before."""

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.states import Completed

from hyco.flows.deployment.deployments import _create, schema_of
from hyco.flows.deployment.reconcile import _pools, apply, check
from hyco.flows.deployment.spec import RENAMED, blueprint
from tests.flows.deployment.test_reconcile import bare, config, edits  # noqa: F401

FIRST_PAGE = 10  # rows of Prefect's page of deployments


def test_all_deployments_are_on_the_first_page_and_say_what_they_are():
    made = blueprint(config()).deployments
    assert len(made) <= FIRST_PAGE
    assert len({one.name for one in made}) == len(made), "the page shows names without their flows first"
    assert all(one.flow in one.name and one.tags[1] in ("automatic", "step", "by hand") for one in made)
    assert set(RENAMED.values()) - {""} <= {one.full_name for one in made}


@pytest.mark.usefixtures("bare")
def test_old_names_are_replaced_and_edits_kept():
    plan = blueprint(config())
    with get_client(sync_client=True) as client:
        for missing in _pools(client, plan, None):
            missing.fix()
        ids = {one.full_name: _create(client, one, "old") for one in plan.former}
        smoke = client.read_deployment(ids["journey/smoke"])
        changed = {**smoke.parameters["config"], "processes": 2}
        edited = {**smoke.parameters, "config": changed}
        client.update_deployment(smoke.id, DeploymentUpdate(parameters=edited, paused=True))
        without = client.read_deployment(ids["train/smoke"])
        client.update_deployment(
            without.id, DeploymentUpdate(parameters={**without.parameters, "version": "v-1"})
        )
        under_way = client.create_flow_run_from_deployment(ids["train/full"])

    assert [line for line in check(plan, plan) if "missing" not in line] == [
        "deployment journey/smoke: is now called journey/journey-smoke",
        "deployment journey/full: is now called journey/journey-full",
        "deployment train/small: is now called train/train-small",
        "deployment train/full: is now called train/train-full",
        "deployment journey/small: no longer asked",
    ]
    noted = []
    done = apply(plan, plan, noted.append)
    assert "updated deployment train/small: is now called train/train-small" in done
    gone = ["journey/smoke", "journey/small", "train/small", "journey/full"]
    assert [line for line in done if line.startswith("deleted")] == [
        f"deleted deployment {one}" for one in gone
    ]
    kept = edits(plan, plan)
    assert sorted(noted) == sorted(kept), "apply tells what it keeps in the same reading"
    tail = ", changed on the server and kept; hyco deploy --reset undoes it"
    assert f"deployment journey/journey-smoke: parameters.config.processes 1 -> 2{tail}" in kept
    assert f"deployment train/smoke: parameters.version latest -> v-1{tail}" in kept
    assert any(
        line.startswith(f"deployment train/full: no longer made, and kept while {under_way.name}")
        for line in kept
    )
    with get_client(sync_client=True) as client:
        assert client.read_deployment_by_name("journey/journey-smoke").paused
        client.set_flow_run_state(under_way.id, Completed(), force=True)
    assert apply(plan, plan) == ["deleted deployment train/full"]
    assert apply(plan) == [
        "updated deployment journey/journey-smoke: parameters.config.processes 2 -> 1",
        "deleted deployment train/smoke",
    ]


def test_a_deployment_of_somebody_else_with_an_old_name_is_left_alone():
    plan = blueprint(config())
    other = blueprint(config().replace(home="elsewhere"))
    apply(plan)
    with get_client(sync_client=True) as client:
        (theirs,) = [one for one in other.former if one.full_name == "train/small"]
        made = _create(client, theirs, "theirs")
    assert check(plan) == []
    with get_client(sync_client=True) as client:
        client.delete_deployment(made)


def places(properties):
    return sorted(properties, key=lambda name: properties[name]["position"])


def test_the_form_has_what_is_changed_most_on_top_and_no_digests():
    schema = schema_of("retrain")
    known = schema["definitions"]
    assert places(schema["properties"]) == ["force", "home", "config"]
    assert places(known["RetrainConfig"]["properties"])[:2] == ["min_new", "start_from"]
    assert places(known["RetrainConfig"]["properties"])[-1] == "journey"
    assert places(known["Recipe"]["properties"])[:4] == ["steps", "batch_size", "optimiser", "seed"]
    assert known["RetrainConfig"]["properties"]["start_from"]["enum"] == ["champion", "scratch"]
    for flow in ("mine", "pack", "assess", "watch", "train", "journey", "maintain"):
        for owner in (made := schema_of(flow), *made["definitions"].values()):
            for name, field in owner.get("properties", {}).items():
                assert field.get("description"), f"{flow}: {name} has no description"
                assert "position" in field and name not in ("weights", "rules", "digest")
