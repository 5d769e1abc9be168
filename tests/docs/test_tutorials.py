"""The tutorials run, on made-up data and in a few steps."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"

# wndb(5WN): offset, lexicographer file, type, word count (hexadecimal), words with a sense number, pointer
# count, pointers.
NOUNS = """  1 This is where the licence stands.
00000100 05 n 01 animal 0 001 ~ 00000200 n 0000 | a living thing
00000200 05 n 02 mammal 0 mammalian 0 001 @ 00000100 n 0000 | with hair
00000300 05 n 01 carnivore 0 002 @ 00000200 n 0000 ~ 00000400 n 0000 | eats meat
00000400 05 n 01 dog 0 002 @ 00000300 n 0000 @ 00000600 n 0000 | barks
00000500 05 n 01 cat 0 001 @ 00000300 n 0000 | mews
00000600 05 n 01 domestic_animal 0 001 @ 00000200 n 0000 | lives with us
00000700 05 n 01 Laika 0 001 @i 00000400 n 0000 | flew
00000800 05 n 01 stone 0 000 | no animal
"""


def tutorial(name):
    spec = importlib.util.spec_from_file_location(f"tutorial_{name}", TUTORIALS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nouns(tmp_path):
    file = tmp_path / "data.noun"
    file.write_text(NOUNS)
    return file


def test_mammals_are_read_with_all_their_ancestors(nouns):
    kinds = tutorial("wordnet_mammals").Kinds(nouns, "mammal")
    assert kinds.names[0] == "mammal" and set(kinds.names) == {
        "mammal", "carnivore", "dog", "cat", "domestic_animal", "Laika",
    }  # fmt: skip
    pairs = {(kinds.names[a], kinds.names[b]) for a, b in kinds.pairs}
    assert {b for a, b in pairs if a == "Laika"} == {"dog", "carnivore", "domestic_animal", "mammal"}
    assert len(pairs) == 4 + 3 + 2 + 1 + 1 and len(kinds.links) == 6


def test_mammals_are_embedded_and_drawn(nouns, tmp_path, capsys):
    module, file = tutorial("wordnet_mammals"), tmp_path / "disk.png"
    options = [
        "--nouns",
        str(nouns),
        "--epochs",
        "150",
        "--burn-in",
        "5",
        "--negatives",
        "5",
    ]
    rank, precision = module.main([*options, "--picture", str(file)])
    assert rank < 1.3 and precision > 0.85, "six points are not reconstructed"
    for rows in ("points", "geoopt"):
        assert module.main([*options, "--epochs", "30", "--rows", rows, "--rate", "0.5"])[1] > 0.6
    with Image.open(file) as image:
        assert min(image.size) > 500
    assert "0 s left" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        module.main([*options, "--dimensions", "3", "--picture", str(file)])


def test_reconstruction_counts_what_comes_before_the_truth(nouns):
    """Points on a line in the order of the tree: by hand."""
    module = tutorial("wordnet_mammals")
    kinds = module.Kinds(nouns, "mammal")
    place = {"mammal": 0.0, "carnivore": 0.3, "dog": 0.6, "Laika": 0.7, "cat": 0.5, "domestic_animal": -0.8}
    points = torch.tensor([[place[name], 0.0] for name in kinds.names], dtype=torch.double)
    rank, precision = module.reconstruction(points, kinds)
    # In units of distance: mammal 0, carnivore 0.62, cat 1.10, dog 1.39, Laika 1.73, domestic animal -2.20. A dog's
    # ancestors all come after the cat and Laika; hers after the cat, but for the dog.
    ranks = {
        "carnivore": [2], "cat": [2, 3], "domestic_animal": [1], "dog": [3, 3, 3], "Laika": [1, 2, 2, 2],
    }  # fmt: skip
    assert rank == pytest.approx(np.mean([r for own in ranks.values() for r in own]))
    # The i-th ancestor found (from 0) with rank r among the wrong ones stands at place i + r.
    means = [np.mean([(i + 1) / (i + r) for i, r in enumerate(own)]) for own in ranks.values()]
    assert precision == pytest.approx(np.mean(means))


def test_classifier_trains_both_networks(tmp_path, capsys):
    """Two classes, told apart by colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in ("airplane", "automobile"):
            folder = tmp_path / "cifar10" / split / label
            folder.mkdir(parents=True)
            for at in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3))
                pixels[..., 0 if label == "airplane" else 2] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{at}.jpg")
    found = tutorial("cifar10_classifier").main(
        ["--data", str(tmp_path), "--samples", "0", "--epochs", "8", "--batch", "8"]
    )
    assert found == {"hyperbolic": 1.0, "Euclidean": 1.0}
    out = capsys.readouterr().out
    assert "24 training and 8 test images" in out and "0 s left" in out
    with pytest.raises(SystemExit):
        tutorial("cifar10_classifier").main(["--data", str(tmp_path / "nowhere")])


def test_vision_transformer_puts_classes_together(tmp_path, capsys):
    """Three classes, told apart by their colour; without training a third of the neighbours would be right."""
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("blue", "green", "red")):
        folder = tmp_path / "test" / label
        folder.mkdir(parents=True)
        for at in range(16):
            pixels = rng.integers(0, 90, (32, 32, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{at}.png")
    options = ["--set", "folder", "--data", str(tmp_path), "--held-out", "6", "--size", "16", "--steps", "40"]
    found = tutorial("hyperbolic_vit").main([*options, "--k", "1"])
    assert found == {"hyperbolic": 1.0, "sphere": 1.0}
    assert "30 training and 18 test images of 3 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tutorial("hyperbolic_vit").main(["--data", str(tmp_path / "nowhere")])


def test_tree_distances_and_a_small_tree():
    """By hand on seven nodes, and an embedding of them by every kind of table."""
    module = tutorial("tree_embedding")
    distances = module.tree_distances(2, 1.5)
    assert torch.equal(distances, distances.T) and distances.diagonal().eq(0).all()
    # Root 0; its children 1, 2; theirs 3, 4 and 5, 6.
    hand = {(0, 1): 1, (1, 2): 2, (0, 5): 2, (3, 4): 2, (1, 4): 1, (3, 6): 4, (2, 3): 3}
    assert all(distances[pair] == 1.5 * edges for pair, edges in hand.items())
    found = module.main(["--depth", "2", "--steps", "120", "--pairs", "64"])
    assert len(found) == 5 and max(found.values()) < 0.5, "0.98 before training"
