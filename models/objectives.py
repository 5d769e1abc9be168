"""The training loss as two tables of rows: contrast (who finds whom) and entailment (who contains whom).

HyCoCLIP (Pal et al., ICLR 2025, arXiv 2410.06912), PHyCLIP (ICLR 2026, the same rows in a product of
hyperboloids), MERU (Desai et al., ICML 2023) and CLIP (Radford et al. 2021) are different rows of the same
tables. Legend: B samples and P boxes of this process, K keys of all
processes, D dim. A node is a set of embeddings of one type: "image" and "text" have a row a sample,
"image_box" and "text_box" a row a box, and `owner` [P] tells to which sample of the batch each box belongs.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from models.hyperbolic import lorentz, product

Node = Literal["image", "text", "image_box", "text_box"]
Whole = Literal["image", "text"]
Geometry = Literal["lorentz", "product", "euclid"]
NODES: tuple[Node, ...] = get_args(Node)
WHOLE_PAIRS: tuple[tuple[Node, Whole], ...] = (("image", "text"), ("text", "image"))
BOX_PAIRS: tuple[tuple[Node, Whole], ...] = (*WHOLE_PAIRS, ("image_box", "text"), ("text_box", "image"))
BOXES: tuple[Node, ...] = ("image_box", "text_box")


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """Cross-entropy of each `query` picking its own sample among the `key`s of the global batch."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    query: Node
    key: Whole
    weight: float


@dataclass(frozen=True, kw_only=True)
class EntailmentRow:
    """Batch mean of max(0, exterior angle(general, specific) - eta * half-aperture(general))."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    general: Node
    specific: Node
    eta: float
    weight: float

    def __post_init__(self) -> None:
        if self.specific in BOXES and self.general not in BOXES:
            raise ValueError(
                f"entailment of {self.specific} by {self.general}: a part cannot contain its whole"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The rows of a loss; `aperture` is the K of the entailment cones."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    contrast: tuple[ContrastRow, ...]
    entailment: tuple[EntailmentRow, ...] = ()
    aperture: float = 0.1

    @property
    def uses_boxes(self) -> bool:
        """Whether any row needs the parts; if not, they need not be read or encoded."""
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
    """Similarity of all pairs: minus the distance of Lorentz points (of a product, minus the mean of its factors'
    distances; it has as many as `curvature` [k] has entries), the cosine of Euclidean unit vectors."""
    if geometry == "lorentz":
        return -lorentz.pairwise_distance(query, key, curvature)
    if geometry == "product":
        return -product.pairwise_distance(query, key, curvature, _factors(curvature))
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
        owner: which sample of this process's batch each box belongs to.
        scale: inverse temperature, a factor of the scores.
        curvature: c > 0, 0-dim, or [k] for a product; unused in Euclidean geometry.
        distributed: take the keys of all ranks. Every rank needs the same B (not the same P); the mean of the
            ranks' losses, and of their gradients, is then what one process with the whole batch would have.
        entailment_share: factor of all entailment weights, for a recipe that lets them rise.
    """
    device_type = scale.device.type
    with torch.autocast(device_type, enabled=False):
        nodes = {name: points.float() for name, points in nodes.items()}
        scale = scale.float()
        gathered: dict[str, Tensor] = {}
        first = 0
        if distributed:
            gathered = {key: _gather(nodes[key]) for key in sorted({row.key for row in config.contrast})}
            first = dist.get_rank() * len(nodes["image"])
        own = torch.arange(len(nodes["image"]), device=scale.device)
        boxes = _mean_over_ranks(len(owner), scale.device) if distributed else scale.new_tensor(len(owner))

        def average(name: str, values: Tensor) -> Tensor:
            return values.sum() / boxes.clamp(min=1) if name in BOXES else values.mean()

        total, terms = scale.new_zeros(()), {}
        for row in config.contrast:
            keys = gathered[row.key] if distributed else nodes[row.key]
            logits = scale * scores(geometry, nodes[row.query], keys, curvature)
            target = first + (owner if row.query in BOXES else own)
            term = average(row.query, F.cross_entropy(logits, target, reduction="none"))
            total = total + row.weight * term
            terms[f"contrast/{row.query}>{row.key}"] = term.detach()
        for row in config.entailment:
            if geometry == "euclid":
                raise ValueError("entailment rows need geometry 'lorentz' or 'product'; drop them or change it")
            general, specific = nodes[row.general], nodes[row.specific]
            if row.general in BOXES and row.specific not in BOXES:
                specific = specific[owner]
            if geometry == "product":
                general, specific = (product.split(x, _factors(curvature)) for x in (general, specific))
            angle = lorentz.exterior_angle(general, specific, curvature)
            cone = lorentz.half_aperture(general, curvature, config.aperture)
            outside = F.relu(angle - row.eta * cone)
            term = average(row.general, outside.mean(-1) if geometry == "product" else outside)
            total = total + entailment_share * row.weight * term
            terms[f"entail/{row.general}>{row.specific}"] = term.detach()
    return total, terms


def _factors(curvature: Tensor | float) -> int:
    return curvature.numel() if isinstance(curvature, Tensor) else 1


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in rank order; the gradient of a row flows back to the rank it came from."""

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
    """Boxes a rank on average: with it each rank's sum over its boxes makes an unbiased global mean."""
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total / dist.get_world_size()
