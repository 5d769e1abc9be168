"""Training, top to bottom: one process, or several under torchrun; resumes by itself.

    python -m torch.distributed.run --nproc-per-node 2 -m pipeline.training.train HOME/runs/NAME

HOME is a directory, which all nodes must see, or an fsspec URL.

Every random choice is a function of the seed, the epoch and the rank (training/dataloader.py) and a step itself
draws none, so a checkpoint needs no generator state. Files of a run: pipeline/training/run_dir.py.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports this module, whose default arguments hold the process group at import time. Imported
# after the group is made, it keeps the group's threads alive into Python's shutdown, which they sometimes abort.
import torch.distributed.nn.functional
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.clip import DualEncoder
from models.encoders.tokenizer import Tokenizer
from models.losses import objective as objectives
from pipeline.runtime.device import autocasts, resolve_device
from pipeline.runtime.parent_death import die_with
from pipeline.runtime.progress import Listener, Progress
from pipeline.runtime.stop import StopRequest, TerminatedError, stop_request, told
from pipeline.training.dataloader import START, Batches, ShardFile, shard_file
from pipeline.training.init_from import start_path, started
from pipeline.training.recipes import OptimiserConfig, Recipe
from pipeline.training.run_dir import (
    LOGS,
    RunConfig,
    RunDir,
    exclusive_lock,
    finish,
    finished,
    open_run,
    prepare,
)
from pipeline.training.run_protocol import (
    decay_groups,
    learning_rate,
    load_checkpoint,
    require_finite,
    save_checkpoint,
    set_rate,
)
from pipeline.training.step_log import StepLog, radii
from storage.checkpoint import Checkpoints, open_checkpoints
from storage.folder import Folder
from storage.home import Home

__all__ = ["main", "prepare", "train"]

TOKENIZER_CAPTIONS = 200_000  # maximum number of texts for training a tokenizer


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
    recipe = run.recipe
    if recipe.batch_size % ranks:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of {ranks} processes; change either"
        )
    lead = rank == 0
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # on this machine: it fetches for the others
    control = (
        dist.new_group(backend="gloo") if ranks > 1 else None
    )  # on the CPU: reading it does not wait for the GPU

    # Data: the shards of the version, and the tokenizer, which the first process makes and the others read.
    home = Home(run.home)
    shards = [shard_file(home.store, ref) for ref in home.versions.load(run.version).shards["train"]]
    if lead:
        folder.fetch(*LOGS)
        if not folder.exists("tokenizer.json"):
            folder.write("tokenizer.json", _make_tokenizer(recipe, shards).to_json().encode())
    _barrier(ranks)
    if first:
        folder.fetch("tokenizer.json")
    _barrier(ranks)
    tokenizer = Tokenizer.load(folder.path, recipe.model.text.context_length)
    batches = Batches(
        shards,
        tokenizer,
        recipe.data,
        batch_size=recipe.batch_size // ranks,
        image_size=recipe.model.vision.image_size,
        seed=recipe.seed,
        rank=rank,
        ranks=ranks,
        with_parts=recipe.objective.uses_boxes,
        pin=device.type == "cuda",
    )

    # Model: random weights with the tokenizer's vocabulary, or a trained CLIP. All processes share the seed.
    checkpoints = open_checkpoints(folder)
    found = _resumed(checkpoints, lead, first, control)
    torch.manual_seed(recipe.seed)
    if recipe.start.checkpoint:
        model = started(recipe, tokenizer, fresh=found is None).to(device)
    else:
        text = dataclasses.replace(recipe.model.text, vocab_size=len(tokenizer), end_token=tokenizer.end)
        model = DualEncoder(dataclasses.replace(recipe.model, text=text)).to(device)
    optimiser = make_optimiser(model, recipe.optimiser)

    # Resume: weights, optimiser and the reader's position; the log drops lines after the checkpoint.
    step, seconds, position, substituted = 0, 0.0, START, 0
    if found:
        step, saved_in = found
        saved = load_checkpoint(saved_in, model, optimiser)
        seconds, position = saved["seconds"], saved["position"]
        substituted = saved.get("substituted", 0)  # older checkpoints do not record it
    log = StepLog(folder.path, step) if lead else None

    net: nn.Module = model
    if ranks > 1:
        net = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    half = autocasts(recipe.precision, device)
    remedy = f"lower optimiser.lr (now {recipe.optimiser.lr}) or raise optimiser.warmup_steps"
    stream = batches.start(position)
    progress = None
    if first:  # of every node: its launcher ends a training that says nothing
        total = recipe.steps * recipe.batch_size
        progress = Progress(
            total, "train", "samples", listener if lead else None, done=step * recipe.batch_size
        )
    saved_at = window_start = time.perf_counter()
    waited, window_steps = 0.0, 0
    model.train()
    complete, stopping = step == recipe.steps, False
    try:
        while step < recipe.steps and not stopping:
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            position, substituted = batch.position, substituted + batch.substituted
            batch = batch.to(device)

            rate = learning_rate(step, recipe.steps, recipe.optimiser.lr, recipe.optimiser.warmup_steps)
            set_rate(optimiser, rate)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                nodes, scale, curvature = net(
                    batch.images, batch.tokens, batch.image_boxes, batch.token_boxes
                )
            loss, terms = objectives.loss(
                nodes,
                batch.owner,
                scale,
                curvature,
                recipe.objective,
                recipe.model.geometry,
                distributed=ranks > 1,
                entailment_share=recipe.entailment_share(step),
                scales=model.scales,
                bias=model.bias,
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            model.constrain_()
            step, window_steps = step + 1, window_steps + 1

            if step % recipe.log_every == 0 or step in (1, recipe.steps):
                names = ["loss", *terms]
                values = torch.stack([loss.detach(), *terms.values()])
                if ranks > 1:
                    dist.all_reduce(values)
                means = dict(zip(names, (values / ranks).tolist(), strict=True))
                now = time.perf_counter()
                spent, window_start = now - window_start, now
                seconds += spent
                require_finite(means["loss"], step, remedy)
                if log and progress:
                    line = {
                        "samples": step * recipe.batch_size,
                        "epoch": position["epoch"] + position["batch"] / batches.per_epoch,
                        "loss": means.pop("loss"),
                        "terms": means,
                        "lr": rate,
                        "temperature": 1 / max(scale.item(), 1e-30),
                        "samples_per_second": window_steps * recipe.batch_size / spent,
                        "data_wait": waited / spent,
                        "seconds": seconds,
                        "seconds_here": spent,
                        "substituted": substituted,
                    }
                    if recipe.model.geometry != "euclid":
                        c = curvature.detach()
                        line |= {"curvature": c.mean().item(), "radius": radii(nodes, c)}
                        if recipe.model.geometry == "product":
                            line |= {"curvature_least": c.min().item(), "curvature_most": c.max().item()}
                    log.write(step, line)
                    progress.label = f"train, loss {line['loss']:.3f}"
                waited, window_steps = 0.0, 0
            if progress:
                progress.advance(recipe.batch_size)

            due = step % recipe.checkpoint_steps == 0 or step == recipe.steps
            due |= time.perf_counter() - saved_at > 60 * recipe.checkpoint_minutes
            stopping = _any(bool(stop), control)
            due |= stopping
            if lead and due:
                require_finite(loss.item(), step, remedy)  # no checkpoint of a run that has diverged
                state = {"seconds": seconds, "position": position, "substituted": substituted}
                folder.send(*LOGS)  # before the checkpoint: a log that ends earlier would keep a gap
                save_checkpoint(checkpoints, step, model, optimiser, state, recipe.keep_checkpoints)
                saved_at = time.perf_counter()
        complete = step == recipe.steps
    finally:
        stream.close()
        if log:
            log.close()
        if progress:
            progress.close(complete)

    if not complete:
        _barrier(ranks)  # the others end when the checkpoint is written
        stop.end(f"at step {step} of {recipe.steps}")
    result = finish(folder, run, model, tokenizer, ranks) if lead else {}
    _barrier(ranks)
    return result


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW of the trained parameters; no decay of norms, biases and scalars: tensors of fewer than two dimensions."""
    groups = decay_groups(model, config.weight_decay, lambda name, p: p.ndim < 2)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def _make_tokenizer(recipe: Recipe, shards: list[ShardFile]) -> Tokenizer:
    """The named CLIP tokenizer, or one trained on captions and phrases."""
    text = recipe.model.text
    if recipe.tokenizer != "train":
        return Tokenizer.load(start_path(recipe.tokenizer), text.context_length)
    captions: list[str] = []
    for shard in shards:
        for sample in shard.read():
            captions += [*sample.captions, *(part.phrase for part in sample.parts)]
        if len(captions) >= TOKENIZER_CAPTIONS:
            break
    return Tokenizer.train(captions[:TOKENIZER_CAPTIONS], text.vocab_size, text.context_length)


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


