"""Phrases that are not in an image's captions, and what a detector makes of them.

A detector is asked for what a caption names, and a caption may name what the image does not show. How often a phrase
that is absent gets a box is measured by asking some images a second time, for their own phrases and for some of other
images. What was found for their own phrases the first time is not touched.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from hyco.models.grounding.detector import Detection
from hyco.pipeline.config import Config
from hyco.pipeline.datasets.wordnet import WordNet
from hyco.pipeline.mining.noun_phrases import Phrase, singulars
from hyco.pipeline.sources.records import objects_of
from hyco.storage.sample import Sample

BINS = 1000
"""Bins of the histogram of scores in [0, 1]."""
_WORD = re.compile(r"[^\W\d_]+")


class AbsenceConfig(Config):
    """How often a detector finds what is not there: measured while mining."""

    incidental: ClassVar[frozenset[str]] = frozenset({"wordnet"})

    images: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the images, by a hash of the key, that are asked again with absent phrases; 0 is off. The detector
    sees these images twice.
    """
    phrases: int = Field(default=6, ge=1, le=64)
    """Number of absent phrases for each of them: phrases of other images whose nouns the captions do not have."""
    wordnet: str = ""
    """File data.noun of WordNet 3.0, plain, .xz or .gz: a phrase is not absent where the captions have a synonym, a
    hypernym or a hyponym of its noun. "" compares the words alone.
    """


class Absence:
    """Draws absent phrases."""

    def __init__(self, config: AbsenceConfig) -> None:
        self.config = config
        self._related = Related(config.wordnet) if config.wordnet else None

    def chooses(self, key: str) -> bool:
        """Return whether the image of this key is asked for absent phrases."""
        return _place(f"absent {key}") < self.config.images

    def draw(self, sample: Sample, own: Iterable[Phrase], pool: Sequence[Phrase]) -> list[str]:
        """Return absent phrases for an image, lower case, as many as there are up to config.phrases.

        Args:
            sample: its captions, and its labels (`objects`) where it has some, say what is there.
            own: the phrases in its captions.
            pool: phrases of other images.
        """
        labels = " ".join(str(label["phrase"]) for label in objects_of(sample.meta) or ())
        words = {
            form
            for word in _WORD.findall(" ".join((*sample.captions, labels)).lower())
            for form in singulars(word)
        }
        heads = {form for phrase in own for form in singulars(phrase.head)}
        heads |= {form for word in _WORD.findall(labels.lower()) for form in singulars(word)}
        drawn: dict[str, None] = {}
        seed = int(_place(f"draw {sample.key}") * 2**32)
        for number in np.random.default_rng(seed).permutation(len(pool)):
            phrase = pool[number]
            forms = set(singulars(phrase.head))
            if forms & words or phrase.text.lower() in drawn:
                continue
            if self._related is not None and self._related.any(forms, heads):
                continue
            drawn[phrase.text.lower()] = None
            if len(drawn) == self.config.phrases:
                break
        return list(drawn)


class Related:
    """Whether two nouns are synonyms, or one a kind of the other, in any of their meanings."""

    def __init__(self, path: str | Path) -> None:
        self._net = WordNet(path)
        self._meanings = self._net.meanings()
        self._above = functools.lru_cache(maxsize=1 << 16)(self._ancestors)

    def any(self, some: Iterable[str], others: Iterable[str]) -> bool:
        """Return whether a noun of the one is related to a noun of the other set."""
        a = {wnid for word in some for wnid in self._meanings.get(word, ())}
        b = {wnid for word in others for wnid in self._meanings.get(word, ())}
        return any(not a.isdisjoint(self._above(wnid)) for wnid in b) or any(
            not b.isdisjoint(self._above(wnid)) for wnid in a
        )

    def _ancestors(self, wnid: str) -> frozenset[str]:
        """The meaning itself and everything above it."""
        return frozenset({wnid}).union(*(self._above(one) for one in self._net.synset(wnid).above))


def best_scores(found: Detection, first: int, count: int) -> list[float]:
    """Return the best score of each of `count` phrases from number `first`, without phrases that were not asked."""
    best = dict.fromkeys((n for n in range(first, first + count) if n not in found.unknown), 0.0)
    for phrase, score in zip(found.phrases.tolist(), found.scores.tolist(), strict=True):
        if phrase in best:
            best[phrase] = max(best[phrase], score)
    return list(best.values())


def histogram(scores: Iterable[float]) -> Counter[int]:
    """Return the number of scores in each bin that has some."""
    return Counter(min(BINS - 1, int(score * BINS)) for score in scores)


def accepted_fraction(records: Iterable[dict[str, Any]], threshold: float) -> tuple[float, int] | None:
    """Return the fraction of absent phrases with a box of at least a score, and their number, over mining records.

    Exact for thresholds of three decimals; None where none was asked.
    """
    asked = accepted = 0
    for record in records:
        told = record.get("absent", {})
        asked += told.get("asked", 0)
        least = round(threshold * BINS)
        accepted += sum(n for place, n in told.get("scores", {}).items() if int(place) >= least)
    return (accepted / asked, asked) if asked else None


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
