"""Scenes of the embedded world: one to four groups of drawings on a background, captioned, with exact boxes.

A scene is a pure function of (size, split, seed). Hashes in `holdout.py` decide which combinations only the held-out
split shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyco.demo import backdrops, captions, holdout
from hyco.demo.art import Art
from hyco.demo.foils import Foil, foils
from hyco.demo.layout import Group, Placed, arrange, facts_between, visible_boxes
from hyco.demo.phrases import loose_phrase
from hyco.demo.taxonomy import Leaf, Taxonomy, load

Box = tuple[float, float, float, float]
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class SceneObject:
    """One drawn thing: `box` is its visible extent (x0, y0, x1, y1), normalised; `group` numbers its look."""

    leaf: str
    color: str | None
    box: Box
    size: str | None
    group: int


@dataclass(frozen=True)
class Mention:
    """A noun phrase of a caption, cut out by `span`, with the boxes of everything it names."""

    caption: int
    phrase: str
    span: tuple[int, int]
    boxes: tuple[Box, ...]
    leaf: str
    color: str | None


@dataclass(frozen=True)
class Scene:
    """An image (uint8 [S, S, 3]) with captions, mentions of its objects, and mentions of the background.

    `surroundings` are noun phrases without a box ("the grass"); `heldout` names the combinations that training never
    shows. Scenes that are held out have `foils`.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    phrases: tuple[Mention, ...]
    objects: tuple[SceneObject, ...]
    surroundings: tuple[Mention, ...]
    split: str
    backdrop: tuple[str, str]
    heldout: tuple[str, ...]
    foils: tuple[Foil, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Leaves present, sorted."""
        return tuple(sorted({o.leaf for o in self.objects}))


@dataclass(frozen=True)
class Draft:
    """A scene before painting: groups, placed drawings (in painting order), backdrop, true relations."""

    groups: tuple[Group, ...]
    placed: tuple[Placed, ...]
    backdrop: tuple[str, str]
    facts: tuple[tuple[str, int, int], ...]
    boxes: tuple[tuple[int, int, int, int], ...]


class World:
    """Makes scenes of `size` x `size` pixels; drawings are rendered on first use and cached."""

    def __init__(self, size: int = 128, taxonomy: Taxonomy | None = None):
        if size < 48:
            raise ValueError(f"size {size} is too small to show anything; use 48 or more (the demo uses 128)")
        self.size = size
        self.taxonomy = taxonomy or load()
        self.leaves = tuple(self.taxonomy.leaves.values())
        self._bases = tuple(leaf for leaf in self.leaves if "base" in leaf.options)
        self._order = np.random.default_rng(0).permutation(len(self.leaves))
        self.art = Art(side=max(160, round(size * 1.25)))

    def scene(self, seed: int, split: str) -> Scene:
        """The scene of a seed (>= 0) in "train" or "heldout"."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; use {' or '.join(map(repr, SPLITS))}")
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        draft = self.draft(seed, split, rng)
        image = self.paint(draft, np.random.default_rng([seed, SPLITS.index(split), 1]))
        return self._describe(draft, image, rng, split, np.random.default_rng([seed, SPLITS.index(split), 2]))

    def draft(self, seed: int, split: str, rng: np.random.Generator) -> Draft:
        """Draw plans until one fits on the page and respects the split.

        Consecutive seeds cycle through the leaves, so that all occur equally often, three times in eight as the only
        thing.
        """
        turn, rank = divmod(seed, len(self.leaves))
        focus = self.leaves[self._order[rank]]
        alone = (3 * turn + rank) % 8 < 3
        count = 1 if alone else 2 + int(rng.choice(3, p=(0.53, 0.3, 0.17)))
        manner = str(rng.choice(_MANNERS, p=_MANNER_SHARE)) if count == 2 else "apart"
        while True:
            draft = self._draft(rng, split, count, focus, manner)
            if draft is not None:
                return draft

    def _draft(
        self, rng: np.random.Generator, split: str, count: int, focus: Leaf, manner: str
    ) -> Draft | None:
        kind = str(rng.choice(backdrops.KINDS, p=_KIND_SHARE))
        tint = str(rng.choice(tuple(backdrops.TINTS)))
        color = _color(focus, split, rng)
        if split == "heldout" and (count == 1 or rng.random() < 0.6):
            out = holdout.colors(focus)
            if out:
                color = str(rng.choice(out))
            else:
                kind = holdout.backdrop(focus) or kind
        looks = [(focus, color)]
        while len(looks) < count:
            others = self._bases if manner == "stacked" else self.leaves
            leaf = others[int(rng.integers(len(others)))]
            if manner != "stacked" and len(looks) == 1 and rng.random() < 0.12 and len(focus.colors) > 1:
                leaf = focus  # the same thing in two colours: only the colour tells them apart
            look = (leaf, _color(leaf, split, rng))
            if look not in looks and (leaf is looks[0][0] or all(leaf is not known for known, _ in looks)):
                looks.append(look)
        if split == "train" and any(holdout.backdrop(leaf) == kind for leaf, _ in looks):
            return None
        groups, placed = arrange(looks, self.art, self.size, rng, manner)
        boxes = visible_boxes(placed, self.size)
        if boxes is None:
            return None
        facts = facts_between(groups, placed, boxes, self.size)
        found = holdout.broken(groups, kind, facts)
        if bool(found) != (split == "heldout"):
            return None
        return Draft(tuple(groups), tuple(placed), (kind, tint), tuple(facts), boxes)

    def paint(self, draft: Draft, rng: np.random.Generator, skip: int | None = None) -> np.ndarray:
        """Pixels of a draft, uint8 [size, size, 3]; `skip` leaves one drawing out (for comparing extents)."""
        image = backdrops.paint(*draft.backdrop, self.size, rng).astype(np.float32)
        for index, item in enumerate(draft.placed):
            if index == skip:
                continue
            (y0, y1, x0, x1), stamp = item.window(self.size)
            alpha = stamp[..., 3:].astype(np.float32) / 255
            image[y0:y1, x0:x1] += (stamp[..., :3] - image[y0:y1, x0:x1]) * alpha
        return np.clip(image + 0.5, 0, 255).astype(np.uint8)

    def _describe(
        self,
        draft: Draft,
        image: np.ndarray,
        rng: np.random.Generator,
        split: str,
        foil_rng: np.random.Generator,
    ) -> Scene:
        side = self.size
        boxes = [tuple(v / side for v in box) for box in draft.boxes]
        members: list[list[Box]] = [[] for _ in draft.groups]
        objects = []
        for item, box in zip(draft.placed, boxes, strict=True):
            members[item.group].append(box)  # type: ignore[arg-type]
            group = draft.groups[item.group]
            objects.append(SceneObject(group.leaf.id, group.color, box, group.size, item.group))  # type: ignore[arg-type]
        texts, phrases, around = [], [], []
        sentences = captions.compose(draft.groups, draft.facts, draft.backdrop, self.taxonomy, rng)
        for number, sentence in enumerate(sentences):
            texts.append(sentence.text)
            for start, end, which in sentence.spans:
                cut = sentence.text[start:end]
                if which is None:
                    around.append(Mention(number, cut, (start, end), (), "", None))
                else:
                    group = draft.groups[which]
                    phrases.append(
                        Mention(number, cut, (start, end), tuple(members[which]), group.leaf.id, group.color)
                    )
        broken = holdout.broken(draft.groups, draft.backdrop[0], draft.facts)
        false = ()
        if split == "heldout":
            false = foils(sentences, draft.groups, draft.facts, self.taxonomy, foil_rng)
        return Scene(
            image,
            tuple(texts),
            tuple(phrases),
            tuple(objects),
            tuple(around),
            split,
            draft.backdrop,
            tuple(broken),
            false,
        )

    def absent_phrases(self, scene: Scene, rng: np.random.Generator, n: int) -> list[str]:
        """n noun phrases for what the scene does not show: another thing, a sibling, or another colour."""
        present = {(o.leaf, o.color) for o in scene.objects}
        kinds = {leaf for leaf, _ in present}
        out: list[str] = []
        while len(out) < n:
            roll = rng.random()
            if roll < 0.35:  # the wrong colour of something that is there
                leaf = self.taxonomy.leaves[str(rng.choice(sorted(kinds)))]
                choices = [c for c in _allowed(leaf, scene.split) if (leaf.id, c) not in present]
                if not choices:
                    continue
                color = str(rng.choice(choices))
            else:
                leaf = self.leaves[int(rng.integers(len(self.leaves)))]
                if roll < 0.6:  # a sibling of something that is there
                    near = self.taxonomy.leaves[str(rng.choice(sorted(kinds)))].parent
                    leaf = self.taxonomy.leaves[
                        str(rng.choice([k for k, v in self.taxonomy.leaves.items() if v.parent == near]))
                    ]
                if leaf.id in kinds:
                    continue
                allowed = _allowed(leaf, scene.split)
                color = str(rng.choice(allowed)) if allowed and rng.random() < 0.75 else None
            phrase = loose_phrase(leaf, color, rng)
            if phrase not in out:
                out.append(phrase)
        return out


_MANNERS, _MANNER_SHARE = ("apart", "stacked", "overlapping"), (0.6, 0.14, 0.26)
_SHARE = {"plain": 3, "gradient": 2.5, "grass": 2, "sand": 1.2, "snow": 1, "sea": 1, "wood": 1.2}
_KIND_SHARE = np.array([_SHARE.get(k, 0.8) for k in backdrops.KINDS])
_KIND_SHARE = _KIND_SHARE / _KIND_SHARE.sum()


def _color(leaf: Leaf, split: str, rng: np.random.Generator) -> str | None:
    allowed = _allowed(leaf, split)
    return allowed[int(rng.integers(len(allowed)))] if allowed else None


def _allowed(leaf: Leaf, split: str) -> tuple[str, ...]:
    """Colours that pictures and texts of the split may give to a leaf."""
    return (
        leaf.colors if split == "heldout" else tuple(c for c in leaf.colors if c not in holdout.colors(leaf))
    )
