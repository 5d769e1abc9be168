"""The shelf: units of a source that a person has set aside, so that the others go on without them.

A unit is named by its content, so a file that was replaced is another unit and no longer on the shelf.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from hyco.storage.layout import SHELVED, shelved_path
from hyco.storage.objects import DamagedError
from hyco.storage.sealed import seal, unseal
from hyco.storage.store import Store


class Named(Protocol):
    """A unit of a source."""

    @property
    def name(self) -> str:
        """The start of its hash."""
        ...


U = TypeVar("U", bound=Named)


@dataclass(frozen=True, slots=True)
class Shelved:
    """A unit that is set aside: its name, its path in the source, the source, the reason, the UTC time (ISO 8601)."""

    unit: str
    path: str
    source: str
    reason: str
    since: str

    def __str__(self) -> str:
        return f"{self.path} of {self.source} is set aside since {self.since[:16].replace('T', ' ')}: {self.reason}"


class Shelf:
    """The units that are set aside in one home: one sealed record each, created if absent."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def put(self, unit: str, path: str, source: str, reason: str) -> bool:
        """Set a unit aside; False, changing nothing, when it is already."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self.store.create(shelved_path(unit), seal(asdict(Shelved(unit, path, source, reason, now))))

    def back(self, unit: str) -> bool:
        """Return a unit to its source; False when it was not set aside."""
        return self.store.delete(shelved_path(unit))

    def entries(self) -> list[Shelved]:
        """Return everything on the shelf, by path; DamagedError for a record that cannot be read."""
        found, damaged = self.readable()
        for error in damaged:
            raise error
        return found

    def readable(self) -> tuple[list[Shelved], list[DamagedError]]:
        """Return what can be read of the shelf, by path, and the error of every other record."""
        found, damaged = list[Shelved](), list[DamagedError]()
        for path in self.store.list(SHELVED):
            if not path.endswith(".json"):
                continue
            try:
                found.append(Shelved(**unseal(self.store.read_bytes(path))))
            except FileNotFoundError:  # returned meanwhile
                continue
            except (ValueError, TypeError) as error:
                why = f"is no record of a shelved unit ({error})"
                damaged.append(DamagedError(path, why, self.store.url))
        return sorted(found, key=lambda entry: (entry.path, entry.unit)), damaged

    def units(self) -> set[str]:
        """Return the names of the units on the shelf; a name needs no readable record."""
        paths = self.store.list(SHELVED)
        return {path.rpartition("/")[2][:-5] for path in paths if path.endswith(".json")}

    def without(self, units: Sequence[U]) -> list[U]:
        """Return the units that are not on the shelf, in their order."""
        away = self.units()
        return [unit for unit in units if unit.name not in away]

    def settle(self, source: str, units: dict[str, str], files: set[str]) -> list[Shelved]:
        """Return to the source what was repaired there: another unit is at its path now, or its file is gone.

        Args:
            source: the URL of the listed source; entries of others stay.
            units: name by path of every listed unit.
            files: every file of the source, also those that are not listed as units yet.

        Returns:
            The entries that were taken off the shelf.
        """
        repaired = []
        for entry in self.entries() if self.units() else []:
            if entry.source != source or entry.unit in units.values():
                continue
            file = entry.path.rpartition("#")[0] if "#" in entry.path else entry.path
            if (entry.path in units or not {file, entry.path} & files) and self.back(entry.unit):
                repaired.append(entry)
        return repaired
