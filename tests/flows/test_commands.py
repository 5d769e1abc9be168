"""`hyco deploy` applies every option wherever the configuration comes from; `hyco worker` ends as its worker does."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from hyco.flows.__main__ import _pages
from hyco.flows.__main__ import main as hyco
from hyco.flows.deployment.config import EMBEDDED
from hyco.flows.deployment.deployments import Drift
from hyco.flows.deployment.watchers import Watcher, told
from hyco.flows.runtime.settings import use_home

ROOT = Path(__file__).parents[2]


@pytest.fixture
def deploy(tmp_path, monkeypatch):
    """Run hyco deploy in this process; the configuration that was kept."""
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["hyco", "deploy", "--home", str(tmp_path), *words])
        with pytest.raises(SystemExit) as left:
            hyco()
        assert left.value.code == code
        return json.loads((tmp_path / "deploy.json").read_bytes())

    return run


def test_the_exam_and_the_classes_are_taken_with_or_without_a_source(deploy, tmp_path, capsys):
    kept = deploy("--assess-source", "held", "--set", "heavy_pool=gpu")["retrain"]["journey"]
    assert kept["assess_source"] == str(Path("held").resolve()) and kept["taxonomy"] is None
    assert kept["pack"]["holdout"] == 0, "there is an exam already"
    told = capsys.readouterr().out
    assert f"next: hyco worker --pool cpu --home {tmp_path} and hyco worker --pool gpu --home" in told
    kept = deploy("--taxonomy", "s3://bucket/taxonomy.json")["retrain"]["journey"]
    assert kept["assess_source"] == str(Path("held").resolve())
    assert kept["taxonomy"] == "s3://bucket/taxonomy.json"


def test_a_file_of_deployments_is_that_of_the_home(deploy, tmp_path):
    out = tmp_path / "prefect.yaml"

    def journey():
        entries = yaml.safe_load(out.read_text())["deployments"]
        (one,) = [entry for entry in entries if entry["name"] == "retrain"]
        assert one["parameters"]["home"] == str(tmp_path)
        return one["parameters"]["config"]["journey"]

    assert not (tmp_path / "deploy.json").exists()
    with pytest.raises(FileNotFoundError):
        deploy("--yaml", str(out))
    assert journey()["mine"]["source"] == f"{tmp_path}/source" and not (tmp_path / "source").exists()
    deploy("--set", "retrain.journey.mine.source=s3://bucket/images")
    deploy("--yaml", str(out), "--assess-source", "held")
    assert journey()["mine"]["source"] == "s3://bucket/images" and journey()["assess_source"] == "held"


def test_a_broken_deploy_json_is_named_and_replaced_by_what_the_line_says(deploy, tmp_path, capsys):
    """Without it nobody knows what was edited on the server: only --reset goes on without that."""
    (tmp_path / "deploy.json").write_text('{"home":')
    full = ("--source", str(tmp_path), "--grounder", f"transformers:{EMBEDDED}", "--recipe", "demo")
    for words in ((), full, ("--reset",)):
        with pytest.raises(ValueError, match="Expecting"):
            deploy(*words, code=2)  # and the file is still what it was
        said = capsys.readouterr().err
        assert f"{tmp_path}/deploy.json cannot be read" in said
        assert "give --source, --grounder, --recipe and --reset" in said
    assert deploy(*full, "--reset")["retrain"]["journey"]["mine"]["source"] == str(tmp_path)


def test_a_home_that_is_not_there_yet_has_pages(tmp_path, monkeypatch):
    """`hyco ui` comes first; with PREFECT_HOME elsewhere nothing else makes the folder."""
    monkeypatch.delenv("HYCO_SERVE_URL", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as beside:
        assert f"http://127.0.0.1:{port}/" in _pages(str(tmp_path / "new"), port, beside)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.status == 200


def test_flow_runs_of_a_terminal_send_heartbeats(tmp_path, monkeypatch):
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv(name, "45")
    use_home(str(tmp_path))
    assert os.environ[name] == "45"
    monkeypatch.delenv(name)
    use_home(str(tmp_path))
    assert os.environ[name] == "30"


def test_a_worker_takes_its_leave_when_it_is_asked_to(deploy, tmp_path):
    deploy()
    with get_client(sync_client=True) as client:  # a run that is due now would keep it
        for one in client.read_deployments():
            client.delete_deployment(one.id)
    env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "hyco.flows", "worker", "--home", str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 90
        while b"started!" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    finally:
        process.kill()
        process.wait()
    assert "Received SIGTERM" in log.read_text()


def test_notify_says_who_will_look_and_refuses_a_folder_that_nobody_watches(
    deploy, tmp_path, capsys, monkeypatch
):
    watched = tmp_path / "source"
    deploy()

    def notify(place, code):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["hyco", "notify", str(place), "--home", str(tmp_path)])
        with pytest.raises(SystemExit) as left:
            hyco()
        assert (left.value.code or 0) == code
        return capsys.readouterr()

    said = notify(watched, 0)
    assert f"watch/watch will look at {watched} by " in said.out and "UTC" in said.out
    assert "Still processing" not in said.err
    assert "missing does not exist" in notify(tmp_path / "missing", 2).err
    (tmp_path / "other").mkdir()
    refused = notify(tmp_path / "other", 2).err
    assert f"nobody watches {tmp_path}/other" in refused and f"watched: {watched})" in refused
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            if one.name == "hyco: the source has grown":
                client.pause_automation(one.id)
        client.pause_deployment(client.read_deployment_by_name("watch/watch").id)
    said = notify(watched, 0).out
    assert "no automation listens for hyco.source.grown" in said
    assert "not before somebody resumes the deployment, which is paused" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_notify_says_that_nobody_can_look_while_no_worker_runs(workers):
    lines = list(told(Watcher("watch/watch", "/data", "cpu", 20.0, workers, ""), "var"))
    assert ("not before a worker runs: hyco worker --pool cpu --home var" in lines) == (workers == 0)


@pytest.mark.parametrize(
    ("name", "how", "done"),
    [
        ("work pool cpu", "missing", "created work pool cpu"),
        ("automation 'hyco: lost'", "exists twice", "deleted a second automation 'hyco: lost'"),
        (
            "deployment a/b",
            "schedule every 60 s -> none",
            "updated deployment a/b: schedule every 60 s -> none",
        ),
    ],
)
def test_deploy_says_what_it_did(name, how, done):
    assert Drift(name, how, lambda: None).done == done
