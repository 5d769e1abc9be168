"""A deleted image is nowhere in the home, stays away, and what was made of it says so."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hyco.flows.__main__ import main
from hyco.pipeline.config import ConfigError
from hyco.pipeline.curation.compare import compare
from hyco.pipeline.curation.delete import Settled, delete, read_list, settle
from hyco.pipeline.curation.flags import flags
from hyco.pipeline.embeddings import _table, _write
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.evaluation.report.examples import picture as thumbnail
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.report import render
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.integrity.repair import repair
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import mine_all, results
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.registry.retraining import RetrainConfig, check, unpublished
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.columns import USUAL
from hyco.pipeline.training.run_dir import RunConfig, environment, prepare, write_config
from hyco.pipeline.ui.server import create_app
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision, prove_folder
from hyco.storage.sample import content_key
from hyco.storage.store import Store
from hyco.storage.versions import Version, read_ref
from tests.factories.files import named, tarred
from tests.factories.mining import COLOURS, ColourDetector, config
from tests.factories.training import tiny_recipe

MAGENTA = (250, 0, 250)
WORD = "quuxperson"
URL = "http://Example.org/anna.jpg?size=1"
PACK = PackConfig(image_size=32, shard_size=3, min_area_px=None, gate=QualityConfig(max_failed=None))


def photo(number: int, ground: tuple[int, ...] = (255, 255, 255)) -> bytes:
    pixels = np.full((40, 60, 3), ground, np.uint8)
    pixels[-1, -1] = number
    pixels[5:25, 10:30] = list(COLOURS.values())[number % 3]
    return encode_jpeg(pixels, 95)


PERSON = photo(0, MAGENTA)
KEY = content_key(PERSON)


def write_unit(path: Path, numbers: range, person: bool) -> None:
    members: dict[str, bytes | str] = {}
    for number in numbers:
        colour = list(COLOURS)[number % 3]
        told = {"captions": [f"a {colour} block on the wall"], "url": f"https://example.org/{number}.jpg"}
        members |= named(f"{number:05d}", {"jpg": photo(number), "json": json.dumps(told)})
    if person:
        told = {"captions": [f"a red block and {WORD}", f"a red block of {WORD}"], "url": URL}
        members |= named("09999", {"jpg": PERSON, "json": json.dumps(told)})
    tarred(path, members)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a source and a home of it, made once."""
    folder = tmp_path_factory.mktemp("made")
    for unit in range(3):
        write_unit(folder / "source" / f"{unit}.tar", range(unit * 4, unit * 4 + 4), unit < 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground, "open_detector", lambda *_, **__: ColourDetector())
        patch.setattr(ground, "grounder_digest", lambda spec: ColourDetector.digest)
        mining._open_detector.cache_clear()
        opened, mine = Home(folder / "home"), config(folder / "source")
        mine_all(mine, opened, InProcess())
        version = pack(mine, PACK, opened)
        pack(mine, PACK.replace(threshold=0.1), opened, label="low")
        fill(opened, version)
    mining._open_detector.cache_clear()
    yield folder


@pytest.fixture
def source(made: Path, tmp_path: Path, detector: Any) -> Path:
    """Three units; the person is in the last place of the first and, once more, in the second."""
    return Path(shutil.copytree(made / "source", tmp_path / "source"))


@pytest.fixture
def filled(made: Path, source: Path, home: str) -> Home:
    """A home with two versions, a run and a champion of the first, reports, embeddings and a damaged file."""
    shutil.copytree(made / "home", home, symlinks=True)
    return Home(home)


