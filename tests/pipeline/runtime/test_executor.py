"""What every engine must do. A new engine joins by adding its factory to ENGINES; those of DYING have processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from hyco.pipeline.runtime.executor import InProcess, LocalExecutor, WorkerDiedError, open_executor
from hyco.pipeline.runtime.ray_executor import REPORTS, RayExecutor
from tests.factories.ray_cluster import RayCluster, alive, kill, wait_until


def on_ray(cluster, workers, **options):
    return RayExecutor(cluster().address, workers, **options)


DYING = {"local": lambda cluster, workers, **options: LocalExecutor(workers, **options), "ray": on_ray}
ENGINES = {"in process": lambda cluster, workers: InProcess(), **DYING}


@pytest.fixture(scope="module")
def cluster():
    """A function that returns the cluster, so that only tests of Ray start one."""
    made = []

    def start():
        if not made:
            made.append(RayCluster(nodes=2))
        return made[0]

    yield start
    for one in made:
        one.close()


@pytest.fixture(scope="module", params=sorted(ENGINES))
def executor(request, cluster):
    with ENGINES[request.param](cluster, 2) as executor:
        yield executor


@pytest.fixture(params=sorted(DYING))
def start(request, cluster):
    """Start an executor that may be killed."""
    return lambda workers, **options: DYING[request.param](cluster, workers, **options)


def square(value):
    return value * value


def complain(value):
    raise KeyError(f"no {value} here")


class OddError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def complain_oddly():
    raise OddError("one", "two")


def unpicklable():
    return lambda: None


def count_to(number, report):
    for done in range(1, number + 1):
        report(done)
    return number


def about_me():
    import torch

    return os.getpid(), os.environ.get("HYCO_WORKER_NUMBER"), torch.get_num_threads()


def meet(folder, name, other):
    """Wait until the other call is running too: only possible when two run at once."""
    Path(folder, name).touch()
    deadline = time.monotonic() + 20
    while not Path(folder, other).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def die(marker):
    Path(marker).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code):
    os._exit(code)


def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


def sleep_and_tell(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def test_results_come_back_in_order_of_asking(executor):
    futures = [executor.submit(square, value) for value in range(20)]
    assert [future.result(30) for future in futures] == [value * value for value in range(20)]


def test_an_exception_keeps_its_type_and_the_engine_goes_on(executor):
    with pytest.raises(KeyError, match="no bread here"):
        executor.submit(complain, "bread").result(30)
    assert executor.submit(square, 3).result(30) == 9


def test_reports_arrive_in_order_before_the_result(executor):
    seen = []
    assert executor.submit(count_to, 50, report=seen.append).result(30) == 50
    assert seen == list(range(1, 51))


def test_submit_from_many_threads(executor):
    results = {}

    def ask(value):
        results[value] = executor.submit(square, value).result(30)

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {value: value * value for value in range(16)}


def sleep_once(folder):
    """Hang at the first call, answer at the second."""
    if not Path(folder, "hung").exists():
        Path(folder, "hung").touch()
        time.sleep(60)
    return "done"


def report_on(path, count, report):
    """Report very often, and write how many reports were taken."""
    for done in range(count):
        report(done)
        if done % 500 == 0:
            Path(path).write_text(str(done))
    return count


def megabytes(count):
    return bytes(count << 20)


@pytest.fixture
def processes(executor):
    if isinstance(executor, InProcess):
        pytest.skip("has no processes")
    return executor


def test_processes_are_kept_apart_and_limited_to_their_threads(processes, tmp_path):
    first = processes.submit(meet, str(tmp_path), "a", "b")
    second = processes.submit(meet, str(tmp_path), "b", "a")
    assert first.result(60) and second.result(60)
    pid, number, threads = processes.submit(about_me).result(60)
    assert pid != os.getpid() and number in ("0", "1") and threads == 1


def test_calls_end_in_any_order(processes, tmp_path):
    slow = processes.submit(wait_for, str(tmp_path / "done"))
    others = [processes.submit(square, value) for value in range(10)]
    assert [future.result(30) for future in others] == [value * value for value in range(10)]
    assert not slow.done()
    (tmp_path / "done").touch()
    assert slow.result(30) != os.getpid()


def test_a_faulty_callback_does_not_stop_the_work(processes):
    assert processes.submit(count_to, 3, report=lambda value: 1 / 0).result(30) == 3


def test_an_error_that_cannot_travel_becomes_a_plain_one_and_an_answer_that_cannot_an_error(processes):
    with pytest.raises(RuntimeError, match="OddError: one and two"):
        processes.submit(complain_oddly).result(30)
    with pytest.raises(Exception, match=r"pickle|local object"):
        processes.submit(unpicklable).result(30)
    with pytest.raises(KeyError) as told:
        processes.submit(complain, "bread").result(30)
    assert "in the worker:" in told.value.__notes__[0] and "complain" in told.value.__notes__[0]
    assert processes.submit(square, 2).result(30) == 4


def test_a_function_no_worker_can_import_is_refused_at_once(processes):
    with pytest.raises(ValueError, match="top of an importable module"):
        processes.submit(lambda: 1)


def test_large_answers_arrive(processes):
    assert len(processes.submit(megabytes, 3).result(30)) == 3 << 20


def test_reports_that_nobody_takes_hold_the_worker_up(processes, tmp_path):
    """Back-pressure: a worker never piles its reports up in memory."""
    taken, count, go = [], 20 * REPORTS, threading.Event()

    def slowly(value):
        go.wait()
        taken.append(value)

    future = processes.submit(report_on, str(tmp_path / "made"), count, report=slowly)
    time.sleep(1.5)
    made = int((tmp_path / "made").read_text())
    assert made < count / 2 and not future.done()
    go.set()
    assert future.result(60) == count and taken == list(range(count))


def test_a_worker_outlives_the_thread_that_asked_for_it(processes):
    pids = set()
    for _ in range(4):  # the first thread is gone when the next asks: PR_SET_PDEATHSIG counts threads
        thread = threading.Thread(target=lambda: pids.add(processes.submit(os.getpid).result(30)))
        thread.start()
        thread.join(30)
        time.sleep(0.1)
    assert len(pids) <= 2


def test_a_killed_worker_costs_its_own_call_and_no_other(start, tmp_path):
    with start(1, restarts=2) as executor:
        doomed, next_one = executor.submit(die, str(tmp_path / "died")), executor.submit(square, 5)
        with pytest.raises(WorkerDiedError, match=r"die\(.*died"):
            doomed.result(30)
        assert next_one.result(30) == 25
        with pytest.raises(WorkerDiedError, match=r"leave\(3"):
            executor.submit(leave, 3).result(30)
        assert executor.submit(square, 6).result(30) == 36


def test_a_worker_killed_while_it_is_idle_costs_no_call(start, capfd):
    with start(1, restarts=2) as executor:
        kill(executor.submit(os.getpid).result(30))
        time.sleep(1.5)
        assert executor.submit(square, 6).result(30) == 36
    assert capfd.readouterr().out == "", "where commands print their results"


def test_the_local_engine_says_how_a_worker_ended(tmp_path):
    with LocalExecutor(1, restarts=2) as executor:
        with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL.*die\(.*died"):
            executor.submit(die, str(tmp_path / "died")).result(30)
        with pytest.raises(WorkerDiedError, match="exited with code 3"):
            executor.submit(leave, 3).result(30)


def test_restarts_are_limited_and_nobody_waits_for_ever(start, tmp_path):
    executor = start(1, restarts=0)
    doomed, never = executor.submit(die, str(tmp_path / "died")), executor.submit(square, 5)
    with pytest.raises(WorkerDiedError):
        doomed.result(30)
    with pytest.raises(WorkerDiedError, match="no restart is left"):
        never.result(30)
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(square, 1)


def test_closing_cancels_what_waits_and_ends_what_runs(start, tmp_path):
    executor = start(1)
    running = executor.submit(sleep_and_tell, str(tmp_path / "pid"))
    waiting = [executor.submit(square, value) for value in range(50)]
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    executor.close()
    assert all(future.cancelled() for future in waiting), "no call is handed to a worker before its turn"
    with pytest.raises(RuntimeError, match="closed"):
        running.result(5)
    wait_until(lambda: not alive(pid), 5)


def test_a_worker_that_hangs_is_killed_and_replaced(start, tmp_path):
    with start(1, timeout_s=2.0) as executor:
        with pytest.raises(WorkerDiedError, match=r"\(longer than 2 s\) in .*sleep_once"):
            executor.submit(sleep_once, str(tmp_path)).result(30)
        assert executor.submit(sleep_once, str(tmp_path)).result(30) == "done"


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_die_with_a_driver_that_is_killed(engine, cluster, tmp_path):
    pid_file = tmp_path / "pid"
    named = engine if engine == "local" else f"ray:{cluster().address}"
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from hyco.pipeline.runtime.executor import open_executor
        from test_executor import sleep_and_tell
        executor = open_executor(1, engine={named!r})
        executor.submit(sleep_and_tell, {str(pid_file)!r})
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    worker = int(wait_until(lambda: pid_file.exists() and pid_file.read_text()))
    assert alive(worker) and parent.poll() is None
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(worker), 20)


def test_open_executor_shares_the_cores_out_and_refuses_nonsense():
    with open_executor(0) as executor:
        assert isinstance(executor, InProcess)
    with open_executor(1, threads=1) as executor:
        assert executor.submit(about_me).result(60)[2] == 1
    with pytest.raises(ValueError, match="-1"):
        open_executor(-1)
    with pytest.raises(ValueError, match="engine 'rya': give local, ray or ray:HOST:PORT"):
        open_executor(1, engine="rya")
    with pytest.raises(ValueError, match="grounders is 2 and the engine local: give --engine ray"):
        open_executor(1, servers=2)
    with pytest.raises(ValueError, match="workers is 0"):
        open_executor(0, engine="ray:127.0.0.1:1")
