"""Training, top to bottom: one process, or several under torchrun; resumes by itself.

    python -m torch.distributed.run --nproc-per-node 2 -m hyco.pipeline.training.train HOME/runs/NAME

HOME is a directory, which all nodes must see, or an fsspec URL.

Every random choice is a function of the seed, the epoch and the rank (training/dataloader.py) and a step itself
draws none, so a checkpoint needs no generator state. Files of a run: pipeline/training/run_dir.py.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports this module, whose default arguments hold the process group at import time. Imported
# after the group is made, it keeps the group's threads alive into Python's shutdown, which they sometimes abort.
import torch.distributed.nn.functional
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hyco.pipeline.runtime.device import matmul_rate, resolve_device
from hyco.pipeline.runtime.memory import keep_freed_memory
from hyco.pipeline.runtime.parent_death import die_with
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.stop import StopRequest, TerminatedError, stop_request, told
from hyco.pipeline.training import sharding
from hyco.pipeline.training.batch import on_device
from hyco.pipeline.training.dataloader import SWITCH_SECONDS
from hyco.pipeline.training.meter import Meter, backward_factor, peak_memory
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.run_dir import (
    LOGS,
    RunConfig,
    RunDir,
    exclusive_lock,
    finish,
    finished,
    open_run,
    prepare,
)
from hyco.pipeline.training.run_protocol import learning_rate, require_finite, save_checkpoint, set_rate
from hyco.pipeline.training.setup import (
    assemble,
    barrier,
    checkpoint_state,
    make_optimiser,
    step_gradient,
    update,
)
from hyco.pipeline.training.sinks import require
from hyco.pipeline.training.step_log import StepLog, flat, radii
from hyco.storage.folder import Folder
from hyco.storage.home import Home

__all__ = ["main", "make_optimiser", "prepare", "train"]


def train(
    run_dir: RunDir,
    home: Home | None = None,
    version: str = "latest",
    recipe: Recipe | None = None,
    *,
    device: str = "auto",
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train, or resume training, and return the content of train.json.

    Args:
        run_dir: directory or URL of the run. Without `home` and `recipe` its config.json is used.
        home: where the dataset versions are.
        version: dataset version for training.
        recipe: the recipe to train.
        device: "auto" (a GPU where there is one), "cpu", "cuda".
        listener: gets the state of pipeline.runtime.progress.Progress every few seconds.

    Raises:
        FileNotFoundError: no config.json and no recipe.
        ValueError: another recipe or architecture than the run was started with, data that does not fill a
            batch, a loss that is not finite.
        TerminatedError, KeyboardInterrupt: SIGTERM or Ctrl-C (of the main thread) stopped it; the running step was
            finished and a checkpoint saved, from which the next call resumes.
    """
    folder = Folder.of(run_dir)
    run = open_run(folder, home, version, recipe)
    require(run.recipe.log_to)
    done = finished(folder)
    if done is not None:
        return done
    with stop_request() as stop, _processes(device) as (rank, ranks, where):
        with exclusive_lock(folder) if rank == 0 else contextlib.nullcontext():
            return _train(folder, run, rank, ranks, where, listener, stop)


