"""The topology of docker/compose.yaml as real processes: PostgreSQL, Redis, server, services, worker."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import topology
from tests.services.topology import AUTH, Team, answer, status, wait

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if reason := topology.missing():
        pytest.skip(reason)
    with Team(tmp_path_factory.mktemp("home")) as team:
        team.deploy()
        team.start_worker()
        yield team


def test_the_api_asks_for_the_password(team: Team) -> None:
    url = f"{team.url}/api/admin/version"
    assert status(url) == 401
    assert status(url, "hyco:wrong") == 401
    assert status(url, AUTH) == 200


def test_other_sites_may_not_read_it(team: Team) -> None:
    allowed = "Access-Control-Allow-Origin"
    url = f"{team.url}/api/admin/version"
    code, headers = answer(url, AUTH, Origin=team.url)
    assert code == 200
    assert headers.get(allowed, headers.get(allowed.lower())) == team.url
    _, headers = answer(url, AUTH, Origin="http://elsewhere.example")
    assert allowed.lower() not in {key.lower() for key in headers}


def test_state_rests_in_postgres_and_redis(team: Team) -> None:
    port = str(team.ports["postgres"])
    query = [
        "psql",
        "-h",
        "127.0.0.1",
        "-p",
        port,
        "-U",
        "prefect",
        "-tAc",
        "select count(*) from deployment",
    ]
    assert int(subprocess.run(query, check=True, capture_output=True, text=True).stdout) >= 5
    asked = ["redis-cli", "-p", str(team.ports["redis"]), "-a", "r", "--no-auth-warning", "dbsize"]
    assert int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout) > 0


def test_a_second_deploy_changes_nothing(team: Team) -> None:
    team.run("deploy", ["hyco", "deploy", "--check"])


def test_a_worker_runs_a_deployment_and_the_server_may_die_meanwhile(team: Team) -> None:
    """`maintain` needs no data; the server is killed and started again while its run waits or runs."""
    start = "from prefect.deployments import run_deployment as r; print(r('maintain/maintain', timeout=0).id)"
    run = team.run("deploy", ["python", "-c", start]).split()[-1]
    team.kill("server")
    team.start_server()

    def finished() -> bool:
        state = team.read(f"flow_runs/{run}")["state"]["type"]
        assert state not in ("FAILED", "CRASHED"), Path(team.folder / "cpu-worker.log").read_text()[-3000:]
        return state == "COMPLETED"

    wait(finished, 300, "the run")
