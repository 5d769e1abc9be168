"""The text tower on packed texts beside the padded reference, which takes captions and phrases in two passes.

Captions of Flickr8k and noun phrases of theirs: 48 captions with a phrase each through the published tower (MERU,
HyCoCLIP), and 128 captions with all their phrases through that of the recipe `photos`. Without ../shared/data/flickr8k
there is nothing to measure.
"""

import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from hyco.models.encoders.packing import together
from hyco.models.encoders.text import TextConfig, TextTransformer
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.mining.noun_phrases import NounExtractor
from hyco.pipeline.training.recipes import by_name
from tests.perf.runner import Case, saved_megabytes

FLICKR = Path(__file__).parents[3] / "shared/data/flickr8k/00000.tar"
PEER = "padded, two passes"


def cases() -> Iterator[Case]:
    """The published size in float32, and the recipe's in float32 and under autocast."""
    if not FLICKR.is_file():
        print(f"text tower: skipped, there is no {FLICKR}")
        return
    published, photos = TextConfig(), by_name("photos").model.text
    for name, config, every, half, floor in (
        ("text ViT-S 48 + 48", published, False, False, 1.9),
        ("text photos 128 + all", photos, True, False, None),
        ("text photos, bfloat16", photos, True, True, None),
    ):
        side = Side(config, every, half)
        yield Case(f"{name}, step", PEER, "ms", side.packed, side.padded, side.equal, floor)
        if not half:
            keeps = partial(saved_megabytes, side.forward), partial(saved_megabytes, side.two_passes)
            yield Case(f"{name}, saved", PEER, "MB", *keeps, side.equal, floor and 1.5)


@cache
def texts(every: bool) -> tuple[list[str], list[str]]:
    """48 captions with a phrase each, drawn with a fixed seed; or 128 with all phrases."""
    with tarfile.open(FLICKR) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        captions = [json.load(file)["captions"] for file in files if file]
    rng = random.Random(0)
    drawn = [rng.choice(five) for five in rng.sample(captions, 128)]
    phrases = [[phrase.text for phrase in found] for found in NounExtractor()(drawn)]
    if every:
        return drawn, [phrase for found in phrases for phrase in found]
    spoken = [(caption, rng.choice(found)) for caption, found in zip(drawn, phrases, strict=True) if found]
    return [caption for caption, _ in spoken[:48]], [phrase for _, phrase in spoken[:48]]


@cache
def tokenizer() -> Tokenizer:
    """Learned from these captions: CLIP's own is no part of the project."""
    captions, phrases = texts(True)
    return Tokenizer.train([*captions, *phrases], 49408)


class Side:
    """A tower with captions and phrases, in one packed pass or in two padded ones."""

    def __init__(self, config: TextConfig, every: bool, half: bool) -> None:
        torch.manual_seed(0)
        self.half = half
        self.texts = [tokenizer()(kind) for kind in texts(every)]
        self.end = tokenizer().end
        self.tower = TextTransformer(replace(config, end_token=self.end))
        self.weights = torch.randn(sum(map(len, self.texts)), config.width)

    def forward(self) -> Tensor:
        """Features of all texts, packed."""
        self.tower.layout = None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.tower(together(self.texts, self.end)).float()

    def two_passes(self) -> Tensor:
        """Features of all texts by the reference implementation."""
        self.tower.layout = "padded"
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return torch.cat([self.tower(tokens) for tokens in self.texts]).float()

    def packed(self) -> None:
        """Forward and backward."""
        self.tower.zero_grad()
        self.forward().backward(self.weights)

    def padded(self) -> None:
        """Forward and backward of the reference implementation."""
        self.tower.zero_grad()
        self.two_passes().backward(self.weights)

    def equal(self) -> str:
        """Assert equal features and gradients: to 1e-5 in float32, to bfloat16's digits under autocast."""
        outcomes = []
        for forward in (self.forward, self.two_passes):
            self.tower.zero_grad()
            features = forward()
            features.backward(self.weights)
            grads = [p.grad.clone() for p in self.tower.parameters() if p.grad is not None]
            outcomes.append([features.detach(), *grads])
        off = max(float((a - b).norm() / b.norm()) for a, b in zip(*outcomes, strict=True))
        assert off < (0.03 if self.half else 1e-5), f"results differ by {off:.1e}"
        return f"{off:.0e}"
