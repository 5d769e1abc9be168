"""How a run is evaluated, and on what."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.config import Config, digest
from pipeline.evaluation.coverage import MIN_COVERAGE
from pipeline.sources.source import open_source
from storage.store import Store
from storage.versions import Versions


class AssessConfig(Config):
    """How a run is assessed.

    Attributes:
        max_images: at most this many held-out images, the first in order.
        max_parts: at most this many parts of them, drawn by seed.
        draws: bootstrap draws behind each interval.
        seed: of the bootstrap, the shuffled pairs and the images shown in the report.
        batch_size: images a forward pass.
        device: "auto" (a GPU where there is one), "cpu", "cuda".
        samples: mined training samples shown in the report.
        answers: held-out images shown with the captions found for them.
        mistakes: wrongly named scenes shown in the report.
        walks: images from which to walk to the root, drawn by seed.
        strips: walks shown in the report, the first of them.
        picture_side: short side of the pictures in the report, in pixels.
        suite_images: at most this many images of each split of a data set of the suite, drawn by seed; 0 takes all.
        min_coverage: the fraction of what a data set or held-out source lists that must be there and readable; one
            with less is refused, since what is left of it is another, easier set.
        beside: directories of other assessed runs, shown in the report beside this one.
        probe_heads: heads fitted on the frozen features of labelled sets: softmax, maximum_separation,
            and prototypes on the hyperboloid; () fits none.
    """

    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size", "device", "beside"})
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"min_coverage"})

    max_images: int = Field(default=5000, ge=2)
    max_parts: int = Field(default=5000, ge=2)
    draws: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    device: str = "auto"
    samples: int = Field(default=8, ge=0, le=60)
    answers: int = Field(default=12, ge=0, le=60)
    mistakes: int = Field(default=8, ge=0, le=60)
    walks: int = Field(default=300, ge=2)
    strips: int = Field(default=4, ge=0, le=20)
    picture_side: int = Field(default=224, ge=32, le=640)
    suite_images: int = Field(default=0, ge=0)
    min_coverage: float = Field(default=MIN_COVERAGE, ge=0, le=1)
    beside: tuple[str, ...] = ()
    probe_heads: tuple[Literal["softmax", "maximum_separation", "prototypes"], ...] = ("softmax",)


class EvaluationSpec(Config):
    """What a model is evaluated on, and how: champion and challenger are asked the same.

    Attributes:
        version: the dataset version the run was trained on; its val split is used when there is no assess_source.
        assess_source: held-out captioned images, with "objects" and "labels" in their json for the parts and the
            class names.
        taxonomy: taxonomy.json with the classes of zero-shot and hierarchy.
        config: sizes, seeds, device.
        suite: published data sets to measure on as well: "all", or names of pipeline/evaluation/benchmarks/suite.py
            with commas between.
        data: the directory that these data sets lie in.
    """

    version: str = "latest"
    assess_source: str | None = None
    taxonomy: str | None = None
    config: AssessConfig = AssessConfig()
    suite: str | None = None
    data: str | None = None

    def digest(self, home: str) -> str:
        """Name the evaluation by the bytes of its images, so that a changed source is another evaluation.

        The registry stores the champion's metrics under this name: what it is made of must not change.
        """
        if self.assess_source is not None:
            asked: Any = [unit.sha256 for unit in open_source(self.assess_source).units()]
        else:
            asked = [shard.sha256 for shard in Versions(Store(home)).load(self.version).shards.get("val", [])]
        tree = hashlib.sha256(Path(self.taxonomy).read_bytes()).hexdigest() if self.taxonomy else None
        named = {"asked": asked, "taxonomy": tree, "config": digest(self.config)}
        return digest(named | ({"suite": [self.suite, self.data]} if self.suite else {}))
