"""Which flow runs go first, and how many are said to have gone."""

from contextlib import contextmanager
from types import SimpleNamespace

from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from hyco.flows import maintain


class Server:
    """Flow runs in the order of their start; every odd one goes with the one before, its parent."""

    def __init__(self, runs):
        self.left = list(range(runs))

    def read_flow_runs(self, flow_run_filter, sort, limit):
        assert sort == FlowRunSort.START_TIME_ASC
        return [SimpleNamespace(id=id, name=f"run {id}") for id in self.left[:limit]]

    def delete_flow_run(self, id):
        if id not in self.left:
            raise ObjectNotFound(Exception())
        self.left = [one for one in self.left if one not in (id, id + 1)]


def test_the_oldest_runs_go_first_and_those_that_went_with_their_parent_are_not_counted(monkeypatch):
    server = Server(10)

    @contextmanager
    def client(sync_client):
        yield server

    monkeypatch.setattr(maintain, "get_client", client)
    monkeypatch.setattr(maintain, "get_run_logger", lambda: SimpleNamespace(info=lambda *words: None))
    assert maintain.delete_runs.fn(days=1, most=4) == 4
    assert server.left == [8, 9]
    assert maintain.delete_runs.fn(days=1, most=4) == 1
    assert server.left == []
