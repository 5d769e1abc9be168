"""Pages of runs, comparisons and decisions, and the champions over time."""

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hyco.pipeline.evaluation.answers import Answers, write
from hyco.pipeline.ui import trend
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision

EVIL = "<script>x</script>"


def metrics(top1: float, n: int = 30) -> dict:
    held = {"value": top1, "low": top1 - 0.1, "high": top1 + 0.1, "chance": 0.1, "n": n}
    facts = {"images": n, "classes": 10}
    assessed = {"source": "held", "images": n, "captions": n, "parts": 0}
    return {"schema": 2, "run": "r", "metrics": {"zero_shot.top1": held}, "zero_shot": facts, "skipped": {},
            "assessed": assessed}  # fmt: skip


def add_run(home: Path, name: str, top1: float, steps: int, answered: list[int]) -> None:
    run = home / "runs" / name
    run.mkdir(parents=True)
    recipe = {"name": "demo", "steps": steps, "batch_size": 4}
    (run / "config.json").write_text(json.dumps({"version": "v-1", "recipe": recipe}))
    trained = {"steps": steps, "samples_seen": 4 * steps, "images": 8, "seconds": 61.0, "machine": EVIL}
    (run / "metrics.json").write_text(json.dumps(metrics(top1) | {"train": trained}))
    log = [json.dumps({"step": n, "loss": 5 - n, "samples_per_second": 3.0}) for n in (1, 2)]
    (run / "log.jsonl").write_text("\n".join(log))
    write(run, Answers(["cat", EVIL], ["k0", "k1"], [0, 1], answered))


def comparison(sees: float) -> dict:
    return {"metric": "zero_shot.top1", "challenger": 0.5, "champion": 0.4, "interval": [0.4, 0.6], "worse": False,
            "chance": 0.1, "n": 30, "sees": sees}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_run(tmp_path, "one", 0.4, 10, [0, 0])
    add_run(tmp_path, "two", 0.5, 20, [1, 1])
    registry = Home(tmp_path).registry
    for number, (kind, exam, top1) in enumerate(
        (
            ("promoted", "old", 0.2),
            ("promoted", "new", 0.4),
            ("refused", "new", 0.3),
            ("promoted", "new", 0.5),
        )
    ):
        verdict = {"exam": exam, "comparisons": [comparison(0.05 if number else 0.35)]}
        row = Decision(kind, f"model{number}", [], f"a reason {EVIL}", run="/gone/two", version="v-1",
                       metrics=json.dumps(metrics(top1)), verdict=json.dumps(verdict))  # fmt: skip
        registry.append(row, number)
    return tmp_path


@pytest.fixture
def client(home: Path) -> TestClient:
    return TestClient(create_app(Home(home)), base_url="http://localhost")


def test_a_run_has_a_page_with_numbers_decisions_and_other_runs(client: TestClient) -> None:
    page = client.get("/runs/two").text
    assert "80, 10.0 passes over 8 images" in page and "1 min 1 s" in page and "Zero-shot top-1" in page
    assert "/runs/one/compare/two" in page and "/decisions/4" in page and "/runs/two/curves.svg" in page
    assert EVIL not in page and "&lt;script&gt;" in page
    assert client.get("/runs/none").status_code == 404


def test_two_runs_are_compared_in_numbers_options_curves_and_errors(client: TestClient) -> None:
    page = client.get("/runs/one/compare/two").text
    assert "<b>50.0" in page and "recipe.steps" in page and "Loss</h3>" in page
    assert "Of 2 images that both classified, 1 are right only in two and 1 only in one." in page
    assert EVIL not in page
    assert client.get("/runs/one/compare/none").status_code == 404


def test_what_cannot_be_compared_says_why(client: TestClient, home: Path) -> None:
    (home / "runs/one/metrics.json").unlink()
    (home / "runs/two/answers.json").write_text("{torn")
    page = client.get("/runs/one/compare/two").text
    assert "it has not been evaluated: hyco assess" in page and "answers.json cannot be read" in page
    (home / "runs/two/metrics.json").write_text("{torn")
    assert "metrics.json" in client.get("/runs/two").text and client.get("/").status_code == 200


def test_a_decision_shows_what_the_gate_could_have_seen(client: TestClient) -> None:
    assert "cannot tell: n = 30" in client.get("/decisions/1").text
    page = client.get("/decisions/4").text
    assert "0.05" in page and "no worse" in page and "/runs/two" in page and EVIL not in page
    assert "zero_shot.top1,0.5" in client.get("/decisions/4/metrics.csv").text
    assert client.get("/decisions/4/metrics.json").json()["metrics"]["zero_shot.top1"]["n"] == 30
    assert client.get("/decisions/4/answers.json").json()["images"] == ["k0", "k1"]
    assert [client.get(f"/decisions/{one}").status_code for one in ("4/report.html", "9", "4/x")] == [404] * 3
    overview = client.get("/").text
    assert "/decisions/4" in overview and "/runs/two" in overview and "/champions.svg" in overview


def test_champions_over_time_are_of_one_exam(client: TestClient, home: Path) -> None:
    rows = Home(home).registry.rows()
    shown, elsewhere = trend.on_one_exam(rows, lambda exam, model: None)
    assert [row.model for row in shown] == ["model1", "model2", "model3"] and elsewhere == 1
    drawn = client.get("/champions.svg").text
    assert drawn.count("<circle") == 3 and "Zero-shot top-1" in drawn
    assert "Decisions made on other images, left out: 1." in drawn
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d</text>", drawn), "on one day the axis has the time"
    again = Home(home).registry.assessment("new-model0")
    again.write("metrics.json", json.dumps(metrics(0.25)).encode())
    assert client.get("/champions.svg").text.count("<circle") == 4, "evaluated again, beside a challenger"
    assert "No model has been judged yet" in trend.draw([]).decode()


def test_the_pictures_follow_the_browser_into_the_dark(client: TestClient) -> None:
    for path in ("/lineage.svg", "/champions.svg"):
        drawn = client.get(path).text
        assert "prefers-color-scheme: dark" in drawn and 'fill="#' not in drawn
