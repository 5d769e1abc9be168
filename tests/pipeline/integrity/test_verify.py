"""Whatever happens to a file of a home is found, by name; what is set aside is made again by the same commands."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from hyco.pipeline.cli import data as commands
from hyco.pipeline.integrity.repair import remedy, repair
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.packing.dataset_gate import QualityError
from hyco.pipeline.registry.promotion import restore
from hyco.pipeline.training.dataloader import ShardFile
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.layout import DAMAGED, log_path
from hyco.storage.model_registry import SCHEMA
from hyco.storage.objects import DamagedError
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.factories.home import SEED, SmallHome, corruptions, kind_of, may_be_absent, small_home

KINDS = {
    "mining configuration", "mining record", "detections", "mining failures", "pack record", "packing failures",
    "shard", "version", "latest", "quarantine record", "registry row", "model", "run of a model", "report",
    "assessment", "cached table",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHome]:
    with small_home(tmp_path_factory.mktemp("verify")) as made:
        yield made


@pytest.fixture
def made(built: SmallHome, tmp_path: Path) -> SmallHome:
    shutil.copytree(built.home, tmp_path / "home")
    return SmallHome(tmp_path / "home", built.source, built.detector)


def files(home: Path, kind: str | None = None) -> list[Path]:
    found = sorted(path for path in home.rglob("*") if path.is_file())
    return found if kind is None else [path for path in found if kind_of(home, path) == kind]


def corrupt(home: Path, count: int) -> Counter[tuple[str, str]]:
    """Corrupt one file, verify, put it back, `count` times over all kinds; how often each kind was corrupted how."""
    chance, done = random.Random(SEED), Counter()
    kinds = sorted(KINDS)
    while done.total() < count:
        kind, (how, change) = kinds[done.total() % len(kinds)], chance.choice(list(corruptions().items()))
        path = chance.choice(files(home, kind))
        whole = path.read_bytes()
        harmed = change(whole, chance)
        if harmed == whole or (harmed is None and may_be_absent(home, path)):
            continue
        path.unlink() if harmed is None else path.write_bytes(harmed)
        found = verify(Home(home), None)
        label = f"{how}, {path.relative_to(home)}: {[str(damage) for damage in found]}"
        assert found, f"not found: {label}"
        assert {damage.kind for damage in found} == {kind}, f"taken for another kind: {label}"
        assert {damage.path for damage in found} == {path.relative_to(home).as_posix()}, f"misnamed: {label}"
        path.write_bytes(whole)
        done[kind, how] += 1
    return done


def test_the_home_has_every_kind_of_file_and_is_intact(made: SmallHome) -> None:
    assert {kind_of(made.home, path) for path in files(made.home)} == KINDS
    assert verify(Home(made.home)) == verify(Home(made.home), None) == []


def test_corruptions_of_every_kind_of_file_are_found_and_named(made: SmallHome) -> None:
    done = corrupt(made.home, 60)
    assert {kind for kind, _ in done} == KINDS
    assert {how for _, how in done} == set(corruptions())


@pytest.mark.slow
@pytest.mark.chaos
def test_a_thousand_random_corruptions_are_found_and_named(made: SmallHome) -> None:
    done = corrupt(made.home, 1000)
    for kind in sorted(KINDS):
        print(f"{kind:22s} {sum(n for (one, _), n in done.items() if one == kind):4d} found and named")
    print(f"{done.total()} of 1000 corruptions found and named, none taken for another kind")


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :])


MADE_AGAIN = sorted(KINDS - {"registry row", "model", "run of a model", "report", "quarantine record"})


@pytest.mark.parametrize("kind", MADE_AGAIN)
def test_what_is_flipped_is_set_aside_and_made_again_by_the_same_commands(made: SmallHome, kind: str) -> None:
    path = next(path for path in files(made.home, kind) if kind != "version" or path.stem == latest(made))
    name, looked = latest(made), made.detector.images
    flip(path)
    found = repair(Home(made.home))
    assert [(damage.kind, damage.path) for damage in found] == [
        (kind, path.relative_to(made.home).as_posix())
    ]
    assert remedy(found)
    assert list((made.home / DAMAGED).rglob(f"{path.name}*")), "nothing is deleted"
    with pytest.raises(QualityError):
        made.make(threshold=0.6, min_images=1000)  # the damaged file may be of this one
    assert made.make().name == name == latest(made)
    assert verify(Home(made.home), None) == []
    assert (made.detector.images > looked) == (kind == "detections"), "whole detections are taken over"
    assert repair(Home(made.home)) == []


@pytest.mark.parametrize(
    "kind", ["shard", "detections", "mining failures", "packing failures", "pack record"]
)
def test_what_is_deleted_is_made_again_by_the_same_commands_alone(made: SmallHome, kind: str) -> None:
    name = latest(made)
    for path in files(made.home, kind):
        path.unlink()
    assert verify(Home(made.home))
    assert made.make().name == name
    assert verify(Home(made.home)) == []


def test_a_flipped_bit_in_detections_is_never_packed(made: SmallHome) -> None:
    chance = random.Random(SEED)
    (path, *_), whole = files(made.home, "detections"), b""
    for _ in range(20):
        whole = whole or path.read_bytes()
        path.write_bytes(corruptions()["bit flipped"](whole, chance) or b"")
        with pytest.raises(DamagedError, match="hyco verify --repair --home"):
            made.make(threshold=0.4)
    assert len(files(made.home, "version")) == 2


def test_a_shard_that_is_flipped_quarantines_with_advice_that_helps(made: SmallHome) -> None:
    name = latest(made)
    flip(made.home / Versions(Store(made.home)).load(name).shards["train"][0].path)
    with pytest.raises(QualityError, match="Run hyco verify --repair, then pack again"):
        made.make()
    repair(Home(made.home))
    assert made.make().name == name
    assert Versions(Store(made.home)).quarantined(name) is None and verify(Home(made.home)) == []


def test_training_refuses_a_shard_with_a_flipped_bit_before_its_first_sample(made: SmallHome) -> None:
    (ref, *_) = Versions(Store(made.home)).load().shards["train"]
    path = made.home / ref.path
    shard = ShardFile(ref.path, ref.samples, lambda: path.open("rb"), ref.sha256)
    assert len(shard.read()) == ref.samples
    data = path.read_bytes()
    at = data.index(b"two squares")
    path.write_bytes(data[:at] + b"TWO" + data[at + 3 :])  # a caption: nothing but the hash can tell
    with pytest.raises(DamagedError, match=r"sha256 .*hyco verify --repair"):
        shard.read()
    path.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        shard.read()


def test_a_lost_row_of_the_registry_is_stood_in_for_and_the_log_goes_on(made: SmallHome) -> None:
    registry = Home(made.home).registry
    first, _, last = registry.rows()
    flip(made.home / "registry/log/000000003.parquet")
    with pytest.raises(DamagedError, match="restore it from a backup, or run `hyco verify --repair"):
        registry.champion()
    (damage,) = repair(Home(made.home))
    assert damage.kind == "registry row" and registry.champion() == first
    assert [row.kind for row in registry.rows()] == ["promoted", "refused", "refused"]
    registry.append(last, 3)
    assert registry.champion().model == last.model and verify(Home(made.home)) == []
    (made.home / "registry/log/000000002.parquet").unlink()
    (damage,) = repair(Home(made.home))
    assert "is missing, and rows follow it" in damage.what
    assert len(registry.rows()) == 4 and verify(Home(made.home)) == []


def test_a_damaged_model_is_copied_again_from_its_run(made: SmallHome, built: SmallHome) -> None:
    registry = Home(made.home).registry
    champion = registry.champion()
    flip(registry.path(champion.model) / "model.safetensors")
    with pytest.raises(ValueError, match="Run `hyco verify --repair`, then `hyco promote` with the run"):
        registry.keep(Path(champion.run) / "model")
    flip(made.home / champion.report)
    assert {damage.kind for damage in repair(Home(made.home))} == {"model", "report"}
    (Path(champion.run) / "report.html").write_bytes(b"<p>report 2</p>")
    restore(Path(champion.run), Home(made.home).registry, champion)
    assert verify(Home(made.home)) == []


def test_a_quarantine_that_cannot_be_read_stays_one(made: SmallHome) -> None:
    (path,) = files(made.home, "quarantine record")
    versions = Versions(Store(made.home))
    flip(path)
    with pytest.raises(DamagedError, match=r"quarantine/v-.* is not readable"):
        versions.quarantined(path.stem)
    repair(Home(made.home))
    assert "damaged" in versions.quarantined(path.stem)[0]["why"] and verify(Home(made.home), None) == []
    made.make(threshold=0.6)
    assert versions.quarantined(path.stem) is None, "judged anew, and fit"


def test_a_home_of_an_earlier_hyco_opens_and_is_verified_for_what_it_has(made: SmallHome) -> None:
    for path in made.home.rglob("*.json"):
        held = json.loads(path.read_text())
        if "sealed" in held and path.name != "proof.json":
            bare = {key: held[key] for key in held if key not in ("sealed", "proof", "units")}
            path.write_text(json.dumps(bare.get("checks", bare), indent=1))
    (made.home / "versions/latest").write_text(f"{latest(made)}\n")
    schema = pa.schema([field for field in SCHEMA if field.name not in ("kept", "previous")])
    rows = Home(made.home).registry.rows()
    for row in rows:
        table = pa.Table.from_pylist([asdict(row)], schema=schema)
        pq.write_table(table, made.home / log_path(row.number), compression="zstd")
    assert verify(Home(made.home), None) == []
    assert [row.model for row in Home(made.home).registry.rows()] == [row.model for row in rows]
    assert made.make().name == latest(made)
    Home(made.home).registry.append(rows[-1], 3)  # from now on its log is chained
    for kind in ("shard", "detections", "packing failures", "mining failures", "model", "report"):
        path = files(made.home, kind)[0]
        whole = path.read_bytes()
        flip(path)
        assert {damage.kind for damage in verify(Home(made.home), None)} == {kind}
        path.write_bytes(whole)
    old = pa.Table.from_pylist([asdict(replace(rows[2], reason="another"))], schema=schema)
    pq.write_table(old, made.home / log_path(3), compression="zstd")
    assert [damage.kind for damage in verify(Home(made.home))] == ["registry row"], (
        "found by the row behind it"
    )


def test_nothing_is_collected_while_a_record_cannot_be_believed(made: SmallHome) -> None:
    path = files(made.home, "mining record")[0]
    held = path.read_text()
    path.write_text(held.replace("/objects/", "/objectz/"))
    before = files(made.home)
    with pytest.raises(
        DamagedError, match=f"{path.name}: it was changed since it was written: run `hyco verify"
    ):
        collect(Store(made.home), older_than_s=0)
    assert files(made.home) == before
    repair(Home(made.home))
    made.make()
    collect(Store(made.home), older_than_s=0)
    assert verify(Home(made.home)) == []


@pytest.mark.parametrize("text", ["", "v-\n", "v-1", "\n"])
def test_a_shortened_latest_names_nothing(made: SmallHome, text: str) -> None:
    (made.home / "versions/latest").write_text(text)
    assert [damage.kind for damage in verify(Home(made.home))] == ["latest"]
    with pytest.raises(DamagedError, match="versions/latest: holds no name of a version"):
        Versions(Store(made.home)).load()


def test_the_config_parent_and_time_of_a_version_are_proven(made: SmallHome) -> None:
    path = made.home / "versions" / f"{latest(made)}.json"
    for name, change in (("config", {}), ("parent", "v-000000000000"), ("created", "2020-01-01T00:00:00")):
        held = path.read_text()
        path.write_text(json.dumps({**json.loads(held), name: change}, indent=1, ensure_ascii=False))
        assert [damage.kind for damage in verify(Home(made.home))] == ["version"]
        path.write_text(held)


def test_the_command_says_what_is_damaged_and_what_to_do(
    made: SmallHome, capsys: pytest.CaptureFixture
) -> None:
    commands.verify("latest", str(made.home), repair=False)
    commands.verify("all", str(made.home), repair=False)
    assert "intact" in capsys.readouterr().out
    path = made.home / Versions(Store(made.home)).load().shards["train"][0].path
    flip(path)
    with pytest.raises(typer.Exit):
        commands.verify("all", str(made.home), repair=False)
    told = capsys.readouterr().out
    assert f"shard shards/objects/{path.name}" in told and f"hyco verify --repair --home {made.home}" in told
    commands.verify("latest", str(made.home), repair=True)
    assert "hyco pack command that made it" in capsys.readouterr().out
    made.make()
    commands.verify("latest", str(made.home), repair=True)
    assert "nothing is damaged" in capsys.readouterr().out


def latest(made: SmallHome) -> str:
    return (made.home / "versions/latest").read_text().split()[0]
