"""The rows of the training loss, and the published objectives made of them.

HyCoCLIP (Pal et al., ICLR 2025, arXiv 2410.06912), PHyCLIP (ICLR 2026, the same rows in a product of hyperboloids),
MERU (Desai et al., ICML 2023), CLIP (Radford et al. 2021), ARGENT (arXiv 2603.23311), UNCHA (arXiv 2603.22042) and
SigLIP (Zhai et al., ICCV 2023) are different rows of the same tables.

A node is a set of embeddings of one type: "image" and "text" have one row per sample, "image_box" and "text_box" one
row per box.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

Node = Literal["image", "text", "image_box", "text_box"]
Compared = Literal[Node, "images", "texts"]
Geometry = Literal["lorentz", "product", "euclid"]
NODES: tuple[Node, ...] = get_args(Node)
WHOLE_PAIRS: tuple[tuple[Node, Node], ...] = (("image", "text"), ("text", "image"))
BOX_PAIRS: tuple[tuple[Node, Node], ...] = (*WHOLE_PAIRS, ("image_box", "text"), ("text_box", "image"))
BOXES: tuple[Node, ...] = ("image_box", "text_box")
UNIONS: dict[Compared, tuple[Node, Node]] = {"images": ("image", "image_box"), "texts": ("text", "text_box")}
BOX_BOX: tuple[tuple[Node, Node], ...] = (("image_box", "text_box"), ("text_box", "image_box"))
WITHIN_PAIRS: tuple[tuple[Node, Node], ...] = (("image_box", "image"), ("text_box", "text"))
ANGLE_PAIRS: tuple[tuple[Node, Node], ...] = (("text", "image"), ("text_box", "image_box"))
UNION_PAIRS: tuple[tuple[Compared, Compared], ...] = (("images", "texts"), ("texts", "images"))
SIGMOID_PAIRS: tuple[tuple[Node, Node], ...] = (
    ("image", "text"),
    ("image_box", "text"),
    ("text_box", "image"),
)
POLAR_APERTURES: dict[Node, float] = {"text_box": 0.005, "text": 0.05, "image_box": 0.05}
"""K by general node of `polar_cones_objective`."""
POLAR_BANDS: dict[Node, tuple[float, float]] = {
    "text_box": (0.0, 0.012),
    "text": (0.116, 0.0),
    "image_box": (0.0, 0.12),
    "image": (1.5, 0.0),
}
"""Radii by node below and above which `polar_cones_objective` has a cost, 0 for none."""
POLAR_NORMS: dict[Node, float] = {"text_box": 20.0, "text": 10.0, "image_box": 10.0, "image": 10.0}
"""Weights by node of these costs."""
POLAR_STRESSED = {("image", "text"): 1 / 3, ("text", "image"): 1 / 3, ("text_box", "image"): 1 / 3}
"""Weights of the rows of contrast that retrieval and zero-shot classification ask, instead of 1/6."""


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """Cross-entropy of each `query` over the `key`s of the global batch, with its own sample or box as target."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"loss", "temperature", "uncertainty"})

    query: Compared
    """Node whose embeddings are the queries; text_box and image_box have a row per box. "images" are the whole images
    and the parts, "texts" the captions and the phrases.
    """
    key: Compared
    """Node whose embeddings are the keys. Boxes as keys need boxes as queries: the target is the same box. "images" and
    "texts" need each other.
    """
    weight: float
    """Factor of the term in the loss."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """"softmax": cross-entropy over the keys. "sigmoid": sum over the keys of the binary cross-entropies of score +
    bias (SigLIP); it needs `model.sigmoid_bias`, and a row serves both directions.
    """
    temperature: str = ""
    """Name of a learned temperature of `model.temperatures`; empty for the model's own."""
    uncertainty: bool = False
    """Weight the queries by exp(-u) / mean(exp(-u)), u = log(1 + exp(-|x|)) (UNCHA); no gradient flows through it."""

    def __post_init__(self) -> None:
        if (self.query in UNIONS) != (self.key in UNIONS) or (
            self.query in UNIONS and self.query == self.key
        ):
            raise ValueError(
                f"contrast of {self.query} over {self.key}: 'images' and 'texts' are compared with each other only"
            )
        if self.key in BOXES and self.query not in BOXES:
            raise ValueError(
                f"contrast of {self.query} over {self.key}: a whole has several boxes and so no single target; use "
                f"query '{self.key}' and key '{self.query}'"
            )


