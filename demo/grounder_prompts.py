"""Scenes and prompts that the embedded grounder learns from: prompts like those of mining, and harder ones.

A scene is drawn once, stored as a JPEG with its mentions, and used several times in training, each time with another
crop, flip, brightness and prompt. Randomness depends only on (seed, step, rank), so a killed training resumes exactly.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hyco.demo.grounder import IMAGE_SIZE
from hyco.demo.grounder_loss import Target
from hyco.demo.scenes import Scene, World
from hyco.demo.taxonomy import COLORS

Box = tuple[float, float, float, float]
ARTICLES = ("a ", "an ", "the ", "one ", "some ")
FIRST_SCENE = 10_000_000  # first seed of training scenes; the demo's own shards and the tests use small seeds
ABSENT_KEPT = 12  # absent phrases stored with each scene, sampled at each use


@dataclass(frozen=True)
class Named:
    """A phrase of a caption and every box it names (corners, normalised); a background's phrase names none."""

    text: str
    caption: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Lesson:
    """A stored scene: JPEG, how many captions it has, its mentions, phrases for things it does not show."""

    jpeg: bytes
    captions: int
    named: tuple[Named, ...]
    absent: tuple[str, ...]


def world_words(world: World, scenes: int = 1000) -> set[str]:
    """The vocabulary of the world, from its taxonomy and the captions of `scenes` scenes."""
    texts = [text for node in world.taxonomy.to_json()["nodes"] for text in (*node["names"], node["plural"])]
    texts += [name for leaf in world.leaves for names in leaf.names for name in names]
    texts += list(COLORS)
    for seed in range(FIRST_SCENE, FIRST_SCENE + scenes):
        texts += world.scene(seed, "train").captions
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def lesson_of(scene: Scene, world: World, rng: np.random.Generator) -> Lesson:
    """The part of a scene that training needs; JPEG at a random quality, like users' images."""
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=int(rng.integers(80, 98)))
    named = tuple(Named(m.phrase, int(m.caption), m.boxes) for m in (*scene.phrases, *scene.surroundings))
    absent = tuple(world.absent_phrases(scene, rng, ABSENT_KEPT))
    return Lesson(buffer.getvalue(), len(scene.captions), named, absent)


def load_lessons(
    folder: Path, seed: int, scenes: range, rank: int, ranks: int, report: Callable[[int], None]
) -> list[Lesson]:
    """This rank's part of the training scenes numbered `scenes`, drawn once and then read from `folder`.

    report(n) is called while drawing, with the number drawn so far.
    """
    path = folder / f"lessons-{seed}-{scenes.start}-{scenes.stop}-{rank}of{ranks}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        world = World(size=IMAGE_SIZE)
        with partial.open("w") as lines:
            for done, index in enumerate(scenes[rank::ranks], 1):
                rng = np.random.default_rng((seed, 1, index))
                scene = world.scene(FIRST_SCENE + seed * 1_000_000 + index, "train")
                lines.write(json.dumps(_to_json(lesson_of(scene, world, rng))) + "\n")
                report(done)
        partial.replace(path)
    with path.open() as lines:
        return [_from_json(json.loads(line)) for line in lines]


def _to_json(lesson: Lesson) -> dict:
    return {
        "jpeg": base64.b64encode(lesson.jpeg).decode(),
        "captions": lesson.captions,
        "named": [[n.text, n.caption, n.boxes] for n in lesson.named],
        "absent": lesson.absent,
    }


def _from_json(row: dict) -> Lesson:
    named = tuple(Named(text, caption, tuple(map(tuple, boxes))) for text, caption, boxes in row["named"])
    return Lesson(base64.b64decode(row["jpeg"]), row["captions"], named, tuple(row["absent"]))


def without_article(text: str) -> str:
    """ "a red duck" -> "red duck"; a phrase without article comes back as it is."""
    for article in ARTICLES:
        if text.lower().startswith(article):
            return text[len(article) :]
    return text


