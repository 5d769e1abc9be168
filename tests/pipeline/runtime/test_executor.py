"""What every engine must do. A new engine joins by adding its factory to ENGINES; DYING holds those with
processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline.engine import InProcess, LocalEngine, WorkerDiedError, open_engine

ENGINES = {"in process": InProcess, "local": lambda: LocalEngine(2, threads=1)}
DYING = {"local": lambda restarts: LocalEngine(1, restarts=restarts)}


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
def engine(request):
    with ENGINES[request.param]() as engine:
        yield engine


def test_results_come_back_in_order_of_asking(engine):
    futures = [engine.submit(square, value) for value in range(20)]
    assert [future.result(30) for future in futures] == [value * value for value in range(20)]


def test_an_exception_keeps_its_type_and_the_engine_goes_on(engine):
    with pytest.raises(KeyError, match="no bread here"):
        engine.submit(complain, "bread").result(30)
    assert engine.submit(square, 3).result(30) == 9


def test_reports_arrive_in_order_before_the_result(engine):
    seen = []
    assert engine.submit(count_to, 50, report=seen.append).result(30) == 50
    assert seen == list(range(1, 51))


def test_a_faulty_callback_in_a_process_engine_does_not_stop_the_work():
    with LocalEngine(1) as engine:
        assert engine.submit(count_to, 3, report=lambda value: 1 / 0).result(30) == 3


def test_submit_from_many_threads(engine):
    results = {}

    def ask(value):
        results[value] = engine.submit(square, value).result(30)

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {value: value * value for value in range(16)}


def test_processes_are_kept_apart_and_limited_to_their_threads(tmp_path):
    with LocalEngine(2, threads=1) as engine:
        first, second = (
            engine.submit(meet, str(tmp_path), "a", "b"),
            engine.submit(meet, str(tmp_path), "b", "a"),
        )
        assert first.result(30) and second.result(30)
        pid, number, threads = engine.submit(about_me).result(60)
        assert pid != os.getpid() and number in ("0", "1") and threads == 1


def test_an_error_that_cannot_travel_becomes_a_plain_one_and_an_answer_that_cannot_an_error():
    with LocalEngine(1) as engine:
        with pytest.raises(RuntimeError, match="OddError: one and two"):
            engine.submit(complain_oddly).result(30)
        with pytest.raises(Exception, match=r"pickle|local object"):
            engine.submit(unpicklable).result(30)
        assert engine.submit(square, 2).result(30) == 4


def test_a_function_no_worker_can_import_is_refused_at_once():
    with LocalEngine(1) as engine, pytest.raises(ValueError, match="top of an importable module"):
        engine.submit(lambda: 1)


@pytest.mark.parametrize("name", sorted(DYING))
def test_a_killed_worker_costs_its_own_call_and_no_other(name, tmp_path):
    with DYING[name](2) as engine:
        doomed, next_one = engine.submit(die, str(tmp_path / "died")), engine.submit(square, 5)
        with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL.*die\(.*died"):
            doomed.result(30)
        assert next_one.result(30) == 25
        with pytest.raises(WorkerDiedError, match="exited with code 3"):
            engine.submit(leave, 3).result(30)
        assert engine.submit(square, 6).result(30) == 36


@pytest.mark.parametrize("name", sorted(DYING))
def test_restarts_are_limited_and_nobody_waits_for_ever(name, tmp_path):
    engine = DYING[name](0)
    doomed, never = engine.submit(die, str(tmp_path / "died")), engine.submit(square, 5)
    with pytest.raises(WorkerDiedError):
        doomed.result(30)
    with pytest.raises(WorkerDiedError, match="no restart is left"):
        never.result(30)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(square, 1)


def test_closing_cancels_what_waits_and_ends_what_runs(tmp_path):
    engine = LocalEngine(1)
    running = engine.submit(sleep_and_tell, str(tmp_path / "pid"))
    waiting = engine.submit(square, 1)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    engine.close()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        running.result(5)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pipeline.engine import LocalEngine
        from test_engine import sleep_and_tell
        engine = LocalEngine(1)
        engine.submit(sleep_and_tell, {str(pid_file)!r})
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
    with LocalEngine(1) as engine:
        pids = []
        for _ in range(2):  # the first thread is gone when the second asks: PR_SET_PDEATHSIG counts threads
            thread = threading.Thread(target=lambda: pids.append(engine.submit(os.getpid).result(30)))
            thread.start()
            thread.join(30)
            time.sleep(0.1)
        assert pids[0] == pids[1]


def test_open_engine_shares_the_cores_out_and_refuses_nonsense():
    with open_engine(0) as engine:
        assert isinstance(engine, InProcess)
    with open_engine(1, threads=1) as engine:
        assert engine.submit(about_me).result(60)[2] == 1
    with pytest.raises(ValueError, match="-1"):
        open_engine(-1)


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
    with LocalEngine(1, timeout_s=2.0) as engine:
        with pytest.raises(WorkerDiedError, match=r"SIGKILL \(no end within 2 s\)"):
            engine.submit(sleep_once, str(tmp_path)).result(30)
        assert engine.submit(sleep_once, str(tmp_path)).result(30) == "done"