def fill(opened: Home, version: Version) -> None:
    run = opened.folder / "runs" / "first"
    (run / "model").mkdir(parents=True)
    (run / "model/model.safetensors").write_bytes(b"weights")
    prepare(run, opened, version.name, tiny_recipe())
    row = {"answer": thumbnail(PERSON, 20)[0], "captions": [WORD]}
    shown = Exhibits(images=[KEY, "a" * 32], config={"shown": row})
    for name, keys in (("report.html", shown), ("report-other.html", Exhibits(images=["b" * 32]))):
        (run / name).write_text(render({"run": "first"}, keys))
    registry = opened.registry
    model, files = registry.keep(run / "model")
    kept = opened.store.commit(
        "registry/reports", ".html", lambda file: file.write((run / "report.html").read_bytes())
    )
    first = Decision("promoted", model, files, "first", run=str(run), version=version.name, report=kept.path)
    registry.append(first, 0)
    answers = registry.assessment(f"exam-{model}")
    answers.write("metrics.json", b"{}")
    answers.write("report.html", (run / "report.html").read_bytes())
    prove_folder(answers)
    told = {"key": KEY, "unit": "0.tar", "source_key": "09999", "captions": [WORD]}
    for name, rows in (("hit", [told]), ("other", [{**told, "key": "c" * 32, "captions": ["x"]}])):
        path = opened.folder / "embeddings" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        _write(_table(rows, np.ones((1, 4), np.float32)), path)
    refs = version.shards["train"]
    ref = next(ref for ref in refs if KEY in [sample.key for sample in read_ref(opened.store, ref)])
    damaged = opened.folder / "damaged" / ref.path
    damaged.parent.mkdir(parents=True)
    shutil.copyfile(opened.store.path(ref.path), damaged)


def traces(home: str | Path) -> set[str]:
    """Every file of a home that holds the person: bytes, caption, key or address, in whatever form, or a picture.

    The log of deletions names the key, and nothing else of it.
    """
    found = set()
    for path in (path for path in Path(home).rglob("*") if path.is_file() and not path.is_symlink()):
        place, data = path.relative_to(home), path.read_bytes()
        names = [WORD, URL, *(() if place.parts[0] == "deleted" else (KEY,))]
        texts = [data.decode("latin-1")]
        pictures = [
            base64.b64decode(text) for text in re.findall(r"data:image/jpeg;base64,([\w+/=]+)", texts[0])
        ]
        if data[:4] == b"PAR1":
            texts.append(json.dumps(pq.read_table(io.BytesIO(data)).to_pylist()))
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                pictures += [tar.extractfile(name).read() for name in tar.getnames() if name.endswith("jpg")]
        if (
            PERSON in data
            or any(name in text for name in names for text in texts)
            or any(map(_magenta, pictures))
        ):
            found.add("/".join(place.parts[:2]))
    return found


def _magenta(image: bytes) -> bool:
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), int)
    return bool((np.abs(pixels - MAGENTA).sum(2) < 90).mean() > 0.02)


HELD = {"shards/objects", "runs/first", "registry/reports", "registry/assessed", "embeddings/hit.parquet"}
HELD |= {"damaged/shards"}


def held(found: set[str]) -> set[str]:
    return {
        place.partition("/")[0] if place.startswith(("detections", "packs")) else place for place in found
    }


@pytest.mark.parametrize("by", ["key", "sha256", "url", "list"])
def test_nothing_of_a_deleted_image_is_left_after_gc(
    filled, source, by, monkeypatch, capsys, tmp_path
) -> None:
    home = filled.url
    old, low = filled.versions.load("latest"), filled.versions.load("low")
    assert held(traces(home)) == HELD | {"detections"}, "the search finds it wherever it is"
    before = {path: path.read_bytes() for path in source.iterdir()}
    (tmp_path / "out.txt").write_text(f"# a comment\n\n{URL}\n{'0' * 64}\n")
    words = {
        "key": ["--key", KEY],
        "sha256": ["--sha256", hashlib.sha256(PERSON).hexdigest().upper()],
        "url": ["--url", URL.replace("http://Example", "HTTPS://example") + "#top"],
        "list": ["--list", str(tmp_path / "out.txt")],
    }[by]
    said = hyco(monkeypatch, capsys, "delete", *words, "--reason", "asked", "--home", home)[0]
    assert (
        "1 images found: " in said
        and f"superseded: {old.name}, by v-" in said
        and "source is untouched" in said
    )
    hyco(monkeypatch, capsys, "gc", "--home", home)
    assert traces(home) == set()
    assert {path: path.read_bytes() for path in source.iterdir()} == before, "the user's files are the user's"
    assert (filled.folder / "runs/first/report-other.html").is_file(), "a report that does not show it stays"
    assert (filled.folder / "embeddings/other.parquet").is_file()
    new = filled.versions.load("latest")
    assert new.counts["images"] == old.counts["images"] - 1 == 12 and new.parent == old.name
    assert filled.versions.load("low").name not in (low.name, new.name)
    assert filled.versions.load("low").name in filled.versions.experiments()
    assert not verify(filled, None)
    left = [
        sample.key for refs in old.shards.values() for ref in refs for sample in read_ref(filled.store, ref)
    ]
    assert len(left) == 12 and KEY not in left, "the old version can be read, without it"
    found = compare(filled, old.name, new.name)
    assert (found.came.keys, found.went.keys, found.kept, found.changed) == ([], [], 12, 0)


