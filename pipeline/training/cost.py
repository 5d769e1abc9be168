"""The cost of a training, estimated before it starts: samples, measured rate, days; months on a CPU are refused."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hyco.models.clip import DualEncoder
from hyco.models.losses import objective as objectives
from hyco.pipeline.runtime.device import autocasts, resolve_device
from hyco.pipeline.training.recipes import Recipe

WORTH_MEASURING = 1_000_000
"""Minimum number of samples of a training that is measured before it starts: fewer take hours at most."""

CPU_DAYS = 3.0
"""A training that would take longer than this on a CPU is refused unless it is forced."""

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


def estimate(recipe: Recipe, processes: int = 1) -> Cost | None:
    """Measure a few small training steps of a recipe; None where it is too short to be measured.

    The rate is a lower bound on a GPU, which is faster at the recipe's own batch size.

    Args:
        recipe: the recipe to train.
        processes: training processes, one per GPU. Processes on a CPU share its cores.
    """
    samples = recipe.steps * recipe.batch_size
    if samples < WORTH_MEASURING:
        return None
    device = resolve_device("auto")
    gpu = device.type == "cuda"
    batch = 16 * _BATCH if gpu else _BATCH
    rate = batch / _seconds_per_step(recipe, device, batch)
    return Cost(samples, rate * (processes if gpu else 1), "GPU" if gpu else "CPU")


def require_feasible(recipe: Recipe, processes: int = 1, force: bool = False) -> Cost | None:
    """Return the cost of a training worth measuring.

    Raises:
        ValueError: it would take more than CPU_DAYS on a CPU, and `force` is not given.
    """
    cost = estimate(recipe, processes)
    if cost and cost.device == "CPU" and cost.days > CPU_DAYS and not force:
        raise ValueError(
            f"recipe {recipe.name} would train on {cost}. Train it on a GPU, take a recipe for a CPU (photos, demo), "
            "set fewer steps (recipe.steps), or insist with --force"
        )
    return cost


def _seconds_per_step(recipe: Recipe, device: torch.device, batch: int) -> float:
    """Mean time of a forward and backward pass with one part per image, the first step left out."""
    model = DualEncoder(recipe.model).to(device)
    side = recipe.model.vision.image_size
    pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device)
    length = min(_TEXT_TOKENS, recipe.model.text.context_length)
    captions, phrases = _texts(recipe, batch, length), _texts(recipe, batch, length)
    parts = (pixels, phrases) if recipe.objective.uses_boxes else (None, None)
    owner = torch.arange(batch if recipe.objective.uses_boxes else 0, device=device)
    began = 0.0
    for step in range(1 + _STEPS):
        if step == 1:
            began = _now(device)
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
    return (_now(device) - began) / _STEPS


def _texts(recipe: Recipe, count: int, length: int) -> Tensor:
    """Texts of one length that have no beginning in common, so that every token is computed."""
    text = recipe.model.text
    tokens = torch.randint(text.vocab_size, (count, length))
    tokens[tokens == text.end_token] = (text.end_token + 1) % text.vocab_size
    tokens[:, -1] = text.end_token
    return tokens


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
