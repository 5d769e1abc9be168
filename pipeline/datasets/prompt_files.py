"""Prompts and class names from files of others, read as data: JSON, TOML, or literals in Python files.

Known layouts (names of sets and shapes of values): MERU's and HyCoCLIP's `class_names.py` and
`configs/eval_zero_shot_classification.py` (mappings from a set to a list of texts, somewhere in the file), SLIP's
`labels.json` and `templates.json` (the same mappings; a class may have a list of names), and a table per set with
`prompts` and `names`. A Python file is parsed and its literals are read; it is never run.
"""

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hyco.pipeline.datasets.dataset_card import cards
from hyco.pipeline.datasets.edge_list import is_edge_list

MAX_BYTES = 8 << 20  # a larger file is no list of prompts
ENDS = (".json", ".toml", ".py")
# Names of the sets in the published files, besides Hyco's own and those of their folders.
ALIASES = {
    "cub2011": "cub",
    "cub2002011": "cub",
    "fgvcaircraft": "aircraft",
    "stanfordcars": "cars",
    "oxfordpets": "pets",
    "oxfordflowers": "flowers",
    "flowers102": "flowers",
    "texture": "dtd",
}
# The parts of SetTexts, and their names in a table of a set.
PARTS = {"prompts": ("prompts", "templates"), "names": ("names", "classes", "classnames")}


@dataclass(frozen=True, slots=True)
class SetTexts:
    """What files say about one set.

    Attributes:
        prompts: sentences with one {} for the class name; empty where no file has them.
        names: the names of each class, in the order of the labels; empty where no file has them.
        origin: the files.
    """

    prompts: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """The content of a directory or file.

    Attributes:
        texts: by Hyco's name of the set.
        edges: an edge list of ImageNet's tree, where the directory has one.
        unread: files that could not be parsed, with the reason.
        clashes: the reason why files contradict each other, by set and part ("prompts" or "names").
    """

    texts: Mapping[str, SetTexts] = field(default_factory=dict)
    edges: Path | None = None
    unread: tuple[str, ...] = ()
    clashes: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def over(self, other: "PromptFiles") -> "PromptFiles":
        """Both, with this one's prompts and names first, which also settle the other's clashes."""
        texts = dict(other.texts)
        for name, own in self.texts.items():
            old = texts.get(name, SetTexts())
            texts[name] = SetTexts(
                own.prompts or old.prompts, own.names or old.names, own.origin + old.origin
            )
        open_ = {
            (name, part): why
            for (name, part), why in other.clashes.items()
            if not getattr(self.texts.get(name, SetTexts()), part)
        }
        return PromptFiles(texts, self.edges or other.edges, self.unread + other.unread, open_)


def read_prompt_file(path: str | Path) -> PromptFiles:
    """One file. FileNotFoundError; ValueError for another format, or a file that names no known set."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}")
    if path.suffix not in ENDS:
        raise ValueError(f"{path} is none of {', '.join(ENDS)}: prompts are read from these")
    texts = _texts(path, strict=True)
    if not texts:
        known = ", ".join(card.name for card in cards())
        raise ValueError(f"{path} has prompts or class names of no known set: name them by {known}")
    return PromptFiles(texts)


def read_published(folder: str | Path) -> PromptFiles:
    """All files below a directory, such as a checkout of a published project.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: no file in it names a known set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory: give your copy of the published files")
    found: dict[str, SetTexts] = {}
    unread: list[str] = []
    clashes: dict[tuple[str, str], str] = {}
    edges = None
    for path in _files(folder):
        if path.suffix == ".txt":
            edges = edges or (path if is_edge_list(path) else None)
            continue
        try:
            texts = _texts(path)
        except ValueError as error:
            unread.append(str(error))
            continue
        for name, own in texts.items():
            old = found.get(name, SetTexts())
            clashes |= _clashes(name, old, own)
            found[name] = _both(old, own)
    if not found and edges is None:
        why = f"; unreadable: {unread[0]}" if unread else ""
        raise ValueError(
            f"{folder} has neither prompts nor class names of a known set, nor an edge list of ImageNet{why}"
        )
    return PromptFiles(found, edges, tuple(unread), clashes)


