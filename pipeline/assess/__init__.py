"""Assessment of a trained run: zero-shot, retrieval, hierarchy, parts, geometry; metrics.json and report.html.

Scoring is minus the distance everywhere. Every number has its chance level beside it, and an interval where
one can be drawn; what cannot be measured is null, with the reason under "skipped".
"""

import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from pipeline.assess import exhibits as show
from pipeline.assess import report
from pipeline.assess.curves import read_log
from pipeline.assess.data import Embedder
from pipeline.assess.geometry import HYCOCLIP_CONES, Cone, geometry_report, radii
from pipeline.assess.hierarchy import family_confusion, tree_metrics, where_errors_meet
from pipeline.assess.outcome import Bootstrap, Outcome
from pipeline.assess.panels import Exhibits
from pipeline.assess.parts import part_retrieval
from pipeline.assess.provenance import lineage, provenance
from pipeline.assess.retrieval import both_ways
from pipeline.assess.scenes import Embedded, Scene, embed, limit_regions, work
from pipeline.assess.taxonomy import Taxonomy
from pipeline.assess.zero_shot import accuracy, class_vectors
from pipeline.config import Config
from pipeline.progress import Listener, Progress
from pipeline.source import open_source
from storage.sample import Failure, TrainingSample
from storage.shard import read_shard
from storage.store import Store
from storage.versions import Version, Versions

SECTIONS = ("mining", "train", "zero_shot", "retrieval", "hierarchy", "parts", "geometry")


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
        picture_side: short side of the pictures in the report, in pixels.
    """

    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size", "device"})

    max_images: int = Field(default=5000, ge=2)
    max_parts: int = Field(default=5000, ge=2)
    draws: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    device: str = "auto"
    samples: int = Field(default=8, ge=0, le=60)
    answers: int = Field(default=12, ge=0, le=60)
    mistakes: int = Field(default=8, ge=0, le=60)
    picture_side: int = Field(default=224, ge=32, le=640)


def assess(
    run_dir: str | Path,
    home: str,
    version: str = "latest",
    assess_source: str | None = None,
    taxonomy: str | Path | None = None,
    mining: dict[str, Any] | None = None,
    *,
    config: AssessConfig | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Measure a run, write metrics.json and report.html into it, and return the metrics.

    Args:
        run_dir: directory of a finished run (model/, config.json, log.jsonl, train.json).
        home: where the dataset versions are, a local path or fsspec URL.
        version: the dataset version the run was trained on.
        assess_source: held-out captioned images, with "objects" and "labels" in their json for the parts and
            the class names. Without it the val split of the version is taken.
        taxonomy: taxonomy.json with the classes.
        mining: summary of mining, copied into the metrics.
        config: see AssessConfig.
        listener: gets the state of pipeline.progress.Progress every few seconds.

    Raises:
        FileNotFoundError: no model in the run, no such source or taxonomy.
        ValueError: no such version, labels that are not leaves, embeddings that are not finite.
    """
    began = time.monotonic()
    config = config or AssessConfig()
    run_dir = Path(run_dir)
    store = Store(home)
    dataset = Versions(store).load(version)
    tree = Taxonomy.load(taxonomy) if taxonomy else None
    embedder = Embedder.load(run_dir / "model", config.device, config.batch_size)
    run = _json(run_dir / "config.json") or {}
    scenes = limit_regions(
        list(_scenes(store, dataset, assess_source, config)), config.max_parts, config.seed
    )
    boot = Bootstrap(config.draws, seed=config.seed)

    metrics: dict[str, Any] = {"run": run_dir.name, **dict.fromkeys(SECTIONS), "intervals": {}, "skipped": {}}
    _keep(metrics, "mining", mining or "no summary of mining was handed in")
    _keep(
        metrics, "train", _json(run_dir / "train.json") or "the run has no train.json: training has not ended"
    )
    shown: dict[str, Any] = {}
    if len(scenes) < 2:
        reason = (
            f"{len(scenes)} held-out images: give assess_source, or pack with a holdout so that the version "
            "has a val split"
        )
        for section in SECTIONS[2:]:
            _keep(metrics, section, reason)
    else:
        with Progress(work(scenes), "assess", "items", listener) as progress, torch.inference_mode():
            embedded = embed(embedder, scenes, progress.advance)
            answered = _measure(metrics, embedder, embedded, tree, run, boot, config.seed)
            shown = _shown(embedder, embedded, tree, answered, config)
        metrics["assessed"] = {
            "source": assess_source or f"val split of {dataset.name}",
            "images": len(embedded.scenes),
            "captions": len(embedded.captions.text),
            "parts": len(embedded.crops),
            "undecodable": embedded.undecodable,
        }
    metrics |= provenance(run, dataset)
    metrics["seconds"] = round(time.monotonic() - began, 2)
    metrics = _finite(metrics)
    Store(run_dir).replace(
        "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode()
    )
    samples = show.mined_samples(
        islice(_training(store, dataset, "train"), 400), config.samples, config.picture_side
    )
    page = Exhibits(
        samples=samples,
        log=read_log(run_dir / "log.jsonl"),
        config={"run": run, "assess": config.model_dump(mode="json")},
        lineage=lineage(run, dataset, metrics),
        draws=config.draws,
        **shown,
    )
    report.write(run_dir / "report.html", metrics, page)
    return metrics


