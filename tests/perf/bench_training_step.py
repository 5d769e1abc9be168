"""A training step beside the published way in plain torch: the small form of tests/perf/gpu.py.

Forward and backward pass and optimiser, with one part per image. The published way is float32 on texts padded to the
context length, one pass for each of the four nodes, eager, unfused AdamW, the loss by four matrices. Ours is the
trainer's: in the recipe's precision, where the CPU has bfloat16, and in float32. The texts are those of the demo's
scenes, of Flickr8k for ViT-S/16, and random with GRIT's lengths for the small towers. As in the trainer's process, the
C library keeps freed memory, for both sides. The other cases ask what the options of the trainer cost: compiled blocks,
in pieces (GradCache), and activations that are computed again.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from hyco.demo.scenes import World
from hyco.models.clip import ClipConfig
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.runtime.device import autocasts
from hyco.pipeline.runtime.memory import keep_freed_memory
from hyco.pipeline.training import strategy
from hyco.pipeline.training.recipes import by_name
from tests.perf import bench_text, gpu_steps
from tests.perf.gpu_steps import Inputs, OurStep, PublishedStep
from tests.perf.runner import Case, saved_megabytes

CONFIG, BATCH = gpu_steps.SIZES["small"], 32
CPU = torch.device("cpu")
HALF = torch.bfloat16 if autocasts("bfloat16", CPU) else None
SCENES, ROUNDS = 256, 3
PEER = "published way"


def cases() -> Iterator[Case]:
    """Speed of a step and of its options."""
    for name, make, floors, unit in (
        ("demo_hycoclip", demo_hycoclip, {"bfloat16": 4.5, "float32": 1.7, "bfloat16, compiled": None}, "ms"),
        ("ViT-S/16", vit_s, {"bfloat16": 2.0, "float32": 1.5}, "s"),
    ):
        if name != "demo_hycoclip" and not bench_text.FLICKR.is_file():
            continue
        for kind, floor in floors.items():
            if HALF is None and kind != "float32":
                continue
            equal, ours, theirs = (
                partial(equal_steps, make),
                partial(step, make, kind),
                partial(step, make, ""),
            )
            if unit == "s":
                ours, theirs = (partial(seconds, make, kind, side) for side in (0, 1))
            yield Case(f"training step, {name}, {kind}", PEER, unit, ours, theirs, equal, floor)
    equal = partial(gpu_steps.agreement, CONFIG, 4, CPU)
    pieces, ours, theirs, recomputed = (
        partial(small, name) for name in ("pieces", "ours", "published", "recomputed")
    )
    yield Case("training step, small", PEER, "ms", ours, theirs, equal, 1.3)
    yield Case("step in pieces of 8", "the whole batch", "ms", pieces, ours, pieces_equal, 0.5)
    yield Case("step, recomputed", "kept activations", "ms", recomputed, ours, lambda: "n/a", 0.6)
    yield Case(
        "activations, recomputed",
        "kept activations",
        "MB",
        partial(saved, "recomputed"),
        partial(saved, "ours"),
        lambda: "n/a",
        5.0,
    )


Made = tuple[ClipConfig, Inputs]


@cache
def demo_hycoclip() -> Made:
    """The demo's towers and a batch of its captions, with a phrase of each."""
    recipe, world, rng = by_name("demo_hycoclip"), World(48), random.Random(0)
    scenes = [world.scene(seed, "train") for seed in range(SCENES)]
    text = recipe.model.text
    told = [line for scene in scenes for line in (*scene.captions, *(m.phrase for m in scene.phrases))]
    tokenizer = Tokenizer.train(told, text.vocab_size, text.context_length)
    drawn = [rng.choice([m for m in scene.phrases if m.boxes]) for scene in scenes[: recipe.batch_size]]
    captions = [scene.captions[m.caption] for scene, m in zip(scenes, drawn, strict=False)]
    return _made(recipe.model, tokenizer, captions, [mention.phrase for mention in drawn])