@dataclass(frozen=True, kw_only=True)
class EntailmentRow:
    """Batch mean of a loss of the exterior angle phi of the specific at the general.

    - hinge: max(0, phi - eta * half-aperture(general)) (HyCoCLIP)
    - angle: Huber(phi), or Huber((1 - exp(-d)) phi) with their distance d (ARGENT)
    - contrastive: cross-entropy of the scores -phi / temperature over the global batch: of each general over all
      specifics and, where both are wholes or both are boxes, of each specific over all generals, halved
    - membership: binary cross-entropies of the logits (eta * half-aperture(general) - phi) / temperature of each
      general over all specifics of the global batch: half of its own's and half of the mean of the others'. From no
      paper; the smooth form of the positive and negative terms of Ganea et al. (ICML 2018, section 4)
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
    digest_if_set: ClassVar[frozenset[str]] = frozenset(
        {"loss", "adaptive", "delta", "temperature", "aperture"}
    )

    general: Node
    """Node that contains the other: its entailment cone is used."""
    specific: Node
    """Node that is contained."""
    eta: float = 1.0
    """Factor of the half-aperture (eta of HyCoCLIP; losses "hinge" and "membership"): below 1 a narrower cone."""
    weight: float
    """Factor of the term in the loss."""
    aperture: float = 0.0
    """Constant K of this row's cones, 0 for the objective's (losses "hinge" and "membership"): nodes at different
    distances from the origin can have cones of the same width.
    """
    loss: Literal["hinge", "angle", "contrastive", "membership"] = "hinge"
    """Loss of the angle: "hinge", "angle", "contrastive" or "membership"."""
    adaptive: bool = False
    """Weight the angle by 1 - exp(-distance) (loss "angle"): pairs near each other are not turned."""
    delta: float = 1.0
    """Angle, in radians, from which the Huber loss is linear (loss "angle")."""
    temperature: str = ""
    """Name of a learned temperature of `model.temperatures` (losses "contrastive" and "membership"); empty for the
    model's own.
    """

    def __post_init__(self) -> None:
        if self.loss != "angle" and (self.adaptive or self.delta != 1.0):
            raise ValueError(
                f"adaptive and delta belong to loss 'angle', not '{self.loss}': drop them or change it"
            )
        if not self.delta > 0:
            raise ValueError(f"delta {self.delta} must be above 0")
        if not self.rejects and self.temperature:
            raise ValueError(
                f"temperature '{self.temperature}' belongs to losses 'contrastive' and 'membership', not "
                f"'{self.loss}': drop it"
            )
        if self.specific in BOXES and self.general not in BOXES:
            raise ValueError(
                f"entailment of {self.specific} by {self.general}: a part cannot contain its whole"
            )

        if not self.aperture >= 0 or (self.aperture and self.loss not in ("hinge", "membership")):
            raise ValueError(
                f"aperture {self.aperture} of loss '{self.loss}' must be above 0, with loss 'hinge' or 'membership'; "
                "0 takes the objective's"
            )

    @property
    def rejects(self) -> bool:
        """Whether the row compares with the batch, so that it has a temperature."""
        return self.loss in ("contrastive", "membership")


@dataclass(frozen=True, kw_only=True)
class NormRow:
    """Batch mean of |x|^2 - log|x| (ARGENT), lowest at |x| = 1/sqrt(2): neither the origin nor the boundary.

    With a `radius` it is max(0, log(radius / r))^2 instead, r = sqrt(c) |x|: the cone of a general farther than 2 K
    from the origin is not saturated. With a `ceiling` it is max(0, log(r / ceiling))^2, or the sum of both. In a
    product the mean over the factors. Below |x| = 1e-4 the logarithm is continued by its tangent.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"radius", "ceiling"})

    node: Node
    """Node whose norms are regularised."""
    weight: float
    """Factor of the term in the loss."""
    radius: float = 0.0
    """Distance from the origin, in units of the curvature, below which norms cost; 0 for none."""
    ceiling: float = 0.0
    """Distance from the origin, in units of the curvature, above which norms cost; 0 for none. Without a radius and a
    ceiling the row is ARGENT's regulariser.
    """

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ValueError(f"radius {self.radius} must not be negative; 0 takes ARGENT's regulariser")
        if self.ceiling and not self.ceiling >= self.radius:
            raise ValueError(f"ceiling {self.ceiling} must be at least the radius {self.radius}; 0 is none")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The rows of a loss."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"norm"})

    contrast: tuple[ContrastRow, ...]
    """Cross-entropy terms; at least one."""
    entailment: tuple[EntailmentRow, ...] = ()
    """Entailment terms; they need geometry "lorentz" or "product"."""
    norm: tuple[NormRow, ...] = ()
    """Norm regularisers; they need geometry "lorentz" or "product"."""
    aperture: float = 0.1
    """Constant K of the entailment cones; the half-aperture at x is asin(2 K / (sqrt(c) |x|))."""
    pairs_at_once: int = 1 << 20
    """Maximum number of entries (queries x keys x factors) of a score matrix in memory; a larger matrix is
    streamed in pieces of this size.
    """

    def __post_init__(self) -> None:
        if self.pairs_at_once < 1:
            raise ValueError(f"pairs_at_once {self.pairs_at_once} must be at least 1")

    @property
    def uses_boxes(self) -> bool:
        """Whether any row uses boxes; if none does, they need not be read or encoded."""
        rows = [(row.query, row.key) for row in self.contrast]
        rows += [(row.general, row.specific) for row in self.entailment]
        rows += [(row.node, row.node) for row in self.norm]
        return any(node in (*BOXES, *UNIONS) for pair in rows for node in pair)

    @property
    def temperatures(self) -> tuple[str, ...]:
        """Names of the learned temperatures that rows use, besides the model's own."""
        rows = (*self.contrast, *self.entailment)
        return tuple(sorted({row.temperature for row in rows} - {""}))

    @property
    def uses_bias(self) -> bool:
        """Whether any row needs the learned bias of sigmoids."""
        return any(row.loss == "sigmoid" for row in self.contrast)


