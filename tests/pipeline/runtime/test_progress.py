import io
import threading

import pytest

from hyco.pipeline.runtime.progress import Progress, duration, line


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_every_so_often_and_at_the_end():
    clock, out, heard = Clock(), io.StringIO(), []
    with Progress(5000, "mine", "images", heard.append, done=1000, stream=out, clock=clock) as progress:
        clock.now += 4
        progress.advance(100)  # too early to say anything
        clock.now += 6
        progress.advance(100)
        progress.advance(1)
    assert out.getvalue().splitlines() == [
        "mine: 1,200/5,000 images, 20.0 images/s, 3 min 10 s left",
        "mine: 1,201/5,000 images, 20.1 images/s, done in 10 s",
    ]
    assert [(state["done"], state["finished"]) for state in heard] == [(1200, False), (1201, True)]
    assert heard[0]["rate"] == pytest.approx(20.0) and heard[0]["left"] == pytest.approx(190.0)
    assert heard[0]["text"] in out.getvalue() and heard[0]["label"] == "mine" and heard[0]["unit"] == "images"


def test_work_that_an_error_or_a_person_ended_is_not_done():
    clock, out, heard = Clock(), io.StringIO(), []
    with pytest.raises(KeyboardInterrupt):
        with Progress(5, "mine", "images", heard.append, stream=out, clock=clock) as progress:
            clock.now += 2
            progress.advance(1)
            raise KeyboardInterrupt
    assert out.getvalue() == "mine: 1/5 images, 0.5 images/s, stopped after 2 s\n"
    assert heard[-1]["stopped"] and not heard[-1]["finished"]


def test_without_a_total_nothing_is_promised_until_one_is_known():
    clock, out = Clock(), io.StringIO()
    progress = Progress(None, "mine", stream=out, clock=clock)
    clock.now += 2
    progress.advance(10)
    assert progress.state()["left"] is None and line(progress.state()) == "mine: 10 images, 5.0 images/s"
    progress.expect(30)
    assert progress.state()["left"] == pytest.approx(4.0)
    progress.close()
    progress.close()
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_gets_a_bar_and_no_lines():
    out = Terminal()
    with Progress(3, "pack", "shards", stream=out) as progress:
        progress.advance(3)
    assert "pack" in out.getvalue() and "3/3 shards" in out.getvalue() and "\x1b[" in out.getvalue()


def test_a_listener_that_fails_does_not_stop_the_work():
    out = io.StringIO()
    with Progress(1, "mine", listener=lambda state: 1 / 0, stream=out) as progress:
        progress.advance()
    assert "listener failed: division by zero" in out.getvalue()


def test_counts_from_many_threads_add_up():
    progress = Progress(8000, "mine", stream=io.StringIO())
    threads = [threading.Thread(target=lambda: [progress.advance() for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done == 8000


@pytest.mark.parametrize(
    "seconds,text",
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.6, "1 h 0 min"), (7800, "2 h 10 min")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text