def _train(
    folder: Folder,
    run: RunConfig,
    rank: int,
    ranks: int,
    device: torch.device,
    listener: Listener | None,
    stop: StopRequest,
) -> dict[str, Any]:
    recipe, lead = run.recipe, rank == 0
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # on this machine: it fetches for the others
    # On the CPU: reading it does not wait for the GPU.
    control = dist.new_group(backend="gloo") if ranks > 1 else None
    setup = assemble(folder, run, rank, ranks, device, control)
    model, batches = setup.model, setup.batches
    log = StepLog(folder.path, setup.step, recipe.log_to, flat(run.model_dump(mode="json"))) if lead else None
    meter = Meter(model.config, backward_factor(recipe.start.learn, _adapted(recipe)))
    peak = matmul_rate(device, setup.half or torch.float32) if lead else 0.0

    net: nn.Module = model
    divided = sharding.is_sharded(model)
    if ranks > 1 and not divided:
        # Without device_ids it moves no inputs: token ids stay on the CPU.
        net = DistributedDataParallel(model)
    remedy = f"lower optimiser.lr (now {recipe.optimiser.lr}) or raise optimiser.warmup_steps"
    source = batches.start(setup.position)
    stream = on_device(source, device)
    progress = None
    if first:  # of every node: its launcher ends a training that says nothing
        total, done = recipe.steps * recipe.batch_size, setup.step * recipe.batch_size
        progress = Progress(total, "train", "samples", listener if lead else None, done=done)
    saved_at = window_start = time.perf_counter()
    step, waited, window_steps = setup.step, 0.0, 0
    model.train()
    complete, stopping = step == recipe.steps, False
    try:
        while step < recipe.steps and not stopping:
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            setup.position, setup.substituted = batch.position, setup.substituted + batch.substituted
            meter.add(len(batch.images) + len(batch.owner), batch.lengths)

            rate = learning_rate(step, recipe.steps, recipe.optimiser.lr, recipe.optimiser.warmup_steps)
            set_rate(setup.optimiser, rate)
            made = step_gradient(setup, net, recipe, batch, step)
            update(setup, recipe, step + 1)
            step, window_steps = step + 1, window_steps + 1

            if step % recipe.log_every == 0 or step in (1, recipe.steps):
                names = ["loss", *made.terms]
                values = torch.stack([made.loss, *made.terms.values()])
                sums = torch.tensor(meter.take(), dtype=torch.float64, device=device)
                if ranks > 1:
                    dist.all_reduce(values)
                    dist.all_reduce(sums)
                means = dict(zip(names, (values / ranks).tolist(), strict=True))
                now = time.perf_counter()
                spent, window_start = now - window_start, now
                setup.seconds += spent
                require_finite(means["loss"], step, remedy)
                if log and progress:
                    tokens, flops = (sums / spent).tolist()
                    line = {
                        "samples": step * recipe.batch_size,
                        "epoch": setup.position["epoch"] + setup.position["batch"] / batches.per_epoch,
                        "loss": means.pop("loss"),
                        "terms": means,
                        "lr": rate,
                        "temperature": 1 / max(made.scalars.scale.item(), 1e-30),
                        "samples_per_second": window_steps * recipe.batch_size / spent,
                        "tokens_per_second": tokens,
                        "flops_per_second": flops,
                        "mfu": flops / ranks / peak,
                        "peak_memory_mb": peak_memory(device) / 1e6,
                        "data_wait": waited / spent,
                        "seconds": setup.seconds,
                        "seconds_here": spent,
                        "substituted": setup.substituted,
                    }
                    if recipe.model.geometry != "euclid":
                        c = made.scalars.curvature.detach()
                        line |= {"curvature": c.mean().item(), "radius": radii(made.nodes, c)}
                        if recipe.model.geometry == "product":
                            line |= {"curvature_least": c.min().item(), "curvature_most": c.max().item()}
                    log.write(step, line)
                    progress.label = label(line)
                waited, window_steps = 0.0, 0
            if progress:
                progress.advance(recipe.batch_size)

            late = lead and time.perf_counter() - saved_at > 60 * recipe.checkpoint_minutes
            stopping, late = _any([bool(stop), late], control)
            due = stopping or late or step % recipe.checkpoint_steps == 0 or step == recipe.steps
            if due and (lead or divided):
                weights = sharding.whole_weights(model.state_dict(), keep=lead)
                learned = sharding.whole_optimiser(setup.optimiser, keep=lead)
                average = sharding.whole_weights(setup.average.weights, keep=lead) if setup.average else None
                if lead:
                    require_finite(made.loss.item(), step, remedy)  # no checkpoint of a run that has diverged
                    folder.send(*LOGS)  # before the checkpoint: a log that ends earlier would keep a gap
                    state, keep = checkpoint_state(setup), recipe.keep_checkpoints
                    save_checkpoint(setup.checkpoints, step, weights, learned, state, keep, average)
                    saved_at = time.perf_counter()
        complete = step == recipe.steps
    finally:
        source.close()
        if log:
            log.close()
        if progress:
            progress.close(complete)

    if not complete:
        barrier(ranks)  # the others end when the checkpoint is written
        stop.end(f"at step {step} of {recipe.steps}")
    if setup.average:
        setup.average.move_into(model)
    if divided:
        weights = sharding.whole_weights(model.state_dict(), keep=lead)
        model = sharding.whole_model(model, weights, device) if lead else model
    result = finish(folder, run, model, setup.tokenizer, ranks, setup.precision) if lead else {}
    barrier(ranks)
    return result


def label(line: dict[str, Any]) -> str:
    """The start of a progress line: loss and speed of the last logged steps."""
    return (
        f"train, loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s, MFU {100 * line['mfu']:.0f} %, "
        f"waits for data {100 * line['data_wait']:.0f} %, {line['peak_memory_mb']:,.0f} MB"
    )


def _adapted(recipe: Recipe) -> float:
    """Fraction of the towers' blocks that have adapters."""
    depth = getattr(recipe.model.vision, "depth", 0) + recipe.model.text.depth
    return 2 * recipe.start.lora_blocks / depth


@contextlib.contextmanager
def _processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """(rank, ranks, device) of this process, joined with the others that torchrun started."""
    where = resolve_device(device)
    gpu = where.type == "cuda"
    if gpu:
        torch.cuda.set_device(where)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks == 1:
        yield 0, 1, where
        return
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield dist.get_rank(), ranks, where
    finally:
        dist.destroy_process_group()


def _any(here: list[bool], group: Any) -> list[bool]:
    """Which flags are true in any process: all get the same answer, so that all stop, or save, after the same step."""
    if group is None:
        return here
    said = torch.tensor(here, dtype=torch.int32)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    return [bool(flag) for flag in said.tolist()]


def main(arguments: list[str] | None = None) -> int:
    """Train the run that a directory's config.json describes. SIGTERM saves a checkpoint and ends with 0."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.training.train", description=main.__doc__)
    parser.add_argument("run", help="directory or URL of a run with a config.json")
    parser.add_argument("--home", help="location of the data, if it differs from the prepared run's")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    if "LOCAL_RANK" in os.environ:
        # torchrun starts workers in their own sessions: they would outlive it. It may have died already, before torch
        # was imported; then the parent is another process.
        die_with(int(os.environ.get("HYCO_LAUNCHER") or os.getppid()))
    elif os.environ.get("HYCO_LAUNCHER") == str(os.getpid()):  # started by pipeline.training.launch
        die_with(os.getppid())
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        train(options.run, Home(options.home) if options.home else None, device=options.device)
    except (ValueError, OSError) as error:
        print(f"hyco: error: {error}", file=sys.stderr)
        return 2
    except (TerminatedError, KeyboardInterrupt) as error:
        return told(error, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
