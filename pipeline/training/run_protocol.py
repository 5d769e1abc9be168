"""Common parts of the training loops: optimiser groups, learning rate, divergence check, checkpoints, summary.

Files and the lock of a run's directory: run_dir.py. Its log: step_log.py. The loops are train.py and
pipeline/classification/train.py.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from hyco.models.clip import load_weights
from hyco.storage.checkpoint import Checkpoints, Content

ENDS = 20  # number of logged steps over which the first and the last loss are averaged


def decay_groups(
    model: nn.Module, weight_decay: float, is_spared: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Optimiser groups of the trained parameters: those with weight decay, then those without, if any."""
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    spared = [p for name, p in learned if is_spared(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in learned if not is_spared(name, p)], "weight_decay": weight_decay}
    ]
    return groups + ([{"params": spared, "weight_decay": 0.0}] if spared else [])


def learning_rate(
    step: int, steps: int, lr: float, warmup_steps: int, schedule: Literal["constant", "cosine"] = "cosine"
) -> float:
    """Learning rate after `step` finished steps: linear up to `lr`, then constant or half a cosine down to zero."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    fraction = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * fraction))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of the optimiser this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def require_finite(loss: float, step: int, remedy: str) -> None:
    """ValueError with the remedy when a run has diverged; called before a line is logged or a checkpoint is saved."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {step}: {remedy}, in another run")


def save_checkpoint(
    checkpoints: Checkpoints,
    step: int,
    weights: dict[str, Tensor],
    optimiser: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    average: dict[str, Tensor] | None = None,
) -> None:
    """Save the checkpoint of a step and delete all but the newest `keep`.

    `weights` and `optimiser` are state dicts; `state` and the step go into state.json, an average of weights into
    ema.safetensors.
    """
    weights = {name: value.cpu().contiguous() for name, value in weights.items()}
    files: dict[str, Content] = {
        "model.safetensors": to_safetensors(weights),
        "optimiser.pt": lambda file: torch.save(optimiser, file),
        "state.json": json.dumps({"step": step, **state}).encode(),
    }
    if average is not None:
        files["ema.safetensors"] = to_safetensors({name: value.cpu() for name, value in average.items()})
    checkpoints.save(step, files)
    checkpoints.prune(keep)


def load_checkpoint(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimiser; returns what state.json holds."""
    load_weights(model, load_file(folder / "model.safetensors"), str(folder))
    device = next(model.parameters()).device
    optimiser.load_state_dict(torch.load(folder / "optimiser.pt", map_location=device, weights_only=True))
    return json.loads((folder / "state.json").read_text())


def summary(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of train.json that every run has, from the lines of its step log."""
    last, losses = log[-1], [line["loss"] for line in log]
    return {
        "steps": last["step"],
        "samples_seen": last["samples"],
        "epochs": last["epoch"],
        "seconds": last["seconds"],
        "samples_per_second": last["samples"] / max(last["seconds"], 1e-9),
        "loss_first": sum(losses[:ENDS]) / len(losses[:ENDS]),
        "loss_last": sum(losses[-ENDS:]) / len(losses[-ENDS:]),
    }


def speed(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean speed over the lines of a step log, and peak memory; without what a run of an earlier version lacks."""
    found, seconds = {}, sum(line["seconds_here"] for line in log)
    for name in ("tokens_per_second", "flops_per_second", "mfu"):
        if all(name in line for line in log):
            found[name] = sum(line[name] * line["seconds_here"] for line in log) / max(seconds, 1e-9)
    if peaks := [line["peak_memory_mb"] for line in log if "peak_memory_mb" in line]:
        found["peak_memory_mb"] = max(peaks)
    return found
