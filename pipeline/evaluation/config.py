"""Options of an evaluation, and its data."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from hyco.pipeline.config import Config, digest
from hyco.pipeline.evaluation.coverage import MIN_COVERAGE
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.source import open_source
from hyco.storage.home import Home

VAL = "val split of "  # begins the name of a version's held-out scenes


class AssessConfig(Config):
    """How a run is evaluated."""

    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size", "device", "beside"})
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"min_coverage", "prompt_sensitivity"})

    max_images: int = Field(default=5000, ge=2)
    """Maximum number of held-out images, the first in order."""
    max_parts: int = Field(default=5000, ge=2)
    """Maximum number of their parts, drawn by `seed`."""
    draws: int = Field(default=1000, ge=100)
    """Bootstrap draws behind each interval."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap, of the shuffled pairs and of the images shown in the report."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass. Changes memory and speed, not the results."""
    device: str = "auto"
    """Where the model runs: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"."""
    samples: int = Field(default=8, ge=0, le=60)
    """Mined training samples shown in the report."""
    answers: int = Field(default=12, ge=0, le=60)
    """Held-out images shown in the report with the captions retrieved for them."""
    mistakes: int = Field(default=8, ge=0, le=60)
    """Misclassified scenes shown in the report."""
    walks: int = Field(default=300, ge=2)
    """Images from which the path to the root is traversed, drawn by `seed`."""
    strips: int = Field(default=4, ge=0, le=20)
    """Traversals shown in the report, the first ones."""
    picture_side: int = Field(default=224, ge=32, le=640)
    """Short side of the pictures in the report, in pixels."""
    suite_images: int = Field(default=0, ge=0)
    """Maximum number of images per split of a published data set, drawn by `seed`; 0 takes all."""
    min_coverage: float = Field(default=MIN_COVERAGE, ge=0, le=1)
    """Minimum fraction of the listed images of a data set or held-out source that must be present and
    readable. A set below it is refused: the remaining part is another, easier set.
    """
    prompt_sensitivity: bool = False
    """Whether zero-shot classification on labelled sets is also measured with every prompt by itself: mean, worst and
    range of the accuracy.
    """
    beside: tuple[str, ...] = ()
    """Directories of other evaluated runs, shown in the report beside this one."""
    probe_heads: tuple[Literal["softmax", "maximum_separation", "prototypes"], ...] = ("softmax",)
    """Heads fitted on the frozen features of labelled sets; [] fits none. "prototypes" lie on the
    hyperboloid.
    """


class EvaluationSpec(Config):
    """The data and options of an evaluation: the same for champion and challenger."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"columns", "protocol", "published", "prompts"})

    version: str = "latest"
    """Dataset version that the run was trained on. Its val split is used when there is no assess_source."""
    assess_source: str | None = None
    """Held-out captioned images, with "objects" and "labels" in their json for the parts and the class names;
    null takes the val split.
    """
    columns: Columns = USUAL
    """Names of the columns of assess_source that are not the usual ones."""
    taxonomy: str | None = None
    """File taxonomy.json with the classes; null leaves zero-shot and hierarchy out."""
    config: AssessConfig = AssessConfig()
    """Sizes and seeds of the evaluation."""
    suite: str | None = None
    """Published data sets to evaluate on as well: "all", or names separated by commas."""
    data: str | None = None
    """Directory of these data sets."""
    protocol: Literal["hyco", "published"] = "hyco"
    """How they are asked: with Hyco's prompts, crops and parts, or as in the papers."""
    published: str | None = None
    """Directory with your copy of the published prompts and class names, for protocol "published"."""
    prompts: str | None = None
    """File with prompts and class names of your own (JSON, TOML or Python literals), in place of the others."""

    def or_as_before(self, assessed: dict[str, Any] | None) -> "EvaluationSpec":
        """The same, on what an evaluation before was made where this one names no images and no taxonomy.

        Args:
            assessed: the section of that evaluation's metrics that says what was evaluated; None without one.
        """
        if self.assess_source is not None or self.taxonomy is not None or not assessed:
            return self
        source = str(assessed["source"])
        return self.replace(
            assess_source=None if source.startswith(VAL) else source,
            columns=Columns(**assessed.get("columns", {})),
            taxonomy=assessed.get("taxonomy"),  # earlier evaluations did not record it
        )

    def digest(self, home: Home) -> str:
        """Name the evaluation by the bytes of its images, so that a changed source is another evaluation.

        The registry stores the champion's metrics under this name: its inputs must not change.
        """
        if self.assess_source is not None:
            units = home.shelf.without(open_source(self.assess_source, columns=self.columns).units())
            asked: Any = [unit.sha256 for unit in units]
        else:
            refs = home.versions.load(self.version).shards.get("val", [])
            heirs = [(home.deletions.heir(shard.path)[0], shard) for shard in refs]
            asked = [heir.get("sha256", shard.sha256) for heir, shard in heirs if heir]
        tree = hashlib.sha256(Path(self.taxonomy).read_bytes()).hexdigest() if self.taxonomy else None
        named = {"asked": asked, "taxonomy": tree, "config": digest(self.config)}
        named |= {"columns": digest(self.columns)} if self.columns != USUAL else {}
        if self.assess_source is not None and (number := home.deletions.number()):
            named["deletions"] = number
        if self.suite:
            named["suite"] = [self.suite, self.data]
            texts = [self.protocol, self.published, self.prompts]
            named |= {"protocol": texts} if texts != ["hyco", None, None] else {}
        return digest(named)
