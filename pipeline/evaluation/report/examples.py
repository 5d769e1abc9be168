"""Pictures of the report: images with their boxes, answers, confusions.

All are drawn by seed or in order, none is picked by hand.
"""

import base64
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from hyco.models.grounding.boxes import iou
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.hierarchy import meeting_depth
from hyco.pipeline.evaluation.metrics.retrieval import same_text
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.imaging.crop import shrink_to_short_side
from hyco.pipeline.imaging.decode import decode, encode_jpeg
from hyco.storage.sample import Part, TrainingSample

COLOURS = 6  # --p0 ... --p5 of the page
LONGEST = 300  # characters of a caption or phrase that the page shows


@dataclass(frozen=True, slots=True)
class Answered:
    """Scenes classified by their one kind of thing: index of the scene, predicted and true class, each [N]."""

    scene: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, " N"]
    truth: Int[np.ndarray, " N"]


def picture(data: bytes, side: int) -> tuple[str, int, int]:
    """A data URI of the image as JPEG with its short side at most `side`, and its width and height."""
    array = shrink_to_short_side(decode(data), side)
    height, width = array.shape[:2]
    if max(height, width) > 4 * side:  # a panorama could be as large as the rest of the page
        array = array[: 4 * side, : 4 * side]
        height, width = array.shape[:2]
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(array, 84)).decode()}", width, height