def _files(folder: Path) -> Iterator[Path]:
    """Candidates below a directory, without hidden folders and environments."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part in ("site-packages", "__pycache__") for part in parts):
            continue
        if path.suffix in (*ENDS, ".txt") and path.is_file() and path.stat().st_size <= MAX_BYTES:
            yield path


def _clashes(name: str, old: SetTexts, own: SetTexts) -> dict[tuple[str, str], str]:
    """By set and part, why two texts of a set contradict each other."""
    return {
        (
            name,
            part,
        ): f"{old.origin[-1]} and {own.origin[-1]} have other {part} of {name}: choose with --prompts FILE"
        for part in PARTS
        if getattr(old, part) and getattr(own, part) and getattr(old, part) != getattr(own, part)
    }


def _both(old: SetTexts, own: SetTexts) -> SetTexts:
    return SetTexts(own.prompts or old.prompts, own.names or old.names, old.origin + own.origin)


def _texts(path: Path, strict: bool = False) -> dict[str, SetTexts]:
    """What a file says about each known set; ValueError naming the file where it cannot be parsed.

    `strict` also refuses a table of a known set with prompts or names of another form, which are left out otherwise.
    """
    known = {_plain(word): card.name for card in cards() for word in (card.name, *card.folders)} | ALIASES
    found: dict[str, SetTexts] = {}
    for key, value in _pairs(_parsed(path)):
        name = known.get(_plain(key))
        if name is None:
            continue
        texts = _of_value(value)
        if strict and isinstance(value, dict):
            _require_all(path, name, value, texts)
        if texts is None:
            continue
        for prompt in texts.prompts:
            if prompt.count("{}") != 1:
                raise ValueError(
                    f"{path}: the prompt {prompt!r} of {name} needs one {{}} where the name goes"
                )
        old = found.get(name, SetTexts(origin=(str(path),)))
        for _, part in _clashes(name, old, replace(texts, origin=(str(path),))):
            raise ValueError(f"{path} has two lists of the {part} of {name}: keep one")
        found[name] = replace(_both(old, texts), origin=(str(path),))
    return found


def _require_all(path: Path, name: str, table: dict[str, Any], read: SetTexts | None) -> None:
    """ValueError when a table has a part that was not understood."""
    for part, keys in PARTS.items():
        if any(key in table for key in keys) and not getattr(read or SetTexts(), part):
            form = 'texts with one {} each, such as ["a photo of a {}."]' if part == "prompts" else "texts"
            raise ValueError(f"{path}: the {part} of {name} are not a list of {form}")


def _of_value(value: Any) -> SetTexts | None:
    """A list of prompts, a list of classes, or a table with both; None for anything else."""
    if isinstance(value, dict):
        prompts, names = (
            _of_value(next((value[key] for key in keys if key in value), None)) for keys in PARTS.values()
        )
        both = SetTexts(prompts.prompts if prompts else (), names.names if names else ())
        return both if both.prompts or both.names else None
    if not isinstance(value, list | tuple) or not value:
        return None
    classes = [(one,) if isinstance(one, str) else one for one in value]
    if not all(
        isinstance(own, list | tuple) and own and all(isinstance(n, str) for n in own) for own in classes
    ):
        return None
    if any("{}" in one for one in value if isinstance(one, str)):
        return SetTexts(prompts=tuple(one for own in classes for one in own))
    return SetTexts(names=tuple(tuple(own) for own in classes))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of every mapping inside a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _pairs(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _pairs(inner)


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return json.loads(text)
        return tomllib.loads(text) if path.suffix == ".toml" else _literals(ast.parse(text))
    except (OSError, ValueError, SyntaxError, RecursionError) as error:  # toml's and JSON's are ValueError
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def _literals(tree: ast.AST) -> list[dict[str, Any]]:
    """Named literals of Python source: NAME = [...], {"key": [...]}, f(key=[...]); nothing is evaluated."""
    found: list[dict[str, Any]] = []
    for node in ast.walk(tree):
        pairs: list[tuple[Any, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pairs = [(node.target.id, node.value)]
        elif isinstance(node, ast.Call):
            pairs = [(word.arg, word.value) for word in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = [
                (key.value, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
        found += [
            {key: ast.literal_eval(value)}
            for key, value in pairs
            if isinstance(key, str) and isinstance(value, ast.List | ast.Tuple) and _literal(value)
        ]
    return found


def _literal(node: ast.AST) -> bool:
    """Whether a node holds constants, lists and tuples alone."""
    allowed = (ast.List, ast.Tuple, ast.Constant, ast.Load)
    return all(isinstance(inner, allowed) for inner in ast.walk(node))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
