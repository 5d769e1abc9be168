"""The training loss as two tables of rows: contrastive and entailment terms.

HyCoCLIP (Pal et al., ICLR 2025, arXiv 2410.06912), PHyCLIP (ICLR 2026, the same rows in a product of
hyperboloids), MERU (Desai et al., ICML 2023) and CLIP (Radford et al. 2021) are different rows of the same
tables.

A node is a set of embeddings of one type: "image" and "text" have one row per sample, "image_box" and "text_box" one
row per box, and `owner` [P] is the index of each box's sample in the batch.
Legend: B samples and P boxes of this process, K keys of all processes, D dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from models.hyperbolic import lorentz, product
from models.hyperbolic.ops import promote
from models.losses.contrastive import PairLoss, contrast
from models.losses.entailment import cone_excess

Node = Literal["image", "text", "image_box", "text_box"]
Whole = Literal["image", "text"]
Geometry = Literal["lorentz", "product", "euclid"]
NODES: tuple[Node, ...] = get_args(Node)
WHOLE_PAIRS: tuple[tuple[Node, Whole], ...] = (("image", "text"), ("text", "image"))
BOX_PAIRS: tuple[tuple[Node, Whole], ...] = (*WHOLE_PAIRS, ("image_box", "text"), ("text_box", "image"))
BOXES: tuple[Node, ...] = ("image_box", "text_box")


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """Cross-entropy of each `query` over the `key`s of the global batch, with its own sample as target."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    query: Node
    """Node whose embeddings are the queries; text_box and image_box have a row per box."""
    key: Whole
    """Node whose embeddings are the keys: whole images or texts."""
    weight: float
    """Factor of the term in the loss."""


