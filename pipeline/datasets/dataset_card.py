"""Metadata of a labelled set: prompts and readable class names, from sets/NAME.toml."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "sets"
PLAIN = ("a photo of a {}.",)


@dataclass(frozen=True, slots=True)
class Card:
    """Title, prompts and names of a set.

    Attributes:
        title: as papers write it.
        folders: usual names of its folder below a directory of data sets.
        prompts: sentences with one {} for the class name.
        names: readable names of a class id, where the id itself is not readable.
        paper: one of the sixteen sets of the zero-shot table in HyCoCLIP (Pal et al. 2025).
        probe: whether a linear probe is fitted on its training part.
        classes: number of published classes; 0 where it is unknown.
        test: images of the published test part (its validation part where that is the test); 0 where Hyco splits the
            set itself, or it is unknown.
    """

    name: str
    title: str
    folders: tuple[str, ...] = ()
    prompts: tuple[str, ...] = PLAIN
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paper: bool = False
    probe: bool = False
    classes: int = 0
    test: int = 0

    def readable(self, label: str) -> tuple[str, ...]:
        """Readable names of a class id: the stored ones, or the id with punctuation replaced by spaces."""
        return self.names.get(label) or (CLEANERS.get(self.name, tidy)(label),)


def tidy(label: str) -> str:
    """ "sports_car" and "SeaLake" in plain writing: "sports car", "Sea Lake"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_/]+", " ", label))
    return " ".join(spaced.split())


def _bird(label: str) -> str:
    """ "001.Black_footed_Albatross" without its number."""
    return tidy(re.sub(r"^\d+\.", "", label))


def _car(label: str) -> str:
    """ "Audi TT RS Coupe 2012" with its year in front."""
    model, _, year = label.rpartition(" ")
    return f"{year} {model}" if year.isdigit() and model else label


def _scene(label: str) -> str:
    """ "a/apartment_building/outdoor" without its letter, the narrower word in front."""
    return tidy(" ".join(reversed(re.sub(r"^/?[a-z]/", "", label).split("/"))))


CLEANERS: dict[str, Callable[[str], str]] = {
    "aircraft": lambda label: label,
    "cars": _car,
    "cub": _bird,
    "pets": lambda label: tidy(label).lower(),
    "sun397": _scene,
}


@cache
def card(name: str) -> Card:
    """The card of a set; a default one for a set that has none."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        return Card(name, name.replace("_", " "))
    return read_card(path)


def read_card(path: Path) -> Card:
    """Read a card; ValueError naming the file for anything that is not one."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        names = {
            key: (value,) if isinstance(value, str) else tuple(value)
            for key, value in held.pop("names", {}).items()
        }
        lists = {key: tuple(held.pop(key)) for key in ("folders", "prompts") if key in held}
        found = Card(path.stem, held.pop("title"), names=names, **lists, **held)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the card of a data set: {error}") from error
    for prompt in found.prompts:
        if prompt.count("{}") != 1:
            raise ValueError(f"{path}: the prompt {prompt!r} needs one {{}} where the name goes")
    return found


def cards() -> list[Card]:
    """The cards of all sets, in the order of their file names."""
    return [card(path.stem) for path in sorted(FOLDER.glob("*.toml"))]