def choose_prompt(lesson: Lesson, rng: np.random.Generator, absent: int = 6) -> dict[str, list[Box]]:
    """Phrases to ask about, in random order, each with the boxes it names (none when it names nothing).

    Mentions of one caption or of several, with and without article, and 0 to `absent` absent phrases; a text
    that two captions share is asked once and names the boxes of both.
    """
    several = rng.random() < 0.5
    captions = range(lesson.captions) if several else [int(rng.integers(lesson.captions))]
    bare = rng.random() < 0.15  # sometimes the entire prompt has no articles
    asked: dict[str, list[Box]] = {}
    for mention in lesson.named:
        if mention.caption not in captions:
            continue
        plain = bare or rng.random() < 0.15
        text = (without_article(mention.text) if plain else mention.text).lower()
        boxes = asked.setdefault(text, [])
        boxes.extend(box for box in mention.boxes if box not in boxes)
    present = set(asked) | {without_article(text) for text in asked}
    for text in rng.permutation(np.array(lesson.absent, dtype=object))[: int(rng.integers(0, absent + 1))]:
        text = (without_article(text) if bare or rng.random() < 0.15 else text).lower()
        if without_article(text) not in present:
            asked.setdefault(text, [])
    order = rng.permutation(len(asked))[: absent + 8]
    texts = list(asked)
    return {texts[i]: asked[texts[i]] for i in order}


def prompt_text(phrases: Iterator[str] | list[str]) -> str:
    """Join phrases in Grounding DINO's format: every phrase followed by a full stop."""
    return " ".join(f"{phrase} ." for phrase in phrases)


def look(lesson: Lesson, rng: np.random.Generator) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The augmented picture of a lesson, and the map for its corner boxes.

    A crop that cuts no box (a new scale and aspect) half of the time, a mirror half of the time, small changes
    of brightness and contrast. Returns uint8 [H, W, 3] and a function on float [N, 4] corner boxes.
    """
    image = Image.open(io.BytesIO(lesson.jpeg)).convert("RGB")
    x0, y0, x1, y1 = 0.0, 0.0, 1.0, 1.0
    if rng.random() < 0.5:
        every = [box for mention in lesson.named for box in mention.boxes]
        edges = np.array(every) if every else np.array([[0.5, 0.5, 0.5, 0.5]])
        x0, y0 = (max(0.0, low) * rng.uniform(0, 0.9) for low in edges[:, :2].min(0))
        x1, y1 = (1 - max(0.0, 1 - high) * rng.uniform(0, 0.9) for high in edges[:, 2:].max(0))
        window = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
        image = image.resize(image.size, Image.Resampling.BILINEAR, box=window)
    pixels = np.asarray(image)
    if mirror := rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.5:
        gain, shift = rng.uniform(0.88, 1.12), rng.uniform(-12, 12)
        pixels = np.clip(pixels.astype(np.float32) * np.float32(gain) + np.float32(shift), 0, 255)

    def carry(boxes: np.ndarray) -> np.ndarray:
        moved = (boxes - [x0, y0, x0, y0]) / [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        if mirror:
            moved = np.stack([1 - moved[:, 2], moved[:, 1], 1 - moved[:, 0], moved[:, 3]], 1)
        return moved.clip(0, 1)

    return np.ascontiguousarray(pixels, dtype=np.uint8), carry


def target_of(prompt: dict[str, list[Box]], carry: Callable[[np.ndarray], np.ndarray]) -> Target:
    """True boxes of a prompt, each once, and the phrases that name it."""
    boxes = list(dict.fromkeys(box for named in prompt.values() for box in named))
    positive = torch.tensor([[box in named for named in prompt.values()] for box in boxes], dtype=torch.bool)
    corner = torch.from_numpy(carry(np.array(boxes, dtype=np.float64).reshape(-1, 4))).float()
    centred = torch.cat([(corner[:, :2] + corner[:, 2:]) / 2, corner[:, 2:] - corner[:, :2]], 1)
    return Target(centred, positive.reshape(len(boxes), len(prompt)))


def batch_of(
    lessons: list[Lesson], size: int, rng: np.random.Generator, absent: int = 6
) -> tuple[np.ndarray, list[str], list[Target]]:
    """`size` random lessons as uint8 images [B, H, W, 3], prompts and targets."""
    images, texts, targets = [], [], []
    for index in rng.integers(len(lessons), size=size):
        lesson = lessons[index]
        pixels, carry = look(lesson, rng)
        prompt = choose_prompt(lesson, rng, absent)
        images.append(pixels)
        texts.append(prompt_text(list(prompt)))
        targets.append(target_of(prompt, carry))
    return np.stack(images), texts, targets
