"""Prompts, class names and trees from files of the published layouts; the sentences here are made up."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from hyco.pipeline.datasets import open_labelled, paper_splits
from hyco.pipeline.datasets.edge_list import find_edges, is_edge_list, tree_of_edges
from hyco.pipeline.datasets.prompt_files import SetTexts, read_prompt_file, read_published
from hyco.pipeline.evaluation.benchmarks.protocol import Protocol
from tests.factories.files import lay, noise

SCRIPT = """
import shutil
shutil.rmtree("DIARY")
opening = "yonder"
todo = [
    later(1, job=question(
        size=3 * 7,
        moods=["calm", "cheerful"],
        wording={
            "mnist": ["inked {}"],
            "cub2011": ["hark, {}!"],
            "stl10": ["beneath {}", opening + " {}"],
            "cifar10": ["behold {}", "{} at last"],
        },
    )),
]
"""
KINDS = """
remember(
    cub2011=["Hoopoe", "Sand Martin"],
    food101=[word.title() for word in menu],
    cifar10=["kite", "cart"],
)
"""


def test_a_checkout_is_read_and_never_run(tmp_path: Path) -> None:
    diary = lay(tmp_path / "diary", {"monday.txt": "rain"})
    files = {
        "jobs/today.py": SCRIPT.replace("DIARY", str(diary)),
        "kinds.py": KINDS,
        "other/list.json": json.dumps(["a", "b"]),
        "tree/imagenet_isa.txt": "n00000001 n00000002\n",
        "readme.txt": "two lists\n",
        "old/broken.py": "def (:",
        ".git/x.json": json.dumps({"cifar10": ["another {}"]}),
    }
    found = read_published(lay(tmp_path / "copy", files))
    assert (diary / "monday.txt").read_text() == "rain"
    assert found.texts["cifar10"].prompts == ("behold {}", "{} at last")
    assert found.texts["cifar10"].names == (("kite",), ("cart",))
    assert found.texts["cub"].prompts == ("hark, {}!",) and len(found.texts["cub"].origin) == 2
    assert found.texts["cub"].names == (("Hoopoe",), ("Sand Martin",))
    assert set(found.texts) == {"cifar10", "cub"}, "no unknown set, and no list that holds more than literals"
    assert found.edges == tmp_path / "copy/tree/imagenet_isa.txt"
    assert len(found.unread) == 1 and "broken.py cannot be read" in found.unread[0]


def test_the_layout_of_labels_and_templates(tmp_path: Path) -> None:
    """One file of classes, one of sentences; a class may have several names, a set may be in one file alone."""
    classes = {"moon_rocks": ["grey"], "flowers102": ["aster"], "pets": [["tabby", "tom"], "hound"]}
    sentences = {"sun397": ["I stood in {}", "{} at dusk"], "pets": ["good {}!"]}
    files = {"labels.json": json.dumps(classes), "templates.json": json.dumps(sentences)}
    found = read_published(lay(tmp_path, files)).texts
    assert set(found) == {"flowers", "pets", "sun397"}
    assert (found["pets"].prompts, found["pets"].names) == (("good {}!",), (("tabby", "tom"), ("hound",)))
    assert (found["flowers"].prompts, found["flowers"].names) == ((), (("aster",),))
    assert (found["sun397"].prompts, found["sun397"].names) == (("I stood in {}", "{} at dusk"), ())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    toml = '\ufeffpets = ["my {}"]\n[dtd]\nprompts = ["so {}"]\nnames = ["first", ["second", "other"]]\n'
    found = read_prompt_file(lay(tmp_path, {"my.toml": toml}) / "my.toml")
    assert found.texts["dtd"] == SetTexts(
        ("so {}",), (("first",), ("second", "other")), (str(tmp_path / "my.toml"),)
    )
    assert found.texts["pets"].prompts == ("my {}",)
    other = read_published(lay(tmp_path / "p", {"a.json": json.dumps({"dtd": ["x", "y"], "cub": ["z"]})}))
    both = found.over(other).texts
    assert both["dtd"].names == found.texts["dtd"].names and both["cub"].names == (("z",),)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.json": '{"dtd": ["a {} {}"]}'}, r"the prompt 'a \{\} \{\}' of dtd needs one \{\}"),
        ({"a.json": '{"dtd'}, "neither prompts nor class names .*unreadable: .*a.json cannot be read"),
        ({"readme.txt": "hello"}, "neither prompts nor class names"),
    ],
)
def test_files_that_do_not_do(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_published(lay(tmp_path, files))


def test_a_file_of_ones_own_settles_what_files_contradict(tmp_path: Path) -> None:
    """Two files that have other names of one set spoil neither the other sets nor the remedy that the line names."""
    files = {
        "a.json": {"dtd": ["a", "b"], "cub": ["x"]},
        "b.json": {"dtd": ["b", "a"]},
        "p.json": {"dtd": ["{}"]},
    }
    copy = lay(tmp_path / "copy", {name: json.dumps(held) for name, held in files.items()})
    lay(
        tmp_path,
        {"names.json": json.dumps({"dtd": ["c", "d"]}), "prompts.json": json.dumps({"dtd": ["so {}"]})},
    )
    said = r"a.json and .*b.json have other names of dtd: choose with --prompts FILE"
    for more in (None, str(tmp_path / "prompts.json")):
        bare = Protocol.load("published", str(copy), more)
        assert re.search(said, bare.lacks("dtd")) and "has no prompts of cub" in bare.lacks("cub")
    chosen = Protocol.load("published", str(copy), str(tmp_path / "names.json"))
    assert not chosen.lacks("dtd") and chosen.texts("dtd").names == (("c",), ("d",))


@pytest.mark.parametrize(
    "table, message",
    [
        ({"prompts": ["so {}", "so it is"]}, "the prompt 'so it is' of dtd needs one {}"),
        (["so {}", "so it is"], "the prompt 'so it is' of dtd needs one {}"),
        ({"prompts": "so {}", "names": ["a"]}, "the prompts of dtd are not a list of texts with one {} each"),
        ({"prompts": ["so"], "names": ["a"]}, "the prompts of dtd are not a list of texts with one {} each"),
        ({"prompts": ["so {}"], "names": {"0": "a"}}, "the names of dtd are not a list of texts"),
        ({"prompts": ["so {}"], "names": []}, "the names of dtd are not a list of texts"),
        ({"dtd": ["a"], "DTD": ["b"]}, "my.json has two lists of the names of dtd: keep one"),
    ],
)
def test_no_text_of_ones_own_is_dropped_in_silence(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_prompt_file(lay(tmp_path, {"my.json": json.dumps({"dtd": table})}) / "my.json")


def test_a_prompt_file_that_does_not_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file of prompts at"):
        read_prompt_file(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="is not a directory: give your copy"):
        read_published(tmp_path / "none")
    for name, text, message in (
        ("a.json", '{"cifar": 1}', "of no known set: name them by aircraft, caltech101"),
        ("a.txt", "x", r"is none of \.json, \.toml, \.py"),
        ("a.toml", "=", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_prompt_file(lay(tmp_path, {name: text}) / name)


def test_the_tree_of_an_edge_list(tmp_path: Path) -> None:
    def wnid(number: int) -> str:
        return f"n{number:08d}"

    pairs = [(1, 2), (2, 3), (3, 10), (3, 11), (1, 4), (4, 12), (5, 13)]
    path = lay(tmp_path, {"wordnet/imagenet_isa.txt": "".join(f"{wnid(a)} {wnid(b)}\n" for a, b in pairs)})
    path = path / "wordnet/imagenet_isa.txt"
    assert find_edges(tmp_path) == path and is_edge_list(path)
    assert find_edges(lay(tmp_path / "empty", {"x": ""})) is None
    tree = tree_of_edges(path, [wnid(n) for n in (12, 11, 10)])
    assert {node: parent for node, parent, _ in tree} == {
        wnid(a): parent and wnid(parent)
        for a, parent in ((1, None), (2, 1), (4, 1), (3, 2), (12, 4), (11, 3), (10, 3))
    }
    assert [node for node, _, _ in tree][-3:] == [wnid(n) for n in (12, 11, 10)]
    for leaves, extra, message in (
        ((10, 99), "", "has no edge to the class n00000099"),
        ((10, 13), "", "has the roots n00000001, n00000005"),
        ((10, 3), "", "n00000003 is above another class"),
        (
            (10, 11),
            f"{wnid(4)} {wnid(3)}\n",
            "n00000003 has the parents n00000002 and n00000004, so it is no tree",
        ),
        ((10, 11), f"{wnid(10)} {wnid(1)}\n", "has a cycle"),
        ((10, 11), "n1 x\n", "line 8: 'n1 x' is not PARENT CHILD"),
    ):
        bad = lay(tmp_path, {"bad.txt": path.read_text() + extra}) / "bad.txt"
        with pytest.raises(ValueError, match=message):
            tree_of_edges(bad, [wnid(n) for n in leaves])


def test_parts_are_positions_in_the_stored_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first keys of tensorflow-datasets 4.9.10's Shuffler with the salt "train" for these 117 keys."""
    keys = [f"{kind}/{kind}_{n}.jpg" for kind in ("AnnualCrop", "Forest", "River") for n in range(1, 40)]
    order = sorted(keys, key=paper_splits.stored_order)
    assert order[:3] == ["River/River_14.jpg", "AnnualCrop/AnnualCrop_10.jpg", "Forest/Forest_28.jpg"]
    plain = sorted(keys, key=lambda key: hashlib.md5(f"train{key.replace('/', '_')}".encode()).hexdigest())
    assert order == plain
    lay(tmp_path / "eurosat", {f"2750/{key}": noise(0, 4, 4) for key in keys})
    monkeypatch.setitem(paper_splits.SIZES, "eurosat", len(keys))
    monkeypatch.setitem(paper_splits.SPANS["eurosat"], "test", (10, 15))
    test = open_labelled(f"eurosat:{tmp_path / 'eurosat'}", "test", paper=True)
    assert [key.removeprefix("2750/") for key in test.keys] == order[10:15]  # pyright: ignore[reportAttributeAccessIssue]
    assert [test.classes[label] for label in test.labels] == [key.partition("/")[0] for key in order[10:15]]
    (tmp_path / "eurosat/2750" / keys[0]).unlink()
    with pytest.raises(ValueError, match="116 of the 117 images of eurosat"):
        open_labelled(f"eurosat:{tmp_path / 'eurosat'}", "test", paper=True)


def test_published_parts_have_the_published_sizes() -> None:
    for name, train, test in (("eurosat", 10_000, 5_000), ("resisc45", 6_300, 25_200)):
        spans = paper_splits.SPANS[name]
        assert (spans["train"][1] - spans["train"][0], spans["test"][1] - spans["test"][0]) == (train, test)
        assert spans["train"][1] == spans["test"][0] and spans["test"][1] <= paper_splits.SIZES[name]


def test_caltech_has_its_background_and_the_published_order(tmp_path: Path) -> None:
    kinds = ("BACKGROUND_Google", "Faces", "ant", "accordion")
    lay(
        tmp_path,
        {f"101_ObjectCategories/{k}/image_{n:04d}.jpg": noise(n, 4, 4) for k in kinds for n in range(33)},
    )
    spec = f"caltech101:{tmp_path}"
    test = open_labelled(spec, "test", paper=True)
    assert test.classes == ("accordion", "ant", "BACKGROUND_Google", "Faces") and len(test) == 4 * 3
    assert len(open_labelled(spec, "train", paper=True)) == 4 * 30
    ours = open_labelled(spec, "test")
    assert ours.classes == ("Faces", "accordion", "ant") and len(ours) == 3 * 3