def test_the_home_is_as_if_the_image_had_never_been_there(filled, source, tmp_path, detector) -> None:
    mine = config(source)
    whole = PACK.replace(shard_size=100)
    pack(mine, whole, filled)
    delete(filled, keys=[KEY])
    collect(filled.store)
    fresh = Home(tmp_path / "fresh")
    delete(fresh, keys=[KEY])
    mine_all(mine, fresh, InProcess())
    assert filled.versions.load("latest").name == pack(mine, whole, fresh).name
    calls = detector.calls
    assert mine_all(mine, filled, InProcess())["opted_out"] == 2
    assert detector.calls == calls and pack(mine, whole, filled).name == filled.versions.load("latest").name
    counts = ("images", "captions", "phrases", "boxes", "phrases_with_boxes", "failed")
    for unit, record in results(mine, fresh).records().items():
        other = results(mine, filled).record(unit)
        assert other and {name: other[name] for name in counts} == {name: record[name] for name in counts}


def test_a_source_that_is_mined_again_does_not_bring_it_back(filled, source, detector, tmp_path) -> None:
    delete(filled, urls=[URL])
    shutil.rmtree(filled.folder / "detections")
    shutil.rmtree(filled.folder / "packs")
    other = PACK.replace(threshold=0.15)
    write_unit(source / "3.tar", range(20, 22), person=True)
    members = named("1", {"jpg": PERSON, "txt": f"another caption of {WORD}"})
    tarred(source / "4.tar", members)  # another name, no address: its bytes are known by now
    found = mine_all(config(source), filled, InProcess())
    assert found["opted_out"] == 4 and found["failures"] == 0
    assert pack(config(source), other, filled).counts["images"] == 14
    assert held(traces(filled.url)) <= {"shards/objects"}, "the objects of before wait for gc"
    settle(filled), collect(filled.store)
    assert traces(filled.url) == set()
    assert of_source(str(source), 99, USUAL, filled).listed - len(of_source(str(source), 99).scenes) <= 4
    assert KEY not in [scene.key for scene in of_source(str(source), 99, USUAL, filled).scenes]


def test_models_that_saw_it_are_flagged_wherever_they_are_named(filled, monkeypatch, capsys) -> None:
    old, home, registry = filled.versions.load("latest").name, filled.url, filled.registry
    (first,) = registry.rows()
    later = filled.folder / "runs" / "later"
    (later / "model").mkdir(parents=True)
    (later / "model/model.safetensors").write_bytes(b"other weights")
    delete(filled, keys=[KEY])
    new = filled.versions.load("latest").name
    recipe = tiny_recipe()
    start = recipe.start.replace(checkpoint=str(registry.path(first.model)))
    run = RunConfig(home=home, version=new, recipe=recipe.replace(start=start), environment=environment())
    write_config(later, run)
    registry.append(
        Decision("promoted", *registry.keep(later / "model"), "on", run=str(later), version=new), 1
    )
    other = Decision("refused", "f" * 16, [], "no", run="/elsewhere", version=new)
    registry.append(other, 2)
    told = f"trained on {old}, from which images were deleted since"
    assert flags(filled, registry.rows()) == {1: told, 2: told}, (
        "a model that began with such a model saw it too"
    )
    assert json.loads(hyco(monkeypatch, capsys, "champion", "--home", home)[0])["flag"] == told
    lines = hyco(monkeypatch, capsys, "registry", "--home", home)[0].splitlines()
    assert [told in line for line in lines] == [True, True, False]
    assert "superseded" in hyco(monkeypatch, capsys, "status", "--home", home)[0]
    client = TestClient(create_app(filled), base_url="http://localhost")
    page = client.get("/").text
    assert page.count(told) == 3, "beside both decisions and the champion"
    assert client.get("/lineage.svg").text.count("images deleted since") == 2
    assert "superseded" in client.get(f"/versions/{old}").text
    with pytest.raises(ConfigError, match=f"images were deleted from dataset version {old}.*train on {new}"):
        prepare(filled.folder / "runs" / "third", filled, old, tiny_recipe())


