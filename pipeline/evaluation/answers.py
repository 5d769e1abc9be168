"""Zero-shot answers image by image (answers.json of a run): a table per class, and what changed between two runs."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyco.storage.store import Store

FILE = "answers.json"


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one evaluation.

    Attributes:
        classes: names of the classes.
        images: keys of the images, each with one kind of thing.
        truth: index of the true class of each image.
        answered: index of the class that the model named.
    """

    classes: list[str]
    images: list[str]
    truth: list[int]
    answered: list[int]

    def __post_init__(self) -> None:
        sizes = {len(self.images), len(self.truth), len(self.answered)}
        known = range(len(self.classes))
        if len(sizes) > 1 or not all(index in known for index in (*self.truth, *self.answered)):
            raise ValueError("its lists do not belong together: assess the run again")


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One true class: its images, how many were named right, and the most frequent wrong answer ("" without one)."""

    name: str
    images: int
    right: int
    wrong: str = ""
    times: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """Images that two runs answered differently.

    Attributes:
        both: images that both answered.
        fixed: images that only the second run names right: (key, true class, first answer, second answer).
        broken: images that only the first run names right.
        classes: (name, images, right in the first, right in the second) of each class of `both`, most changed first.
    """

    both: int
    fixed: list[tuple[str, str, str, str]] = field(default_factory=list)
    broken: list[tuple[str, str, str, str]] = field(default_factory=list)
    classes: list[tuple[str, int, int, int]] = field(default_factory=list)


def write(folder: Path, answers: Answers | None) -> None:
    """Write answers.json, or remove an old one where there are no answers."""
    if answers is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        Store(folder).replace(FILE, (json.dumps(asdict(answers)) + "\n").encode())


def read(folder: Path) -> Answers | None:
    """Return the answers of a run, None without any; ValueError where the file cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): assess the run again") from None


def parse(told: bytes) -> Answers:
    """Return the answers of an answers.json; ValueError for anything else."""
    try:
        return Answers(**json.loads(told))
    except TypeError as error:
        raise ValueError(str(error)) from None


def by_class(answers: Answers) -> list[ClassRow]:
    """Return a row for each class that occurs, the worst first."""
    rows = []
    for index in sorted(set(answers.truth)):
        told = Counter(a for a, t in zip(answers.answered, answers.truth, strict=True) if t == index)
        total, right = told.total(), told.pop(index, 0)
        wrong, times = told.most_common(1)[0] if told else (None, 0)
        name = "" if wrong is None else answers.classes[wrong]
        rows.append(ClassRow(answers.classes[index], total, right, name, times))
    return sorted(rows, key=lambda row: (row.right / row.images, row.name))


def changed(first: Answers, second: Answers) -> Changed:
    """Return what two runs answered differently on the images that both have, with the same true class."""
    mine = _named(first)
    theirs = _named(second)
    shared = [key for key, (true, _) in mine.items() if theirs.get(key, ("",))[0] == true]
    found = Changed(len(shared))
    totals: dict[str, list[int]] = {}
    for key in shared:
        (true, before), (_, after) = mine[key], theirs[key]
        row = totals.setdefault(true, [0, 0, 0])
        row[0] += 1
        row[1] += before == true
        row[2] += after == true
        if before != true and after == true:
            found.fixed.append((key, true, before, after))
        elif before == true and after != true:
            found.broken.append((key, true, before, after))
    found.classes.extend((name, n, a, b) for name, (n, a, b) in totals.items())
    found.classes.sort(key=lambda row: (-abs(row[3] - row[2]), row[0]))
    return found


def _named(answers: Answers) -> dict[str, tuple[str, str]]:
    """The true class and the answer of each image, by key."""
    rows: Any = zip(answers.images, answers.truth, answers.answered, strict=True)
    return {key: (answers.classes[true], answers.classes[told]) for key, true, told in rows}
