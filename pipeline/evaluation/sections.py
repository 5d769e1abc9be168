"""The measured sections of metrics.json, filled from embedded scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.config import AssessConfig
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.attribution import Concepts, attribute, by_depth, separation
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.boxes import measure_boxes
from hyco.pipeline.evaluation.metrics.compositional import accuracy_by_kind, prefers
from hyco.pipeline.evaluation.metrics.document import put
from hyco.pipeline.evaluation.metrics.geometry import HYCOCLIP_CONES, Cone, geometry_report
from hyco.pipeline.evaluation.metrics.hierarchy import tree_metrics
from hyco.pipeline.evaluation.metrics.order import order_of
from hyco.pipeline.evaluation.metrics.parts import part_retrieval
from hyco.pipeline.evaluation.metrics.retrieval import both_ways
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.metrics.walks import Walks, traverse
from hyco.pipeline.evaluation.metrics.zero_shot import accuracy, class_vectors, vectors_of
from hyco.pipeline.evaluation.report.examples import Answered


@dataclass(frozen=True, slots=True)
class Measured:
    """Data for the report's pictures: the predictions on the tree, the walks to the root."""

    answered: Answered | None
    walks: Walks | None


def measure(
    metrics: dict[str, Any],
    embedder: Embedder,
    embedded: Embedded,
    tree: Taxonomy | None,
    run: dict[str, Any],
    boot: Bootstrap,
    config: AssessConfig,
) -> Measured:
    """Fill the measured sections; returns the data for the report's pictures."""
    captions, phrases = embedded.captions, embedded.phrases
    if len(captions.texts) > 1:
        found = both_ways(order_of(embedder), embedded.images, embedded.texts, captions, boot)
        found.numbers.update(
            images=captions.images, captions=len(captions.text), distinct=len(captions.texts)
        )
        keep(metrics, "retrieval", found)
    else:
        keep(metrics, "retrieval", "all held-out images share one caption")
    if phrases.images > 1 and len(phrases.texts) > 1:
        parts = part_retrieval(
            order_of(embedder), embedded.crops, embedded.phrase_points, phrases, embedded.scene_of_crop, boot
        )
        keep(metrics, "parts", parts)
    else:
        keep(metrics, "parts", "the held-out images have no parts: no objects in their json, none mined")
    keep(metrics, "boxes", _boxes(embedder, embedded, tree, boot))
    keep(metrics, "compositional", _foils(embedder, embedded, boot))
    keep(metrics, "geometry", _geometry(embedder, embedded, run, config.seed))
    answered = _classify(metrics, embedder, embedded, tree, boot)
    if answered and tree:
        keep(metrics, "hierarchy", tree_metrics(answered.predicted, answered.truth, tree, boot))
    keep(metrics, "attribution", _attribution(embedder, embedded, tree, run, boot))
    walked = None
    if len(captions.texts) > 1:
        found, walked = traverse(embedder, embedded, tree, boot, config.walks, config.seed)
        keep(metrics, "traversal", found)
    else:
        keep(metrics, "traversal", "all held-out images share one caption: a traversal needs several")
    return Measured(answered, walked)


def _boxes(
    embedder: Embedder, embedded: Embedded, tree: Taxonomy | None, boot: Bootstrap
) -> MetricResult | str:
    """Ground-truth boxes against the leaves of the tree."""
    labelled = [(n, label) for n, label in enumerate(embedded.label_of_crop) if label is not None]
    if tree is None:
        return "no taxonomy was given"
    if not labelled:
        return "the held-out images have no labelled boxes: no leaf in the objects of their json"
    index = np.array([n for n, _ in labelled])
    truth = np.array([tree.class_index(label) for _, label in labelled])
    crops, images = embedded.crops[torch.from_numpy(index)], embedded.scene_of_crop[index]
    scale = float(embedder.model.scale)
    return measure_boxes(embedder.score, crops, class_vectors(embedder, tree), truth, images, scale, boot)


def _foils(embedder: Embedder, embedded: Embedded, boot: Bootstrap) -> MetricResult | str:
    """True captions against the foils of the source."""
    if not len(embedded.foils):
        return "the held-out images have no foils in their json"
    image, caption, foil = torch.from_numpy(embedded.foils.T)
    points = (embedded.images[image], embedded.texts[caption], embedded.foil_points[foil])
    right = prefers(embedder.score, *points)
    return accuracy_by_kind(right, embedded.foil_kinds, embedded.foils[:, 0], boot)


