"""A tree of classes from an edge list: lines "PARENT CHILD" of wnids.

The published hierarchy of ImageNet's 1,000 classes is such a file (imagenet_isa.txt beside HyCoCLIP's other files). It
decides between several hypernyms of a synset, which WordNet does not.
"""

from collections.abc import Sequence
from pathlib import Path

from hyco.pipeline.datasets.wordnet import PLACES, Node, is_wnid

NAMES = ("imagenet_isa.txt", "wordnet.is_a.txt", "is_a.txt")


def is_edge_list(path: Path) -> bool:
    """Whether the first line of a file is two wnids."""
    with path.open("rb") as file:
        words = file.readline(80).decode("ascii", "replace").split()
    return len(words) == 2 and all(map(is_wnid, words))


def find_edges(data: Path) -> Path | None:
    """An edge list beside WordNet, in a directory of data sets."""
    folders = dict.fromkeys((data / place).parent for place in PLACES)
    return next((path for folder in folders for name in NAMES if (path := folder / name).is_file()), None)


def tree_of_edges(path: Path, wnids: Sequence[str]) -> list[Node]:
    """The tree above these synsets: (id, parent, names), inner nodes first, leaves in order; the id is the name.

    Nodes are kept as the file has them, also those with a single child.

    Raises:
        ValueError: a line of another form, a class that the file does not have or that is above another one, a node
            with two parents, or more than one root.
    """
    parents = _parents(path)
    leaves = list(dict.fromkeys(wnids))
    inner: dict[str, int] = {}
    for leaf in leaves:
        if leaf not in parents:
            raise ValueError(f"{path} has no edge to the class {leaf}: it is the tree of other classes")
        chain = [leaf]
        while above := parents.get(chain[-1]):
            if len(above) > 1:
                raise ValueError(
                    f"{path}: {chain[-1]} has the parents {' and '.join(sorted(above))}, so it is no tree: give the "
                    "published one (1,371 edges), or remove the file to use WordNet's"
                )
            chain.append(above[0])
            if len(chain) > len(parents) + 1:
                raise ValueError(f"{path} has a cycle at {chain[-1]}")
        inner |= {node: depth for depth, node in enumerate(reversed(chain[1:]))}
    roots = [node for node, depth in inner.items() if depth == 0]
    if len(roots) != 1:
        raise ValueError(f"{path} has the roots {', '.join(sorted(roots)[:3])} above these classes, not one")
    if above := sorted(set(inner) & set(leaves)):
        raise ValueError(f"{path}: {above[0]} is above another class, not a leaf")
    order = [*sorted(inner, key=lambda node: (inner[node], node)), *leaves]
    return [(node, parents[node][0] if node in parents else None, (node,)) for node in order]


def _parents(path: Path) -> dict[str, list[str]]:
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not all(map(is_wnid, words)):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not PARENT CHILD")
        above = parents.setdefault(words[1], [])
        if words[0] not in above:
            above.append(words[0])
    return parents
