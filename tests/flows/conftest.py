"""One Prefect server on a database of its own for all flow tests (it takes some ten seconds to start)."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

OWN_SERVER = {"test_retrain.py"}  # these start a server, as an installation has it


@pytest.fixture(scope="session", autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[None]:
    if all(item.path.name in OWN_SERVER for item in request.session.items):
        yield
        return
    with prefect_test_harness(server_startup_timeout=120):
        yield
