"""The held-out scenes for an evaluation, and how many of the listed ones can be used."""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hyco.pipeline.evaluation.config import VAL
from hyco.pipeline.evaluation.coverage import Coverage
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.mining.detections_table import noting
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.source import open_source
from hyco.storage.home import Home
from hyco.storage.sample import Failure, Sample, TrainingSample
from hyco.storage.store import Store
from hyco.storage.versions import Version, read_ref


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out scenes and their coverage.

    Attributes:
        name: their source, for people.
        scenes: the first ones in order, up to the requested number.
        listed: number of samples in the files that were read, usable or not.
        missing: samples without their image; `unusable`: samples that cannot be used for another reason.
        files: number of files of the source, of which `unread` were not needed.
        first: the fault of the first unusable sample.
        columns: the columns that were read instead of the usual ones.
    """

    name: str
    scenes: list[Scene]
    listed: int
    missing: int = 0
    unusable: int = 0
    files: int = 0
    unread: int = 0
    first: str = ""
    columns: Columns = USUAL

    def coverage(self, undecodable: int = 0) -> list[Coverage]:
        """Coverage of images, source files and labels; `undecodable` of the scenes could not be decoded."""
        asked = len(self.scenes) + self.missing + self.unusable
        bad = self.unusable + undecodable
        found = [Coverage("images", asked, self.missing, bad, self.listed, self.first)]
        if self.unread:
            read = self.files - self.unread
            found.append(Coverage("source files", read, listed=self.files))
        if entries := sum(scene.entries for scene in self.scenes):
            odd = sum(scene.odd for scene in self.scenes)
            found.append(Coverage("objects and foils", entries, unusable=odd))
        return found


def held_out(
    home: Home, dataset: Version, source: str | None, most: int, columns: Columns = USUAL
) -> HeldOut:
    """The first `most` held-out scenes: of the source, or without one of the version's val split."""
    if source is not None:
        return of_source(source, most, columns, home)
    val = training_samples(home.store, dataset, "val")
    scenes = [Scene.of_training(sample) for sample in islice(val, most)]
    listed = sum(shard.samples for shard in dataset.shards.get("val", []))
    return HeldOut(f"{VAL}{dataset.name}", scenes, listed)


def of_source(source: str, most: int, columns: Columns = USUAL, home: Home | None = None) -> HeldOut:
    """The first `most` scenes of captioned images; unusable samples of the files are counted.

    Units that are set aside in the home, where one is given, and images that were deleted are left out.

    FileNotFoundError or ValueError when it is no source.
    """
    opened = open_source(source, columns=columns)
    units, scenes, failures = opened.units(), [], list[Failure]()
    if home:
        units, opened.deleted = home.shelf.without(units), home.deletions.tombstones()
    good = read = 0
    note = noting(failures, Counter())  # img2dataset's own failed rows were never images
    for unit in units:
        if len(scenes) >= most:
            break
        read += 1
        for sample in opened.samples(unit, note):
            good += 1
            if len(scenes) < most:
                scenes.append(Scene.of_sample(sample))
    missing = sum(failure.code == "no_image" for failure in failures)
    return HeldOut(
        source,
        scenes,
        good + len(failures),
        missing,
        len(failures) - missing,
        len(units),
        len(units) - read,
        failures[0].message if failures else "",
        columns,
    )


def pictures_of(home: Home, assessed: dict[str, Any], keys: set[str]) -> dict[str, bytes]:
    """The images with these keys among those of an evaluation, by key; one that is gone or deleted is left out.

    The scenes are read in the order of the evaluation, as far as it read them.

    Args:
        home: where the dataset versions, shelved shards and deletions are.
        assessed: the section of the metrics that says what was evaluated.
        keys: the keys of the images.

    Raises:
        FileNotFoundError, ValueError: the source or the version cannot be read any more.
    """
    found: dict[str, bytes] = {}
    most = int(assessed["images"]) + int(assessed.get("undecodable", 0))
    with closing(_again(home, assessed)) as samples:
        for sample in islice(samples, most):
            if sample.key in keys:
                found[sample.key] = sample.image
                if len(found) == len(keys):
                    break
    return found


def _again(home: Home, assessed: dict[str, Any]) -> Generator[Sample | TrainingSample]:
    source, deleted = str(assessed["source"]), home.deletions.tombstones()
    if source.startswith(VAL):
        for sample in training_samples(home.store, home.versions.load(source.removeprefix(VAL)), "val"):
            if not deleted.names(sample.meta, sample.key):
                yield sample
        return
    opened = open_source(source, columns=Columns(**assessed.get("columns", {})))
    opened.deleted = deleted
    for unit in home.shelf.without(opened.units()):
        yield from opened.samples(unit, lambda failure: None)


def training_samples(store: Store, dataset: Version, split: str) -> Iterator[TrainingSample]:
    """The samples of a split, in the order of its shards."""
    for shard in dataset.shards.get(split, []):
        yield from read_ref(store, shard)
