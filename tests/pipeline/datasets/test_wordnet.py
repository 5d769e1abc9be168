"""WordNet: a made-up data.noun by hand, and the real one where it lies on this machine."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from hyco.pipeline.datasets.wordnet import WordNet, common_names, find_wordnet, read_wnids
from hyco.pipeline.datasets.wordnet_tree import main

REAL = Path(__file__).parents[4] / "shared/data/wordnet/data.noun.xz"
# word -> what it is a kind of; "fish" has two, of which the deepest counts, and the first where they are equally deep.
KINDS = {
    "entity": [],
    "thing": ["entity"],
    "animal": ["thing"],
    "food": ["thing"],
    "fish": ["animal", "food"],
    "tench|Tinca_tinca|doctor_fish": ["fish"],
    "pike": ["fish"],
    "cat": ["animal"],
    "bread": ["food"],
    "crane#1": ["animal"],
    "crane#2": ["thing"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[WordNet, dict[str, str]]:
    """A WordNet of KINDS in its own format, packed, and the wnid of each word."""
    place: dict[str, int] = {}

    def lines() -> list[str]:
        out = ["  1 a licence in the lines that begin with two spaces  "]
        at = len(out[0]) + 1
        for word, above in KINDS.items():
            place.setdefault(word, 0)
            names = word.partition("#")[0].split("|")
            words = " ".join(f"{name} 0" for name in names)
            pointers = "".join(f"@ {place.get(up, 0):08d} n 0000 " for up in above)
            pointers += "~ 00000001 n 0000 "  # not a hypernym
            line = f"{at:08d} 03 n {len(names):02x} {words} {len(above) + 1:03d} {pointers}| a @ 00000001 n gloss  "
            place[word] = at
            out.append(line)
            at += len(line) + 1
        return out

    path = tmp_path_factory.mktemp("wordnet") / "data.noun.xz"
    path.write_bytes(lzma.compress(("\n".join(lines()) + "\n").encode()))
    return WordNet(path), {word.partition("|")[0]: f"n{at:08d}" for word, at in place.items()}


def test_synset(made: tuple[WordNet, dict[str, str]]) -> None:
    wordnet, wnid = made
    tench = wordnet.synset(wnid["tench"])
    assert tench.words == ("tench", "Tinca tinca", "doctor fish") and tench.above == (wnid["fish"],)
    assert wordnet.synset(wnid["fish"]).above == (wnid["animal"], wnid["food"])
    for bad in ("n00000003", "x", "n", wnid["tench"][1:], "n99999999"):
        with pytest.raises(ValueError, match="is no noun synset"):
            wordnet.synset(bad)


def test_names_are_told_apart(made: tuple[WordNet, dict[str, str]]) -> None:
    wordnet, wnid = made
    names = wordnet.names([wnid["tench"], wnid["crane#1"], wnid["crane#2"]])
    assert names == [("tench", "doctor fish"), ("crane (animal)",), ("crane (thing)",)]
    assert common_names(["Irish setter", "Canis minor", "red setter"]) == ("Irish setter", "red setter")


def test_tree(made: tuple[WordNet, dict[str, str]]) -> None:
    wordnet, wnid = made
    leaves = [wnid[word] for word in ("pike", "cat", "tench", "bread")]
    tree = wordnet.tree(leaves)
    parent = {node: above for node, above, _ in tree}
    # food has the one child bread and entity the one child thing: both are left out. fish is under animal.
    assert parent == {
        wnid["thing"]: None,
        wnid["animal"]: wnid["thing"],
        wnid["fish"]: wnid["animal"],
        wnid["pike"]: wnid["fish"],
        wnid["cat"]: wnid["animal"],
        wnid["tench"]: wnid["fish"],
        wnid["bread"]: wnid["thing"],
    }
    assert [node for node, _, _ in tree][-4:] == leaves, "leaves keep their order"
    assert wordnet.tree([*leaves, leaves[0]]) == tree


def test_a_synset_hangs_below_its_deepest_hypernym(tmp_path: Path) -> None:
    words = {
        "thing": [],
        "tool": [0],
        "device": [0],
        "machine": [2],
        "drill": [1, 3],
        "saw": [1],
        "lathe": [3],
    }
    text, place = "", []
    for word, above in words.items():
        pointers = " ".join([f"{len(above):03d}", *(f"@ {place[at]} n 0000" for at in above)])
        place.append(f"{len(text):08d}")
        text += f"{place[-1]} 03 n 01 {word} 0 {pointers} | gloss  \n"
    (tmp_path / "data.noun").write_text(text)
    made = WordNet(tmp_path / "data.noun")
    drill, saw, lathe = (f"n{place[at]}" for at in (4, 5, 6))
    assert [made.depth(f"n{at}") for at in place] == [0, 1, 1, 2, 3, 2, 3]
    parent = {node: above for node, above, _ in made.tree([drill, saw, lathe])}
    # tool is listed first and less deep than machine
    root, machine = f"n{place[0]}", f"n{place[3]}"
    assert parent == {root: None, machine: root, saw: root, drill: machine, lathe: machine}


def test_no_tree(made: tuple[WordNet, dict[str, str]]) -> None:
    wordnet, wnid = made
    for order in (["fish", "pike", "cat"], ["pike", "fish", "cat"]):
        with pytest.raises(ValueError, match=r"\(fish\) is an ancestor of another class"):
            wordnet.tree([wnid[word] for word in order])
    with pytest.raises(ValueError, match="at least two classes"):
        wordnet.tree([wnid["pike"]])


def test_files(made: tuple[WordNet, dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no WordNet at .*nowhere: give data\.noun"):
        WordNet(tmp_path / "nowhere")
    (tmp_path / "data.noun.xz").write_bytes(b"no xz")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        WordNet(tmp_path / "data.noun.xz")
    assert find_wordnet(tmp_path) == tmp_path / "data.noun.xz"
    assert find_wordnet(made[0].path.parent.parent) is None


def test_command(
    made: tuple[WordNet, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy

    wordnet, wnid = made
    (tmp_path / "wnids.txt").write_text(f"{wnid['crane#1']} {wnid['pike']}\n{wnid['bread']}\n")
    out = tmp_path / "tree.json"
    main(["--wordnet", str(wordnet.path), "--wnids", str(tmp_path / "wnids.txt"), "--out", str(out)])
    assert "5 nodes, 3 leaves, 2 inner nodes" in capsys.readouterr().out
    tree = Taxonomy.load(out)
    assert tree.leaf_ids() == (wnid["crane#1"], wnid["pike"], wnid["bread"])
    (tmp_path / "map.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_wnids(tmp_path / "map.txt") == ["n01440764", "n01443537"]
    with pytest.raises(FileNotFoundError, match="no list of wnids"):
        read_wnids(tmp_path / "none.txt")


def test_the_command_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "error", "-m", "hyco.pipeline.datasets.wordnet_tree", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_imagenet_has_1375_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not REAL.is_file():
        pytest.skip(f"no WordNet in {REAL}")
    main(["--wordnet", str(REAL), "--out", str(tmp_path / "tree.json")])
    assert "1,375 nodes, 1,000 leaves, 375 inner nodes" in capsys.readouterr().out
    nodes = json.loads((tmp_path / "tree.json").read_text())["nodes"]
    by_id = {node["id"]: node for node in nodes}
    assert [node["id"] for node in nodes[-1000:]] == read_wnids()
    assert by_id["n01440764"]["names"] == ["tench"]
    names = [tuple(node["names"]) for node in nodes[-1000:]]
    assert len(set(names)) == 1000, "no two classes read the same"
    cat = by_id["n02123045"]
    assert cat["names"] == ["tabby", "tabby cat"] and by_id[cat["parent"]]["names"][0] == "domestic cat"
