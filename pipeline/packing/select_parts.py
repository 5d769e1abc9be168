"""Selection of parts from detections: threshold, size, non-maximum suppression and number; vectorised."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import Field

from hyco.models.grounding.boxes import competed, nms
from hyco.pipeline.config import Config
from hyco.pipeline.packing.filters import FilterConfig, caption_filter, passing_captions, passing_images, slim
from hyco.storage.sample import Sample

pc: Any = pyarrow.compute  # most of its functions are made when it is imported


class SelectionConfig(Config):
    """The rules that turn detections into parts; changing one never runs the detector again."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"nested", "filters", "competition"})

    threshold: float = Field(default=0.35, ge=0, le=1)
    """Minimum score of a box. GRIT keeps above 0.65 with its detector (GLIP); 0.35 suits Grounding DINO."""
    nms_iou: float | None = Field(default=0.6, gt=0, le=1)
    """Maximum IoU of two boxes of the same phrase; above it the better one is kept. null keeps both. A phrase
    is its text: "a dog" in two captions of an image is one phrase.
    """
    nms_all_iou: float | None = Field(default=0.8, gt=0, le=1)
    """Maximum IoU of two boxes of a caption, whatever their phrases, as in GRIT. null keeps both. Boxes of
    other captions do not count.
    """
    min_area_px: int | None = Field(default=32**2, ge=0)
    """Minimum area of a box in the original image, in pixels (HyCoCLIP: above 32 x 32); null keeps all."""
    max_parts: int = Field(default=12, ge=1, le=999)
    """Maximum number of parts per image: the best box of each phrase first, then the others by score."""
    phrases: Literal["chunk", "expression", "both"] = "chunk"
    """Text of a part: "chunk", its noun chunk; "expression", the referring expression around it; "both", a part for
    each of the two, as HyCoCLIP trains on GRIT: every distinct text of an image once, with its first box.
    """
    nested: bool = False
    """Whether "expression" also takes expressions that lie inside another one. The published GRIT contains such
    expressions; the Kosmos-2 paper says that they are left out.
    """
    competition: float = Field(default=0.0, ge=0, le=10)
    """Exponent of the competition between the phrases of an image, before the threshold: a score s counts as
    s * (s / r)^competition where another phrase has the higher score r on the same box. 0 is off; 1 tells look-alikes
    apart, and wants a lower threshold: see `hyco calibrate`.
    """
    filters: FilterConfig = FilterConfig()
    """Which images, captions and boxes are left out whatever their scores."""


@dataclass(frozen=True, slots=True)
class AcceptedPart:
    """One accepted detection: the fields of storage.sample.Part without the crop."""

    phrase: str
    box: tuple[float, float, float, float]
    score: float
    span: tuple[int, int]
    caption: int
    rule: str
    origin: str = ""


def select_parts(table: pa.Table, config: SelectionConfig) -> dict[str, list[AcceptedPart]]:
    """Return the accepted parts of every image in a detections table.

    Args:
        table: columns as in storage.detections.SCHEMA.
        config: the rules.

    Returns:
        Image key to its parts in the order of caption, position and falling score; [] for an image without parts.
        Images that are filtered out are not in it.
    """
    table = passing_images(table, config.filters)
    chosen: dict[str, list[AcceptedPart]] = {key: [] for key in table["key"].unique().to_pylist()}
    table = passing_captions(table, config.filters)
    boxes = np.stack([_floats(table, name) for name in ("x0", "y0", "x1", "y1")], axis=1).clip(0, 1)
    scores = _floats(table, "score")
    sides = boxes[:, 2:] - boxes[:, :2]
    with np.errstate(invalid="ignore"):  # NaN means "no box" and fails every comparison; scores are float32
        keep = (scores >= np.float32(config.threshold)) & (sides > 0).all(axis=1)
        if config.min_area_px is not None:
            pixels = sides.prod(axis=1) * _floats(table, "width") * _floats(table, "height")
            keep &= pixels >= config.min_area_px * (1 - 1e-6)  # boxes are float32
    if config.filters.max_part_aspect is not None:
        keep &= ~slim(boxes, _floats(table, "width"), _floats(table, "height"), config.filters)
    if config.competition:
        keep = _competing(table, boxes, scores, keep, config)
    text = "phrase"
    if config.phrases == "expression":
        text = "expression"
        if not config.nested:
            keep &= np.array([rule == "expression" for rule in table["rule"].to_pylist()], bool)
    rows = np.flatnonzero(keep)
    images, captions = _codes(table["key"])[rows], table["caption"].to_numpy()[rows]
    phrases = _codes(pa.array([(t or "").lower() for t in table[text].take(rows).to_pylist()], pa.string()))
    same_phrase, same_caption = _groups(images, phrases), _groups(images, captions)
    alive = np.ones(len(rows), bool)
    if config.nms_iou is not None:
        alive &= nms(boxes[rows], scores[rows], config.nms_iou, same_phrase)
    if config.nms_all_iou is not None:
        left = np.flatnonzero(alive)
        kept = nms(boxes[rows[left]], scores[rows[left]], config.nms_all_iou, same_caption[left])
        alive[left[~kept]] = False
    left = np.flatnonzero(alive)
    if config.phrases == "both":
        order = np.lexsort((-scores[rows[left]], table["span_start"].to_numpy()[rows[left]], captions[left]))
        for key, parts in _both(table.take(rows[left[order]]).to_pylist()).items():
            best = sorted(range(len(parts)), key=lambda place: -parts[place].score)[: config.max_parts]
            chosen[key] = [parts[place] for place in sorted(best)]
        return chosen
    place = _ranks(same_phrase[left], -scores[rows[left]])  # 0 for the best box of a phrase
    order = np.lexsort((-scores[rows[left]], place, images[left]))
    left = left[order][_ranks(images[left][order], np.arange(len(order))) < config.max_parts]
    starts = table["span_start"].to_numpy()[rows[left]]
    left = left[np.lexsort((-scores[rows[left]], starts, captions[left], images[left]))]
    for row in table.take(rows[left]).to_pylist():
        chosen[row["key"]].append(_choice(row, text))
    return chosen