def _measure(
    metrics: dict[str, Any],
    embedder: Embedder,
    embedded: Embedded,
    tree: Taxonomy | None,
    run: dict[str, Any],
    boot: Bootstrap,
    seed: int,
) -> show.Answered | None:
    """Fill the measured sections; returns the answers on the tree where there are any."""
    captions, phrases = embedded.captions, embedded.phrases
    if len(captions.texts) > 1:
        found = both_ways(embedder.score, embedded.images, embedded.texts, captions, boot)
        found.numbers.update(
            images=captions.images, captions=len(captions.text), distinct=len(captions.texts)
        )
        _keep(metrics, "retrieval", found)
    else:
        _keep(metrics, "retrieval", "all held-out images share one caption")
    if phrases.images > 1 and len(phrases.texts) > 1:
        parts = part_retrieval(
            embedder.score, embedded.crops, embedded.phrase_points, phrases, embedded.scene_of_crop, boot
        )
        _keep(metrics, "parts", parts)
    else:
        _keep(metrics, "parts", "the held-out images have no parts: no objects in their json, none mined")
    _keep(metrics, "geometry", _geometry(embedder, embedded, run, seed))
    answered = _classify(metrics, embedder, embedded, tree, boot)
    if answered and tree:
        _keep(metrics, "hierarchy", tree_metrics(answered.predicted, answered.truth, tree, boot))
    return answered


def _geometry(embedder: Embedder, embedded: Embedded, run: dict[str, Any], seed: int) -> dict[str, Any] | str:
    if embedder.curvatures is None:
        return "the model is Euclidean: it has no curvature and no cones"
    objective = run.get("recipe", {}).get("objective", {})
    rows = [Cone(row["general"], row["specific"], row["eta"]) for row in objective.get("entailment") or ()]
    k = objective.get("aperture", 0.1)
    cones = rows or HYCOCLIP_CONES  # an objective without cones is still asked where HyCoCLIP's would hold
    return geometry_report(embedded.nodes(), embedded.pairs(), embedder.curvatures, k, cones, seed)


def _classify(
    metrics: dict[str, Any], embedder: Embedder, embedded: Embedded, tree: Taxonomy | None, boot: Bootstrap
) -> show.Answered | None:
    reason = None
    single = [(n, set(scene.labels)) for n, scene in enumerate(embedded.scenes) if scene.labels]
    if tree is None:
        reason = "no taxonomy was given"
    elif not single:
        reason = "the held-out images carry no labels"
    single = [(n, labels) for n, labels in single if len(labels) == 1]
    if reason is None and not single:
        reason = "no held-out image shows a single kind of thing"
    if reason or tree is None:
        for section in ("zero_shot", "hierarchy"):
            _keep(metrics, section, str(reason))
        return None
    index = torch.tensor([n for n, _ in single], device=embedded.images.device)
    truth = np.array([tree.class_index(label) for _, labels in single for label in labels])
    scores = embedder.score(embedded.images[index], class_vectors(embedder, tree)).cpu().numpy()
    outcome, predicted = accuracy(scores, truth, boot)
    _keep(metrics, "zero_shot", outcome)
    return show.Answered(np.array([n for n, _ in single]), predicted, truth)


def _keep(metrics: dict[str, Any], section: str, found: Outcome | dict[str, Any] | str) -> None:
    """Put a section's numbers and intervals in their places, or the reason why there are none."""
    if isinstance(found, str):
        metrics["skipped"][section] = found
    elif isinstance(found, dict):
        metrics[section] = found
    else:
        metrics[section] = found.numbers
        metrics["intervals"] |= {f"{section}.{key}": list(span) for key, span in found.intervals.items()}


def _shown(
    embedder: Embedder,
    embedded: Embedded,
    tree: Taxonomy | None,
    answered: show.Answered | None,
    config: AssessConfig,
) -> dict[str, Any]:
    """What the report draws of the measured points."""
    shown: dict[str, Any] = {}
    side = config.picture_side
    if len(embedded.captions.texts):
        shown["neighbours"] = show.neighbours(embedder, embedded, config.answers, 4, side, config.seed)
    if embedder.curvatures is not None:
        c = embedder.curvatures
        nodes = embedded.nodes().items()
        shown["radii"] = {name: radii(n.points, c)[n.occurrences] for name, n in nodes if len(n.occurrences)}
    if answered and tree:
        shown["depths"] = where_errors_meet(answered.predicted, answered.truth, tree)
        shown["depth_examples"] = show.depth_examples(tree)
        shown["families"] = family_confusion(answered.predicted, answered.truth, tree)
        shown["mistakes"] = show.mistakes(embedded, answered, tree, config.mistakes, side, config.seed)
    return shown


def _scenes(store: Store, dataset: Version, source: str | None, config: AssessConfig) -> Iterator[Scene]:
    if source is None:
        return (
            Scene.of_training(sample)
            for sample in islice(_training(store, dataset, "val"), config.max_images)
        )
    opened = open_source(source)

    def ignore(failure: Failure) -> None:
        """Held-out images that cannot be read are not asked about; mining counts the failures of its own."""

    samples = (sample for unit in opened.units() for sample in opened.samples(unit, ignore))
    return (Scene.of_sample(sample) for sample in islice(samples, config.max_images))


def _training(store: Store, dataset: Version, split: str) -> Iterator[TrainingSample]:
    for shard in dataset.shards.get(split, []):
        with store.open(shard.path) as file:
            yield from read_shard(file, shard.path)


def _json(path: Path) -> dict[str, Any] | None:
    """What a JSON file of the run holds, None without the file; ValueError when it is torn."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): train the run again") from None


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
