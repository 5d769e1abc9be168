"""What the report shows besides numbers: pictures with their boxes, answers, confusions. All drawn by seed or
in order, none picked by hand."""

import base64
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from pipeline.assess.data import Embedder
from pipeline.assess.hierarchy import meeting_depth
from pipeline.assess.retrieval import same_text
from pipeline.assess.scenes import Embedded
from pipeline.assess.taxonomy import Taxonomy
from pipeline.crop import shrink_to_short_side
from pipeline.images import decode, encode_jpeg
from storage.sample import Part, TrainingSample

COLOURS = 6  # --p0 ... --p5 of the page
LONGEST = 300  # characters of a caption or phrase that the page shows


def picture(data: bytes, side: int) -> tuple[str, int, int]:
    """A data URI of the image as JPEG with its short side at most `side`, and its width and height."""
    array = shrink_to_short_side(decode(data), side)
    height, width = array.shape[:2]
    if max(height, width) > 4 * side:  # a panorama would weigh as much as the rest of the page
        array = array[: 4 * side, : 4 * side]
        height, width = array.shape[:2]
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(array, 84)).decode()}", width, height


def clip(text: str) -> str:
    """The text as the page shows it: one line, at most LONGEST characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def pieces(caption: str, spans: Iterable[tuple[int, int, int]]) -> list[tuple[str, int | None]]:
    """A caption cut at its phrases: (text, group or None). `spans`: (start, end, group), first wins."""
    owner: list[int | None] = [None] * len(caption)
    for start, end, group in spans:
        if 0 <= start < end <= len(caption):
            for place in range(start, end):
                owner[place] = group if owner[place] is None else owner[place]
    cuts = [0, *(i for i in range(1, len(caption)) if owner[i] != owner[i - 1]), len(caption)]
    return [(caption[a:b], owner[a]) for a, b in itertools.pairwise(cuts) if a < b]


def mined_samples(samples: Iterable[TrainingSample], most: int, side: int) -> list[dict[str, Any]]:
    """The first `most` samples with at least two boxed phrases (with one, where none has two)."""
    rich, poor = [], []
    for sample in samples:
        phrases = {same_text(part.phrase) for part in sample.parts if _has_box(part)}
        (rich if len(phrases) > 1 else poor).append(sample) if phrases else None
        if len(rich) >= most:
            break
    return [_mined(sample, side) for sample in (rich + poor)[:most]]


def _has_box(part: Part) -> bool:
    return all(map(math.isfinite, part.box))


def _mined(sample: TrainingSample, side: int) -> dict[str, Any]:
    groups: dict[str, int] = {}
    boxes, chips = [], {}
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for part in sample.parts:
        if not _has_box(part):
            continue
        group = groups.setdefault(same_text(part.phrase), len(groups)) % COLOURS
        x0, y0, x1, y1 = (round(100 * min(max(v, 0.0), 1.0), 2) for v in part.box)
        phrase, score = clip(part.phrase), part.score
        shown = "" if math.isnan(score) else f"{score:.2f}"
        boxes.append(
            {
                "x": x0,
                "y": y0,
                "w": round(x1 - x0, 2),
                "h": round(y1 - y0, 2),
                "group": group,
                "phrase": phrase,
            }
        )
        chips.setdefault(same_text(part.phrase), {"group": group, "phrase": phrase, "score": shown})
        spans.setdefault(part.caption, []).append((*part.span, group))
    captions = []
    for index, caption in enumerate(sample.captions):
        if index in spans or (index == 0 and len(sample.captions) == 1):
            short = caption[:LONGEST]
            captions.append({"plain": clip(caption), "pieces": pieces(short, spans.get(index, ()))})
    captions = captions[:3] or [
        {"plain": clip(sample.captions[0]), "pieces": [(clip(sample.captions[0]), None)]}
    ]
    image, width, height = picture(sample.image, side)
    return {
        "image": image,
        "width": width,
        "height": height,
        "boxes": boxes,
        "chips": list(chips.values()),
        "captions": captions,
    }


def neighbours(
    embedder: Embedder, embedded: Embedded, count: int, nearest: int, side: int, seed: int
) -> list[dict[str, Any]]:
    """For images drawn by seed: the nearest of all captions, right or wrong, and the place of a right one."""
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


def confusions(
    predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], taxonomy: Taxonomy, most: int
) -> list[dict[str, Any]]:
    """The most frequent (shown, answered) pairs of leaves, with the node where the two meet."""
    depth = meeting_depth(taxonomy.ancestors())
    depths, leaves = taxonomy.depths(), taxonomy.leaves()
    wrong = [(int(t), int(p)) for t, p in zip(truth, predicted, strict=True) if t != p]
    found = []
    for (true, answer), count in sorted(Counter(wrong).items(), key=lambda item: (-item[1], item[0]))[:most]:
        node = int(leaves[true])
        while depths[node] > depth[answer, true]:
            node = taxonomy.parents[node]
        found.append(
            {
                "true": taxonomy.names[leaves[true]][0],
                "predicted": taxonomy.names[leaves[answer]][0],
                "meet": "" if node == taxonomy.root() else f"both {taxonomy.names[node][0]}",
                "count": count,
            }
        )
    return found


def depth_examples(taxonomy: Taxonomy) -> list[str]:
    """For each depth of the tree, the inner node with most leaves below: an example of what meets there."""
    above, depths = taxonomy.ancestors(), taxonomy.depths()
    inner: Sequence[int] = sorted(set(taxonomy.parents) - {-1})
    size = above.sum(axis=0)
    deepest = max(int(depths[node]) for node in inner)
    best = [max((n for n in inner if depths[n] == d), key=lambda n: int(size[n])) for d in range(deepest + 1)]
    return [taxonomy.names[node][0] for node in best]