def _competing(
    table: pa.Table, boxes: np.ndarray, scores: np.ndarray, keep: np.ndarray, config: SelectionConfig
) -> np.ndarray:
    """Which of the boxes in `keep` still reach the threshold in competition with each other, bool [N].

    A box below the threshold is no rival of one above it.
    """
    rows = np.flatnonzero(keep)
    texts = pc.utf8_lower(pc.fill_null(table["phrase"].take(rows), ""))
    counted = competed(
        boxes[rows], scores[rows], _codes(texts), _codes(table["key"])[rows], config.competition
    )
    kept = keep.copy()
    kept[rows] = counted >= np.float32(config.threshold)
    return kept


def without_captions(
    sample: Sample, parts: list[AcceptedPart], config: FilterConfig
) -> tuple[Sample, list[AcceptedPart]]:
    """Return a sample with the captions that pass, and its parts and labels pointing at them."""
    kept = [place for place, caption in enumerate(sample.captions) if not caption_filter(caption, config)]
    if len(kept) == len(sample.captions):
        return sample, parts
    new = {old: place for place, old in enumerate(kept)}
    meta = dict(sample.meta)
    if isinstance(labels := meta.get("objects"), list):
        meta["objects"] = [moved for label in labels if (moved := _moved(label, new)) is not None]
    captions = tuple(sample.captions[place] for place in kept)
    return replace(sample, captions=captions, meta=meta), [
        replace(part, caption=new[part.caption]) for part in parts
    ]


def _moved(label: Any, places: dict[int, int]) -> Any:
    """A label whose caption has another index now; None where the caption is left out."""
    if not isinstance(label, dict) or "caption" not in label:
        return label
    return {**label, "caption": places[label["caption"]]} if label["caption"] in places else None


def _both(rows: list[dict[str, Any]]) -> dict[str, list[AcceptedPart]]:
    """Chunk and expression of every row, each distinct text of an image once, in the order of the rows."""
    found: dict[str, dict[str, AcceptedPart]] = {}
    for row in rows:
        parts = found.setdefault(row["key"], {})
        for text in ("phrase", "expression"):
            part = _choice(row, text)
            parts.setdefault(part.phrase.lower(), part)
    return {key: list(parts.values()) for key, parts in found.items()}


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64 [N], NaN for null."""
    return table[name].to_numpy().astype(np.float64)


def _codes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Integer codes of strings, int64 [N], in order of first appearance."""
    encoded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return encoded.dictionary_encode().indices.to_numpy().astype(np.int64)


def _groups(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One integer per distinct pair (a, b)."""
    return a * (int(b.max(initial=0)) + 1) + b


def _ranks(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each entry among its group's values in rising order, int [N]."""
    order = np.lexsort((values, groups))
    ordered = groups[order]
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return ranks


def _choice(row: dict, text: str) -> AcceptedPart:
    phrase = row[text] or row["phrase"]
    start, end = row["span_start"], row["span_end"]
    if phrase != row["phrase"]:
        start, end = _expression_span(row["text"], phrase, start, end)
    x0, y0, x1, y1 = (min(max(row[name], 0.0), 1.0) for name in ("x0", "y0", "x1", "y1"))
    rule = "chunk" if text == "phrase" else "expression"
    origin = row["detector"] if row["detector"].startswith("source:") else ""
    return AcceptedPart(phrase, (x0, y0, x1, y1), row["score"], (start, end), row["caption"], rule, origin)


def _expression_span(text: str, expression: str, start: int, end: int) -> tuple[int, int]:
    """Span of the expression around the chunk at (start, end) in its caption, or of the chunk itself."""
    at = text.find(expression)
    while at >= 0:
        if at <= start and end <= at + len(expression):
            return at, at + len(expression)
        at = text.find(expression, at + 1)
    return start, end
