"""Measure the embedded grounder: python -m hyco.demo.grounder_figures --weights demo/weights/grounder.

A scene of the held-out split shows object x colour pairs that training never drew. The prompt has every noun phrase of
all its captions and some things that it does not show. A detection is right when it lies on a box of its own phrase
(IoU >= 0.5), each true box counting once; recall is over (phrase, box) pairs, precision over all detections that pass
the threshold and the pack stage's suppression, those of absent phrases included.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hyco.demo.grounder import IMAGE_SIZE, SCORE_THRESHOLD
from hyco.demo.scenes import Scene, World
from hyco.models.grounding.boxes import competed, iou, nms
from hyco.models.grounding.detector import Detection, Detector
from hyco.pipeline.evaluation.calibrate import Judged

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
FIRST_SCENE = 5_000_000  # first seed of the measured scenes
CALIBRATION_SCENE = 7_000_000  # of the scenes that choose a threshold
WANTED_RECALL = 0.91


@dataclass(frozen=True)
class Question:
    """A scene, the phrases of its prompt, and the boxes [n, 4] of each (none: it is absent)."""

    image: np.ndarray
    phrases: list[str]
    boxes: list[np.ndarray]


def question(scene: Scene, world: World, absent: int, seed: int, plain=lambda text: text) -> Question:
    """Every phrase of the scene's captions (the background's name no box), each once, then `absent` more phrases."""
    named: dict[str, list] = {}
    for mention in (*scene.phrases, *scene.surroundings):
        boxes = named.setdefault(plain(mention.phrase.lower()), [])
        boxes.extend(box for box in mention.boxes if box not in boxes)
    for text in world.absent_phrases(scene, np.random.default_rng(seed), absent):
        named.setdefault(plain(text.lower()), [])
    return Question(
        scene.image, list(named), [np.array(b, np.float64).reshape(-1, 4) for b in named.values()]
    )


def questions(
    count: int, absent: int, split: str = "heldout", first: int = FIRST_SCENE, **plain
) -> list[Question]:
    """`count` questions from scene seeds first, first + 1, ..."""
    world = World(size=IMAGE_SIZE)
    return [question(world.scene(s, split), world, absent, s, **plain) for s in range(first, first + count)]


def judge(
    asked: Question, found: Detection, nms_iou: float = 0.6, competition: float = 0.0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of one image's detections after suppression, whether each is right, and how many boxes were true.

    Detections are taken best first; each claims the free true box of its phrase that it covers best.
    """
    scores, right = [], []
    numbers = np.asarray(found.phrases, np.int64)
    counted = competed(
        np.asarray(found.boxes, np.float64),
        np.asarray(found.scores, np.float64),
        numbers,
        np.zeros_like(numbers),
        competition,
    )
    for phrase, true in enumerate(asked.boxes):
        mine = np.flatnonzero(np.asarray(found.phrases) == phrase)
        boxes, values = np.asarray(found.boxes, np.float64)[mine], counted[mine]
        free = np.ones(len(true), bool)
        order = np.argsort(-values, kind="stable")
        for index in order[nms(boxes, values, nms_iou)[order]]:
            overlap = np.where(free, iou(boxes[index], true), 0.0) if len(true) else np.zeros(1)
            best = int(overlap.argmax())
            scores.append(values[index])
            right.append(bool(overlap[best] >= 0.5))
            if right[-1]:
                free[best] = False
    return np.array(scores), np.array(right, bool), sum(map(len, asked.boxes))


def curve(judged: Iterable[tuple[np.ndarray, np.ndarray, int]]) -> dict[str, dict[str, float]]:
    """Recall and precision over all images at each of `THRESHOLDS`."""
    rows = list(judged)
    scores, right = np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])
    true = sum(r[2] for r in rows)
    points = {}
    for threshold in THRESHOLDS:
        passed = scores >= threshold
        hits = int((right & passed).sum())
        points[f"{threshold:g}"] = {
            "recall": round(hits / max(1, true), 4),
            "precision": round(hits / max(1, int(passed.sum())), 4),
        }
    return points


def measure(detector: Detector, asked: Sequence[Question], batch: int = 16) -> tuple[dict, float]:
    """The curve over `asked` and the milliseconds per image, detector calls only."""
    judged, seconds = [], 0.0
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        begun = time.perf_counter()
        found = detector([q.image for q in part], [q.phrases for q in part])
        seconds += time.perf_counter() - begun
        judged += [judge(q, f) for q, f in zip(part, found, strict=True)]
    return curve(judged), 1000 * seconds / max(1, len(asked))


def calibrated(
    detector: Detector, scenes: int, absent: int = 6, recall: float = WANTED_RECALL
) -> dict[str, dict[str, float]]:
    """Recall and precision on the measured scenes at the threshold that has a recall on as many other scenes.

    One row without competition of the phrases (models.grounding.boxes.competed), one with it.
    """
    answered = []
    for first in (CALIBRATION_SCENE, FIRST_SCENE):
        asked = questions(scenes, absent, first=first)
        found = []
        for start in range(0, len(asked), 16):
            part = asked[start : start + 16]
            found += detector([q.image for q in part], [q.phrases for q in part])
        answered.append(list(zip(asked, found, strict=True)))
    rows = {}
    for competition in (0.0, 1.0):
        chosen, measured = (_judged(pairs, competition) for pairs in answered)
        threshold = chosen.threshold("recall", recall)
        at = {name: round(value, 4) for name, value in measured.at(threshold).items() if value is not None}
        rows[f"competition {competition:g}"] = {"threshold": round(threshold, 4), **at}
    return rows


def _judged(pairs: list[tuple[Question, Detection]], competition: float) -> Judged:
    rows = [judge(asked, found, competition=competition) for asked, found in pairs]
    scores, right, labelled = zip(*rows, strict=True)
    return Judged(np.concatenate(scores), np.concatenate(right), sum(labelled), np.zeros(0))


def main() -> None:
    """Measure and write figures.json next to the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=Path("demo/weights/grounder"))
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument(
        "--calibrated", type=int, default=1000, help="scenes that choose a threshold, and as many"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from hyco.demo.grounder_prompts import without_article
    from hyco.pipeline.mining.grounder import open_detector

    detector = open_detector(f"transformers:{options.weights}")
    cases = {
        "heldout, 2 absent phrases": {"absent": 2},
        "heldout, no absent phrase": {"absent": 0},
        "heldout, 6 absent phrases": {"absent": 6},
        "heldout, 2 absent phrases, without articles": {"absent": 2, "plain": without_article},
        "train split, 2 absent phrases": {"absent": 2, "split": "train"},
    }
    figures, took = {}, []
    for name, case in cases.items():
        figures[name], each = measure(detector, questions(options.scenes, **case))
        took.append(each)
        print(name, figures[name][f"{SCORE_THRESHOLD:g}"], f"{each:.1f} ms per image", flush=True)
    path = options.weights / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known["measured"] = {
        "scenes": options.scenes,
        "iou": 0.5,
        "nms_iou": 0.6,
        "threshold": SCORE_THRESHOLD,
        "threads": options.threads,
        "ms_per_image": round(float(np.median(took)), 1),
        "at_threshold": {name: points[f"{SCORE_THRESHOLD:g}"] for name, points in figures.items()},
        "curve": figures,
        "six_absent_calibrated": {
            "scenes": options.calibrated,
            "wanted_recall": WANTED_RECALL,
            **calibrated(detector, options.calibrated),
        },
    }
    path.write_text(json.dumps(known, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
