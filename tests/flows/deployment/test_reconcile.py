"""`hyco deploy` on a real server: twice is once, drift is said, and what is deployed can be loaded and filled in."""

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools.validation import validate

from hyco.flows.deployment.automations import automations
from hyco.flows.deployment.config import DeployConfig, first, resolved
from hyco.flows.deployment.deployments import _leaves, _tree, merged, schema_of
from hyco.flows.deployment.prefect_yaml import demo_config, text
from hyco.flows.deployment.reconcile import apply, check, pauses
from hyco.flows.deployment.spec import blueprint
from hyco.flows.deployment.work_pools import template
from hyco.flows.runtime.settings import HEARTBEAT_S
from hyco.pipeline.config import ConfigError
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.registry.retraining import RetrainConfig
from hyco.pipeline.training.recipes import RECIPES, demo, demo_poincare_resnet

ROOT = Path(__file__).parents[3]


def config(**changes):
    mine = MineConfig(source="source", grounder="transformers:none", weights="w1")
    journey = JourneyConfig(mine=mine, recipe=demo())
    return DeployConfig(home="home", retrain=RetrainConfig(journey=journey), **changes)


def edits(plan, before):
    """What is kept because it was changed on the server."""
    kept = []
    check(plan, before, kept.append)
    return kept


@pytest.fixture
def bare():
    """The server as it was before other tests deployed to it."""
    with get_client(sync_client=True) as client:
        for one in client.read_deployments():
            client.delete_deployment(one.id)
        for limit in client.read_global_concurrency_limits():
            client.delete_global_concurrency_limit_by_name(limit.name)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        for automation in client.read_automations():
            client.delete_automation(automation.id)


@pytest.mark.usefixtures("bare")
def test_twice_is_once_and_drift_is_reported_and_fixed():
    plan = blueprint(config())
    assert all("missing" in line for line in check(plan))
    made = apply(plan)
    assert len(made) == len(plan.pools) * 3 + len(plan.limits) + len(plan.deployments) + 6
    assert check(plan) == [] == apply(plan)

    with get_client(sync_client=True) as client:
        watch = client.read_deployment_by_name("watch/watch")
        assert watch.global_concurrency_limit.limit == 1 and watch.work_pool_name == "cpu"
        assert (
            watch.parameter_openapi_schema["definitions"]["RetrainConfig"]["properties"]["min_new"]["minimum"]
            == 1
        )
        assert [schedule.schedule.interval for schedule in watch.schedules] == [timedelta(seconds=300)]
        assert client.read_global_concurrency_limit_by_name("hyco-gpu").limit == 1
        client.request("POST", f"/deployments/{watch.id}/schedule", json={"min_runs": 3})
        waiting = [run for run in client.read_flow_runs() if run.deployment_id == watch.id]
        assert len(waiting) >= 3, "the server's scheduler makes runs (with SQLAlchemy 2.1 it cannot)"
        found = client.read_automations_by_name("hyco: a run without heartbeat is dead")
        client.pause_automation(found[0].id)
        client.upsert_global_concurrency_limit_by_name("hyco-gpu", 9)
        client.delete_deployment(client.read_deployment_by_name("journey/journey-smoke").id)
    assert check(plan) == ["concurrency limit hyco-gpu: 9 -> 1", "deployment journey/journey-smoke: missing"]
    apply(plan)
    assert check(plan) == []

    other = blueprint(config(watch_every_s=60, dead_after_s=120))
    assert check(other) == [
        "deployment watch/watch: schedule every 300 s -> every 60 s, different definition",
        "automation 'hyco: a run without heartbeat is dead': different rules",
    ]
    apply(other)
    with get_client(sync_client=True) as client:
        (kept,) = client.read_automations_by_name("hyco: a run without heartbeat is dead")
        assert kept.trigger.within == timedelta(seconds=120) and not kept.enabled, (
            "who paused it keeps it paused"
        )
    with pytest.raises(ValueError, match="work pool cpu is of type process"):
        check(blueprint(config(pool_type="docker")))


def test_who_paused_a_schedule_keeps_it_paused_and_check_says_so():
    plan = blueprint(config())
    apply(plan)
    assert pauses(plan) == []
    with get_client(sync_client=True) as client:
        watch = client.read_deployment_by_name("watch/watch")
        client.update_deployment_schedule(watch.id, watch.schedules[0].id, active=False)
        client.pause_deployment(client.read_deployment_by_name("train/train-small").id)
        client.update_work_pool("gpu", WorkPoolUpdate(is_paused=True))
    paused = [
        "work pool gpu is paused",
        "deployment watch/watch is paused",
        "deployment train/train-small is paused",
    ]
    assert pauses(plan) == paused and check(plan) == []
    apply(blueprint(config(watch_every_s=60, preset="small")))
    apply(plan)
    assert pauses(plan) == paused and check(plan) == []