def _rows(pairs: tuple[tuple[Compared, Compared], ...]) -> tuple[ContrastRow, ...]:
    return tuple(ContrastRow(query=query, key=key, weight=1 / len(pairs)) for query, key in pairs)


def clip_objective(boxes: bool = False) -> ObjectiveConfig:
    """CLIP's two cross-entropies; with boxes HyCoCLIP's four, whose parts and phrases are queries only."""
    return ObjectiveConfig(contrast=_rows(BOX_PAIRS if boxes else WHOLE_PAIRS))


def clip_box_pairs_objective() -> ObjectiveConfig:
    """CLIP + boxes as in the papers: parts and phrases are further pairs and keys, 2 B x 2 B with a part per image."""
    return ObjectiveConfig(contrast=_rows(UNION_PAIRS))


def meru_objective(weight: float = 0.2) -> ObjectiveConfig:
    """MERU: two cross-entropies, and the text contains its image."""
    row = EntailmentRow(general="text", specific="image", eta=1.0, weight=weight)
    return ObjectiveConfig(contrast=_rows(WHOLE_PAIRS), entailment=(row,))


def hycoclip_objective(
    weight: float = 0.1, eta_inter: float = 0.7, eta_intra: float = 1.2
) -> ObjectiveConfig:
    """HyCoCLIP's hCC + weight * hCE: texts contain images (eta_inter), boxes contain wholes (eta_intra)."""
    contained: tuple[tuple[Node, Node, float], ...] = (
        ("text", "image", eta_inter),
        ("text_box", "image_box", eta_inter),
        ("image_box", "image", eta_intra),
        ("text_box", "text", eta_intra),
    )
    rows = tuple(EntailmentRow(general=g, specific=s, eta=eta, weight=weight) for g, s, eta in contained)
    return ObjectiveConfig(contrast=_rows(BOX_PAIRS), entailment=rows)


def argent_objective(weight: float = 0.5, norm: float = 0.1) -> ObjectiveConfig:
    """ARGENT (arXiv 2603.23311): HyCoCLIP's contrast and pairs; angles themselves instead of apertures, and norms.

    Between modalities Huber(phi), within them Huber((1 - exp(-d)) phi), each times `weight`; the regulariser is the
    mean over the four nodes, times `norm` (our choice).
    """
    entailment = tuple(
        EntailmentRow(
            general=row.general,
            specific=row.specific,
            weight=weight,
            loss="angle",
            adaptive=(row.general, row.specific) not in ANGLE_PAIRS,
        )
        for row in hycoclip_objective().entailment
    )
    rows = tuple(NormRow(node=node, weight=norm / len(NODES)) for node in NODES)
    return ObjectiveConfig(contrast=_rows(BOX_PAIRS), entailment=entailment, norm=rows)


