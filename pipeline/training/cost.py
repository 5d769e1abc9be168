"""The cost of a training, estimated before it starts: samples, measured rate, days; months on a CPU are refused."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyco.models.clip import DualEncoder
from hyco.models.losses import objective as objectives
from hyco.pipeline.runtime.device import autocasts, now, resolve_device
from hyco.pipeline.training.recipes import Recipe

WORTH_MEASURING = 1_000_000
"""Minimum number of samples of a training that is measured before it starts: fewer take hours at most."""

CPU_DAYS = 3.0
"""A training that would take longer than this on a CPU is refused unless it is forced."""

MEASURE_S = 10.0
"""No further step is measured on a CPU when the steps together would take longer than this."""

_BATCH = 4  # samples of the measured steps
_STEPS = 2
_TEXT_TOKENS = 20  # of a caption or phrase: padding is cut to the longest of a batch


@dataclass(frozen=True, slots=True)
class Cost:
    """Samples that a recipe trains on, samples per second on this machine, and the resulting time."""

    samples: int
    rate: float
    device: str

    @property
    def days(self) -> float:
        """Days of training, without evaluation and data loading."""
        return self.samples / self.rate / 86400

    def __str__(self) -> str:
        long = f"{self.days:,.0f} days" if self.days >= 2 else f"{24 * self.days:.1f} hours"
        return f"{self.samples:,} samples at about {self.rate:.3g} samples/s on this {self.device}: {long}"


def _silent(text: str) -> None:
    """Show nothing."""


def estimate(recipe: Recipe, processes: int = 1, tell: Callable[[str], None] = _silent) -> Cost | None:
    """Measure a few small training steps of a recipe; None where it is too short to be measured.

    The rate is a lower bound on a GPU, which is faster at the recipe's own batch size.

    Args:
        recipe: the recipe to train.
        processes: training processes, one per GPU. Processes on a CPU share its cores.
        tell: gets a line that says what is measured, before the first step.
    """
    samples = recipe.steps * recipe.batch_size
    if samples < WORTH_MEASURING:
        return None
    device = resolve_device("auto")
    gpu = device.type == "cuda"
    kind = "GPU" if gpu else "CPU"
    tell(
        f"recipe {recipe.name} trains on {samples:,} samples: measuring the speed of a few steps on this {kind}"
    )
    rate = _samples_per_second(recipe, device)
    return Cost(samples, rate * (processes if gpu else 1), kind)


def require_feasible(
    recipe: Recipe, processes: int = 1, force: bool = False, tell: Callable[[str], None] = _silent
) -> Cost | None:
    """Return the cost of a training worth measuring.

    Raises:
        ValueError: it would take more than CPU_DAYS on a CPU, and `force` is not given.
    """
    cost = estimate(recipe, processes, tell)
    if cost and cost.device == "CPU" and cost.days > CPU_DAYS and not force:
        raise ValueError(
            f"recipe {recipe.name} would train on {cost}. Train it on a GPU, take a recipe for a CPU (photos, demo), "
            "set fewer steps (recipe.steps), or insist with --force"
        )
    return cost


def _samples_per_second(recipe: Recipe, device: torch.device) -> float:
    """Rate of forward and backward passes with one part per image.

    The first step is not counted, unless it shows that further ones would take more than MEASURE_S: on a CPU it is a
    step of one sample.
    """
    model = DualEncoder(recipe.model).to(device)
    if device.type == "cuda":
        _step(model, recipe, device, batch := 16 * _BATCH)
    else:
        one = _step(model, recipe, device, 1)
        batch = _BATCH
        if one * (1 + _STEPS * batch) > MEASURE_S:
            return 1 / one
    return _STEPS * batch / sum(_step(model, recipe, device, batch) for _ in range(_STEPS))


def _step(model: DualEncoder, recipe: Recipe, device: torch.device, batch: int) -> float:
    """Seconds of a forward and backward pass."""
    side = recipe.model.vision.image_size
    pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device)
    length = min(_TEXT_TOKENS, recipe.model.text.context_length)
    captions, phrases = _texts(recipe, batch, length), _texts(recipe, batch, length)
    parts = (pixels, phrases) if recipe.objective.uses_boxes else (None, None)
    owner = torch.arange(batch if recipe.objective.uses_boxes else 0, device=device)
    began = now(device)
    half = autocasts(recipe.precision, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        nodes, scale, curvature = model(pixels, captions, *parts)
    loss, _ = objectives.loss(
        nodes,
        owner,
        scale,
        curvature,
        recipe.objective,
        recipe.model.geometry,
        scales=model.scales,
        bias=model.bias,
    )
    loss.backward()
    return now(device) - began


def _texts(recipe: Recipe, count: int, length: int) -> Tensor:
    """Texts of one length that have no beginning in common, so that every token is computed."""
    text = recipe.model.text
    tokens = torch.randint(text.vocab_size, (count, length))
    tokens[tokens == text.end_token] = (text.end_token + 1) % text.vocab_size
    tokens[:, -1] = text.end_token
    return tokens
