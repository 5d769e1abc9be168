"""A grid of runs: what is left, what is said, and what a cut-off one repeats."""

import io
from pathlib import Path

import pytest

from hyco.pipeline.experiments.grid import GridRun, command, run_grid, time_left, write_section


def grid(took: dict[str, float | None], performed: list[str]) -> list[GridRun]:
    """Runs named KIND-NUMBER; performing one takes ten seconds of its kind."""

    def run(name: str) -> GridRun:
        def perform() -> None:
            performed.append(name)
            took[name] = took[name] or 10.0

        return GridRun(Path(name), name.partition("-")[0], perform, lambda: took[name])

    return [run(name) for name in took]


def test_time_left_goes_by_kind_and_else_by_the_mean() -> None:
    assert time_left(grid({"a-0": None}, [])) is None
    assert time_left(grid({"a-0": 2.0, "b-0": 6.0, "a-1": None, "b-1": None, "c-0": None}, [])) == 2 + 6 + 4
    assert time_left(grid({"a-0": 2.0}, [])) == 0


def test_finished_runs_are_checked_in_silence() -> None:
    performed: list[str] = []
    finished: list[int] = []
    say = io.StringIO()
    run_grid("study", grid({"a-0": 60.0, "a-1": None}, performed), finished.append, say)
    assert performed == ["a-0", "a-1"] and finished == [1, 2]
    assert "run 2 of 2, a-1, about 1 min left" in say.getvalue() and "run 1" not in say.getvalue()


def test_a_section_goes_between_its_marks(tmp_path: Path) -> None:
    page, marks = tmp_path / "page.md", ("<!-- a -->", "<!-- end of a -->")
    with pytest.raises(FileNotFoundError):
        write_section(page, marks, "text")
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    for _ in range(2):
        write_section(page, marks, "text\n")
        assert page.read_text() == "before\n<!-- a -->\n\ntext\n\n<!-- end of a -->\nafter\n"


def test_a_command_ends_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken() -> None:
        raise ValueError("steps is 0: give at least 1")

    assert command(lambda: None) == 0 and command(mistaken) == 2
    assert capsys.readouterr().err == "hyco: error: steps is 0: give at least 1\n"