@cache
def vit_s() -> Made:
    """The published size with 16 captions of Flickr8k, and a phrase of each."""
    captions, phrases = (texts[:16] for texts in bench_text.texts(False))
    return _made(gpu_steps.SIZES["ViT-S/16"], bench_text.tokenizer(), captions, phrases)


def _made(model: ClipConfig, tokenizer: Tokenizer, captions: list[str], phrases: list[str]) -> Made:
    vocabulary = max(len(tokenizer), model.text.vocab_size if model.text.vocab_size == 49408 else 0)
    text = replace(model.text, vocab_size=vocabulary, end_token=tokenizer.end)
    drawn, side = torch.Generator().manual_seed(0), model.vision.image_size

    def pixels() -> Tensor:
        return torch.randint(0, 256, (len(captions), side, side, 3), dtype=torch.uint8, generator=drawn)

    return replace(model, text=text), Inputs(pixels(), tokenizer(captions), pixels(), tokenizer(phrases), ())


@cache
def _step(make: Callable[[], Made], kind: str) -> OurStep | PublishedStep:
    """Our step in a precision, compiled or not; the published one for ""."""
    config, inputs = make()
    keep_freed_memory()  # of both sides
    if not kind:
        return PublishedStep(config, inputs, None)
    return OurStep(config, inputs, None if kind == "float32" else HALF, compiled=kind.endswith("compiled"))


def step(make: Callable[[], Made], kind: str) -> None:
    """Take a step; the first call makes what it needs."""
    _step(make, kind)()


@cache
def _spent(make: Callable[[], Made], kind: str) -> tuple[float, float]:
    """Median seconds of processor time of our step and of the published one, in turns after one each."""
    times: dict[str, list[float]] = {kind: [], "": []}
    for number in range(ROUNDS + 1):
        for which, spent in times.items():
            began = time.process_time()
            step(make, which)
            if number:
                spent.append(time.process_time() - began)
    return statistics.median(times[kind]), statistics.median(times[""])


def seconds(make: Callable[[], Made], kind: str, side: int) -> float:
    """One of the two."""
    return _spent(make, kind)[side]


@cache
def equal_steps(make: Callable[[], Made]) -> str:
    """Assert equal losses and gradients in float32, on four samples of the batch."""
    config, inputs = make()
    few = Inputs(*(tensor[:4] for tensor in inputs.all()), ())
    return gpu_steps.same_step(config, few)


def small(name: str) -> None:
    """A step of the small towers."""
    steps()[name]()


@cache
def steps() -> dict[str, OurStep | PublishedStep]:
    """The step of the small towers in all its forms, on the same batch."""
    inputs = gpu_steps.draw(CONFIG, BATCH, CPU)
    made: dict[str, OurStep | PublishedStep] = {
        "ours": OurStep(CONFIG, inputs, None),
        "published": PublishedStep(CONFIG, inputs, None),
        "pieces": OurStep(CONFIG, inputs, None, micro_batch=8),
        "recomputed": OurStep(CONFIG, inputs, None),
    }
    strategy.apply(made["recomputed"].model, checkpoint_activations=True)
    return made


def saved(name: str) -> float:
    """Megabytes that autograd keeps of both towers."""
    step = steps()[name]
    return saved_megabytes(lambda: step.model(*step.inputs.all()))


def pieces_equal() -> str:
    """Assert the gradient of the whole batch."""
    inputs = gpu_steps.draw(CONFIG, BATCH, CPU)
    whole, pieces = (OurStep(CONFIG, inputs, None, micro_batch=size) for size in (0, 8))
    whole.grad(), pieces.grad()
    pairs = zip(whole.model.parameters(), pieces.model.parameters(), strict=True)
    off = max(
        float((a.grad - b.grad).norm() / a.grad.norm().clamp(min=1e-9))
        for a, b in pairs
        if a.grad is not None and b.grad is not None
    )
    assert off < 1e-5, f"gradients differ by {off:.1e}"
    return f"{off:.0e}"