@pytest.mark.usefixtures("bare")
def test_a_schedule_in_a_zone_whose_clocks_change_is_said():
    plan = blueprint(config())
    apply(plan)
    assert pauses(plan) == []
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name("maintain/maintain")
        (schedule,) = made.schedules
        zoned = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
        client.request(
            "PATCH",
            "/deployments/{id}/schedules/{schedule_id}",
            path_params={"id": made.id, "schedule_id": schedule.id},
            json={"schedule": zoned},
        )
    (note,) = pauses(plan)
    assert note.startswith(
        "deployment maintain/maintain is scheduled in Europe/Berlin: when its clocks change"
    )


@pytest.mark.usefixtures("bare")
def test_what_was_edited_in_the_ui_is_kept_unless_asked_otherwise():
    plan = blueprint(config())
    apply(plan)
    with get_client(sync_client=True) as client:
        watch = client.read_deployment_by_name("watch/watch")
        edited = {**watch.parameters, "config": {**watch.parameters["config"], "min_new": 7}}
        client.update_deployment(watch.id, DeploymentUpdate(parameters=edited, concurrency_limit=2))
        client.request(
            "PATCH",
            "/deployments/{id}/schedules/{schedule_id}",
            path_params={"id": watch.id, "schedule_id": watch.schedules[0].id},
            json={"schedule": {"interval": 900}},
        )
        client.upsert_global_concurrency_limit_by_name("hyco-gpu", 4)
    kept = [
        "concurrency limit hyco-gpu: 1 -> 4",
        "deployment watch/watch: concurrency limit 1 -> 2",
        "deployment watch/watch: parameters.config.min_new 1000 -> 7",
        "deployment watch/watch: schedule every 300 s -> every 900 s",
    ]
    tail = ", changed on the server and kept; hyco deploy --reset undoes it"
    assert edits(plan, plan) == [line + tail for line in kept] and check(plan, plan) == []

    asked = config(maintain_cron="0 4 * * 1")
    journey = asked.retrain.journey
    recipe = journey.recipe.replace(steps=1234)
    other = blueprint(asked.replace(retrain=asked.retrain.replace(journey=journey.replace(recipe=recipe))))
    assert "updated deployment maintain/maintain: schedule '17 3 * * *' -> '0 4 * * 1'" in "".join(
        apply(other, plan)
    )
    assert check(other, other) == [] and edits(other, other) == [line + tail for line in kept]
    with get_client(sync_client=True) as client:
        (schedule,) = client.read_deployment_by_name("watch/watch").schedules
        parameters = client.read_deployment_by_name("watch/watch").parameters["config"]
        assert schedule.schedule.interval == timedelta(seconds=900)
        assert (parameters["min_new"], parameters["journey"]["recipe"]["steps"]) == (7, 1234)

    sooner = blueprint(asked.replace(watch_every_s=60))
    assert "schedule every 900 s -> every 60 s" in "".join(check(sooner, other)), "an option given now wins"
    apply(plan)
    assert edits(plan, plan) == [] == check(plan, plan)
    elsewhere = blueprint(config().replace(home="another"))
    assert edits(elsewhere, elsewhere) == [], "the deployments of another home are not edits of this one's"


def test_another_collision_strategy_is_drift():
    plan = blueprint(config())
    apply(plan)
    with get_client(sync_client=True) as client:
        watch = client.read_deployment_by_name("watch/watch")
        options = {"collision_strategy": "ENQUEUE", "grace_period_seconds": 300}
        client.request(
            "PATCH", "/deployments/{id}", path_params={"id": watch.id}, json={"concurrency_options": options}
        )
    assert check(plan) == ["deployment watch/watch: different collision strategy"]
    apply(plan)
    assert check(plan) == []


@pytest.mark.parametrize("wanted", blueprint(config()).deployments, ids=lambda wanted: wanted.full_name)
def test_every_deployment_loads_and_its_parameters_are_valid(wanted):
    flow = load_flow_from_entrypoint(wanted.entrypoint, use_placeholder_flow=False)
    assert flow.name == wanted.flow
    given = dict(wanted.parameters, **({"run_dir": "x"} if wanted.flow == "assess" else {}))
    flow.validate_parameters(given)


