"""What a look at a growing source finds: everything is read from the home, nothing is remembered between looks."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from hyco.pipeline.config import digest
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.presets import sized
from hyco.pipeline.registry.retraining import (
    RetrainConfig,
    check,
    grown,
    published,
    recipe_for,
    unmined,
    unpublished,
    unsettled,
)
from hyco.pipeline.training.recipes import demo, demo_hycoclip
from hyco.storage.detections import SCHEMA, write_detections
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.model_registry import Decision
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample, tiny_recipe


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Mining and packing are stood in for; the source, the records and the versions are real."""
    monkeypatch.setattr("hyco.pipeline.mining.grounder.grounder_digest", lambda spec: "g1")
    (tmp_path / "source").mkdir()
    mine = MineConfig(source=str(tmp_path / "source"), grounder="transformers:none")
    return RetrainConfig(journey=JourneyConfig(mine=mine, recipe=tiny_recipe()), min_new=10, settle_s=5)


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def drop(config, name, age_s=60):
    path = Path(config.journey.mine.source) / f"{name}.jsonl"
    path.write_text(f'{{"{name}": 1}}\n')
    os.utime(path, (time.time() - age_s,) * 2)


def work(config, home, at=[0]):  # noqa: B006
    """Mine and pack what is new, five samples a unit, and publish."""
    store, mine, pack = Store(home), config.journey.mine, config.journey.pack
    mined = mining.results(mine, Home(store.url))
    packed = Manifest(store, f"packs/{packing.pack_digest(mine, pack)}/records")
    nothing = pa.Table.from_pylist([], schema=SCHEMA)
    boxes = store.commit("detections/none/objects", ".parquet", lambda file: write_detections(file, nothing))
    for unit in unmined(config, Home(home)):
        mined.commit(unit.name, {"images": 5, "failed": 0, "detections": {"path": boxes.path}})
    for unit in packing.plan(mine, pack, Home(home)):
        samples = [sample(at[0] + i) for i in range(5)]
        at[0] += 5
        made = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
        shards = {"train": [asdict(shard_ref(made, 5, 10))], "val": []}
        packed.commit(unit.name, {"shards": shards, "counts": {"images": 5, "parts": 10}, "detectors": []})
    version = packing.publish(mine, pack, Home(home)).name
    Versions(store).point(version)  # as the quality gate does
    return version


def judged(home, version, key="", kind="promoted", **more):
    registry = Home(home).registry
    row = Decision(kind, "m", [], "because", version=version, key=key, **more)
    registry.append(row, len(registry.rows()))


def test_an_empty_folder_has_nothing_new(config, home):
    (Path(config.journey.mine.source) / ".00000.tar.part").touch()
    assert unmined(config, Home(home)) == [] and not unpublished(config, Home(home))
    assert check(config, Home(home)) is None


def test_a_dropped_file_is_found_until_it_is_mined_and_a_renamed_one_is_not(config, home):
    drop(config, "a")
    (unit,) = unmined(config, Home(home))
    assert unit.path == "a.jsonl"
    work(config, home)
    assert unmined(config, Home(home)) == [] and not unpublished(config, Home(home))
    (Path(config.journey.mine.source) / "a.jsonl").rename(Path(config.journey.mine.source) / "z.jsonl")
    assert unmined(config, Home(home)) == [] and not unpublished(config, Home(home))


def test_training_waits_for_enough_new_samples(config, home):
    drop(config, "a")
    version = work(config, home)
    decision = check(config, Home(home))
    assert (decision.version, decision.new_samples, decision.due) == (version, 5, False)
    assert decision.reason == "5 new samples, training begins at 10"
    drop(config, "b")
    version = work(config, home)
    assert (
        check(config, Home(home)).version,
        check(config, Home(home)).new_samples,
        check(config, Home(home)).due,
    ) == (
        version,
        10,
        True,
    )


def test_only_what_is_new_since_the_last_judgement_counts(config, home):
    for name in "ab":
        drop(config, name)
    judged(home, work(config, home), check(config, Home(home)).key)
    assert not check(config, Home(home)).due
    drop(config, "c")
    work(config, home)
    assert (check(config, Home(home)).new_samples, check(config, Home(home)).due) == (5, False)
    assert check(config.replace(min_new=5), Home(home)).due
    judged(home, Versions(Store(home)).list()[0].name, kind="rolled_back")  # says nothing about data
    assert check(config, Home(home)).new_samples == 5


def test_a_refusal_of_an_older_version_makes_nothing_new(config, home):
    drop(config, "a")
    first = work(config, home)
    for name in "bc":
        drop(config, name)
    judged(home, work(config, home), check(config, Home(home)).key)
    drop(config, "d")
    work(config, home)
    judged(home, first, kind="refused")  # by hand
    judged(home, "v-gone", kind="refused")  # of a version that is no longer there
    assert (check(config, Home(home)).new_samples, check(config, Home(home)).due) == (5, False)


def test_a_version_is_judged_once_a_configuration(config, home):
    drop(config, "a")
    easy = config.replace(min_new=1)
    judged(home, work(config, home), check(config, Home(home)).key, "refused")
    assert not check(easy, Home(home)).due and "judged already" in check(easy, Home(home)).reason
    assert check(config, Home(home)).key == check(config.replace(min_new=3, attempts=9), Home(home)).key
    other = config.replace(journey=config.journey.replace(recipe=tiny_recipe(seed=5)))
    assert check(other, Home(home)).key != check(config, Home(home)).key


