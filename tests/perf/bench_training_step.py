"""A training step beside the published way in plain torch: the small form of tests/perf/gpu.py, in float32.

Forward and backward pass and optimiser, with one part per image and texts as long as GRIT's. The other cases ask what
the options of the trainer cost: in pieces (GradCache), and with activations that are computed again.
"""

from collections.abc import Iterator
from functools import cache, partial

import torch

from hyco.pipeline.training import strategy
from tests.perf import gpu_steps
from tests.perf.gpu_steps import OurStep, PublishedStep
from tests.perf.runner import Case, saved_megabytes

CONFIG, BATCH = gpu_steps.SIZES["small"], 32


def cases() -> Iterator[Case]:
    """Speed of a step and of its options."""
    equal = partial(gpu_steps.agreement, CONFIG, 4, torch.device("cpu"))
    ours, theirs = steps()["ours"], steps()["published"]
    yield Case("training step, small", "published way", "ms", ours, theirs, equal, 1.3)
    yield Case("step in pieces of 8", "the whole batch", "ms", steps()["pieces"], ours, pieces_equal, 0.5)
    yield Case("step, recomputed", "kept activations", "ms", steps()["recomputed"], ours, lambda: "n/a", 0.6)
    yield Case(
        "activations, recomputed",
        "kept activations",
        "MB",
        partial(saved, "recomputed"),
        partial(saved, "ours"),
        lambda: "n/a",
        5.0,
    )


@cache
def steps() -> dict[str, OurStep | PublishedStep]:
    """The step in all its forms, on the same batch."""
    inputs = gpu_steps.draw(CONFIG, BATCH, torch.device("cpu"))
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
    inputs = gpu_steps.draw(CONFIG, BATCH, torch.device("cpu"))
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
