"""The home: one directory or URL that holds everything Hyco makes. storage.layout has the names inside it."""

import functools
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from hyco.storage import layout
from hyco.storage.deletions import Deletions
from hyco.storage.folder import Folder
from hyco.storage.manifest import Manifest
from hyco.storage.marks import Marks
from hyco.storage.model_registry import Registry
from hyco.storage.objects import DamagedError
from hyco.storage.shelf import Shelf
from hyco.storage.store import Store
from hyco.storage.summary import summarise, whole
from hyco.storage.versions import Version, Versions


class UnitResults(Manifest):
    """The results of one stage with one configuration: the records of its units and the folder of their objects.

    Attributes:
        folder: path in the home, such as "detections/<digest>".
        objects: path of the folder that objects are committed to.
        config: path of the resolved configuration.
    """

    def __init__(self, store: Store, folder: str) -> None:
        super().__init__(store, f"{folder}/{layout.RECORDS}")
        self.folder = folder
        self.objects = f"{folder}/{layout.OBJECTS}"
        self.config = f"{folder}/{layout.CONFIG}"

    def summary(self) -> pa.Table:
        """Return what every record says, one row each, see storage.summary; DamagedError for a damaged record."""
        rows, damaged = self.readable_summary()
        for error in damaged:
            raise error
        return rows

    def readable_summary(self) -> tuple[pa.Table, list[DamagedError]]:
        """Return what the readable records say, one row each, and the error of every damaged record."""
        return summarise(self, self.folder)

    def whole_summary(self) -> pa.Table:
        """Return the rows of `summary` of the units that are done: every object that they name exists."""
        return whole(self, self.summary())

    def reading(self, rules: int) -> str:
        """Return the path of the folder that lists the units that reading rules of this number read identically."""
        return f"{self.folder}/reading-{rules}"


class Home:
    """A home, local or remote. Opening one reads and writes nothing.

    Attributes:
        url: as given: a local path or an fsspec URL. `store.url` is absolute.
        store: its files.
        folder: the directory of a local home; for a remote home not a path of this machine.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        self.store = Store(url)
        self.folder = Path(self.url.removeprefix("file://").removeprefix("local://")).expanduser()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the URL, so that executors can send a home to their workers."""
        return Home, (self.url,)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Home({self.url!r})"

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine."""
        return self.store.local

    def detections(self, digest: str | None) -> UnitResults:
        """Return the results of mining with the MineConfig of this digest."""
        return UnitResults(self.store, f"{layout.DETECTIONS}/{digest}")

    def packs(self, digest: str | None) -> UnitResults:
        """Return the results of packing with the configurations of this digest."""
        return UnitResults(self.store, f"{layout.PACKS}/{digest}")

    def hashes(self, digest: str | None) -> UnitResults:
        """Return the perceptual hashes of units that were read with the configuration of this digest."""
        return UnitResults(self.store, f"{layout.HASHES}/{digest}")

    def all_hashes(self) -> list[UnitResults]:
        """Return the perceptual hashes of every configuration, by digest."""
        return self._results(layout.HASHES)

    def columns(self, digest: str | None) -> UnitResults:
        """Return the values of columns of units that were read with the configuration of this digest."""
        return UnitResults(self.store, f"{layout.COLUMNS}/{digest}")

    def all_columns(self) -> list[UnitResults]:
        """Return the values of columns of every configuration, by digest."""
        return self._results(layout.COLUMNS)

    def all_detections(self) -> list[UnitResults]:
        """Return the results of every mining configuration, by digest."""
        return self._results(layout.DETECTIONS)

    def all_packs(self) -> list[UnitResults]:
        """Return the results of every packing configuration, by digest."""
        return self._results(layout.PACKS)

    @functools.cached_property
    def versions(self) -> Versions:
        """The dataset versions."""
        return Versions(self.store)

    @functools.cached_property
    def deletions(self) -> Deletions:
        """What must not be in the home."""
        return Deletions(self.store)

    @functools.cached_property
    def shelf(self) -> Shelf:
        """The units of sources that are set aside."""
        return Shelf(self.store)

    @functools.cached_property
    def marks(self) -> Marks:
        """The images and boxes that are marked as bad."""
        return Marks(self.store)

    def latest_version(self) -> Version | None:
        """Return the latest dataset version; None before the first, or when it cannot be read."""
        try:
            return self.versions.load("latest")
        except ValueError:
            return None

    @functools.cached_property
    def registry(self) -> Registry:
        """The registry of models."""
        return Registry(self.store)

    @property
    def runs(self) -> Path:
        """The directory of the runs of a local home; ValueError for a remote one."""
        return self._local_folder(layout.RUNS)

    @property
    def fits(self) -> Path:
        """The directory of the classifiers' runs of a local home; ValueError for a remote one."""
        return self._local_folder(layout.FITS)

    def run(self, name: str | os.PathLike[str]) -> Folder:
        """Return a run, given as a path or URL or by its name in the home."""
        given = os.fspath(name)
        if "://" in given or (Path(given) / layout.CONFIG).is_file():
            return Folder(given)
        return Folder(self.runs / given if self.local else f"{self.store.url}/{layout.RUNS}/{given}")

    def run_folders(self) -> list[Folder]:
        """Return the training runs, by name."""
        return self._started(layout.RUNS)

    def fit_folders(self) -> list[Folder]:
        """Return the classifiers' runs, by name."""
        return self._started(layout.FITS)

    def require(self) -> "Home":
        """Return the home itself; FileNotFoundError for a local one that does not exist."""
        if self.local and not self.folder.is_dir():
            raise FileNotFoundError(f"{self} does not exist: name the home of an earlier command with --home")
        return self

    def _results(self, stage: str) -> list[UnitResults]:
        return [UnitResults(self.store, f"{stage}/{digest}") for digest in self.store.folders(stage)]

    def _local_folder(self, name: str) -> Path:
        if not self.local:
            raise ValueError(
                f"home {self} is remote, and this command needs a local one: give it another --home on this machine"
            )
        return self.folder / name

    def _started(self, name: str) -> list[Folder]:
        found = (Folder(f"{self.store.url}/{name}/{one}") for one in self.store.folders(name))
        return [folder for folder in found if folder.exists(layout.CONFIG)]
