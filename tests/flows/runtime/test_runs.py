"""Names and messages of flow runs, and a user's mistake in one line of the log."""

import logging

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from hyco.flows.runtime.progress import for_the_terminal
from hyco.flows.runtime.runs import NOTHING, done, in_one_line, inside, named, rename


@flow(flow_run_name=named(lambda given: f"count {inside(given, 'place')}"))
def count(place, times=1):
    if not times:
        raise ValueError(f"{place} is empty: add a shard")
    rename(f"{flow_run.get_name()}: {times} found")
    return done(f"{times} found", {"times": times}, NOTHING if times == 1 else None)


def newest():
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.name.startswith(("count", "mine by hand"))]
    return max(runs, key=lambda run: run.created)


def test_a_run_says_what_it_is_and_what_it_did():
    assert count("/data/new/images") == {"times": 1}
    assert (newest().name, newest().state.name) == ("count new/images: 1 found", NOTHING)
    assert count("s3://bucket/more", 2) == {"times": 2}
    state = newest().state
    assert (newest().name, state.name, state.message) == (
        "count bucket/more: 2 found",
        "Completed",
        "2 found",
    )


def test_a_name_that_somebody_gave_is_kept():
    def named_by_hand(given):
        raise AssertionError(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_run, "get_name", lambda: "v-0123 attempt 2")
        assert named(named_by_hand)() == "v-0123 attempt 2"
        patch.setattr(flow_run, "get_name", lambda: "iota6-uesugi")
        patch.setattr(flow_run, "get_parameters", lambda: {"place": {"path": "a/b/c/"}})
        assert named(lambda given: inside(given, "place", "path"))() == "b/c"


def test_a_mistake_is_one_line_in_the_state_and_in_the_log(caplog, monkeypatch):
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="images is empty: add a shard"):
        count("images", 0)
    assert newest().state.message.endswith("ValueError: images is empty: add a shard")
    told = [
        record for record in caplog.records if record.name == "prefect.flow_runs" and record.levelno == 40
    ]
    assert told
    assert all(record.exc_info is None and "\n" not in record.getMessage() for record in told)
    assert not any(for_the_terminal(record) for record in told if getattr(record, "mistake", False))

    def record(error):
        return logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (type(error), error, None))

    own = record(RuntimeError("an error of the program"))
    assert in_one_line(own) and own.exc_info, "the traceback of a fault of the program stays"
    monkeypatch.setenv("HYCO_DEBUG", "1")
    asked = record(ValueError("x"))
    assert in_one_line(asked) and asked.exc_info
