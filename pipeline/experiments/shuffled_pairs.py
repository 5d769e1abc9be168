"""Shuffled pairs that are true all the same: how often the scenes' own objects say so.

    python -m hyco.pipeline.experiments.shuffled_pairs var/demo/scenes/heldout
    python -m hyco.pipeline.experiments.shuffled_pairs --home var/photos            # the val split of mined photographs

The geometry report asks whether cones hold true pairs and reject shuffled ones. A shuffled part may lie in an image
that shows such a thing too. Here a pair is true if the objects say so: a part lies in an image with a thing of its kind
and colour; a phrase names a part of its kind, and of its colour where it names one; a caption fits an image if the
image has what all of its phrases name; a phrase fits a caption that has a phrase of that kind, and of its colour. The
words of relation, number and size are not looked at, so the rates are upper bounds. Mined photographs have no objects:
there a thing is what the phrase of a part names, once as the class of COCO that it means ("a woman" and "two boys" are
persons), and once as its last word, which is too strict.

A text that is a caption here and a phrase there is one point, which cannot be as near the origin as phrases and as far
as captions: how many there are is printed too.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hyco.models.grounding.vocabulary import Vocabulary, coco_names
from hyco.pipeline.evaluation.held_out import held_out
from hyco.pipeline.evaluation.metrics.geometry import shuffle
from hyco.pipeline.evaluation.metrics.retrieval import same_text
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.experiments.grid import command
from hyco.pipeline.sources.source import open_source
from hyco.storage.home import Home

MOST = 5000  # held-out images
Thing = tuple[Any, str | None]
"""Kind and colour; None for a colour that is not named, or of a thing that has its own."""


def rates(scenes: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, tuple[int, int]]:
    """(shuffled pairs that are true, shuffled pairs) by "general>specific", of the json of scenes with objects."""
    parts: list[Thing] = []
    captions, phrases = _Numbers(), _Numbers()
    said, named = dict[int, set[Thing]](), dict[int, Thing]()
    pairs: dict[str, list[tuple[int, int]]] = {
        name: [] for name in ("text>image", "text_box>image_box", "image_box>image", "text_box>text")
    }
    shown: list[set[Thing]] = []
    for image, scene in enumerate(scenes):
        own = [captions.of(text) for text in scene["captions"]]
        pairs["text>image"] += [(caption, image) for caption in own]
        boxes: dict[tuple[float, ...], int] = {}
        shown.append({(entry["leaf"], entry["color"]) for entry in scene["objects"]})
        for entry in scene["objects"]:
            thing, place = (entry["leaf"], entry["color"]), tuple(entry["box"])
            if place not in boxes:
                boxes[place] = len(parts)
                parts.append(thing)
                pairs["image_box>image"].append((boxes[place], image))
            phrase, caption = phrases.of(entry["phrase"]), own[entry["caption"]]
            named[phrase] = _named(entry)
            said.setdefault(caption, set()).add(named[phrase])
            pairs["text_box>image_box"].append((phrase, boxes[place]))
            pairs["text_box>text"].append((phrase, caption))
    tests = {
        "text>image": lambda g, s: bool(said.get(g)) and all(_fits(thing, shown[s]) for thing in said[g]),
        "text_box>image_box": lambda g, s: _fits(named[g], {parts[s]}),
        "image_box>image": lambda g, s: parts[g] in shown[s],
        "text_box>text": lambda g, s: _fits(named[g], said.get(s, set())),
    }
    found = {}
    for name, true in pairs.items():
        false = shuffle(np.array(true), seed) if true else np.zeros((0, 2), np.int64)
        found[name] = (
            sum(tests[name](general, specific) for general, specific in false.tolist()),
            len(false),
        )
    return found


def mined(scenes: Iterable[Scene]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scenes of mined parts as `rates` takes them: things are classes of COCO, or last words of phrases."""
    classes = Vocabulary(coco_names())
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for scene in scenes:
        said = [
            (phrase, caption, region.box or (float(number),))
            for number, region in enumerate(scene.regions)
            for phrase, caption in region.phrases
            if caption >= 0 and same_text(phrase)
        ]
        things = (lambda phrase: classes(phrase) or phrase), (lambda phrase: same_text(phrase).split()[-1])
        for kind, leaf in zip(found, things, strict=True):
            objects = [
                {"leaf": leaf(phrase), "color": None, "phrase": phrase, "caption": caption, "box": box}
                for phrase, caption, box in said
            ]
            kind.append({"captions": scene.captions, "objects": objects})
    return found


def both(scenes: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Fraction of the captions that are also a phrase, and of the phrases that are also a caption, word for word."""
    captions = [same_text(text) for scene in scenes for text in scene["captions"]]
    phrases = [same_text(entry["phrase"]) for scene in scenes for entry in scene["objects"]]
    texts = [set(captions), set(phrases)]
    return (
        sum(text in texts[1] for text in captions) / max(len(captions), 1),
        sum(text in texts[0] for text in phrases) / max(len(phrases), 1),
    )


class _Numbers(Counter[str]):
    """Numbers of texts in the order in which they are met."""

    def of(self, text: str) -> int:
        return self.setdefault(same_text(text), len(self))


def _named(entry: Mapping[str, Any]) -> Thing:
    color = entry["color"]
    return entry["leaf"], color if color and color in entry["phrase"].lower().split() else None


def _fits(thing: Thing, there: Iterable[Thing]) -> bool:
    kind, color = thing
    return any(kind == other and color in (None, own) for other, own in there)


def _tell(how: str, scenes: Sequence[Mapping[str, Any]]) -> None:
    for name, (true, pairs) in rates(scenes).items():
        print(
            f"{name}: {true} of {pairs} shuffled pairs are true{how and ' '}{how} ({true / max(pairs, 1):.2%})"
        )
    captions, phrases = both(scenes)
    print(f"{captions:.1%} of the captions are also a phrase, {phrases:.1%} of the phrases also a caption")


def main(arguments: list[str] | None = None) -> int:
    """Print how many shuffled pairs of each kind are true by the objects of the scenes."""
    parser = argparse.ArgumentParser(
        prog="hyco.pipeline.experiments.shuffled_pairs", description=main.__doc__
    )
    parser.add_argument("source", nargs="?", help="scenes of the embedded world, with objects in their json")
    parser.add_argument("--home", help="home of mined photographs, whose val split is counted instead")
    given = parser.parse_args(arguments)

    def count() -> None:
        if (given.source is None) == (given.home is None):
            raise ValueError("give scenes or --home, and not both")
        if given.home:
            home = Home(given.home)
            by_class, by_word = mined(held_out(home, home.versions.load("latest"), None, MOST).scenes)
            _tell("as the same class", by_class)
            _tell("as the same last word", by_word)
            return
        opened = open_source(given.source)
        scenes = [
            {**sample.meta, "captions": sample.captions}
            for unit in opened.units()
            for sample in opened.samples(unit, lambda failure: None)
        ]
        if lost := next((number for number, meta in enumerate(scenes) if "objects" not in meta), None):
            raise ValueError(
                f"{given.source}: sample {lost} has no objects; give scenes of the embedded world"
            )
        _tell("", scenes)

    return command(count)


if __name__ == "__main__":
    sys.exit(main())
