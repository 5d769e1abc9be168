"""Where the scenes that a run is assessed on come from."""

from collections.abc import Iterator
from itertools import islice

from pipeline.assess.scenes import Scene
from pipeline.source import open_source
from storage.sample import Failure, TrainingSample
from storage.store import Store
from storage.versions import Version, read_ref


def held_out(store: Store, dataset: Version, source: str | None, most: int) -> Iterator[Scene]:
    """The first `most` held-out scenes: of the source, or of the val split of the version without one."""
    if source is None:
        return (Scene.of_training(sample) for sample in islice(training_samples(store, dataset, "val"), most))
    opened = open_source(source)

    def ignore(failure: Failure) -> None:
        """Held-out images that cannot be read are not asked about; mining counts the failures of its own."""

    samples = (sample for unit in opened.units() for sample in opened.samples(unit, ignore))
    return (Scene.of_sample(sample) for sample in islice(samples, most))


def training_samples(store: Store, dataset: Version, split: str) -> Iterator[TrainingSample]:
    """The samples of a split, in the order of its shards."""
    for shard in dataset.shards.get(split, []):
        yield from read_ref(store, shard)
