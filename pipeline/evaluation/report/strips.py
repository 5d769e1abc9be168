"""Traversals to the root in the report: the nearest texts, pictures and names on the way, stretch by stretch."""

from typing import Any

import numpy as np

from hyco.pipeline.evaluation.embedded import Embedded, cut_region
from hyco.pipeline.evaluation.metrics.retrieval import same_text
from hyco.pipeline.evaluation.metrics.traversal import STEPS, stretches
from hyco.pipeline.evaluation.metrics.walks import Walks
from hyco.pipeline.evaluation.report.examples import clip, picture
from hyco.pipeline.imaging.decode import decode, encode_jpeg

MOST = 6  # pictures shown of one walk
SMALL = 96  # their short side
ROOT = "the root"


def strips(embedded: Embedded, walks: Walks, count: int, size: int, side: int) -> list[dict[str, Any]]:
    """The first `count` walks; `size` is the model's image size, `side` the short side of the picture shown."""
    found = []
    for row, index in enumerate(walks.images[:count]):
        scene = embedded.scenes[index]
        own = {same_text(text) for text in scene.captions}
        own |= {same_text(phrase) for region in scene.regions for phrase, _ in region.phrases}
        found.append(
            {
                "image": picture(scene.image, side)[0],
                "caption": clip(next((text for text in scene.captions if text.strip()), "a held-out image")),
                "texts": [
                    _text(walks, place, own) | _steps(first, steps)
                    for place, first, steps in stretches(walks.text[row])
                ],
                "pictures": [
                    _picture(embedded, place, int(index), size) | _steps(first, steps)
                    for place, first, steps in stretches(walks.picture[row])[:MOST]
                ],
                "names": [
                    {"text": walks.names[place] if place < len(walks.names) else ROOT} | _steps(first, steps)
                    for place, first, steps in (stretches(walks.name[row]) if walks.name is not None else ())
                ],
            }
        )
    return found


def _steps(first: int, steps: int) -> dict[str, Any]:
    last = first + steps
    return {
        "steps": f"{first + 1}" if steps == 1 else f"{first + 1}\N{EN DASH}{last}",
        "width": round(100 * steps / STEPS, 2),
    }


def _text(walks: Walks, place: int, own: set[str]) -> dict[str, Any]:
    if place == len(walks.texts):
        return {"text": ROOT, "kind": "root", "own": False}
    text = walks.texts[place]
    kind = "caption" if place < walks.captions else "phrase"
    return {"text": clip(text), "kind": kind, "own": same_text(text) in own}


def _picture(embedded: Embedded, place: int, index: int, size: int) -> dict[str, Any]:
    """A data URI, empty for the root; and whether it is the start image or a part of it."""
    count = len(embedded.images)
    if place == count + len(embedded.crops):
        return {"image": "", "alt": ROOT, "own": False}
    owner = place if place < count else int(embedded.scene_of_crop[place - count])
    scene = embedded.scenes[owner]
    data = scene.image
    if place >= count:
        before = int(np.count_nonzero(embedded.scene_of_crop[: place - count] == owner))
        data = encode_jpeg(cut_region(decode(scene.image), scene.regions[before], size))
    what = "a part of " if place >= count else ""
    alt = f"{what}{'the image itself' if owner == index else 'another image'}"
    return {"image": picture(data, SMALL)[0], "alt": alt, "own": owner == index}
