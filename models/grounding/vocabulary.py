"""From a phrase to the classes of a closed-vocabulary detector, by its head noun and a table of synonyms.

English puts the head of a noun chunk last, so the longest run of last words in the table decides: "a red fire
hydrant" is a fire hydrant, "a hot dog" is not a dog, "a dog house" is no class.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

SYNONYMS = Path(__file__).with_name("coco_synonyms.json")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_LONGEST = 3


def coco_names() -> tuple[str, ...]:
    """Return COCO's 80 class names in COCO's order, which is the order of the table."""
    return tuple(json.loads(SYNONYMS.read_text())["synonyms"])


class Vocabulary:
    """Looks up class numbers by phrase.

    Args:
        names: class names in the order of the detector's outputs; COCO's in any usual spelling ("tvmonitor", "tv"), or
            others, which then have no synonyms.
        table: JSON with "synonyms" (class -> nouns) and "groups" (noun -> classes).
    """

    def __init__(self, names: Sequence[str], table: Path = SYNONYMS) -> None:
        read = json.loads(table.read_text())
        canonical = {word: name for name, words in read["synonyms"].items() for word in (name, *words)}
        self._classes: dict[str, tuple[int, ...]] = {}
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            plain = " ".join(_WORD.findall(name.lower()))
            numbers.setdefault(canonical.get(plain, plain), []).append(number)
        for word, name in canonical.items():
            if name in numbers:
                self._classes[word] = tuple(numbers[name])
        for name, found in numbers.items():
            self._classes.setdefault(name, tuple(found))
        for word, members in read["groups"].items():
            if found := tuple(number for name in members for number in numbers.get(name, ())):
                self._classes.setdefault(word, found)

    def __call__(self, phrase: str) -> tuple[int, ...]:
        """Return the class numbers that a phrase may mean; empty when it names none."""
        words = _WORD.findall(phrase.lower())
        for length in range(min(_LONGEST, len(words)), 0, -1):
            *before, head = words[-length:]
            for form in _singulars(head):
                if found := self._classes.get(" ".join((*before, form))):
                    return found
        return ()


def _singulars(noun: str) -> Iterator[str]:
    """Yield the noun itself, then its possible singulars."""
    yield noun
    if noun.endswith("ies"):
        yield noun[:-3] + "y"
    if noun.endswith("es"):
        yield noun[:-2]
    if noun.endswith("s") and not noun.endswith("ss"):
        yield noun[:-1]
