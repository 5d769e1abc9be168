"""Where the scenes that a model is assessed on come from, and how many of those that are listed can be used."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.evaluation.coverage import Coverage
from pipeline.evaluation.scenes import Scene
from pipeline.mining.detections_table import noting
from pipeline.sources.columns import USUAL, Columns
from pipeline.sources.source import open_source
from storage.sample import Failure, TrainingSample
from storage.store import Store
from storage.versions import Version, read_ref


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out scenes and what else there is.

    Attributes:
        name: of where they are from, for people.
        scenes: the first ones in order, at most as many as were asked for.
        listed: samples of the files that were read, good or bad, wanted or not.
        missing: samples without their image, `unusable`: those that cannot be used for another reason.
        files: of the source, and `unread` of them, since enough scenes were found before.
        first: what is wrong with the first that cannot be used.
    """

    name: str
    scenes: list[Scene]
    listed: int
    missing: int = 0
    unusable: int = 0
    files: int = 0
    unread: int = 0
    first: str = ""

    def coverage(self, undecodable: int = 0) -> list[Coverage]:
        """Of images, source files and labels; `undecodable` of the scenes turned out to be no images."""
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
    store: Store, dataset: Version, source: str | None, most: int, columns: Columns = USUAL
) -> HeldOut:
    """The first `most` held-out scenes: of the source, or of the val split of the version without one."""
    if source is not None:
        return of_source(source, most, columns)
    scenes = [Scene.of_training(sample) for sample in islice(training_samples(store, dataset, "val"), most)]
    listed = sum(shard.samples for shard in dataset.shards.get("val", []))
    return HeldOut(f"val split of {dataset.name}", scenes, listed)


def of_source(source: str, most: int, columns: Columns = USUAL) -> HeldOut:
    """The first `most` scenes of captioned images; what cannot be used of the files read is counted.

    FileNotFoundError or ValueError for what is no source.
    """
    opened = open_source(source, columns=columns)
    units, scenes, failures = opened.units(), [], list[Failure]()
    good = read = 0
    note = noting(failures, Counter())  # img2dataset's own failed rows never were images
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
    )


def training_samples(store: Store, dataset: Version, split: str) -> Iterator[TrainingSample]:
    """The samples of a split, in the order of its shards."""
    for shard in dataset.shards.get(split, []):
        yield from read_ref(store, shard)
