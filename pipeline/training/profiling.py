"""`hyco profile`: a trace of a few training steps, and their largest costs in words. The run itself is left alone."""

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hyco.pipeline.runtime.device import now, resolve_device
from hyco.pipeline.training.batch import on_device
from hyco.pipeline.training.run_dir import RunConfig, RunDir, read_config
from hyco.pipeline.training.setup import assemble, step_gradient, update
from hyco.storage.folder import Folder

WARM_UP = 3  # steps before the trace: allocation, and compilation where it is on
LARGEST = 3

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("scaled_dot_product", "flash", "fmha", "efficient_attention", "softmax")),
    ("the optimiser", ("adam", "foreach", "lerp", "clip_grad")),
    ("matrix products", ("mm", "gemm", "matmul", "linear", "bmm", "cutlass", "convolution", "conv2d")),
    ("layer norms", ("layer_norm",)),
    ("activation functions", ("gelu", "sigmoid", "silu")),
    ("embeddings, gathers and scatters", ("embedding", "index", "gather", "scatter", "nonzero")),
    ("communication between processes", ("nccl", "gloo", "c10d", "all_reduce", "all_gather")),
    ("compiled blocks", ("triton", "inductor", "compiled", "cpp_fused")),
    (
        "copies and changes of type",
        ("copy", "memcpy", "memset", "cat", "fill", "zero", "contiguous", "clone"),
    ),
    ("sums and other elementwise operations", ("",)),
)
"""Kinds of operations, and parts of the names by which they are known; the first that matches counts."""


@dataclass(frozen=True)
class Costs:
    """Time of a step by kind of operation, in seconds, largest first; the last one is the wait for data."""

    seconds: float
    waited: float
    kinds: dict[str, float]
    examples: dict[str, str]
    device: str

    def words(self) -> list[str]:
        """The largest costs as sentences."""
        total = sum(self.kinds.values()) + self.waited
        every = [*self.kinds.items(), ("waiting for the next batch", self.waited)]
        lines = []
        for place, (kind, spent) in enumerate(sorted(every, key=lambda item: -item[1])[:LARGEST], 1):
            example = f", most of it in {self.examples[kind]}" if kind in self.examples else ""
            lines.append(
                f"{place}. {kind}: {100 * spent / total:.0f} % ({1e3 * spent:.1f} ms per step{example})"
            )
        return lines


def profile_run(run_dir: RunDir, steps: int = 5, device: str = "auto") -> dict[str, Any]:
    """Train `steps` steps of a run, from its last checkpoint, into nothing, and write RUN/profile/trace.json.gz.

    Returns the path, seconds per step, the fraction of time waited for data, and the largest costs in words.

    Raises:
        FileNotFoundError: no config.json in the directory.
        ValueError: fewer steps than 1.
    """
    folder = Folder.of(run_dir)
    if steps < 1:
        raise ValueError(f"steps is {steps}: profile at least one")
    if not folder.exists("config.json"):
        raise FileNotFoundError(f"{folder} has no config.json: give the directory that `hyco train` printed")
    run = read_config(folder)
    where = resolve_device(device)
    trace = folder.path / "profile" / "trace.json.gz"
    trace.parent.mkdir(parents=True, exist_ok=True)
    costs = _profiled(folder, run, where, steps, trace)
    found = {
        "trace": str(trace),
        "device": costs.device,
        "seconds_per_step": costs.seconds,
        "data_wait": costs.waited / costs.seconds,
        "largest": costs.words(),
        "milliseconds": {kind: 1e3 * spent for kind, spent in costs.kinds.items()},
    }
    folder.write("profile/costs.json", (json.dumps(found, indent=1) + "\n").encode())
    folder.send("profile")
    return found


def _profiled(folder: Folder, run: RunConfig, device: torch.device, steps: int, trace: Path) -> Costs:
    recipe, gpu = run.recipe, device.type == "cuda"
    setup = assemble(folder, run, 0, 1, device)
    setup.model.train()
    source = setup.batches.start(setup.position)
    stream = on_device(source, device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    waited = 0.0
    try:
        for _ in range(WARM_UP):
            step_gradient(setup, setup.model, recipe, next(stream), setup.step)
            update(setup, recipe, setup.step + 1)
        with profile(activities=activities) as profiler:
            began = now(device)
            for _ in range(steps):
                asked = now(device)
                batch = next(stream)
                waited += now(device) - asked
                step_gradient(setup, setup.model, recipe, batch, setup.step)
                update(setup, recipe, setup.step + 1)
            seconds = (now(device) - began) / steps
    finally:
        source.close()
    with tempfile.TemporaryDirectory(dir=trace.parent) as draft:
        profiler.export_chrome_trace(str(Path(draft) / trace.name))
        (Path(draft) / trace.name).replace(trace)
    kinds: dict[str, float] = defaultdict(float)
    best: dict[str, tuple[float, str]] = {}
    for event in profiler.key_averages():
        spent = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6 / steps
        kind = kind_of(event.key)
        kinds[kind] += spent
        best[kind] = max(best.get(kind, (0.0, "")), (spent, event.key))
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    examples = {kind: name for kind, (_, name) in best.items()}
    return Costs(seconds, waited / steps, ordered, examples, str(device))


def kind_of(operation: str) -> str:
    """The kind of an operation or kernel, by its name."""
    name = operation.lower()
    return next(kind for kind, parts in KINDS if any(part in name for part in parts))
