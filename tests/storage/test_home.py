"""A home: one class opens what lies in it, and one file has the names."""

import ast
import pickle
from pathlib import Path

import pytest

from hyco.storage import layout
from hyco.storage.home import Home

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    layout.DETECTIONS,
    layout.PACKS,
    layout.VERSIONS,
    layout.QUARANTINE,
    layout.REGISTRY,
    layout.DAMAGED,
    layout.RUNS,
    layout.FITS,
    "shards",
}


def test_results_of_a_stage_are_found_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    mined, packed = home.detections("d1"), home.packs("p1")
    assert mined.commit("unit", {"images": 3}) and packed.commit("unit", {"shards": {}})
    assert [found.folder for found in home.all_detections()] == [mined.folder] == ["detections/d1"]
    assert home.all_packs()[0].records() == {"unit": {"shards": {}}}
    assert (tmp_path / mined.prefix / "unit.json").is_file() and mined.path("unit") != packed.path("unit")


def test_nothing_is_made_by_asking(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    assert home.all_detections() == [] == home.run_folders() == home.fit_folders() == home.versions.names()
    assert home.latest_version() is None and home.registry.champion() is None
    assert not home.folder.exists()
    with pytest.raises(FileNotFoundError, match="name the home of an earlier command"):
        home.require()


def test_runs_are_given_by_name_or_directory(tmp_path: Path) -> None:
    home, elsewhere = Home(tmp_path / "home"), tmp_path / "elsewhere"
    for folder in (home.runs / "b", home.runs / "a", elsewhere, home.fits / "c"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (home.runs / "unfinished").mkdir()
    assert [run.name for run in home.run_folders()] == ["a", "b"]
    assert [run.name for run in home.fit_folders()] == ["c"]
    assert home.run("a").path == home.runs / "a" and home.run(elsewhere).path == elsewhere


def test_a_remote_home_has_runs_but_no_directory_of_them() -> None:
    home = Home("memory://remote")
    assert not home.local and home.run_folders() == [] and home.require() is home
    home.run("b").create("config.json", b"{}")
    assert [run.url for run in home.run_folders()] == ["memory://remote/runs/b"]
    assert home.run("memory://elsewhere/x").url == "memory://elsewhere/x"
    for ask in (lambda: home.runs, lambda: home.fits):
        with pytest.raises(ValueError, match="needs a local one: give it another --home on this machine"):
            ask()


def test_a_home_is_sent_to_workers_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Home("file://var")) == "file://var" and Home("file://var").folder == Path("var")
    home = Home("var")
    _ = home.versions
    sent = pickle.loads(pickle.dumps(home))
    assert (sent.url, sent.store.url, str(sent)) == ("var", str(tmp_path / "var"), "var")


@pytest.mark.parametrize("package", ["flows", "pipeline", "storage"])
def test_no_other_module_spells_a_path_of_the_home(package: str) -> None:
    spelt = []
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                first, slash, _ = node.value.partition("/")
                if slash and first in WORDS and path != ROOT / "storage" / "layout.py":
                    spelt.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert not spelt
