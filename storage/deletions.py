"""What must not be in a home: the log of deletions, and the objects that were erased because of them.

HOME/deleted/log/000000001.json     one sealed record per deletion, numbered, created if absent and never changed
HOME/deleted/erased/<sha256>.json   an object that held a deleted image, and what stands in its place

A deletion is in force from the instant its record exists: mining, packing and evaluation leave its images out. The home
is brought into line by pipeline.curation.delete, which may be killed and repeated. Images are named by content key
(storage.sample), addresses by the sha256 of their normalised text, so the log holds neither pictures nor addresses.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from hyco.storage.layout import DELETIONS, ERASED
from hyco.storage.objects import OBJECT, DamagedError, name_sha256
from hyco.storage.sealed import seal, unseal
from hyco.storage.store import Store

OPTED_OUT = "opted_out"
"""Code of a sample that a source holds and a deletion names: counted, and no failure."""
_RESTORE = "restore it from a backup: without it, what was deleted could come back"
_FIELDS = {"url", "image_url", "source_url", "coco_url", "flickr_url"}


@dataclass(frozen=True, slots=True)
class Deletion:
    """One deletion: its number, the keys of the images, the hashes of the addresses, reason and UTC time (ISO 8601)."""

    number: int
    keys: tuple[str, ...]
    urls: tuple[str, ...]
    reason: str
    time: str


@dataclass(frozen=True, slots=True)
class Tombstones:
    """All deletions up to a number.

    Attributes:
        number: of the last one; 0 without any.
        keys: content keys of deleted images.
        urls: hashes of addresses, see `url_hash`.
    """

    number: int = 0
    keys: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()

    def names(self, meta: dict[str, Any], *keys: str) -> bool:
        """Return whether an image with these keys, or with an address in its source's JSON, is deleted."""
        return bool(self.number) and (
            not self.keys.isdisjoint(keys)
            or (bool(self.urls) and not self.urls.isdisjoint(map(url_hash, urls_of(meta))))
        )


NONE = Tombstones()


@dataclass(frozen=True, slots=True)
class Erased:
    """An object that held deleted images.

    Attributes:
        path: of the object.
        by: what stands in its place: a record of the new object with "path" and "sha256"; None for nothing.
        minus: what the new one lacks: images, captions, parts ...
        keys: the images that were left out.
    """

    path: str
    by: dict[str, Any] | None
    minus: dict[str, int] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


class Deletions:
    """The deletions of one home."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def append(self, keys: Iterable[str], urls: Iterable[str], reason: str) -> Deletion:
        """Record a deletion; it is in force when this returns."""
        number = self.number() + 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        while True:
            made = Deletion(number, tuple(sorted(set(keys))), tuple(sorted(set(urls))), reason, now)
            if self.store.create(_log_path(number), seal(asdict(made))) or self._read(number) == made:
                return made
            number += 1  # another process was faster

    def number(self) -> int:
        """Return the number of the last deletion, 0 without one."""
        paths = [path for path in self.store.list(DELETIONS) if path.endswith(".json")]
        return max((int(path[-14:-5]) for path in paths), default=0)

    def log(self) -> list[Deletion]:
        """Return every deletion, oldest first; DamagedError when one is missing or damaged."""
        return [self._read(number) for number in range(1, self.number() + 1)]

    def tombstones(self) -> Tombstones:
        """Return everything that is deleted; DamagedError when the log cannot be read whole."""
        log = self.log()
        if not log:
            return NONE
        keys, urls = (
            frozenset(item for one in log for item in getattr(one, name)) for name in ("keys", "urls")
        )
        return Tombstones(len(log), keys, urls)

    def erase(
        self, path: str, by: dict[str, Any] | None, minus: dict[str, int], keys: Iterable[str]
    ) -> Erased:
        """Record that an object must go and what stands in its place; return the record of the first who did."""
        made = Erased(path, by, minus, tuple(sorted(keys)))
        self.store.create(_erased_path(path), seal(asdict(made)))
        found = self.erased(path)
        assert found is not None
        return found

    def erased(self, path: str) -> Erased | None:
        """Return the record of an object that was erased; None for one that was not."""
        return self._erased(_erased_path(path)) if OBJECT.fullmatch(path) else None

    def _erased(self, path: str) -> Erased | None:
        try:
            held = unseal(self.store.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedError(path, str(error), self.store.url, _RESTORE) from None
        return Erased(held["path"], held["by"], held["minus"], tuple(held["keys"]))

    def heir(self, path: str) -> tuple[dict[str, Any] | None, dict[str, int], tuple[str, ...]]:
        """Return what stands in the place of an object now, and all that was left out on the way.

        Returns:
            (record of the present object or None for nothing, counts, keys); ({"path": path}, {}, ()) when it was not
            erased.
        """
        now: dict[str, Any] | None = {"path": path}
        minus: dict[str, int] = {}
        keys: tuple[str, ...] = ()
        while now is not None and (found := self.erased(str(now["path"]))) is not None:
            for name, count in found.minus.items():
                minus[name] = minus.get(name, 0) + count
            now, keys = found.by, keys + found.keys
        return now, minus, keys

    def hashes(self) -> set[str]:
        """Return the sha256 of every object that was erased, from one listing."""
        return {path.rpartition("/")[2][:-5] for path in self.store.list(ERASED) if path.endswith(".json")}

    def every(self) -> "list[Erased]":
        """Return the records of all objects that were erased."""
        paths = [path for path in self.store.list(ERASED) if path.endswith(".json")]
        return [found for path in paths if (found := self._erased(path)) is not None]

    def _read(self, number: int) -> Deletion:
        path = _log_path(number)
        try:
            held = unseal(self.store.read_bytes(path))
            found = Deletion(
                held["number"], tuple(held["keys"]), tuple(held["urls"]), held["reason"], held["time"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "restore it from a backup, or give the same hyco delete again after removing it"
            raise DamagedError(
                path, f"is no record of a deletion ({error})", self.store.url, remedy
            ) from None
        return found


def urls_of(meta: dict[str, Any]) -> list[str]:
    """Return the addresses of an image in its source's JSON."""
    return [
        value for name, value in meta.items() if name.lower() in _FIELDS and isinstance(value, str) and value
    ]


def url_hash(url: str) -> str:
    """Return the sha256 of an address without its fragment, its scheme and host in lower case; http is https."""
    try:
        parts = urlsplit(url.strip())
        scheme = "https" if parts.scheme.lower() == "http" else parts.scheme.lower()
        url = urlunsplit((scheme, parts.netloc.lower(), parts.path, parts.query, ""))
    except ValueError:
        url = url.strip()
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _log_path(number: int) -> str:
    return f"{DELETIONS}/{number:09d}.json"


def _erased_path(path: str) -> str:
    return f"{ERASED}/{name_sha256(path)}.json"