def test_a_server_that_runs_shows_it_no_longer(filled) -> None:
    name = filled.versions.load("latest").name
    client = TestClient(create_app(filled), base_url="http://localhost")
    place = next(
        n for n in range(20) if _magenta(client.get(f"/versions/{name}/samples/{n}/whole.jpg").content)
    )
    assert WORD in client.get(f"/versions/{name}").text
    delete(filled, keys=[KEY])
    assert WORD not in client.get(f"/versions/{name}").text
    shown = [client.get(f"/versions/{name}/samples/{n}/whole.jpg") for n in range(20)]
    assert not any(_magenta(one.content) for one in shown if one.status_code == 200) and place < 13


def test_a_retraining_goes_on_with_the_version_that_is_left(filled, source) -> None:
    journey = JourneyConfig(mine=config(source), pack=PACK, recipe=tiny_recipe())
    asked = RetrainConfig(journey=journey, min_new=1)
    delete(filled, keys=[KEY])
    decision = check(asked, filled)
    assert decision and decision.version == filled.versions.load("latest").name
    assert decision.new_samples == 0, "what is left of a shard is not new"
    assert not unpublished(asked, filled)


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_write_it_is_finished_by_the_next(made, filled, tmp_path, every) -> None:
    delete(filled, urls=[URL])
    expected = filled.versions.load("latest").name, filled.versions.load("low").name
    writes = 0
    while True:
        place = tmp_path / f"killed-{writes}"
        shutil.copytree(made / "home", place, symlinks=True)
        if not _killed(place, writes):
            break
        writes += every
        opened = Home(place)
        if opened.deletions.number():  # the deletion is in force
            collect(opened.store, 0.0)  # what no record names is lost; what a killed deletion has made is not
            settle(opened), collect(opened.store, 0.0)
            assert (opened.versions.load("latest").name, opened.versions.load("low").name) == expected
            assert traces(place) == set() and not verify(opened, None)
        else:
            assert opened.versions.load("latest").name not in expected
        shutil.rmtree(place)
    print(f"killed before each of {writes} writes" if every == 1 else f"{writes} writes, every {every}th")
    assert writes > 20


def _killed(place: Path, after: int) -> bool:
    """Delete in a child that is killed at its write number `after`; False when it ended before."""
    child = os.fork()
    if child == 0:
        try:
            left = [after]

            def counted(real: Any) -> Any:
                def call(*args: Any, **options: Any) -> Any:
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    return real(*args, **options)

                return call

            for name in ("commit", "create", "replace", "delete"):
                setattr(Store, name, counted(getattr(Store, name)))
            delete(Home(place), urls=[URL])
            os._exit(0)
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_three_who_delete_at_once(filled) -> None:
    every = [
        s.key
        for refs in filled.versions.load().shards.values()
        for r in refs
        for s in read_ref(filled.store, r)
    ]
    chosen = [KEY, *[key for key in every if key != KEY][:2]]
    children = []
    for key in chosen:
        child = os.fork()
        if child == 0:
            try:
                delete(Home(filled.url), keys=[key])
                os._exit(0)
            finally:
                os._exit(3)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)  # one may meet a shard that another has just replaced
    assert filled.deletions.number() == 3
    settle(filled), collect(filled.store, 0.0)
    assert traces(filled.url) == set() and not verify(filled, None)
    new = filled.versions.load("latest")
    left = [
        sample.key for refs in new.shards.values() for ref in refs for sample in read_ref(filled.store, ref)
    ]
    assert sorted(left) == sorted(set(every) - set(chosen)) and new.counts["images"] == 10


