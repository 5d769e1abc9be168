"""Units as Prefect tasks: one each while they are few, shared out among a bounded number when they are many."""

from concurrent.futures import Future
from dataclasses import dataclass

from prefect import flow

from hyco.flows.runtime import task_executor as tasks
from hyco.flows.runtime.task_executor import TaskExecutor
from hyco.pipeline.runtime.executor import WorkerDiedError
from hyco.pipeline.runtime.run_units import run_units


@dataclass(frozen=True)
class Unit:
    path: str


class Plain:
    """An engine that does a call when it is asked to; `faults` says what a unit's calls raise, one after another."""

    workers = 1

    def __init__(self, faults=None):
        self.faults, self.calls = faults or {}, []

    def submit(self, function, *args, report=None):
        path, future = args[-1].path, Future()
        self.calls.append(path)
        if waiting := self.faults.get(path):
            future.set_exception(waiting.pop(0) if isinstance(waiting, list) else waiting)
        else:
            future.set_result(function(*args))
        return future

    def close(self):
        pass


def record(unit):
    return {"unit": unit.path}


def work(monkeypatch, count, faults=None, most=3):
    """Run units through TaskExecutor in a flow; returns (records, labels of the tasks, the engine, the error)."""
    labels, failed = [], []
    quick = tasks.shard.with_options(retry_delay_seconds=0, retry_jitter_factor=None)
    runner = tasks.ThreadPoolTaskRunner
    real = runner.submit
    monkeypatch.setattr(tasks, "MAX_TASKS", most)
    monkeypatch.setattr(tasks, "shard", quick)
    monkeypatch.setattr(
        runner, "submit", lambda self, task, call: (labels.append(call["label"]), real(self, task, call))[1]
    )
    monkeypatch.setattr(tasks.artifacts, "failed_units", lambda verb, found: failed.append(found))
    plain = Plain(faults)

    @flow
    def units():
        records, error = [], None
        with TaskExecutor("mine", plain) as executor:
            try:
                run_units(
                    lambda unit: executor.submit(record, unit),
                    [Unit(f"u{n}") for n in range(count)],
                    records.append,
                )
            except Exception as caught:
                error = caught
        return records, error

    records, error = units(return_state=False)
    return [one["unit"] for one in records], labels, plain, error, failed


def test_few_units_are_a_task_each(monkeypatch):
    records, labels, _, error, _ = work(monkeypatch, 3)
    assert records == ["u0", "u1", "u2"] and labels == ["mine u0", "mine u1", "mine u2"] and error is None


def test_many_units_share_a_bounded_number_of_tasks(monkeypatch):
    records, labels, plain, error, _ = work(monkeypatch, 8)
    assert records == [f"u{n}" for n in range(8)] and error is None
    assert labels == ["mine u0 and 2 more", "mine u3 and 2 more", "mine u6 and 1 more"]
    assert sorted(plain.calls) == sorted(records)


def test_a_poison_unit_is_named_and_the_others_of_its_task_are_done(monkeypatch):
    records, _, plain, error, failed = work(monkeypatch, 8, {"u4": ValueError("u4: not a tar")})
    assert records == ["u0", "u1", "u2", "u3", "u5", "u6", "u7"]
    assert str(error) == "u4: not a tar" and [list(one) for one in failed] == [["u4"]]
    assert plain.calls.count("u4") == 1, "what is not what it claims to be is not tried again"


def test_a_passing_fault_repeats_only_what_is_missing(monkeypatch):
    faults = {"u4": [WorkerDiedError("killed"), WorkerDiedError("killed")]}
    records, _, plain, error, _ = work(monkeypatch, 8, faults)
    assert len(records) == 8 and error is None
    assert plain.calls.count("u4") == 3 and plain.calls.count("u3") == plain.calls.count("u5") == 1


def test_a_fault_that_does_not_pass_is_raised(monkeypatch):
    _, _, plain, error, _ = work(monkeypatch, 1, {"u0": ConnectionError("no storage")})
    assert isinstance(error, ConnectionError) and plain.calls.count("u0") == 3