def test_a_version_in_quarantine_is_neither_trained_on_nor_made_again(config, home):
    drop(config, "a")
    first = work(config, home)
    drop(config, "b")
    second = work(config, home)
    Versions(Store(home)).point(first)
    Versions(Store(home)).quarantine(second, [])
    assert published(config, Home(home)).newest.name == first and not unpublished(config, Home(home))


def test_a_version_that_was_killed_before_it_was_judged_is_packed_again(config, home):
    drop(config, "a")
    first = work(config, home)
    drop(config, "b")
    work(config, home)
    Versions(Store(home)).point(first)
    assert unpublished(config, Home(home))


def test_a_withdrawn_file_is_packed_away_once_and_no_longer_trained_on(config, home):
    drop(config, "a")
    first = work(config, home)
    drop(config, "b")
    second = work(config, home)
    assert published(config, Home(home)).newest.name == second
    (Path(config.journey.mine.source) / "b.jsonl").unlink()
    assert unmined(config, Home(home)) == [] and unpublished(config, Home(home))
    assert work(config, home) == first, "the same content is the same version"
    assert not unpublished(config, Home(home))
    assert published(config, Home(home)).newest.name == check(config, Home(home)).version == first
    drop(config, "b")
    assert (
        unpublished(config, Home(home))
        and work(config, home) == second
        and not unpublished(config, Home(home))
    )
    assert check(config, Home(home)).version == second


def test_latest_of_another_configuration_is_left_alone_unless_the_source_went_back(config, home):
    other = config.replace(journey=config.journey.replace(pack=config.journey.pack.replace(threshold=0.9)))
    for name in "ab":
        drop(config, name)
        work(config, home)
    theirs = work(other, home)
    assert not unpublished(config, Home(home)) and not unpublished(other, Home(home))
    assert published(other, Home(home)).newest.name == theirs != published(config, Home(home)).newest.name
    (Path(config.journey.mine.source) / "b.jsonl").unlink()
    assert unpublished(config, Home(home))
    assert (
        published(config, Home(home)).newest.name
        != work(config, home)
        == published(config, Home(home)).newest.name
    )
    assert not unpublished(config, Home(home))


def test_a_file_that_is_still_being_written_is_waited_for_and_left_out(config, home):
    source = config.journey.mine.source
    drop(config, "a", age_s=6)
    assert unsettled(source, 5) == 0 == unsettled("memory://x", 5)
    drop(config, "b", age_s=0)
    assert 4 < unsettled(source, 5) <= 5
    assert [unit.path for unit in unmined(config, Home(home))] == ["a.jsonl"], (
        "its neighbour is used all the same"
    )
    drop(config, "b", age_s=-3600)
    assert unsettled(source, 5) == 0, "a time in the future says nothing"
    assert [unit.path for unit in unmined(config, Home(home))] == ["a.jsonl", "b.jsonl"]


def test_a_look_of_one_listing_says_what_two_say(config, home):
    def told():
        both = bool(unmined(config, Home(home))) or unpublished(config, Home(home))
        assert grown(config, Home(home)) == both
        return both

    assert not told()
    drop(config, "a")
    assert told()
    work(config, home)
    assert not told()
    drop(config, "b", age_s=0)
    assert not told(), "it may still be written to"
    drop(config, "a", age_s=0)
    assert not told(), "what is mined and was only touched since stays in the version"
    drop(config, "b")
    assert told()
    work(config, home)
    (Path(config.journey.mine.source) / "a.jsonl").unlink()
    assert told(), "the version lacks nothing, and has too much"
    (Path(config.journey.mine.source) / "b.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds no files|has no \.tar"):
        grown(config, Home(home))


def test_training_starts_from_the_champion_if_there_is_one(config, home, tmp_path):
    assert recipe_for(config, Home(home)) == config.journey.recipe
    judged(home, "v-x")
    assert recipe_for(config, Home(home)).start.checkpoint == str(Home(home).registry.path("m"))
    assert recipe_for(config.replace(start_from="scratch"), Home(home)) == config.journey.recipe


@pytest.mark.parametrize(("low", "starts"), [(0.0, False), (0.02, True)])
def test_training_starts_from_no_champion_at_chance(config, home, low, starts):
    """Of equal features, which no training separates again: the preset smoke had made them."""
    told = {"value": 0.03, "low": low, "high": 0.05, "chance": 0.01, "n": 78}
    judged(home, "v-x", metrics=json.dumps({"metrics": {"zero_shot.top1": told}}))
    assert bool(recipe_for(config, Home(home)).start.checkpoint) == starts


def test_sizes_of_a_recipe():
    recipe = demo()
    assert sized(recipe, "full") == recipe
    small = sized(recipe, "small")
    assert small.steps == recipe.steps // 10
    smoke = sized(recipe, "smoke")
    for made in (recipe, small):
        assert made.entailment_share(made.steps // 2) == 1.0, "the cones train in the second half"
    assert smoke.entailment_share(10) == 0.0 and smoke.entailment_share(19) == 1.0, "and in smoke at the end"
    assert sized(demo_hycoclip(), "smoke").entailment_share(0) == 1.0, "published cones begin at once"
    assert (smoke.steps, smoke.batch_size, smoke.optimiser.warmup_steps) == (20, 32, 5)
    assert len({digest(one) for one in (recipe, smoke, sized(recipe, "small"))}) == 3
    with pytest.raises(ValueError, match="did you mean 'small'"):
        sized(recipe, "smal")
