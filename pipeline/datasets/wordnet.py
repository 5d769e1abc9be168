"""WordNet 3.0 nouns from its own database file, and the tree that a set of its synsets spans.

A wnid is "n" and the synset's byte offset in data.noun, so a synset is read by seeking to it.
Format: wndb(5WN). Princeton University's licence allows any use with its notice; the file is not part of Hyco.
"""

import gzip
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HYPERNYMS = ("@", "@i")  # is a kind of, is an instance of
PLACES = ("wordnet/data.noun", "WordNet-3.0/dict/data.noun", "wordnet/dict/data.noun", "data.noun")
ENDS = ("", ".xz", ".gz")
IMAGENET = Path(__file__).with_name("imagenet_wnids.txt")

Node = tuple[str, str | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Synset:
    """A meaning: its words, the most common first, and the wnids of its hypernyms, in WordNet's order."""

    wnid: str
    words: tuple[str, ...]
    above: tuple[str, ...]


class WordNet:
    """The noun synsets of a data.noun file, plain or packed by xz or gzip."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no WordNet at {path}: give data.noun of WordNet 3.0, plain, .xz or .gz")
        self._depths: dict[str, int] = {}
        opened = {".xz": lzma.open, ".gz": gzip.open}.get(self.path.suffix, open)
        try:
            with opened(self.path, "rb") as file:
                self._data: bytes = file.read()
        except (lzma.LZMAError, EOFError, OSError) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}") from error

    def synset(self, wnid: str) -> Synset:
        """ValueError for a wnid that is no noun synset of this file."""
        start = int(wnid[1:]) if is_wnid(wnid) else -1
        line = (
            self._data[start : self._data.find(b"\n", start)].decode("ascii", "replace") if start >= 0 else ""
        )
        fields = line.partition(" | ")[0].split()
        if len(fields) < 6 or fields[0] != wnid[1:] or fields[2] != "n":
            raise ValueError(
                f"{wnid!r} is no noun synset of {self.path}: ImageNet's ids are those of WordNet 3.0"
            )
        count = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        pointers = fields[5 + 2 * count :]
        above = tuple(
            "n" + pointers[at + 1]
            for at in range(0, 4 * int(fields[4 + 2 * count]), 4)
            if pointers[at] in HYPERNYMS and pointers[at + 2] == "n"
        )
        return Synset(wnid, words, above)

    def meanings(self) -> dict[str, tuple[str, ...]]:
        """Return word -> the wnids of its synsets, for every word of the file; a space joins the parts of a word."""
        found: dict[str, list[str]] = {}
        for line in self._data.decode("ascii", "replace").splitlines():
            fields = line.partition(" | ")[0].split()
            if len(fields) > 5 and len(fields[0]) == 8 and fields[0].isdigit() and fields[2] == "n":
                for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                    found.setdefault(word.replace("_", " ").lower(), []).append(f"n{fields[0]}")
        return {word: tuple(wnids) for word, wnids in found.items()}

    def depth(self, wnid: str) -> int:
        """Steps of the longest path of hypernyms to a synset without one."""
        if wnid not in self._depths:
            above = self.synset(wnid).above
            self._depths[wnid] = 1 + max(map(self.depth, above)) if above else 0
        return self._depths[wnid]

    def names(self, wnids: Sequence[str]) -> list[tuple[str, ...]]:
        """Readable names of each class; where two classes would have the same name, the hypernym is added."""
        synsets = [self.synset(wnid) for wnid in wnids]
        names = [common_names(synset.words) for synset in synsets]
        often = Counter(name for own in names for name in set(own))
        told = []
        for synset, own in zip(synsets, names, strict=True):
            only = tuple(name for name in own if often[name] == 1)
            kind = self.synset(synset.above[0]).words[0] if synset.above else ""
            told.append(only or (f"{own[0]} ({kind})",))
        return told

    def tree(self, wnids: Sequence[str]) -> list[Node]:
        """The tree whose leaves are these synsets: (id, parent, names), inner nodes first, leaves in order.

        A synset of several hypernyms hangs below the deepest, the first that WordNet lists among equal ones. A node
        with a single child is left out, its child hanging one higher: such a node distinguishes no leaves. For the
        1,000 classes of ImageNet this gives 1,375 nodes; the published tree has 1,372 and is an edge list
        (pipeline.datasets.edge_list).

        Raises ValueError for a synset that is an ancestor of another one, or fewer than two synsets.
        """
        known: dict[str, Synset] = {}
        children: dict[str, list[str]] = {}
        for leaf in dict.fromkeys(wnids):
            below, node = None, leaf
            while True:
                seen = node in known
                known.setdefault(node, self.synset(node))
                if below is not None and below not in children.setdefault(node, []):
                    children[node].append(below)
                if (seen and below is not None) or not known[node].above:
                    break
                below, node = node, max(known[node].above, key=self.depth)
        for leaf in wnids:
            if leaf in children:
                raise ValueError(
                    f"{leaf} ({known[leaf].words[0]}) is an ancestor of another class, not a leaf"
                )
        parent = {child: node for node, own in children.items() for child in own}
        kept = {node for node, own in children.items() if len(own) > 1}
        if not kept:
            raise ValueError("a tree needs at least two classes")

        def lift(node: str) -> str | None:
            above = parent.get(node)
            while above is not None and above not in kept:
                above = parent.get(above)
            return above

        inner = sorted(kept, key=lambda node: (_depth(node, parent), node))
        order = [*inner, *dict.fromkeys(wnids)]
        return [(node, lift(node), common_names(known[node].words)) for node in order]


def is_wnid(word: str) -> bool:
    """Whether a word has the form of a noun synset's id: n01440764."""
    return len(word) == 9 and word[0] == "n" and word[1:].isdigit()


def read_wnids(path: str | Path = IMAGENET) -> list[str]:
    """The wnids of a file: the first word of every line (wnids.txt, LOC_synset_mapping.txt), or all words of it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of wnids at {path}")
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [word for row in rows for word in (row if all(is_wnid(w) for w in row) else row[:1])]


def common_names(words: Sequence[str]) -> tuple[str, ...]:
    """Common names: later ones that look like a Latin species name (Tinca tinca) are left out."""
    first, *others = words
    return (first, *(name for name in others if not _latin(name)))


def find_wordnet(data: Path) -> Path | None:
    """data.noun below a directory of data sets."""
    return next((p for name in PLACES for end in ENDS if (p := data / (name + end)).is_file()), None)


def _latin(name: str) -> bool:
    head, _, tail = name.partition(" ")
    return head.istitle() and bool(tail) and tail.islower() and " " not in tail


def _depth(node: str, parent: dict[str, str]) -> int:
    depth = 0
    while node in parent:
        node, depth = parent[node], depth + 1
    return depth
