"""`hyco --help` lists every verb under a heading with an uncut summary; -h, --version, --quiet and --json work."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hyco.flows.__main__ import main
from hyco.pipeline.cli.app import OLD_VERBS, PANELS, app, summary
from hyco.pipeline.runtime.progress import Progress
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.factories.training import make_home

WIDTH = 80


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `hyco words`; its output. It must exit with `code`."""

    def called(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["hyco", *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code or 0) == code
        return capsys.readouterr().out

    yield called
    Progress.quiet = False


@pytest.fixture(scope="module")
def hyco() -> Any:
    return typer.main.get_command(app)


def test_every_verb_has_one_heading(hyco) -> None:
    listed = [verb for verbs in PANELS.values() for verb in verbs]
    assert sorted(listed) == sorted(hyco.commands), "PANELS of pipeline/cli/app.py"
    assert not set(listed) & set(OLD_VERBS)


def test_the_summaries_fit_on_a_line_of_a_terminal(hyco) -> None:
    left = WIDTH - 2 - max(map(len, hyco.commands)) - 2
    long = {name: summary(verb) for name, verb in hyco.commands.items() if len(summary(verb)) > left}
    assert not long, f"at most {left} characters"
    assert all(summary(verb).endswith(".") for verb in hyco.commands.values())


def test_the_help_is_in_the_order_of_the_journey(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    text = run("-h")
    assert text == run("--help") == run()
    places = [text.index(f"\n{title}:") for title in PANELS]
    assert places == sorted(places) and "..." not in text.partition("COMMAND [ARGS]...")[2]
    assert run("journey", "-h") == run("journey", "--help")


def test_the_version_names_what_matters_in_a_report_of_a_fault(run) -> None:
    said = run("--version")
    assert said.startswith(f"hyco {metadata.version('hyco')} (python 3.")
    assert f"torch {metadata.version('torch')}, prefect {metadata.version('prefect')})" in said


@pytest.fixture
def home(tmp_path: Path) -> Path:
    versions = Versions(Store(str(tmp_path / "home")))
    shards = versions.load(make_home(tmp_path / "home", counts=(20,))).shards
    (tmp_path / "home/latest").unlink(missing_ok=True)
    for old in (tmp_path / "home/versions").iterdir():
        old.unlink()
    versions.publish({}, {}, shards, {"images": 20, "parts": 31})
    return tmp_path / "home"


def test_json_is_what_the_lines_say(run, home: Path, tmp_path: Path) -> None:
    where = ("--home", str(home))
    (made,) = json.loads(run("versions", *where, "--json"))
    assert made["latest"] and not made["quarantined"] and made["counts"] == {"images": 20, "parts": 31}
    line = run("versions", *where)
    assert line.startswith(made["name"]) and "(latest)" in line and len(line.splitlines()) == 1
    held = json.loads(run("status", *where, "--json"))
    assert held["versions"] == [made] and held["runs"] == [] and f"version  {line}" in run("status", *where)
    assert json.loads(run("registry", *where, "--json")) == []
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    registry = Home(home).registry
    registry.append(Decision("promoted", *registry.keep(folder), "first", run="/runs/a", version="v-1"), 0)
    (row,) = json.loads(run("registry", *where, "--json"))
    assert (row["kind"], row["reason"], row["number"]) == ("promoted", "first", 1)
    champion = json.loads(run("champion", *where, "--json"))
    assert champion["model"] == row["model"] and champion == json.loads(run("champion", *where))


def test_a_damaged_record_is_named_and_hides_nothing_else(run, home: Path, capsys) -> None:
    opened = Home(home)
    (good,) = (home / "versions").glob("v-*.json")
    good.with_name("v-000000000000.json").write_bytes(good.read_bytes().replace(b"31", b"32", 1))
    mined = opened.detections("0" * 12)
    for unit in ("one", "two"):
        mined.commit(unit, {"images": 3, "failed": 0})
    path = home / mined.path("two")
    path.write_bytes(path.read_bytes().replace(b"3", b"4", 1))
    assert opened.shelf.put("three", "3.tar", "s", "torn")
    (home / "shelved/three.json").write_text("{}")
    where = ("--home", str(home))
    held = json.loads(run("status", *where, "--json"))
    lines = [line for line in run("status", *where).splitlines() if line.startswith("damaged  ")]
    assert [line.split()[1] for line in lines] == [f"{name}:" for name in (
        mined.path("two"), "shelved/three.json", "versions/v-000000000000.json")]  # fmt: skip
    assert [f"damaged  {one['reason']}" for one in held["damaged"]] == lines
    assert held["mined"] == [{"name": "0" * 12, "units": 1, "images": 3, "failed": 0}]
    assert [version["name"] for version in held["versions"]] == [good.stem] and held["shelved"] == []
    capsys.readouterr()
    assert json.loads(run("versions", *where, "--json")) == held["versions"]


def test_a_home_without_versions_and_one_that_is_missing(run, tmp_path: Path, capsys) -> None:
    assert "run mine and pack first" in run("versions", "--home", str(tmp_path))
    run("versions", "--home", str(tmp_path / "no"), code=2)


@pytest.mark.parametrize("words", [("-q", "status"), ("status", "--quiet")])
def test_quiet_silences_progress_and_not_results(run, home: Path, capsys, words) -> None:
    assert "version  " in run(*words, "--home", str(home))
    heard = []
    with Progress(3, "mine", listener=heard.append, every=0) as progress:
        progress.advance()
    assert capsys.readouterr().err == "" and heard[-1]["finished"]
    run("status", "--home", str(home))
    with Progress(3, "mine", every=0) as progress:
        progress.advance()
    assert "mine: 1/3 images" in capsys.readouterr().err
