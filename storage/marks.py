"""Marks: images and boxes that a person has called bad, which the next packing leaves out.

HOME/marks/<key>.json          an image
HOME/marks/<key>-<box>.json    a box of it, by a hash of its phrase and of its coordinates to four decimals

One sealed record each, created if absent and removed by its name, so that marking and undoing twice change nothing.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from hyco.storage.layout import MARKS, mark_path
from hyco.storage.objects import DamagedError
from hyco.storage.sample import KEY_PATTERN, check_key
from hyco.storage.sealed import seal, unseal
from hyco.storage.store import Store

_NAME = re.compile(rf"{KEY_PATTERN}(-[0-9a-f]{{16}})?")


def box_name(key: str, phrase: str, box: Sequence[float]) -> str:
    """Return the name of a mark of a box: the image's key and a hash of phrase (in lower case) and coordinates."""
    text = " ".join([*(f"{value:.4f}" for value in box), phrase.lower()])
    return f"{key}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Mark:
    """An image or a box that is marked as bad.

    Attributes:
        key: content key of the image.
        phrase: of the box; "" where the whole image is marked.
        box: x0, y0, x1, y1 as fractions of the image; () where the whole image is marked.
        version: the dataset version in which it was seen.
        since: UTC time, ISO 8601.
    """

    key: str
    phrase: str = ""
    box: tuple[float, ...] = ()
    version: str = ""
    since: str = ""

    @property
    def name(self) -> str:
        """The name of its record."""
        return box_name(self.key, self.phrase, self.box) if self.box else self.key


class Marks:
    """The marks of one home."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def put(self, key: str, phrase: str = "", box: Sequence[float] = (), version: str = "") -> bool:
        """Mark an image, or with a box that box of it, as bad; False, changing nothing, when it is already.

        Raises:
            ValueError: no valid key, or a box without four coordinates from 0 to 1.
        """
        if box and not (len(box) == 4 and all(0 <= value <= 1 for value in box)):
            raise ValueError(f"box {tuple(box)}: expected x0, y0, x1, y1 as fractions from 0 to 1")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = Mark(check_key(key), phrase, tuple(map(float, box)), version, now)
        return self.store.create(mark_path(made.name), seal(asdict(made)))

    def undo(self, name: str) -> bool:
        """Take a mark back; False when there was none of that name."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a mark: expected the key of an image, or KEY-HASH of a box"
            )
        return self.store.delete(mark_path(name))

    def names(self) -> set[str]:
        """Return the names of all marks, from one listing; a name needs no readable record."""
        return {path.rpartition("/")[2][:-5] for path in self.store.list(MARKS) if path.endswith(".json")}

    def entries(self) -> list[Mark]:
        """Return all marks by name; DamagedError for a record that cannot be read."""
        found = []
        for name in sorted(self.names()):
            path = mark_path(name)
            try:
                held = unseal(self.store.read_bytes(path))
                mark = Mark(**{**held, "box": tuple(map(float, held["box"]))})
                if mark.name != name:
                    raise ValueError(f"it is of {mark.name}")
            except FileNotFoundError:  # taken back meanwhile
                continue
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedError(path, f"is no record of a mark ({error})", self.store.url) from None
            found.append(mark)
        return found