def clip(text: str) -> str:
    """The text for the page: one line, at most LONGEST characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def pieces(caption: str, spans: Iterable[tuple[int, int, int]]) -> list[tuple[str, int | None]]:
    """A caption split at its phrases: (text, group or None). `spans`: (start, end, group); the first one wins."""
    owner: list[int | None] = [None] * len(caption)
    for start, end, group in spans:
        if 0 <= start < end <= len(caption):
            for place in range(start, end):
                owner[place] = group if owner[place] is None else owner[place]
    cuts = [0, *(i for i in range(1, len(caption)) if owner[i] != owner[i - 1]), len(caption)]
    return [(caption[a:b], owner[a]) for a, b in itertools.pairwise(cuts) if a < b]


def mined_samples(samples: Iterable[TrainingSample], most: int, side: int) -> list[dict[str, Any]]:
    """The first `most` samples with boxes for at least two things (with one, where none has two)."""
    rich, poor = [], []
    for sample in samples:
        things = set(_things([part for part in sample.parts if _has_box(part)]).values())
        (rich if len(things) > 1 else poor).append(sample) if things else None
        if len(rich) >= most:
            break
    return [_mined(sample, side) for sample in (rich + poor)[:most]]


def _has_box(part: Part) -> bool:
    return all(map(math.isfinite, part.box))


def _things(parts: Sequence[Part]) -> dict[str, int]:
    """A number for each phrase; phrases with overlapping boxes name one thing and share its number."""
    thing: dict[str, int] = {}
    for part in parts:
        thing.setdefault(same_text(part.phrase), len(thing))
    for first, second in itertools.combinations(parts, 2):
        a, b = thing[same_text(first.phrase)], thing[same_text(second.phrase)]
        if a != b and iou(np.array(first.box), np.array(second.box)) > 0.6:
            thing = {phrase: min(a, b) if n in (a, b) else n for phrase, n in thing.items()}
    order = {n: place for place, n in enumerate(dict.fromkeys(thing.values()))}
    return {phrase: order[n] for phrase, n in thing.items()}


def _mined(sample: TrainingSample, side: int) -> dict[str, Any]:
    parts = [part for part in sample.parts if _has_box(part)]
    things = _things(parts)
    scores: dict[str, list[float]] = {}
    boxes, spans = [], {}
    for part in parts:
        name = same_text(part.phrase)
        group = things[name] % COLOURS
        x0, y0, x1, y1 = (round(100 * min(max(v, 0.0), 1.0), 2) for v in part.box)
        score = "" if math.isnan(part.score) else f"score {part.score:.2f}"
        said = ", ".join(text for text in (clip(part.phrase), score, part.rule, part.origin) if text)
        boxes.append(
            {"x": x0, "y": y0, "w": round(x1 - x0, 2), "h": round(y1 - y0, 2), "group": group, "tip": said}
        )
        scores.setdefault(name, []).append(part.score)
        spans.setdefault(part.caption, []).append((*part.span, group))
    captions = [
        {"plain": clip(caption), "pieces": pieces(caption[:LONGEST], spans.get(index, ()))}
        for index, caption in enumerate(sample.captions)
        if index in spans
    ][:3]
    marked = {
        same_text(text) for caption in captions for text, group in caption["pieces"] if group is not None
    }
    image, width, height = picture(sample.image, side)
    return {
        "image": image,
        "width": width,
        "height": height,
        "boxes": boxes,
        # Phrases that no shown caption marks, such as those of shards without spans.
        "chips": [
            {"phrase": clip(name), "group": things[name] % COLOURS} for name in things if name not in marked
        ],
        "captions": captions
        or [{"plain": clip(sample.captions[0]), "pieces": [(clip(sample.captions[0]), None)]}],
    }


def neighbours(
    embedder: Embedder, embedded: Embedded, count: int, nearest: int, side: int, seed: int
) -> list[dict[str, Any]]:
    """For images drawn by seed: the nearest captions, right or wrong, and the rank of a right one."""
    pairing = embedded.captions
    captioned = np.unique(pairing.image)
    drawn = np.sort(np.random.default_rng(seed).permutation(captioned)[:count])
    scores = embedder.score(embedded.images[torch.from_numpy(drawn)], embedded.texts).cpu().numpy()
    found = []
    for row, index in enumerate(drawn):
        own = set(pairing.text[pairing.image == index].tolist())
        order = np.argsort(-scores[row], kind="stable")
        place = next(n for n, text in enumerate(order, start=1) if int(text) in own)
        found.append(
            {
                "image": picture(embedded.scenes[index].image, side)[0],
                "captions": [clip(text) for text in embedded.scenes[index].captions if text.strip()][:2],
                "rank": f"{place:,}" if place > nearest else "",
                "results": [
                    {"text": clip(pairing.texts[text]), "right": int(text) in own} for text in order[:nearest]
                ],
            }
        )
    return found


def mistakes(
    embedded: Embedded, answered: Answered, taxonomy: Taxonomy, count: int, side: int, seed: int
) -> list[dict[str, Any]]:
    """Misclassified scenes drawn by seed: picture, true class, predicted class, common ancestor."""
    wrong = np.flatnonzero(answered.predicted != answered.truth)
    drawn = np.sort(np.random.default_rng(seed).permutation(wrong)[:count])
    depth = meeting_depth(taxonomy.ancestors())
    depths, leaves = taxonomy.depths(), taxonomy.leaves()
    found = []
    for row in drawn:
        true, answer = int(answered.truth[row]), int(answered.predicted[row])
        node = int(leaves[true])
        while depths[node] > depth[answer, true]:
            node = taxonomy.parents[node]
        found.append(
            {
                "image": picture(embedded.scenes[answered.scene[row]].image, side)[0],
                "true": taxonomy.names[leaves[true]][0],
                "predicted": taxonomy.names[leaves[answer]][0],
                "meet": "" if node == taxonomy.root() else taxonomy.names[node][0],
            }
        )
    return found


def depth_examples(taxonomy: Taxonomy) -> list[str]:
    """For each depth of the tree, the inner node with most leaves below, as an example of a common ancestor."""
    above, depths = taxonomy.ancestors(), taxonomy.depths()
    inner: Sequence[int] = sorted(set(taxonomy.parents) - {-1})
    size = above.sum(axis=0)
    deepest = max(int(depths[node]) for node in inner)
    best = [max((n for n in inner if depths[n] == d), key=lambda n: int(size[n])) for d in range(deepest + 1)]
    return [taxonomy.names[node][0] for node in best]
