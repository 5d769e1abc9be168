"""Train the embedded grounder: python -m hyco.demo.train_grounder --out demo/weights/grounder --seed 0.

Draws scenes, trains on them, writes the model in the transformers format and the training facts to figures.json;
`python -m hyco.demo.grounder_figures` then adds the measured quality. After a kill the same command resumes from the
last checkpoint, about a minute back. Needs the `dev` extra (scipy does the matching).

The recipe: AdamW, warm-up, constant, cosine over the last 40 %;
forward in bfloat16 but for the last tenth; one single-threaded process per core with averaged gradients, which on two
cores is a quarter to a half faster than two threads in one process.
"""

import argparse
import contextlib
import ctypes
import json
import math
import multiprocessing
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
from transformers import GroundingDinoProcessor

from hyco.demo.grounder import IMAGE_SIZE, build_model, build_processor, save
from hyco.demo.grounder_loss import LossConfig, grounding_loss, hit_rate
from hyco.demo.grounder_prompts import batch_of, load_lessons, world_words
from hyco.demo.scenes import World
from hyco.storage.files import atomic_directory

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All options that determine the weights."""

    seed: int = 0
    steps: int = 5400
    scenes: int = 24_000
    processes: int = 2
    batch: int = 8  # images per process and step
    rate: float = 8e-4
    warmup: int = 200
    cooling: float = 0.4  # fraction of the run over which the rate falls to zero
    decay: float = 0.01
    clip: float = 1.0
    bfloat16: float = 0.9  # fraction of each part of the run in bfloat16
    proposals_per_box: int = 1
    # A second part fine-tunes on new scenes: twice as many absent phrases, and the
    # class loss also on phrase scores, as they are read in use.
    refine_steps: int = 1600
    refine_scenes: int = 12_000
    refine_rate: float = 4e-4
    refine_absent: int = 12
    refine_phrase_weight: float = 1.0

    @property
    def total(self) -> int:
        """Steps of both parts."""
        return self.steps + self.refine_steps


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate at `step`: linear warm-up, constant, half a cosine; then warm-up and half a cosine again."""
    if step >= recipe.steps:
        done, warmup = step - recipe.steps, recipe.warmup // 2
        if done < warmup:
            return recipe.refine_rate * (done + 1) / warmup
        return recipe.refine_rate * _cosine((done - warmup) / (recipe.refine_steps - warmup))
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    start = recipe.steps * (1 - recipe.cooling)
    return recipe.rate * _cosine(max(0.0, (step - start) / (recipe.steps - start)))


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] of the right size -> what the image processor makes of it, [B, 3, H, W]."""
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


class Apprentice:
    """Model, optimiser and position in the run of one process: the content of the checkpoint."""

    def __init__(self, recipe: Recipe, work: Path):
        self.recipe, self.file = recipe, work / "state.pt"
        self.processor = GroundingDinoProcessor.from_pretrained(work / "processor", local_files_only=True)
        torch.manual_seed(recipe.seed)
        self.model = build_model(len(self.processor.tokenizer)).train()
        self.parameters = list(self.model.parameters())
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": recipe.decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate, fused=True)
        self.lessons: list = []
        self.step, self.seconds = 0, 0.0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            if state["recipe"] != asdict(recipe):
                raise ValueError(
                    f"{self.file} belongs to another recipe: remove {work} or give another --work"
                )
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]

    def learn(self, rank: int):
        """One step: the batch of (seed, step, rank), gradients averaged over the processes.

        Returns the loss and (outputs, input ids, targets), from which `hit_rate` reads progress.
        """
        recipe, step = self.recipe, self.step
        refining = step >= recipe.steps
        share = (step - recipe.steps) / recipe.refine_steps if refining else step / recipe.steps
        absent = recipe.refine_absent if refining else 6
        rng = np.random.default_rng((recipe.seed, 2, step, rank))
        images, texts, targets = batch_of(self.lessons, recipe.batch, rng, absent)
        text = self.processor.tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=share < recipe.bfloat16):
            outputs = self.model(pixel_values=pixels_of(images), **text)
        config = LossConfig(
            proposals_per_box=recipe.proposals_per_box,
            phrase_weight=recipe.refine_phrase_weight if refining else 0.0,
        )
        loss, _ = grounding_loss(self.model, outputs, text.input_ids, targets, config)
        self.optimiser.zero_grad()
        loss.backward()
        if recipe.processes > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            mean = parameters_to_vector(gradients)
            dist.all_reduce(mean)
            vector_to_parameters(mean / recipe.processes, gradients)
        clip_grad_norm_(self.parameters, recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(step, recipe)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach()), (outputs, text.input_ids, targets)

    def keep(self, seconds: float, out: Path) -> None:
        """Write the checkpoint, then the model, each atomically."""
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        content |= {"step": self.step, "seconds": seconds, "recipe": asdict(self.recipe)}
        torch.save(content, self.file.with_suffix(".partial"))
        self.file.with_suffix(".partial").replace(self.file)
        made = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "minutes": round(seconds / 60, 1),
            "parameters": sum(p.numel() for p in self.parameters),
            "image_size": IMAGE_SIZE,
            "torch": torch.__version__,
        }
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            save(self.model, self.processor, Path(folder))
            (Path(folder) / "figures.json").write_text(json.dumps({"training": made}, indent=1) + "\n")
            out.mkdir(exist_ok=True)
            for file in Path(folder).iterdir():
                shutil.copymode(__file__, file)
                file.replace(out / file.name)


def train(rank: int, recipe: Recipe, out: Path, work: Path, every: float = 60.0) -> None:
    """One process of the run; process 0 reports, keeps a checkpoint each `every` seconds, writes the product."""
    libc = ctypes.CDLL("libc.so.6")
    if rank:  # a child process must not outlive its parent
        libc.prctl(1, signal.SIGKILL)
    libc.mallopt(-3, 1 << 30)  # reuse freed blocks instead of returning them to the kernel: 8 % faster steps
    libc.mallopt(-1, 2_000_000_000)
    torch.set_num_threads(1)
    with meeting(rank, recipe.processes, work):
        apprentice = Apprentice(recipe, work)
        if rank == 0 and apprentice.step:
            print(f"resuming from step {apprentice.step}", flush=True)
        if recipe.processes > 1:
            dist.barrier()
        first, before = apprentice.step, apprentice.seconds
        if rank == 0 and first == recipe.total:  # training has ended: write the model once more
            apprentice.keep(before, out)
        started = last = kept = time.monotonic()
        hits: deque[tuple[int, int]] = deque(maxlen=50)
        losses: deque[float] = deque(maxlen=50)
        while apprentice.step < recipe.total:
            if not apprentice.lessons or apprentice.step == recipe.steps:
                begun = time.monotonic()
                apprentice.lessons = draw(rank, recipe, work, refining=apprentice.step >= recipe.steps)
                started += time.monotonic() - begun  # the pace is that of the steps
            loss, seen = apprentice.learn(rank)
            if rank:
                continue
            losses.append(loss)
            if apprentice.step % 5 == 1:
                hits.append(hit_rate(*seen))
            now, done = time.monotonic(), apprentice.step == recipe.total
            if now - last > 10 or done:
                last, pace = now, (now - started) / (apprentice.step - first)
                hit = sum(h for h, _ in hits) / max(1, sum(n for _, n in hits))
                print(
                    f"step {apprentice.step}/{recipe.total}  {recipe.batch * recipe.processes / pace:.0f} images/s"
                    f"  loss {np.mean(losses):.3f}  hit rate {hit:.3f}"
                    f"  {pace * (recipe.total - apprentice.step):.0f} s left",
                    flush=True,
                )
            if now - kept > every or done:
                apprentice.keep(before + now - started, out)
                kept = time.monotonic()
        if recipe.processes > 1:
            dist.barrier()


@contextlib.contextmanager
def meeting(rank: int, processes: int, work: Path):
    """Join the processes of a run through a file in `work`; does nothing for one process."""
    if processes == 1:
        yield
        return
    dist.init_process_group(
        "gloo", init_method=f"file://{(work / 'meeting').resolve()}", rank=rank, world_size=processes
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def draw(rank: int, recipe: Recipe, work: Path, refining: bool) -> list:
    """This process's scenes of one part, with a progress line every 10 s while they are drawn."""
    started = last = time.monotonic()
    end = recipe.scenes + recipe.refine_scenes
    scenes = range(recipe.scenes, end) if refining else range(recipe.scenes)
    share = len(scenes) // recipe.processes

    def report(done: int) -> None:
        nonlocal last
        if rank == 0 and time.monotonic() - last > 10:
            last = time.monotonic()
            left = (last - started) / done * (share - done)
            print(f"drawing scenes: {done}/{share} in each process, {left:.0f} s left", flush=True)

    return load_lessons(work, recipe.seed, scenes, rank, recipe.processes, report)


def run(recipe: Recipe, out: Path, work: Path, every: float = 60.0) -> None:
    """The whole run: vocabulary first, then one process per core."""
    for folder in (out.parent, work):
        folder.mkdir(parents=True, exist_ok=True)
    if not (work / "processor").exists():  # stored, so that a resumed run has the same vocabulary
        with atomic_directory(work / "processor") as draft:
            words = world_words(World(size=IMAGE_SIZE), min(1000, recipe.scenes))
            build_processor(words).save_pretrained(draft)
    (work / "meeting").unlink(missing_ok=True)  # left by a run that was killed
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=train, args=(rank, recipe, out, work, every), daemon=True)
        for rank in range(1, recipe.processes)
    ]
    for helper in helpers:
        helper.start()
    train(0, recipe, out, work, every)
    for helper in helpers:
        helper.join()


def main() -> None:
    """Command line; every field of `Recipe` is an option."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--out", type=Path, default=Path("demo/weights/grounder"))
    parser.add_argument("--work", type=Path, default=Path("var/grounder"), help="scenes and checkpoint")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between checkpoints")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out, work, every = options.pop("out"), options.pop("work"), options.pop("every")
    run(Recipe(**options), out, work, every)


if __name__ == "__main__":
    main()