def _any(here: bool, group: Any) -> bool:
    """Whether `flag` is true in any process: all get the same answer, so that all stop after the same step."""
    if group is None:
        return here
    said = torch.tensor(int(here))
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    return bool(said.item())


def _resumed(checkpoints: Checkpoints, lead: bool, first: bool, group: Any) -> tuple[int, Path] | None:
    """(step, folder) of the checkpoint to resume from, None without one: the first process chooses for all."""
    found = checkpoints.latest() if lead else None
    if group is None:
        return found
    step = torch.tensor(found[0] if found else -1)
    dist.broadcast(step, 0, group=group)
    if step.item() < 0:
        return None
    if first:
        checkpoints.at(int(step))  # brings it to this machine
    dist.barrier(group)
    return int(step), checkpoints.at(int(step))


def _barrier(ranks: int) -> None:
    if ranks > 1:
        dist.barrier()


def main(arguments: list[str] | None = None) -> int:
    """Train the run that a directory's config.json describes. SIGTERM saves a checkpoint and ends with 0."""
    parser = argparse.ArgumentParser(prog="pipeline.training.train", description=main.__doc__)
    parser.add_argument("run", help="directory or URL of a run with a config.json")
    parser.add_argument("--home", help="location of the data, if it differs from the prepared run's")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    if "LOCAL_RANK" in os.environ:
        # torchrun starts workers in their own sessions: they would outlive it. It may have died already, before torch
        # was imported; then the parent is another process.
        die_with(int(os.environ.get("HYCO_LAUNCHER") or os.getppid()))
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
