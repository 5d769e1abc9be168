"""The process of a flow run ends itself when the server has ended the run, and only then."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Crashed, Running

from hyco.flows import engine


class ExitedError(BaseException):
    pass


@pytest.fixture
def run(monkeypatch):
    @flow
    def watched():
        return 1

    state = watched(return_state=True)
    monkeypatch.setattr(engine, "LOOK_EVERY_S", 0.0)

    def leave(code):
        raise ExitedError(code)

    monkeypatch.setattr(engine.os, "_exit", leave)
    return state.state_details.flow_run_id


@pytest.mark.parametrize("ended", [Crashed, Completed])
def test_it_ends_with_its_run(run, ended):
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, ended(), force=True)
    with pytest.raises(ExitedError, match="75"):
        engine._end_with(str(run))


def test_it_goes_on_while_its_run_does_and_while_the_server_is_silent(run, monkeypatch):
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Running(), force=True)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            monkeypatch.setattr("prefect.client.orchestration.get_client", None)  # no answer
        if len(looks) == 6:
            raise ExitedError("still alive")

    monkeypatch.setattr(engine.time, "sleep", sleep)
    with pytest.raises(ExitedError, match="still alive"):
        engine._end_with(str(run))
