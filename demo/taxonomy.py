"""The hand-written tree of the embedded world, read from taxonomy.txt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
ROOT = "thing"
# Prompts for naming a leaf in zero-shot tests, none of which needs to choose between "a" and "an".
PROMPTS = ("the {}", "one {}", "a large {}", "a big {}", "a small {}", "there is one {}")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One drawable thing: its names (singular, plural), its drawing and how it may look and stand."""

    id: str
    parent: str
    names: tuple[tuple[str, str], ...]
    code: str
    colors: tuple[str, ...]
    body: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The main English name, singular."""
        return self.names[0][0]


@dataclass(frozen=True)
class Taxonomy:
    """A tree below `thing`: `parents` maps every id but the root's to its parent; `leaves` can be drawn."""

    parents: dict[str, str]
    leaves: dict[str, Leaf]

    def ancestors(self, node: str) -> tuple[str, ...]:
        """Ids from the parent of `node` up to and including the root."""
        out = []
        while node != ROOT:
            node = self.parents[node]
            out.append(node)
        return tuple(out)

    def depth(self, node: str) -> int:
        """Number of edges between `node` and the root."""
        return len(self.ancestors(node))

    def to_json(self) -> dict[str, Any]:
        """The taxonomy.json of a source: root, prompts, and nodes with id, parent, names, plural."""
        nodes = []
        for node, parent in self.parents.items():
            leaf = self.leaves.get(node)
            names = [n for n, _ in leaf.names] if leaf else [node.replace("_", " ")]
            plural = leaf.names[0][1] if leaf else category_plural(names[0])
            nodes.append({"id": node, "parent": parent, "names": names, "plural": plural})
        return {"root": ROOT, "prompts": list(PROMPTS), "nodes": nodes}


def category_plural(name: str) -> str:
    """The plural of a category's name ("farm animal" -> "farm animals"); mass nouns stay as they are."""
    last = name.rsplit(" ", 1)[-1]
    mass = {"food", "clothing", "footwear", "headwear", "furniture", "kitchenware", "stationery", "aircraft"}
    if last in mass or last == "equipment":
        return name
    if last.endswith("y") and last[-2] not in "aeo":
        return name[:-1] + "ies"
    return name + ("es" if last.endswith(("s", "x", "ch")) else "s")


def _leaf(line: str, parent: str) -> Leaf:
    name, plural, code, colors, others, options = (part.strip() for part in (line + " ").split("|"))
    names = [(name, plural)]
    for other in filter(None, (o.strip() for o in others.split(","))):
        one, _, many = other.partition("/")
        names.append((one, many))
    body: tuple[str, ...] = ()
    flags = []
    for option in options.split():
        if option.startswith("body="):
            body = tuple("#" + fill for fill in option[5:].lower().split(","))
        else:
            flags.append(option)
    chosen = COLORS if colors == "all" else () if colors == "-" else tuple(colors.split())
    if unknown := set(chosen) - set(COLORS):
        raise ValueError(
            f"taxonomy.txt: unknown colour {sorted(unknown)} for {name!r}; use {', '.join(COLORS)}"
        )
    return Leaf(name.replace(" ", "_"), parent, tuple(names), code, chosen, body, frozenset(flags))


@cache
def load() -> Taxonomy:
    """Read taxonomy.txt into a tree; ids are names with underscores."""
    text = (files("hyco.demo") / "taxonomy.txt").read_text(encoding="utf-8")
    parents: dict[str, str] = {}
    leaves: dict[str, Leaf] = {}
    path = [ROOT]
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        level = (len(line) - len(line.lstrip())) // 2
        del path[level + 1 :]
        if "|" in line:
            leaf = _leaf(line, path[-1])
            node, leaves[leaf.id] = leaf.id, leaf
        else:
            node = line.strip().replace(" ", "_")
        if node in parents or node == ROOT:
            raise ValueError(f"taxonomy.txt: {node!r} is named twice")
        parents[node] = path[-1]
        path.append(node)
    return Taxonomy(parents, leaves)
