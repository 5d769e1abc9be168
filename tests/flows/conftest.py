"""One Prefect server on a database of its own for all flow tests (it takes some ten seconds to start)."""

import subprocess
from collections.abc import Iterator

import pytest
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from hyco.flows.runtime.server import start, wait_for
from hyco.pipeline.runtime.listen import listen

OWN_SERVER = {"test_retrain.py", "test_retrain_s3.py"}  # these start a server, as an installation has it


def _as_hyco_starts_it(server: SubprocessASGIServer) -> "subprocess.Popen[bytes]":
    """Prefect's own begins transactions so that two of them wait a minute for each other (flows/runtime/server_app)."""
    assert server.port is not None
    with listen("127.0.0.1", server.port) as listening, pytest.MonkeyPatch.context() as patch:
        for name, value in get_current_settings().to_environment_variables(exclude_unset=True).items():
            patch.setenv(name, value)
        process, address = start(listening)
    wait_for(process, address, "its lines are above")  # the socket listens before the server answers
    return process


@pytest.fixture(scope="session", autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[None]:
    if all(item.path.name in OWN_SERVER for item in request.session.items):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubprocessASGIServer, "_run_uvicorn_command", _as_hyco_starts_it)
        with prefect_test_harness(server_startup_timeout=120):
            yield