def uncha_objective() -> ObjectiveConfig:
    """UNCHA-lite (after arXiv 2603.22042): HyCoCLIP, its parts weighted by certainty, and boxes against boxes.

    Boxes and phrases have a temperature of their own, "box". The published calibration of the uncertainty is left out.
    """
    base = hycoclip_objective()
    certain = tuple(replace(row, uncertainty=row.query in BOXES) for row in base.contrast)
    boxes = tuple(ContrastRow(query=query, key=key, weight=0.0, temperature="box") for query, key in BOX_BOX)
    rows = (*certain, *boxes)
    return replace(base, contrast=tuple(replace(row, weight=1 / len(rows)) for row in rows))


def angle_objective(weight: float = 0.25) -> ObjectiveConfig:
    """From no paper: CLIP's two rows, cones that reject the rest of the batch, and HyCoCLIP's hinges.

    Captions and phrases have to hold their own image or box at a smaller angle than all others. These two matrices
    replace HyCoCLIP's contrast of parts; their temperature is "angle".
    """
    negatives = tuple(
        EntailmentRow(general=g, specific=s, weight=weight, loss="contrastive", temperature="angle")
        for g, s in ANGLE_PAIRS
    )
    hinges = hycoclip_objective().entailment
    return ObjectiveConfig(contrast=_rows(WHOLE_PAIRS), entailment=(*negatives, *hinges))


def cones_objective(weight: float = 0.25, aperture: float = 0.1) -> ObjectiveConfig:
    """From no paper: HyCoCLIP's contrast, boxes against boxes, and membership of the batch in the four cones.

    The logits of membership have the temperature "cone".
    """
    rows = tuple(ContrastRow(query=query, key=key, weight=1 / 6) for query, key in (*BOX_PAIRS, *BOX_BOX))
    entailment = tuple(
        EntailmentRow(
            general=row.general,
            specific=row.specific,
            weight=weight,
            loss="membership",
            temperature="cone",
        )
        for row in hycoclip_objective().entailment
    )
    return ObjectiveConfig(contrast=rows, entailment=entailment, aperture=aperture)


def polar_cones_objective(
    weight: float = 0.5,
    apertures: Mapping[Node, float] = POLAR_APERTURES,
    bands: Mapping[Node, tuple[float, float]] = POLAR_BANDS,
    norms: Mapping[Node, float] = POLAR_NORMS,
    within: float = 1 / 6,
    stressed: Mapping[tuple[str, str], float] = POLAR_STRESSED,
) -> ObjectiveConfig:
    """From no paper, for a polar model: contrast of directions, boxes against boxes, and membership in the four cones.

    Phrases are nearer the origin than what they contain, and that is nearer than the images, by factors: a wide cone
    has room for another in it only so. `apertures` are the constants K by general node, `bands` and `norms` the radii
    and the weights of keeping them. `within` is the weight of two more rows of contrast: parts over whole images and
    phrases over captions; `stressed` has the rows of contrast, (query, key), of another weight than 1/6.
    """
    base = cones_objective(weight)
    contrast = tuple(
        replace(row, weight=stressed.get((row.query, row.key), row.weight)) for row in base.contrast
    )
    if within:
        contrast += tuple(ContrastRow(query=query, key=key, weight=within) for query, key in WITHIN_PAIRS)
    rows = tuple(replace(row, aperture=apertures[row.general]) for row in base.entailment)
    kept = tuple(
        NormRow(node=node, weight=norms[node], radius=low, ceiling=high)
        for node, (low, high) in bands.items()
    )
    return replace(base, contrast=contrast, entailment=rows, norm=kept)


def siglip_objective() -> ObjectiveConfig:
    """HyCoCLIP with SigLIP's sigmoids (Zhai et al. 2023) of minus the distance plus a learned bias."""
    rows = tuple(replace(row, loss="sigmoid") for row in _rows(SIGMOID_PAIRS))
    return replace(hycoclip_objective(), contrast=rows)
