"""Data for the report's pictures, from the embedded points."""

from typing import Any

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.answers import Answers
from hyco.pipeline.evaluation.config import AssessConfig
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.geometry import radii
from hyco.pipeline.evaluation.metrics.hierarchy import family_confusion, where_errors_meet
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.report import examples as show
from hyco.pipeline.evaluation.report.projection import plane_view
from hyco.pipeline.evaluation.report.strips import strips
from hyco.pipeline.evaluation.sections import Measured


def draw(
    embedder: Embedder,
    embedded: Embedded,
    tree: Taxonomy | None,
    measured: Measured,
    config: AssessConfig,
) -> dict[str, Any]:
    """The fields of panels.Exhibits that come from the embedded scenes."""
    found: dict[str, Any] = {}
    answered = measured.answered
    side = config.picture_side
    if len(embedded.captions.texts):
        found["neighbours"] = show.neighbours(embedder, embedded, config.answers, 4, side, config.seed)
    if embedder.curvatures is not None:
        c = embedder.curvatures
        nodes = embedded.nodes().items()
        found["radii"] = {name: radii(n.points, c)[n.occurrences] for name, n in nodes if len(n.occurrences)}
    nodes = {name: node for name, node in embedded.nodes().items() if len(node.points)}
    found["plane"] = plane_view(nodes, embedder.curvatures, config.seed)
    if measured.walks:
        found["strips"] = strips(embedded, measured.walks, config.strips, embedder.size, side)
    if answered and tree:
        found["depths"] = where_errors_meet(answered.predicted, answered.truth, tree)
        found["depth_examples"] = show.depth_examples(tree)
        found["families"] = family_confusion(answered.predicted, answered.truth, tree)
        found["mistakes"] = show.mistakes(embedded, answered, tree, config.mistakes, side, config.seed)
        found["answers"] = Answers(
            classes=[tree.names[leaf][0] for leaf in tree.leaves()],
            images=[embedded.scenes[scene].key for scene in answered.scene],
            truth=answered.truth.tolist(),
            answered=answered.predicted.tolist(),
        )
    return found
