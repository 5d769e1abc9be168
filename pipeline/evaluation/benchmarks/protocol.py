"""How a published set is asked: in Hyco's own way, or as MERU, HyCoCLIP and CLIP do.

The published way takes prompts and class names from the user's own copy of the published files, fills a prompt without
correcting its article, counts in the mean per class a class that is predicted but never occurs, stretches images of
captioned sets to a square, and takes only an image's own captions as hits. Ties of retrieval are in the order of the
gallery: the published sort is not stable and leaves their order open. The published files are no part of Hyco.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hyco.pipeline.datasets import LabelledSet
from hyco.pipeline.datasets.prompt_files import PromptFiles, SetTexts, read_prompt_file, read_published
from hyco.pipeline.imaging.crop import stretch, whole

Way = Literal["hyco", "published"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The way, and the texts that replace those of the cards.

    Attributes:
        way: "hyco" or "published".
        files: prompts and names of the user's files.
        given: where these files are, for messages.
    """

    way: Way = "hyco"
    files: PromptFiles = field(default_factory=PromptFiles)
    given: str = ""

    @property
    def published(self) -> bool:
        """Whether sets are asked as in the papers."""
        return self.way == "published"

    @classmethod
    def load(cls, way: Way, published: str | None, prompts: str | None) -> "Protocol":
        """Read the user's files.

        Args:
            way: the protocol.
            published: the directory of the published files, read with `way` "published".
            prompts: a file of prompts and names, which has priority.

        Raises:
            FileNotFoundError: no such directory or file.
            ValueError: files without a known set, or a directory without its protocol.
        """
        if published is not None and way != "published":
            raise ValueError(f"the published files {published} are read with --protocol published: add it")
        files = read_published(published) if published else PromptFiles()
        if prompts:
            files = read_prompt_file(prompts).over(files)
        return cls(way, files, " and ".join(place for place in (prompts, published) if place))

    def texts(self, name: str) -> SetTexts:
        """What the user's files say about a set; empty where they say nothing."""
        return self.files.texts.get(name, SetTexts())

    def lacks(self, name: str) -> str:
        """Why a labelled set cannot be asked in the published way; empty when it can."""
        if not self.published:
            return ""
        if why := next((why for (held, _), why in self.files.clashes.items() if held == name), ""):
            return why
        own = self.texts(name)
        lost = [what for what, held in (("prompts", own.prompts), ("class names", own.names)) if not held]
        if not lost:
            return ""
        where = self.given or "no file was given, and Hyco"
        unread = f" (unreadable: {self.files.unread[0]})" if self.files.unread else ""
        return (
            f"{where} has no {' and no '.join(lost)} of {name} for --protocol published{unread}: "
            "give --published DIR or --prompts FILE with both, or use --protocol hyco"
        )

    def square(self, image: np.ndarray, size: int) -> np.ndarray:
        """An image of a captioned set as a square: stretched in the published way, else cropped."""
        return stretch(image, size) if self.published else whole(image, size)


HYCO = Protocol()


def names_of(test: LabelledSet, given: SetTexts) -> tuple[tuple[str, ...], ...]:
    """The given names of the set's classes.

    Raises:
        ValueError: another number of classes, an empty name, or names whose order is not that of the set's classes.
    """
    names, source = given.names, " and ".join(given.origin)
    if len(names) != len(test.classes):
        raise ValueError(
            f"{source} names {len(names)} classes of {test.name}, and its images have {len(test.classes)}"
        )
    for number, of_class in enumerate(names, start=1):
        if not of_class or not all(name.strip() for name in of_class):
            raise ValueError(
                f"{source} has an empty name for class {number} of {test.name} ({test.classes[number - 1]!r}): name it"
            )
    if odd := _misplaced(test, names):
        here, there = odd
        raise ValueError(
            f"{source} lists the classes of {test.name} in another order: {names[there][0]!r} is number {there + 1}, "
            f"and {test.classes[here]!r} is number {here + 1} of the images' classes"
        )
    return names


def _misplaced(test: LabelledSet, names: Sequence[Sequence[str]]) -> tuple[int, int] | None:
    """A class and the place of its name, where more names are recognised at wrong places than at right ones."""
    place = {_key(name): index for index, own in enumerate(names) for name in own}
    found = [
        (index, place[key])
        for index, own in enumerate(zip(test.classes, test.names, strict=True))
        if (key := next((k for k in map(_key, (own[0], *own[1])) if k in place), None)) is not None
    ]
    wrong = [(here, there) for here, there in found if here != there]
    return wrong[0] if len(wrong) > len(found) - len(wrong) else None


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