def test_images_deleted_one_after_the_other_and_all_of_a_shard(filled, source) -> None:
    mine = config(source)
    every = [
        s.key
        for refs in filled.versions.load().shards.values()
        for r in refs
        for s in read_ref(filled.store, r)
    ]
    for number, key in enumerate(every[:3], 1):
        found = delete(filled, keys=[key])
        assert found.images == {key} and filled.versions.load().counts["images"] == 13 - number
    assert not verify(filled, None)
    last = delete(filled, keys=every)
    assert last.versions[filled.versions.latest() or ""] is None, "nothing is left to train on"
    assert not any(record["images"] for record in results(mine, filled).records().values())


def test_what_is_no_key_hash_or_address_is_refused_by_name(filled, tmp_path, monkeypatch, capsys) -> None:
    for words, told in (
        ([], "nothing to delete: give --key"),
        (["--sha256", "abc"], "'abc' is no key, no sha256"),
        (["--url", "anna.jpg"], "no address with ://"),
        (["--key", "A.B"], "does not match"),
        (["--list", str(tmp_path / "no")], "No such file"),
    ):
        assert told in hyco(monkeypatch, capsys, "delete", *words, "--home", filled.url, code=2)[1]
    assert filled.deletions.number() == 0
    (tmp_path / "out.txt").write_text("key:abc\nwhat is this\n")
    with pytest.raises(ValueError, match=r"out.txt, line 2: 'what is this' is no key"):
        read_list(tmp_path / "out.txt")
    (tmp_path / "out.txt").write_text(f"{'F' * 64}\n{KEY}\nurl:s3://b/x\n")
    assert read_list(tmp_path / "out.txt") == (["f" * 32, KEY], ["s3://b/x"])


def test_a_list_that_hits_nothing_changes_no_version(filled) -> None:
    before = {path: path.read_bytes() for path in filled.folder.glob("shards/*/*")}
    found = delete(filled, keys=["d" * 32], urls=["https://nowhere.org/1.jpg"])
    assert found == Settled(derived=found.derived) and not filled.deletions.hashes()
    assert [path for path in found.derived if not path.startswith("damaged")] == []
    assert {path: path.read_bytes() for path in filled.folder.glob("shards/*/*")} == before


def test_a_damaged_log_lets_nothing_back_in(filled, source) -> None:
    delete(filled, keys=[KEY])
    (log,) = (filled.folder / "deleted/log").iterdir()
    log.write_bytes(log.read_bytes().replace(KEY.encode(), b"0" * 32))
    write_unit(source / "3.tar", range(20, 22), person=True)
    with pytest.raises(ValueError, match="restore it from a backup"):
        mine_all(config(source), filled, InProcess())
    assert "record of a deletion" in {damage.kind for damage in verify(filled, None)}
    repair(filled)
    assert log.exists()


def test_a_remote_home(source, detector, tmp_path) -> None:
    opened, mine = Home("memory://delete-test"), config(source)

    def copied(name: str) -> Path:
        for path in opened.store.list():
            place = tmp_path / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(opened.store.read_bytes(path))
        return tmp_path / name

    mine_all(mine, opened, InProcess())
    old = pack(mine, PACK, opened)
    assert held(traces(copied("before"))) == {"shards/objects", "detections"}
    delete(opened, keys=[KEY])
    collect(opened.store)
    assert opened.versions.load("latest").counts["images"] == old.counts["images"] - 1
    assert traces(copied("after")) == set()


def hyco(monkeypatch: Any, capsys: Any, *words: str, code: int = 0) -> Any:
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == code
    return capsys.readouterr()


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    store = Store("memory://delete-test")
    for path in store.list():
        store.delete(path)