@dataclass(frozen=True, kw_only=True)
class EntailmentRow:
    """Batch mean of max(0, exterior angle(general, specific) - eta * half-aperture(general))."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    general: Node
    """Node that contains the other: its entailment cone is used."""
    specific: Node
    """Node that is contained."""
    eta: float
    """Factor of the cone's half-aperture (eta of HyCoCLIP): below 1 a narrower cone."""
    weight: float
    """Factor of the term in the loss."""

    def __post_init__(self) -> None:
        if self.specific in BOXES and self.general not in BOXES:
            raise ValueError(
                f"entailment of {self.specific} by {self.general}: a part cannot contain its whole"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The rows of a loss."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    contrast: tuple[ContrastRow, ...]
    """Cross-entropy terms; at least one."""
    entailment: tuple[EntailmentRow, ...] = ()
    """Entailment terms; they need geometry "lorentz" or "product"."""
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
        return any(node in BOXES for pair in rows for node in pair)


def _contrast(pairs: tuple[tuple[Node, Whole], ...]) -> tuple[ContrastRow, ...]:
    return tuple(ContrastRow(query=query, key=key, weight=1 / len(pairs)) for query, key in pairs)


def clip_objective(boxes: bool = False) -> ObjectiveConfig:
    """CLIP's two cross-entropies; with boxes HyCoCLIP's four (the baseline of arXiv 2607.05268)."""
    return ObjectiveConfig(contrast=_contrast(BOX_PAIRS if boxes else WHOLE_PAIRS))


def meru_objective(weight: float = 0.2) -> ObjectiveConfig:
    """MERU: two cross-entropies, and the text contains its image."""
    row = EntailmentRow(general="text", specific="image", eta=1.0, weight=weight)
    return ObjectiveConfig(contrast=_contrast(WHOLE_PAIRS), entailment=(row,))


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
    return ObjectiveConfig(contrast=_contrast(BOX_PAIRS), entailment=rows)


def scores(
    geometry: Geometry,
    query: Float[Tensor, "Q D"],
    key: Float[Tensor, "K D"],
    curvature: Tensor | float = 1.0,
) -> Float[Tensor, "Q K"]:
    """Similarity of all pairs: [Q, D] x [K, D] -> [Q, K].

    - lorentz: minus the geodesic distance
    - product: minus the mean of the factors' distances; `curvature` [k] has one entry per factor
    - euclid: the cosine of unit vectors
    """
    if geometry == "lorentz":
        return -lorentz.pairwise_distance(query, key, curvature)
    if geometry == "product":
        # One factor after another: k matrices of a large gallery would not fit.
        c = torch.as_tensor(curvature).reshape(-1)
        pieces = (product.split(points, len(c)).unbind(-2) for points in (query, key))
        each = (lorentz.pairwise_distance(q, k, one) for q, k, one in zip(*pieces, c.unbind(), strict=True))
        return -sum(each, start=query.new_zeros(())) / len(c)
    return query @ key.T


def loss(
    nodes: dict[str, Tensor],
    owner: Int[Tensor, "P"],
    scale: Tensor,
    curvature: Tensor | float,
    config: ObjectiveConfig,
    geometry: Geometry = "lorentz",
    distributed: bool = False,
    entailment_share: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its unweighted, detached terms ("contrast/image>text", "entail/text_box>text" ...).

    Args:
        nodes: embeddings by node name; the box nodes may be absent if no row uses them, and may be empty.
        owner: for each box, the index of its sample in this process's batch.
        scale: inverse temperature, a factor of the scores.
        curvature: c > 0, 0-dim, or [k] for a product; unused in Euclidean geometry.
        config: rows of contrastive and entailment terms, with their weights.
        geometry: space in which the embeddings lie.
        distributed: take the keys of all ranks. Every rank needs the same B (not the same P); the mean of the
            ranks' losses, and of their gradients, is then the one of a single process with the whole batch.
        entailment_share: factor of all entailment weights, for a recipe that raises them during training.

    Raises:
        ValueError: entailment rows in Euclidean geometry.
    """
    if geometry == "euclid" and config.entailment:
        raise ValueError("entailment rows need geometry 'lorentz' or 'product'; drop them or change it")
    with torch.autocast(scale.device.type, enabled=False):
        nodes = {name: promote(points) for name, points in nodes.items()}
        curvature = torch.as_tensor(curvature, device=scale.device)
        queries, keys = ({getattr(row, end) for row in config.contrast} for end in ("query", "key"))
        first = dist.get_rank() * len(nodes["image"]) if distributed else 0
        if distributed:
            points = {name: nodes[name] for name in sorted(queries)}
            points |= {f"all {name}": _gather(nodes[name]) for name in sorted(keys)}
        else:
            points = {name: nodes[name] for name in sorted(queries | keys)}
        own = first + torch.arange(len(nodes["image"]), device=scale.device)
        boxes = _mean_over_ranks(len(owner), scale.device) if distributed else scale.new_tensor(len(owner))

        def count(name: str) -> Tensor:
            return boxes.clamp(min=1) if name in BOXES else boxes.new_tensor(max(1, len(own)))

        places = {name: place for place, name in enumerate(points)}
        tables, read = [], []
        for row, reverse_target in _matrices(config.contrast, two_ways=not distributed):
            tables.append(
                PairLoss(
                    query=places[row.query],
                    key=places[f"all {row.key}" if distributed else row.key],
                    target=first + owner if row.query in BOXES else own,
                    weight=row.weight / count(row.query),
                    reverse_target=own if reverse_target else None,
                    reverse_weight=reverse_target.weight / count(reverse_target.query)
                    if reverse_target
                    else None,
                )
            )
            read += [(row, len(tables) - 1, 0)] + [(reverse_target, len(tables) - 1, 1)] * (
                reverse_target is not None
            )
        space = None if geometry == "euclid" else curvature
        total, sums = contrast(list(points.values()), tables, scale, space, config.pairs_at_once)
        terms = {
            f"contrast/{row.query}>{row.key}": sums[table, side] / count(row.query)
            for row, table, side in read
        }
        for row in config.entailment:
            general, specific = nodes[row.general], nodes[row.specific]
            if row.general in BOXES and row.specific not in BOXES:
                specific = specific.index_select(0, owner)
            if geometry == "product":
                general, specific = (product.split(x, _factors(curvature)) for x in (general, specific))
            outside = cone_excess(general, specific, curvature, row.eta, config.aperture)
            term = outside.sum() / (
                count(row.general) * (_factors(curvature) if geometry == "product" else 1)
            )
            total = total + entailment_share * row.weight * term
            terms[f"entail/{row.general}>{row.specific}"] = term.detach()
    return total, terms


def _matrices(
    rows: Sequence[ContrastRow], two_ways: bool
) -> Iterator[tuple[ContrastRow, ContrastRow | None]]:
    """The score matrices of the rows; two rows that are each other's transposes have one matrix."""
    left = list(rows)
    while left:
        row = left.pop(0)
        reverse_target = next(
            (r for r in left if two_ways and (r.query, r.key) == (row.key, row.query)), None
        )
        if reverse_target:
            left.remove(reverse_target)
        yield row, reverse_target


def _factors(curvature: Tensor | float) -> int:
    return curvature.numel() if isinstance(curvature, Tensor) else 1


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in rank order; the gradient of a row flows back to its own rank."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # all_reduce and a slice: gloo has no reduce_scatter.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def _gather(rows: Tensor) -> Tensor:
    gathered = _Gather.apply(rows)
    assert isinstance(gathered, Tensor)
    return gathered


def _mean_over_ranks(count: int, device: torch.device) -> Tensor:
    """Mean number of boxes per rank: each rank's sum over its boxes divided by it gives an unbiased global mean."""
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total / dist.get_world_size()
