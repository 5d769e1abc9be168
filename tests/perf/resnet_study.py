"""python -m tests.perf.resnet_study --data cifar10:DIR: short trainings of narrow residual nets at 32 pixels, in docs.

The nets of a study see the same images in the same order for a seed: epochs of CIFAR-10 with flips and shifts, Adam
1e-3 with a cosine to zero, weight decay 1e-4; the whole test set is evaluated. A run is stored as soon as it is
measured, and its state every 20 steps, so that an interrupted study goes on where it stopped.
"""

import argparse
import itertools
import json
import math
import re
import statistics as numbers
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.resnets.lorentz_resnet import LorentzResNet
from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet
from hyco.pipeline.classification.in_memory import Epoch, Images, load_images, statistics
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.runtime import markdown

SHIFT, SAVED = 4, 20
STAGES = (16, 32, 64, 128)
NETS: dict[str, Callable[[], nn.Module]] = {
    "Poincaré ResNet-20, identity": lambda: PoincareResNet(init="identity"),
    "Poincaré ResNet-20, normal": lambda: PoincareResNet(init="normal"),
    "ResNet-20": EuclideanResNet,
    "Lorentz ResNet-18, widths 16 to 128": lambda: LorentzResNet(widths=STAGES),
    "ResNet-18, widths 16 to 128": lambda: EuclideanResNet(depth=18, widths=STAGES),
}
POINCARE, LORENTZ = tuple(NETS)[:3], tuple(NETS)[3:]
STUDENT = {2: 12.71, 3: 4.30}
"""Half of the 95 % interval of a mean of so many seeds, in standard errors."""


@dataclass(frozen=True)
class Study:
    """Nets that train for an equal number of steps; the others are compared with the first of them."""

    nets: tuple[str, ...]
    steps: int
    batch: int
    seeds: int


STUDIES = {
    "init": Study(POINCARE, steps=390, batch=128, seeds=3),
    "lorentz": Study(LORENTZ, steps=780, batch=128, seeds=1),
    "ten epochs": Study(LORENTZ, steps=3900, batch=128, seeds=1),
    "start": Study(POINCARE, steps=320, batch=32, seeds=3),
}


@dataclass(frozen=True)
class Run:
    """What a training found: accuracy on the test set in per cent, and the loss, a mean of its last steps."""

    accuracy: float
    loss: float


class Sets:
    """Training and test images, and the normalisation by the statistics of the former."""

    def __init__(self, known: Images, held_out: Images) -> None:
        self.known, self.held_out = known, held_out
        self.mean, self.deviation = (torch.tensor(v).view(3, 1, 1) for v in statistics(known.pixels))

    def normal(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, 32, 32] in [0, 1] -> what nets take, in channels-last order."""
        return ((pixels - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)


def train(make: Callable[[], nn.Module], study: Study, seed: int, sets: Sets, saved: Path) -> Run:
    """Train one net from the beginning, or from the state in `saved`."""
    torch.manual_seed(seed)
    net, losses = make(), list[float]()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / study.steps)
    )
    parts: dict[str, nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LambdaLR]
    parts = {"net": net, "optimiser": optimiser, "schedule": schedule}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        losses = state.pop("losses")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    while len(losses) < study.steps:
        each = len(sets.known) // study.batch
        epoch = Epoch.draw(
            sets.known, seed, len(losses) // each, batch_size=study.batch, crop=SHIFT, flip=True
        )
        for pixels, labels in itertools.islice(epoch.batches(len(losses) % each), study.steps - len(losses)):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(sets.normal(pixels)), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % SAVED == 0:
                torch.save(
                    {name: part.state_dict() for name, part in parts.items()} | {"losses": losses}, saved
                )
    net.eval()
    with torch.no_grad():
        parted = sets.held_out.pixels.split(250)
        right = torch.cat([net(sets.normal(part.float() / 255)).argmax(1) for part in parted])
    accuracy = 100 * (right == sets.held_out.labels).float().mean().item()
    saved.unlink(missing_ok=True)
    return Run(accuracy, numbers.mean(losses[-SAVED:]))


def spread(values: list[float], sign: str = "") -> str:
    """Mean and half of the 95 % interval, as far as the number of seeds allows one."""
    mean = f"{numbers.mean(values):{sign}.1f}"
    if len(values) not in STUDENT:
        return mean
    return f"{mean} ± {STUDENT[len(values)] * numbers.stdev(values) / len(values) ** 0.5:.1f}"


def table(study: Study, found: dict[str, dict[int, Run]]) -> list[str]:
    """Markdown: a row for each net with runs by seed; differences are means over the seeds that both nets have."""
    first = study.nets[0]
    head = ("net", "accuracy of each seed, %", "mean", f"beside {first}", "training loss")
    rows = []
    for name in study.nets:
        runs = [run.accuracy for run in found[name].values()]
        if not runs:
            continue
        both = found[name].keys() & found[first].keys()
        less = [found[name][seed].accuracy - found[first][seed].accuracy for seed in both]
        beside = "" if name == first or not less else spread(less, "+")
        loss = numbers.mean(run.loss for run in found[name].values())
        rows.append((name, ", ".join(f"{run:.1f}" for run in runs), spread(runs), beside, f"{loss:.2f}"))
    return markdown.table(head, rows)


def main(arguments: list[str]) -> None:
    """Measure what is missing and write the tables between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", help="NAME:DIR of CIFAR-10; without it the tables are written, of stored runs"
    )
    parser.add_argument("--only", choices=STUDIES, help="measure only this study")
    parser.add_argument("--seed", type=int, help="measure only this seed, beside a process for another one")
    parser.add_argument("--store", type=Path, default=Path("var/resnet_study"))
    parser.add_argument("--doc", type=Path, default=Path("docs/classification.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.store.mkdir(parents=True, exist_ok=True)
    sets = None
    for name in STUDIES if options.only is None else [options.only]:
        study = STUDIES[name]
        for seed, net in itertools.product(range(study.seeds), study.nets):
            file = options.store / f"{name}, {net}, {seed}.json"
            if not options.data or file.exists() or options.seed not in (None, seed):
                continue
            sets = sets or Sets(
                *(load_images(open_labelled(options.data, split), 32) for split in ("train", "test"))
            )
            start = time.process_time()
            run = train(NETS[net], study, seed, sets, file.with_suffix(".pt"))
            file.write_text(json.dumps(vars(run)))
            print(f"{name}, {net}, seed {seed}: {run}, {time.process_time() - start:.0f} s", flush=True)
            write(options.store, options.doc)
    write(options.store, options.doc)


def stored(store: Path, study: str, net: str, seeds: int) -> dict[int, Run]:
    """Runs of a net, by seed."""
    files = {seed: store / f"{study}, {net}, {seed}.json" for seed in range(seeds)}
    return {seed: Run(**json.loads(file.read_text())) for seed, file in files.items() if file.exists()}


def write(store: Path, page: Path) -> None:
    """Replace what stands between the marks of each study that has runs."""
    text = page.read_text()
    for name, study in STUDIES.items():
        found = {net: stored(store, name, net, study.seeds) for net in study.nets}
        if not any(found.values()):
            continue
        lines = "\n".join(["", *table(study, found), ""])
        pattern = rf"(<!-- {name}: begin -->\n).*(<!-- {name}: end -->)"
        text = re.sub(pattern, lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text, flags=re.S)
    page.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