def test_heavy_work_goes_where_the_gpu_is():
    pools = {one.full_name: one.pool for one in blueprint(config(heavy_pool="gpu")).deployments}
    assert pools["retrain/retrain"] == pools["watch/watch"] == pools["mine/mine"] == "gpu"
    plan = blueprint(config(heavy_pool="ray", ray_address="10.0.0.1:6379", ray_workers=16))
    made = {one.full_name: (one.pool, one.parameters.get("engine")) for one in plan.deployments}
    assert made["mine/mine"] == made["pack/pack"] == made["watch/watch"] == ("ray", "ray:10.0.0.1:6379")
    assert made["retrain/retrain"] == ("ray", None) and made["maintain/maintain"] == ("cpu", None)
    (pool,) = [one for one in plan.pools if one.name == "ray"]
    assert pool.template["variables"]["properties"]["env"]["default"]["HYCO_WORKERS"] == "16"
    assert config(heavy_pool="ray").engine == "ray"
    with pytest.raises(ValueError, match="give pool_type=process"):
        config(heavy_pool="ray", pool_type="docker")
    assert pools["pack/pack"] == pools["maintain/maintain"] == "cpu"


def test_a_look_is_later_than_every_event_that_it_stands_for():
    ids = {one.full_name: uuid4() for one in blueprint(config()).deployments}
    looks = [one for one in automations(config(), ids) if one.actions[0].type == "run-deployment"]
    gathering = [one for one in looks if "hyco." in next(iter(one.trigger.expect))]
    assert len(gathering) == 2
    assert all(one.trigger.within <= one.actions[0].schedule_after for one in gathering)
    assert config().gathered_s == 20 and config(gather_s=7, preset="smoke").gathered_s == 7
    assert config(preset="smoke").gathered_s == 5, "a decision is wanted within a minute"


def test_the_window_of_a_dead_run_holds_several_heartbeats_and_ends_within_two_minutes():
    ids = {one.full_name: uuid4() for one in blueprint(config()).deployments}
    dead = [one for one in automations(config(), ids) if one.actions[0].type == "change-flow-run-state"]
    assert len(dead) == 2
    assert all(one.trigger.within <= timedelta(seconds=110) for one in dead)
    assert dead[0].trigger.within >= timedelta(seconds=2 * HEARTBEAT_S)


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
@pytest.mark.parametrize("gpu", [False, True])
def test_templates_ask_for_a_gpu_and_declare_every_variable(kind, gpu):
    made = template(kind, gpu, "hyco:1", "/srv")
    text = str(made["job_configuration"])
    names = {part.split(" }}")[0] for part in text.split("{{ ")[1:]}
    assert names <= set(made["variables"]["properties"]) | {"name"}
    env = made["variables"]["properties"]["env"]["default"]
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert made["variables"]["properties"]["command"]["default"].endswith("-m hyco.flows.engine")
    asks = "'nvidia.com/gpu': 1" in text or "'capabilities': [['gpu']]" in text
    assert asks == (gpu and kind != "process")


