"""Pages of a home in which a record is torn, the names a server answers to, and what a browser may keep."""

import json
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hyco.pipeline.ui.hosts import host_of, own_hosts
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.pipeline.ui.test_serve import home

__all__ = ["home"]  # a fixture


def client(home: Path, host: str = "localhost", **options) -> TestClient:
    return TestClient(
        create_app(Home(home), **options), base_url=f"http://{host}", raise_server_exceptions=False
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8300", 200),
        ("127.0.0.1:8300", 200),
        ("[::1]:8300", 200),
        ("LOCALHOST.", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("127.0.0.1.evil.example:8300", 421),
        ("", 421),
    ],
)
def test_only_its_own_names_are_answered(home: Path, host: str, status: int) -> None:
    for path in ("/", "/runs/first/train.json", "/lineage.svg", "/nothing"):
        found = client(home).get(path, headers={"Host": host})
        assert found.status_code == (status if status == 421 or path in ("/", "/lineage.svg") else 404)
    if status == 421:
        assert "--allow-host" in found.text and "v-" not in found.text


def test_a_server_answers_to_its_machine_its_address_and_what_it_is_told(monkeypatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.lan")
    known = own_hosts("192.168.1.5", "https://pages.example.org/hyco", ["other.example:8443", "fe80::1"])
    assert known == {
        "localhost", "127.0.0.1", "::1", "box.lan", "box", "192.168.1.5", "pages.example.org", "other.example",
        "fe80::1",
    }  # fmt: skip
    assert own_hosts("0.0.0.0") == own_hosts("::") == {"localhost", "127.0.0.1", "::1", "box.lan", "box"}
    assert own_hosts(serve_url="pages:8300") == own_hosts() | {"pages"}
    for name in ("a/b", "user@host", "host:port", ""):
        with pytest.raises(ValueError, match="--allow-host"):
            own_hosts(allowed=[name])
    assert host_of("[::1") is None


def test_the_command_allows_what_its_options_name(home: Path, monkeypatch) -> None:
    from hyco.pipeline.cli.serve import serve

    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.append(self.config.app))
    monkeypatch.setenv("HYCO_SERVE_URL", "https://pages.example.org")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(str(home), "127.0.0.1", port, ["behind.proxy"])
    for host in ("pages.example.org", "behind.proxy", "localhost"):
        assert TestClient(served[0], base_url=f"http://{host}").get("/").status_code == 200
    assert TestClient(served[0], base_url="http://evil.example").get("/").status_code == 421


def filled(home: Path) -> str:
    """A run that has ended, two decisions; the version's name."""
    run = home / "runs/first"
    (run / "train.json").write_text(json.dumps({"loss_first": 3.0, "loss_last": 1.0}))
    (run / "metrics.json").write_text("{}")
    (home / "runs/second").mkdir()
    (home / "runs/second/config.json").write_text('{"version": "v-2"}')
    for number in range(2):
        Home(home).registry.append(
            Decision("promoted", f"model{number}", [], "a reason", version="v-1"), number
        )
    return Versions(Store(home)).load().name


TORN = {
    "runs/first/config.json": '{"version": "v',
    "runs/first/train.json": "[1, 2]",
    "runs/first/metrics.json": "",
    "versions/NAME.json": '{"shards": 3}',
    "registry/log/000000002.parquet": "PAR1 torn PAR1",
    "versions/latest": "v-gone\n",
}


@pytest.mark.parametrize("path", TORN)
def test_one_torn_record_marks_its_own_entry(home: Path, path: str) -> None:
    name = filled(home)
    (home / path.replace("NAME", name)).write_text(TORN[path])
    found = client(home)
    page = found.get("/")
    assert page.status_code == 200
    assert ("unreadable" in page.text) == (path != "versions/latest")
    assert "second" in page.text and "model0" in page.text, "the other entries stand"
    assert found.get("/lineage.svg").status_code == 200
    assert found.get(f"/versions/{name}").status_code == (404 if path.startswith("versions/NAME") else 200)


def test_a_champion_is_not_named_when_a_newer_decision_is_torn(home: Path) -> None:
    filled(home)
    log = home / "registry/log"
    (log / "000000001.parquet").write_bytes(b"torn")
    assert "The champion is model1" in client(home).get("/").text
    (log / "000000002.parquet").write_bytes(b"torn")
    (log / "000000001.parquet").unlink()
    Home(home).registry.store.delete("registry/log/000000001.parquet")
    page = client(home).get("/").text
    assert "The champion is not known" in page and "000000002.parquet" in page
    assert "(champion)" not in client(home).get("/lineage.svg").text


def test_a_damaged_shard_or_verdict_costs_its_section_alone(home: Path) -> None:
    name = filled(home)
    (home / "quarantine").mkdir()
    (home / f"quarantine/{name}.json").write_text("[{")
    shard = home / Versions(Store(home)).load(name).shards["train"][0].path
    shard.chmod(0o644)
    shard.write_bytes(b"no tar at all")
    page = client(home).get(f"/versions/{name}")
    assert page.status_code == 200 and "Unreadable records" in page.text and "3 images" in page.text
    assert "quarantined" in client(home).get("/").text


def test_a_line_of_the_log_without_a_loss_is_not_drawn(home: Path) -> None:
    (home / "runs/first/log.jsonl").write_text(
        '{"step": 1}\n{"step": 2, "loss": "x", "terms": 3}\n{"step": 3, "loss": 1}'
    )
    assert client(home).get("/runs/first/curves.svg").status_code == 200


def test_only_what_never_changes_is_kept_for_a_day(home: Path) -> None:
    name = filled(home)
    found = client(home)
    for asked, kept in ((name, "max-age=86400, immutable"), ("latest", "no-cache"), (name[:6], "no-cache")):
        picture = found.get(f"/versions/{asked}/samples/0/whole.jpg")
        assert (picture.status_code, picture.headers["cache-control"]) == (200, kept)
    for path in ("/", f"/versions/{name}", "/lineage.svg", "/runs/first/metrics.json"):
        assert found.get(path).headers["cache-control"] == "no-cache"


def test_the_status_of_a_home_goes_on_past_a_torn_record(home: Path) -> None:
    from hyco.pipeline.ui.status import report

    filled(home)
    (home / "runs/first/metrics.json").unlink()
    (home / "runs/first/train.json").write_text("{")
    (home / "fits/torn").mkdir(parents=True)
    (home / "fits/torn/config.json").write_text("{}")
    (home / "fits/torn/metrics.json").write_text("{}")
    lines = list(report(Home(home)))
    assert [line.split()[:4] for line in lines[-3:]] == [
        ["run", "first", "unreadable", "train.json"],
        ["run", "second", "training", "not"],
        ["fit", "torn", "unreadable", "metrics.json"],
    ]
