"""Make the embedded grounder again: python -m demo.train_grounder --out demo/weights/grounder --seed 0.

Draws scenes, trains on them, writes the model in the transformers format and how it was made to figures.json
(python -m demo.grounder_figures adds the measured quality). Kill it at any moment and run the same command: it
goes on from its last checkpoint, about a minute back. Needs the `dev` extra (scipy does the matching).

Recipe (the design's measured one, widened): AdamW, warm-up, constant, cosine over the last 40 %; forward and
backward in bfloat16 but for the last tenth; one single-threaded process a core, gradients averaged, which on two
cores is half as fast again as two threads in one process.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from demo.grounder import IMAGE_SIZE, build_model, build_processor, save
from demo.grounder_loss import LossConfig, corners, grounding_loss, pairwise_giou, phrase_of_token, phrase_scores
from demo.grounder_prompts import batch_of, load_lessons
from demo.scenes import World

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 8000
    scenes: int = 30_000
    processes: int = 2
    batch: int = 8  # images a process and step
    rate: float = 8e-4
    warmup: int = 200
    cooling: float = 0.4  # share of the run over which the rate falls to nothing
    decay: float = 0.01
    clip: float = 1.0
    bfloat16: float = 0.9  # share of the run in bfloat16
    proposals_per_box: int = 1


def rate_at(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate at `step`: linear warm-up, constant, half a cosine."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    start = recipe.steps * (1 - recipe.cooling)
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / (recipe.steps - start)))


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> what the image processor makes of it, [B, 3, H, W] (the size is already right)."""
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def hit_rate(outputs, input_ids: torch.Tensor, targets) -> tuple[int, int]:
    """Of the phrases that name something: how many have a best-scored box that lies on one (IoU 0.5), of how many."""
    hits = asked = 0
    for logits, boxes, owner, target in zip(
        outputs.logits, outputs.pred_boxes, phrase_of_token(input_ids), targets, strict=True
    ):
        best = phrase_scores(logits, owner, target.positive.shape[1]).argmax(0)
        for phrase in target.positive.any(0).nonzero().flatten().tolist():
            true = target.boxes[target.positive[:, phrase]]
            hits += bool(pairwise_giou(corners(boxes[best[phrase]].float()), corners(true))[0].max() >= 0.5)
            asked += 1
    return hits, asked


def train(rank: int, recipe: Recipe, out: Path, work: Path, meeting: str) -> None:
    """One process of the run; process 0 reports, keeps the checkpoint and writes the product."""
    if rank:  # a helper must not outlive the process that started it
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=recipe.processes)
    say = print if rank == 0 else lambda *_, **__: None
    started = last = time.monotonic()

    def drawing(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last, share = time.monotonic(), recipe.scenes // recipe.processes
            left = (last - started) / done * (share - done)
            say(f"drawing scenes: {done}/{share} in each process, {left:.0f} s left", flush=True)

    lessons = load_lessons(work, recipe.seed, recipe.scenes, rank, recipe.processes, drawing)
    processor = build_processor(World(size=IMAGE_SIZE).words())
    tokenizer = processor.tokenizer
    torch.manual_seed(recipe.seed)
    model = build_model(len(tokenizer)).train()
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.rate,
    )
    first, spent = 0, 0.0
    state_file = work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{state_file} belongs to another recipe: delete {work} or name another --work")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, spent = state["step"], state["seconds"]
        say(f"going on from step {first}", flush=True)
    dist.barrier()

    def keep(step: int, seconds: float) -> None:
        content = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        content |= {"step": step, "seconds": seconds, "recipe": asdict(recipe)}
        torch.save(content, state_file.with_suffix(".partial"))
        state_file.with_suffix(".partial").replace(state_file)
        export(model, processor, recipe, step, seconds, out)

    loss_config = LossConfig(proposals_per_box=recipe.proposals_per_box)
    started = last = kept = time.monotonic()
    hits, losses = deque(maxlen=50), deque(maxlen=50)
    for step in range(first, recipe.steps):
        images, texts, targets = batch_of(lessons, recipe.batch, np.random.default_rng((recipe.seed, 2, step, rank)))
        text = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=step < recipe.steps * recipe.bfloat16):
            outputs = model(pixel_values=pixels_of(images), **text)
        loss, _ = grounding_loss(model, outputs, text.input_ids, targets, loss_config)
        optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = parameters_to_vector(gradients)
        dist.all_reduce(mean)
        vector_to_parameters(mean / recipe.processes, gradients)
        clip_grad_norm_(parameters, recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * rate_at(step, recipe)
        optimiser.step()
        if rank:
            continue
        losses.append(float(loss.detach()))
        if step % 5 == 0:
            hits.append(hit_rate(outputs, text.input_ids, targets))
        now = time.monotonic()
        if now - last > 10 or step + 1 == recipe.steps:
            last, pace = now, (now - started) / (step + 1 - first)
            hit = sum(h for h, _ in hits) / max(1, sum(n for _, n in hits))
            print(
                f"step {step + 1}/{recipe.steps}  {recipe.batch * recipe.processes / pace:.0f} images/s  "
                f"loss {np.mean(losses):.3f}  hit rate {hit:.3f}  {pace * (recipe.steps - step - 1):.0f} s left",
                flush=True,
            )
        if now - kept > 60 or step + 1 == recipe.steps:
            keep(step + 1, spent + now - started)
            kept = time.monotonic()
    dist.barrier()
    dist.destroy_process_group()


def export(model, processor, recipe: Recipe, step: int, seconds: float, out: Path) -> None:
    """Write the product beside its place, then move each file over: a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        save(model, processor, Path(folder))
        size = sum(p.numel() for p in model.parameters())
        made = {"recipe": asdict(recipe), "step": step, "minutes": round(seconds / 60, 1), "parameters": size}
        made |= {"threads": recipe.processes, "torch": torch.__version__, "image_size": IMAGE_SIZE}
        (Path(folder) / "figures.json").write_text(json.dumps({"training": made}, indent=1) + "\n")
        out.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            shutil.copymode(__file__, file)
            file.replace(out / file.name)


def main() -> None:
    """Command line; every field of `Recipe` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/weights/grounder"))
    parser.add_argument("--work", type=Path, default=Path("var/grounder"), help="scenes and checkpoint")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out, work = options.pop("out"), options.pop("work")
    recipe = Recipe(**options)
    for folder in (out.parent, work):
        folder.mkdir(parents=True, exist_ok=True)
    handle, meeting = tempfile.mkstemp(dir=work)
    os.close(handle)
    Path(meeting).unlink()  # torch wants to create the file itself
    address = f"file://{Path(meeting).resolve()}"
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=train, args=(rank, recipe, out, work, address), daemon=True)
        for rank in range(1, recipe.processes)
    ]
    for helper in helpers:
        helper.start()
    train(0, recipe, out, work, address)
    for helper in helpers:
        helper.join()


if __name__ == "__main__":
    main()
