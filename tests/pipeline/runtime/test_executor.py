"""What every engine must do. A new engine joins by adding its factory to ENGINES; DYING holds those with processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline.runtime.executor import InProcess, LocalExecutor, WorkerDiedError, open_executor

ENGINES = {"in process": InProcess, "local": lambda: LocalExecutor(2, threads=1)}
DYING = {"local": lambda restarts: LocalExecutor(1, restarts=restarts)}


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


@pytest.fixture(scope="module", params=sorted(ENGINES))
def executor(request):
    with ENGINES[request.param]() as executor:
        yield executor


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


def test_a_faulty_callback_in_a_process_engine_does_not_stop_the_work():
    with LocalExecutor(1) as executor:
        assert executor.submit(count_to, 3, report=lambda value: 1 / 0).result(30) == 3


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


def test_processes_are_kept_apart_and_limited_to_their_threads(tmp_path):
    with LocalExecutor(2, threads=1) as executor:
        first, second = (
            executor.submit(meet, str(tmp_path), "a", "b"),
            executor.submit(meet, str(tmp_path), "b", "a"),
        )
        assert first.result(30) and second.result(30)
        pid, number, threads = executor.submit(about_me).result(60)
        assert pid != os.getpid() and number in ("0", "1") and threads == 1


def test_an_error_that_cannot_travel_becomes_a_plain_one_and_an_answer_that_cannot_an_error():
    with LocalExecutor(1) as executor:
        with pytest.raises(RuntimeError, match="OddError: one and two"):
            executor.submit(complain_oddly).result(30)
        with pytest.raises(Exception, match=r"pickle|local object"):
            executor.submit(unpicklable).result(30)
        assert executor.submit(square, 2).result(30) == 4


def test_a_function_no_worker_can_import_is_refused_at_once():
    with LocalExecutor(1) as executor, pytest.raises(ValueError, match="top of an importable module"):
        executor.submit(lambda: 1)


@pytest.mark.parametrize("name", sorted(DYING))
def test_a_killed_worker_costs_its_own_call_and_no_other(name, tmp_path):
    with DYING[name](2) as executor:
        doomed, next_one = executor.submit(die, str(tmp_path / "died")), executor.submit(square, 5)
        with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL.*die\(.*died"):
            doomed.result(30)
        assert next_one.result(30) == 25
        with pytest.raises(WorkerDiedError, match="exited with code 3"):
            executor.submit(leave, 3).result(30)
        assert executor.submit(square, 6).result(30) == 36


@pytest.mark.parametrize("name", sorted(DYING))
def test_restarts_are_limited_and_nobody_waits_for_ever(name, tmp_path):
    executor = DYING[name](0)
    doomed, never = executor.submit(die, str(tmp_path / "died")), executor.submit(square, 5)
    with pytest.raises(WorkerDiedError):
        doomed.result(30)
    with pytest.raises(WorkerDiedError, match="no restart is left"):
        never.result(30)
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(square, 1)


def test_closing_cancels_what_waits_and_ends_what_runs(tmp_path):
    executor = LocalExecutor(1)
    running = executor.submit(sleep_and_tell, str(tmp_path / "pid"))
    waiting = executor.submit(square, 1)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    executor.close()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        running.result(5)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pipeline.runtime.executor import LocalExecutor
        from test_executor import sleep_and_tell
        executor = LocalExecutor(1)
        executor.submit(sleep_and_tell, {str(pid_file)!r})
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    deadline = time.monotonic() + 30
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    worker = int(pid_file.read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)


def test_a_worker_outlives_the_thread_that_asked_for_it():
    with LocalExecutor(1) as executor:
        pids = []
        for _ in range(2):  # the first thread is gone when the second asks: PR_SET_PDEATHSIG counts threads
            thread = threading.Thread(target=lambda: pids.append(executor.submit(os.getpid).result(30)))
            thread.start()
            thread.join(30)
            time.sleep(0.1)
        assert pids[0] == pids[1]


def test_open_executor_shares_the_cores_out_and_refuses_nonsense():
    with open_executor(0) as executor:
        assert isinstance(executor, InProcess)
    with open_executor(1, threads=1) as executor:
        assert executor.submit(about_me).result(60)[2] == 1
    with pytest.raises(ValueError, match="-1"):
        open_executor(-1)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleep_once(folder):
    """Hang at the first call, answer at the second."""
    if not Path(folder, "hung").exists():
        Path(folder, "hung").touch()
        time.sleep(60)
    return "done"


def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path):
    with LocalExecutor(1, timeout_s=2.0) as executor:
        with pytest.raises(WorkerDiedError, match=r"SIGKILL \(longer than 2 s\)"):
            executor.submit(sleep_once, str(tmp_path)).result(30)
        assert executor.submit(sleep_once, str(tmp_path)).result(30) == "done"