def test_containers_see_the_home_and_have_memory_to_share():
    asked = config(volumes=("hyco_home:/data",), networks=("hyco_default",), claim="hyco")
    for gpu, name in enumerate(("cpu", "gpu")):
        docker = blueprint(asked.replace(pool_type="docker")).pools[gpu]
        given = {
            key: value.get("default") for key, value in docker.template["variables"]["properties"].items()
        }
        assert docker.name == name and given["image"] == "hyco-gpu:latest"
        assert given["volumes"] == ["hyco_home:/data"] and given["networks"] == ["hyco_default"]
        made = docker.template["job_configuration"]["container_create_kwargs"]
        assert made["shm_size"] == "8g" and bool(made["device_requests"]) == bool(gpu)
        job = blueprint(asked.replace(pool_type="kubernetes")).pools[gpu].template["job_configuration"]
        pod = job["job_manifest"]["spec"]["template"]["spec"]
        assert [list(volume)[1] for volume in pod["volumes"]] == ["emptyDir", "persistentVolumeClaim"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {"shm": "/dev/shm", "data": "/data"}
        assert [volume["name"] for volume in pod["volumes"]] == list(mounts)
    assert str(pod["volumes"]).count("hyco") == 1
    without = template("kubernetes", False, "hyco:1", "/srv")["job_configuration"]["job_manifest"]
    assert len(without["spec"]["template"]["spec"]["volumes"]) == 1


def test_an_image_has_time_to_come():
    ids = {one.full_name: uuid4() for one in blueprint(config()).deployments}
    for kind, seconds in {"process": 110, "docker": 600, "kubernetes": 600}.items():
        (lost,) = [one for one in automations(config(pool_type=kind), ids) if "never began" in one.name]
        assert lost.trigger.within == timedelta(seconds=seconds)


def test_a_schedule_that_is_none_is_refused_before_anything_is_made():
    with pytest.raises(
        ConfigError, match=r"maintain_cron.*'nonsense' is not a cron schedule; an example is '17 3 \* \* \*'"
    ):
        config(maintain_cron="nonsense")
    assert config(maintain_cron="0 4 * * 1").maintain_cron == "0 4 * * 1"


def test_prefect_yaml_is_the_blueprint(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = blueprint(demo_config())
    assert (ROOT / "prefect.yaml").read_text() == text(plan), (
        "run: python -m hyco.flows.deployment.prefect_yaml > prefect.yaml"
    )
    entries = yaml.safe_load(text(plan))["deployments"]
    assert [entry["entrypoint"] for entry in entries] == [one.entrypoint for one in plan.deployments]
    assert entries[3]["schedules"] == [{"interval": 300.0}]
    limit = {"limit": 1, "collision_strategy": "CANCEL_NEW", "grace_period_seconds": 300}
    assert entries[3]["concurrency_limit"] == limit


@pytest.mark.parametrize("recipe", [demo(), demo_poincare_resnet(), RECIPES["photos_phyclip"]()])
def test_what_prefect_yaml_leaves_out_is_the_default(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    told = demo_config()
    journey = told.retrain.journey.replace(recipe=recipe)
    plan = blueprint(told.replace(retrain=told.retrain.replace(journey=journey)))
    for one, entry in zip(plan.deployments, yaml.safe_load(text(plan))["deployments"], strict=True):
        schema, flow = schema_of(one.flow), load_flow_from_entrypoint(one.entrypoint)
        # The run_dir of assess is given when it is run.
        assert validate(entry["parameters"], {**schema, "required": ["home"]}) == []

        def filled(parameters, flow=flow, names=tuple(schema["properties"])):
            needed = {"run_dir": "run"} if "run_dir" in names else {}
            return flow.validate_parameters({**needed, **parameters})

        full = filled(one.parameters)
        assert {**full, **filled(entry["parameters"])} == full
    assert len(text(plan).splitlines()) < 900  # 850 with the rows of polar_cones


def test_paths_are_made_absolute_for_workers_elsewhere(tmp_path):
    (tmp_path / "grounder").mkdir()
    given = config()
    mine = given.retrain.journey.mine.replace(grounder="transformers:grounder", source="s3://bucket/x")
    journey = given.retrain.journey.replace(mine=mine, taxonomy="t.json")
    done = resolved(given.replace(retrain=given.retrain.replace(journey=journey)), tmp_path)
    assert done.home == str(tmp_path / "home") and done.directory == str(tmp_path)
    assert done.retrain.journey.taxonomy == str(tmp_path / "t.json")
    assert done.retrain.journey.mine.grounder == f"transformers:{tmp_path / 'grounder'}"
    assert done.retrain.journey.mine.source == "s3://bucket/x" and done.retrain.journey.assess_source is None


def test_the_first_deployment_needs_to_be_told_nothing(tmp_path):
    made = first(str(tmp_path))
    assert made.retrain.journey.mine.source == f"{tmp_path}/source" and made.retrain.journey.pack.holdout > 0
    assert made.retrain.journey.mine.weights, "the embedded grounder is there"


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="pool_type"):
        config(pool_type="lambda")


@pytest.mark.parametrize(
    ("before", "there", "asked", "expected"),
    [
        ({"c": None}, {"c": {"x": 1}}, {"c": None}, {"c": {"x": 1}}),
        ({"c": {"x": 1, "y": 2}}, {"c": None}, {"c": {"x": 1, "y": 2}}, {"c": None}),
        ({"c": {}}, {"c": {"x": 1}}, {"c": {}}, {"c": {"x": 1}}),
        ({"c": {"x": 1, "y": 2}}, {"c": None}, {"c": {"x": 1, "y": 3}}, {"c": {"x": 1, "y": 3}}),
        ({"c": None}, {"c": {"x": 1}}, {"c": {"x": 2}}, {"c": {"x": 2}}),
        ({"c": {"x": 1, "y": 2}}, {"c": {"x": 5, "y": 6}}, {"c": {"x": 1, "y": 3}}, {"c": {"x": 5, "y": 3}}),
        ({"c": {"x": 1}, "d": 1}, {"d": 1}, {"c": {"x": 1}, "d": 1}, {"c": {"x": 1}, "d": 1}),
    ],
)
def test_an_edit_between_null_and_an_object_is_kept(before, there, asked, expected):
    """Field mine.columns.boxes is null or an object: setting it in the UI was undone without a word."""
    of = (_leaves(value, ("parameters",)) for value in (there, asked, before))
    assert _tree(merged(*of)) == expected