def _geometry(embedder: Embedder, embedded: Embedded, run: dict[str, Any], seed: int) -> dict[str, Any] | str:
    if embedder.curvatures is None:
        return "the model is Euclidean: it has no curvature and no cones"
    objective = run.get("recipe", {}).get("objective", {})
    k = objective.get("aperture", 0.1)
    return geometry_report(
        embedded.nodes(), embedded.pairs(), embedder.curvatures, k, cones_of(objective), seed
    )


def _attribution(
    embedder: Embedder, embedded: Embedded, tree: Taxonomy | None, run: dict[str, Any], boot: Bootstrap
) -> MetricResult:
    """Norm, angle and bias: over the pairs, and where there are labels, over the names of the tree and by depth."""
    kept = separation(embedded.nodes(), embedded.pairs(), embedder.score, embedder.curvatures, boot.seed)
    labelled = [n for n, scene in enumerate(embedded.scenes) if scene.labels]
    if tree is None or not labelled:
        return MetricResult({"separation": kept})
    concepts = _concepts(embedder, embedded, tree, labelled)
    k = name_aperture(run.get("recipe", {}).get("objective", {}))
    found = attribute(concepts, embedder.score, embedder.curvatures, k, boot)
    found.numbers["separation"] = kept
    if embedder.curvatures is not None:
        found.numbers["depth"] = by_depth(concepts, embedder.curvatures, k, boot.seed)
    return found


def _concepts(embedder: Embedder, embedded: Embedded, tree: Taxonomy, labelled: Sequence[int]) -> Concepts:
    """The names of the tree without its root, and the labelled images below them."""
    nodes = [n for n in range(len(tree.ids)) if n != tree.root()]
    classes = tree.leaves()
    leaves = [
        [int(classes[tree.class_index(label)]) for label in embedded.scenes[scene].labels or ()]
        for scene in labelled
    ]
    points = vectors_of(embedder, [tree.names[node] for node in nodes], tree.prompts)
    return Concepts.of(points, tree, nodes, embedded.images[torch.tensor(labelled)], leaves)


def cones_of(objective: dict[str, Any]) -> Sequence[Cone]:
    """The cones of an objective; HyCoCLIP's where it has none, since the losses of bare angles name no aperture."""
    apertures = ("hinge", "membership")
    rows = [row for row in objective.get("entailment") or () if row.get("loss", "hinge") in apertures]
    return [
        Cone(row["general"], row["specific"], row["eta"], row.get("aperture") or None) for row in rows
    ] or HYCOCLIP_CONES


def name_aperture(objective: dict[str, Any]) -> float:
    """K of the cones of names: that of the phrases, or of the captions where no row has phrases as the general."""
    rows = {row["general"]: row.get("aperture") for row in objective.get("entailment") or ()}
    own = next((rows[node] for node in ("text_box", "text") if node in rows), None)
    return own or objective.get("aperture", 0.1)


def _classify(
    metrics: dict[str, Any], embedder: Embedder, embedded: Embedded, tree: Taxonomy | None, boot: Bootstrap
) -> Answered | None:
    reason = None
    single = [(n, set(scene.labels)) for n, scene in enumerate(embedded.scenes) if scene.labels]
    if tree is None:
        reason = "no taxonomy was given"
    elif not single:
        reason = "the held-out images have no labels"
    single = [(n, labels) for n, labels in single if len(labels) == 1]
    if reason is None and not single:
        reason = "no held-out image shows a single kind of thing"
    if reason or tree is None:
        for section in ("zero_shot", "hierarchy"):
            keep(metrics, section, str(reason))
        return None
    index = torch.tensor([n for n, _ in single], device=embedded.images.device)
    truth = np.array([tree.class_index(label) for _, labels in single for label in labels])
    scores = embedder.score(embedded.images[index], class_vectors(embedder, tree)).cpu().numpy()
    outcome, predicted = accuracy(scores, truth, boot)
    labelled = sum(bool(scene.labels) for scene in embedded.scenes)
    outcome.numbers.update(scenes=len(embedded.scenes), labelled=labelled)
    keep(metrics, "zero_shot", outcome)
    return Answered(np.array([n for n, _ in single]), predicted, truth)


def keep(metrics: dict[str, Any], section: str, found: MetricResult | dict[str, Any] | str) -> None:
    """Add the metrics of a section to the document, or the reason why there are none."""
    if isinstance(found, str):
        metrics["skipped"][section] = found
    elif isinstance(found, dict):
        metrics[section] = found
    else:
        put(metrics, section, found)
