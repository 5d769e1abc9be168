"""The hand-written tree: its shape, its names, and that every drawing can be found and recoloured."""

from itertools import pairwise

import numpy as np
import pytest

from hyco.demo import taxonomy
from hyco.demo.art import RAMPS, Art, read_svg, recolour

TREE = taxonomy.load()


def test_it_is_a_tree_of_depth_three_or_more():
    assert len(TREE.leaves) >= 120
    inner = set(TREE.parents.values())
    assert inner - {"thing"} <= set(TREE.parents)
    for leaf in TREE.leaves:
        assert leaf not in inner
        assert TREE.ancestors(leaf)[-1] == "thing"
        assert TREE.depth(leaf) >= 3
    assert all(node in inner or node in TREE.leaves for node in TREE.parents)
    assert TREE.ancestors("duck") == ("bird", "animal", "thing")


def test_names_are_unique():
    names = [name for leaf in TREE.leaves.values() for name, _ in leaf.names]
    names += [node.replace("_", " ") for node in TREE.parents if node not in TREE.leaves]
    assert len(names) == len(set(names))
    plurals = [plural for leaf in TREE.leaves.values() for plural in {p for _, p in leaf.names}]
    assert len(plurals) == len(set(plurals))


def test_json_names_every_node_once_with_its_parent():
    data = TREE.to_json()
    nodes = {node["id"]: node for node in data["nodes"]}
    assert len(nodes) == len(data["nodes"]) == len(TREE.parents)
    assert nodes["duck"] == {"id": "duck", "parent": "bird", "names": ["duck"], "plural": "ducks"}
    assert nodes["baked_food"]["plural"] == "baked food"
    assert nodes["toy"]["plural"] == "toys" and nodes["accessory"]["plural"] == "accessories"
    assert all(prompt.count("{}") == 1 for prompt in data["prompts"])


def test_six_colours_at_least_and_only_known_ones():
    used = {color for leaf in TREE.leaves.values() for color in leaf.colors}
    assert used == set(taxonomy.COLORS) == set(RAMPS)
    assert sum(len(leaf.colors) >= 6 for leaf in TREE.leaves.values()) >= 60


def test_unknown_colour_is_named():
    with pytest.raises(ValueError, match="mauve"):
        taxonomy._leaf("emu | emus | 1F986 | mauve | |", "bird")


def test_recolouring_changes_the_body_and_keeps_the_outline():
    """Most changed pixels of a red book are red ones of the palette; the shape stays."""
    art = Art(96)
    leaf = TREE.leaves["book"]
    blue, red = (np.asarray(art.master(leaf, c)).astype(int) for c in ("blue", "red"))
    assert np.array_equal(blue[..., 3], red[..., 3])
    changed = np.abs(blue - red).max(-1) > 60
    assert changed.mean() > 0.3
    wanted = np.array([int(RAMPS["red"][1][i : i + 2], 16) for i in (1, 3, 5)])
    assert np.median(np.abs(red[changed][:, :3] - wanted).max(-1)) < 3
    dark = (blue[..., :3].max(-1) < 30) & (blue[..., 3] == 255)
    assert dark.sum() > 100 and not changed[dark].any()


def test_light_and_dark_shades_stay_apart():
    svg = read_svg(TREE.leaves["balloon"].code)
    green = recolour(svg, "green")
    assert {"#5c9e31", "#186648"} <= {c for c in RAMPS["green"] if c in green}
    with pytest.raises(ValueError, match="mauve"):
        recolour(svg, "mauve")


def test_every_drawing_renders_in_each_of_its_colours():
    """A small master of everything: not empty, and two colours of one thing differ."""
    art = Art(24)
    for leaf in TREE.leaves.values():
        looks = [np.asarray(art.master(leaf, color)).astype(int) for color in leaf.colors or (None,)]
        assert all((look[..., 3] > 128).sum() > 25 for look in looks), leaf.id
        for first, second in pairwise(looks):
            assert np.abs(first - second).max(-1).sum() > 800, leaf.id
