"""The catalog of metrics: title, unit and direction of each metric, for every reader of metrics.json.

A new metric is one function that returns a MetricResult, and one row of CATALOG. The gate, metrics.csv, the report, the
comparison of models, the pages in Prefect and the terminal read only its row.
"""

from dataclasses import dataclass, replace
from typing import Literal

from hyco.pipeline.evaluation.metrics.retrieval import KS


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the catalog.

    Attributes:
        path: the last two steps of its dotted name: "zero_shot.top1" is also that of suite.imagenet.zero_shot.top1.
            A first step "*" matches any; {} in the title is replaced by it.
        title: as written inside a sentence.
        unit: a fraction is shown in percent.
        higher_is_better: None where neither is.
        chance: how the chance level is computed; empty where there is none.
        gallery: the ranked items, in the plural, where the size of the gallery determines the difficulty.
        counted: what its n counts: the resampled units of its interval.
    """

    path: str
    title: str
    unit: Literal["fraction", "edges", "levels", "count", "nats"] = "fraction"
    higher_is_better: bool | None = True
    chance: str = ""
    gallery: str = ""
    counted: str = "images"

    def counts_in(self, name: str) -> str:
        """What n counts for a metric of that dotted name: of the mean over published sets, the sets."""
        return "data sets" if name.startswith("suite.paper.") else self.counted


CLASSIFIERS = {
    "zero_shot": "zero-shot",
    "probe_softmax": "linear probe",
    "probe_maximum_separation": "linear probe with maximum separation",
    "probe_prototypes": "prototypes on the hyperboloid",
    "classification": "box classification",
}
WAYS = {  # of retrieval, with the gallery
    "image_to_text": ("image to caption", "captions"),
    "text_to_image": ("caption to image", "images"),
    "crop_to_phrase": ("part to phrase", "phrases"),
    "phrase_to_crop": ("phrase to part", "parts"),
}
CLASSES = "one over the number of classes"
SHUFFLED = "expectation over random orders"
UNIFORM = "every leaf predicted equally often"
COIN = "one half"
POOL = "a uniform draw from the pool"
READINGS = {  # of metrics/attribution.py: what is told, its chance level, by which readings
    "hierarchical_retrieval": (
        "AP of the images under a name",
        SHUFFLED,
        {"score": "score", "angle": "exterior angle", "norm": "the image's norm"},
    ),
    "membership": (
        "AP of all names and images",
        SHUFFLED,
        {
            "norm": "the name's norm",
            "angle": "exterior angle",
            "aperture": "angle and aperture",
            "angle_and_norm": "angle and the best function of the norm",
            "angle_and_bias": "angle and a learned bias",
        },
    ),
    "direction": (
        "parent told from child",
        COIN,
        {"norm": "norm", "angle": "exterior angle", "bias": "a learned bias"},
    ),
}

COUNTED = {"hierarchical_retrieval": "names", "membership": "", "direction": "pairs of names"}
ENTAILED_BY = {"margin": "the cones", "angle": "the exterior angle", "similarity": "similarity alone"}

CATALOG = (
    *(Metric(f"{block}.top1", f"{name} top-1", chance=CLASSES) for block, name in CLASSIFIERS.items()),
    *(Metric(f"{block}.top5", f"{name} top-5", chance=CLASSES) for block, name in CLASSIFIERS.items()),
    *(
        Metric(f"{block}.mean_per_class", f"{name}, mean per class", chance=CLASSES)
        for block, name in CLASSIFIERS.items()
    ),
    *(
        Metric(
            f"{way}.r{k}",
            f"{name} R@{k}",
            chance=SHUFFLED,
            gallery=gallery,
            counted="phrases" if way == "phrase_to_crop" else "images",
        )
        for way, (name, gallery) in WAYS.items()
        for k in KS
    ),
    Metric("hierarchy.tie", "tree distance (TIE)", "edges", False, UNIFORM),
    Metric("hierarchy.lca", "height of the common ancestor (LCA)", "levels", False, UNIFORM),
    Metric("hierarchy.jaccard", "shared ancestors (Jaccard)", chance=UNIFORM),
    Metric("hierarchy.p_h", "hierarchical precision", chance=UNIFORM),
    Metric("hierarchy.r_h", "hierarchical recall", chance=UNIFORM),
    Metric("detection.map", "mean average precision of boxes by softmax", chance=SHUFFLED),
    Metric("detection.map_distance", "mean average precision of boxes by score", chance=SHUFFLED),
    Metric("multilabel.map", "zero-shot mean average precision of several labels", chance=SHUFFLED),
    Metric("multilabel.map_11", "zero-shot mean average precision of several labels, eleven points"),
    *(
        Metric(f"{reading}.{key}", f"entailment by {name}, {title}", chance=chance)
        for reading, name in ENTAILED_BY.items()
        for key, title, chance in (("ap", "average precision", SHUFFLED), ("auroc", "AUROC", COIN))
    ),
    Metric("prompts.mean", "zero-shot mean per class, mean over the prompts", chance=CLASSES),
    Metric("prompts.worst", "zero-shot mean per class, worst prompt", chance=CLASSES),
    Metric("prompts.range", "zero-shot mean per class, range over the prompts", higher_is_better=False),
    Metric("classification.accuracy", "accuracy", chance=CLASSES),
    Metric("classification.nll", "negative log-likelihood", "nats", False),
    Metric("classification.many", "accuracy of many-shot classes"),
    Metric("classification.medium", "accuracy of medium-shot classes"),
    Metric("classification.few", "accuracy of few-shot classes"),
    Metric("attack.clean", "accuracy on the attacked images before the attack", chance=CLASSES),
    Metric("attack.fgsm", "accuracy under FGSM", chance=CLASSES),
    Metric("attack.pgd", "accuracy under PGD", chance=CLASSES),
    Metric("*.fpr95", "unknown images taken for known by {}", higher_is_better=False, chance="95 %"),
    Metric("*.auroc", "known against unknown images by {}, AUROC", chance=COIN),
    Metric("*.aupr", "known against unknown images by {}, AUPR", chance="the fraction of known images"),
    Metric("color.accuracy", "foils with exchanged colours", chance=COIN),
    Metric("count.accuracy", "foils with exchanged numbers", chance=COIN),
    Metric("relation.accuracy", "foils with exchanged sides", chance=COIN),
    Metric("noun.accuracy", "foils with a sibling's name", chance=COIN),
    Metric("mean.accuracy", "mean over the kinds of foils", chance=COIN),
    Metric("*.accuracy", "foils: {}", chance=COIN),
    Metric(
        "texts.phrases_near_image",
        "phrases among the nearest texts, close to the image",
        "fraction",
        None,
        POOL,
    ),
    Metric(
        "texts.phrases_near_root",
        "phrases among the nearest texts, close to the root",
        "fraction",
        None,
        POOL,
    ),
    Metric("texts.own_near_image", "the image's own texts, close to the image", "fraction", None, POOL),
    Metric("texts.own_near_root", "the image's own texts, close to the root", "fraction", None, POOL),
    Metric("texts.distinct", "distinct nearest texts", "count", None),
    Metric("texts.root", "steps at which the root is nearer than any text", "fraction", None),
    Metric(
        "pictures.parts_near_image",
        "parts among the nearest pictures, close to the image",
        "fraction",
        None,
        POOL,
    ),
    Metric(
        "pictures.parts_near_root",
        "parts among the nearest pictures, close to the root",
        "fraction",
        None,
        POOL,
    ),
    Metric("pictures.own_near_image", "the image's own pictures, close to the image", "fraction", None, POOL),
    Metric("pictures.own_near_root", "the image's own pictures, close to the root", "fraction", None, POOL),
    Metric("pictures.distinct", "distinct nearest pictures", "count", None),
    Metric("pictures.root", "steps at which the root is nearer than any picture", "fraction", None),
    Metric("names.on_path", "nearest names that are the true class or an ancestor", "fraction", None, POOL),
    Metric("names.ancestor", "nearest names that are an ancestor of the true class", "fraction", None, POOL),
    Metric("names.three_levels", "walks that meet names at three depths of the tree", "fraction", None),
    Metric("names.rising", "changes to an ancestor's name", "fraction", None, POOL),
    Metric("names.distinct", "distinct nearest names", "count", None),
    *(
        Metric(f"{block}.{reading}", f"{what} by {how}", "fraction", None, chance, counted=COUNTED[block])
        for block, (what, chance, readings) in READINGS.items()
        for reading, how in readings.items()
    ),
    Metric("train.loss_first", "training loss at the start", "nats", False),
    Metric("train.loss_last", "training loss at the end", "nats", False),
)
_ROWS = {row.path: row for row in CATALOG}


def find(name: str) -> Metric | None:
    """The row of a metric by its dotted name in metrics.json; None when the catalog has none."""
    block, _, last = name.rpartition(".")
    block = block.rpartition(".")[2]
    if row := _ROWS.get(f"{block}.{last}"):
        return row
    row = _ROWS.get(f"*.{last}")
    return row and replace(row, title=row.title.format(block.replace("_", " ")))
