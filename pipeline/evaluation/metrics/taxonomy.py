"""The tree of things (taxonomy.json): leaves are classes, inner nodes are what they have in common."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

PLAIN_PROMPT = "a photo of a {}"
VOWELS = tuple("aeiou")
HARD_U = (
    "uni",
    "use",
    "usu",
    "uten",
    "ewe",
    "euro",
    "one",
)  # a unicorn, a utensil: a vowel letter that sounds like y or w


def fill(prompt: str, name: str) -> str:
    """The prompt with the name in place of {}; "a {}" becomes "an apple" where English wants it."""
    before, _, after = prompt.partition("{}")
    vowel = name.lower().startswith(VOWELS) and not name.lower().startswith(HARD_U)
    if vowel and (before in ("a ", "A ") or before.endswith((" a ", " A "))):
        before = before[:-1] + "n "
    return before + name + after


def upward(parents: Sequence[int], node: int | np.integer) -> Iterator[int]:
    """The nodes above a node, nearest first, the root included."""
    above = parents[int(node)]
    while above >= 0:
        yield above
        above = parents[above]


def ancestors(parents: Sequence[int], rows: Sequence[int]) -> Bool[np.ndarray, "K K"]:
    """Whether node rows[j] is above node rows[i]; nodes that are left out are passed."""
    place = {node: n for n, node in enumerate(rows)}
    above = np.zeros((len(rows), len(rows)), bool)
    for n, node in enumerate(rows):
        above[n, [place[up] for up in upward(parents, node) if up in place]] = True
    return above


def parents_among(parents: Sequence[int], rows: Sequence[int]) -> Int[np.ndarray, " K"]:
    """Position in `rows` of the nearest of these nodes above each of them, -1 without one."""
    place = {node: n for n, node in enumerate(rows)}
    return np.array([next((place[up] for up in upward(parents, node) if up in place), -1) for node in rows])


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Nodes with the index of their parent (-1 for the root) and their names; prompts for the leaves."""

    ids: tuple[str, ...]
    parents: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> "Taxonomy":
        """From taxonomy.json: {"root", "prompts", "nodes": [{"id", "parent", "names"}]}.

        FileNotFoundError for a missing file; ValueError for anything that is not one tree.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no taxonomy at {path}: give the path of a taxonomy.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            nodes = [
                (str(node["id"]), node.get("parent"), node.get("names") or ()) for node in content["nodes"]
            ]
            root, prompts = content.get("root"), content.get("prompts")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} is not a taxonomy ({error!r}): it needs "nodes", each with "id", "parent", "names"'
            ) from error
        return cls.build(nodes, root=root, prompts=prompts, where=str(path))

    @classmethod
    def build(
        cls,
        nodes: Sequence[tuple[str, str | None, Sequence[str]]],
        *,
        root: str | None = None,
        prompts: Sequence[str] | None = None,
        where: str = "the taxonomy",
    ) -> "Taxonomy":
        """From (id, parent id or None, names); a root may be named and not listed. It must be one tree."""
        index = {name: position for position, (name, _, _) in enumerate(nodes)}
        if len(index) != len(nodes):
            raise ValueError(f"{where} has two nodes of the same id: ids must differ")
        if root is not None and root not in index:  # a root that is only named as a parent, not listed
            nodes = [(root, None, ()), *nodes]
            index = {name: position for position, (name, _, _) in enumerate(nodes)}
        parents = []
        for name, parent, _ in nodes:
            if parent is not None and parent not in index:
                near = get_close_matches(str(parent), index, 1)
                hint = f" (nearest: {near[0]})" if near else ""
                raise ValueError(f"{where}: the parent {parent!r} of {name!r} is not a node{hint}")
            parents.append(-1 if parent is None else index[parent])
        roots = [nodes[i][0] for i, parent in enumerate(parents) if parent < 0]
        if len(roots) != 1 or len(nodes) < 3:
            raise ValueError(
                f"{where} must be one tree of at least three nodes; it has the roots {roots[:5]}"
            )
        for prompt in prompts or ():
            if prompt.count("{}") != 1:
                raise ValueError(f"{where}: the prompt {prompt!r} needs one {{}} where the name goes")
        tree = cls(
            tuple(name for name, _, _ in nodes),
            tuple(parents),
            tuple(tuple(names) or (name.replace("_", " "),) for name, _, names in nodes),
            tuple(prompts or (PLAIN_PROMPT,)),
        )
        tree.depths()  # refuses a cycle
        return tree

    def depths(self) -> Int[np.ndarray, " N"]:
        """Steps from the root to each node. ValueError where the parents form a cycle."""
        depth = np.full(len(self.ids), -1)
        for start in range(len(self.ids)):
            path, node = [], start
            while node >= 0 and depth[node] < 0:
                if node in path:
                    raise ValueError(f"the taxonomy has a cycle at {self.ids[node]!r}: give it one root")
                path.append(node)
                node = self.parents[node]
            base = depth[node] if node >= 0 else -1
            for step, member in enumerate(reversed(path)):
                depth[member] = base + 1 + step
        return depth

    def root(self) -> int:
        """Index of the node without a parent."""
        return self.parents.index(-1)

    def leaves(self) -> Int[np.ndarray, " L"]:
        """Indices of the nodes without children, in file order: the classes."""
        inner = set(self.parents)
        return np.array([i for i in range(len(self.ids)) if i not in inner], np.int64)

    def leaf_ids(self) -> tuple[str, ...]:
        """Ids of the leaves, in the order of every class index."""
        return tuple(self.ids[i] for i in self.leaves())

    def ancestors(self) -> Bool[np.ndarray, "L N"]:
        """One row per leaf: true at its ancestors, root included, itself excluded."""
        leaves = self.leaves()
        above = np.zeros((len(leaves), len(self.ids)), bool)
        for row, leaf in enumerate(leaves):
            above[row, list(upward(self.parents, leaf))] = True
        return above

    def families(self) -> tuple[tuple[str, ...], Int[np.ndarray, " L"]]:
        """The groups of the second level (children of the root) and the group of each leaf.

        Goes one level deeper where the root has fewer than three children.
        """
        depth = self.depths()
        level = 1 if int((depth == 1).sum()) >= 3 else 2
        groups: dict[int, int] = {}
        member = []
        for leaf in self.leaves():
            node = int(leaf)
            while depth[node] > level:
                node = self.parents[node]
            member.append(groups.setdefault(node, len(groups)))
        return tuple(self.names[node][0] for node in groups), np.array(member, np.int64)

    def class_index(self, label: str) -> int:
        """Position of a leaf id among the leaves; ValueError with the nearest leaf for anything else."""
        leaves = self.leaf_ids()
        try:
            return leaves.index(label)
        except ValueError:
            near = get_close_matches(label, leaves, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ValueError(f"the label {label!r} is not a leaf of the taxonomy{hint}") from None
