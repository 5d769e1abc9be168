"""The pages of a home: what they show, what they refuse, and that nothing from data is taken for markup."""

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample


def jpeg(number: int) -> bytes:
    return sample(number).image


@pytest.fixture
def home(tmp_path: Path) -> Path:
    store = Store(tmp_path)
    part = Part(jpeg(2), "a <b>red</b> square", (0.1, 0.1, 0.5, 0.5), 0.8, (0, 5), 0, "chunk")
    samples = [
        TrainingSample(f"k{n}", jpeg(n), ("a red <script>square</script>",), (part,), {}) for n in range(3)
    ]
    made = store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    counts = {"images": 3, "train_images": 3, "val_images": 0, "parts": 3, "failures": 0}
    Versions(store).publish(
        {}, {"mine": "m", "pack": "p"}, {"train": [shard_ref(made, 3, 3)], "val": []}, counts
    )
    run = tmp_path / "runs/first"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"version": "v-1"}')
    (run / "secret.txt").write_text("no")
    return tmp_path


@pytest.fixture
def client(home: Path) -> TestClient:
    return TestClient(create_app(Home(home)), base_url="http://localhost")


def test_the_overview_names_versions_and_runs(client: TestClient, home: Path) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert Versions(Store(home)).load().name in page.text
    assert "training not finished" in page.text
    assert "script-src" not in page.headers["content-security-policy"]  # default-src 'none' rules


def test_a_version_shows_its_samples_escaped(client: TestClient, home: Path) -> None:
    name = Versions(Store(home)).load().name
    page = client.get(f"/versions/{name}").text
    assert page.count('<article class="sample">') == 3
    assert "<script>" not in page
    assert "&lt;script&gt;square" in page
    whole = client.get(f"/versions/{name}/samples/0/whole.jpg")
    assert (whole.headers["content-type"], whole.content) == ("image/jpeg", jpeg(0))
    assert client.get(f"/versions/{name}/samples/0/0.jpg").content == jpeg(2)


@pytest.mark.parametrize(
    "path",
    [
        "/versions/v-unknown",
        "/versions/NAME/samples/9/whole.jpg",
        "/versions/NAME/samples/0/7.jpg",
        "/versions/NAME/samples/0/x.jpg",
        "/runs/first/secret.txt",
        "/runs/first/report.html",
        "/runs/first/curves.svg",
        "/runs/none/report.html",
        "/runs/../first/secret.txt",
        "/runs/%2e%2e%2fversions/latest",
    ],
)
def test_what_is_not_there_is_404(client: TestClient, home: Path, path: str) -> None:
    assert client.get(path.replace("NAME", Versions(Store(home)).load().name)).status_code == 404


def test_curves_and_report_of_a_run(client: TestClient, home: Path) -> None:
    lines = [
        json.dumps({"step": n, "loss": 9 - n, "terms": {"a": 1.0}, "samples_per_second": 3.0}) for n in (1, 2)
    ]
    (home / "runs/first/log.jsonl").write_text("\n".join(lines))
    (home / "runs/first/report.html").write_text("<p>the report</p>")
    assert b"<svg" in client.get("/runs/first/curves.svg").content
    assert client.get("/runs/first/report.html").text == "<p>the report</p>"


def test_the_lineage_of_decisions(home: Path) -> None:

    registry = Home(home).registry
    for number, kind in enumerate(("promoted", "refused")):
        registry.append(
            Decision(kind, f"model{number}", [], "a reason & more", source="/data/<x>", version="v-1"), number
        )
    client = TestClient(create_app(Home(home)), base_url="http://localhost")
    drawn = client.get("/lineage.svg").text
    assert drawn.index("refused") < drawn.index("promoted")
    assert drawn.count("(champion)") == 1
    assert "<x>" not in drawn
    assert "The champion is model0" in client.get("/").text


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name the home"):
        create_app(Home(tmp_path / "none"))
