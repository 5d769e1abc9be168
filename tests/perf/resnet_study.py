"""python -m tests.perf.resnet_study --data cifar10:DIR: short trainings of narrow residual nets at 32 pixels, in docs.

Every net sees the same images in the same order, three seeds each: Adam 1e-3 with a cosine to zero, weight decay 1e-4,
flips and shifts. A run is stored as soon as it is measured, so that an interrupted study goes on where it stopped.
"""

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.resnets.lorentz_resnet import LorentzResNet
from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet
from hyco.pipeline.classification.in_memory import load_images, statistics
from hyco.pipeline.datasets import open_labelled

STEPS, BATCH, SEEDS, IMAGES, HELD_OUT, SHIFT = 320, 32, 3, 8_000, 2_000, 4
STAGES = (16, 32, 64, 128)
NETS: dict[str, Callable[[], nn.Module]] = {
    "Poincaré ResNet-20, identity": lambda: PoincareResNet(init="identity"),
    "Poincaré ResNet-20, normal": lambda: PoincareResNet(init="normal"),
    "ResNet-20": EuclideanResNet,
    "Lorentz ResNet-18, widths 16 to 128": lambda: LorentzResNet(widths=STAGES),
    "ResNet-18, widths 16 to 128": lambda: EuclideanResNet(depth=18, widths=STAGES),
}


def images(data: str, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Normalised pixels [N, 3, 32, 32] and labels of images that are drawn once."""
    found = open_labelled(data, split)
    drawn = np.sort(np.random.default_rng(0).permutation(len(found))[:count])
    loaded = load_images(found, 32, drawn)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in statistics(loaded.pixels))
    return (loaded.pixels / 255 - mean) / std, loaded.labels


def train(name: str, seed: int, known: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """Accuracy on the held-out images, in per cent."""
    torch.manual_seed(seed)
    net = NETS[name]()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
    )
    draw = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        index = torch.randint(len(known[0]), (BATCH,), generator=draw)
        pixels = F.pad(known[0][index], (SHIFT,) * 4)
        top, left = torch.randint(2 * SHIFT + 1, (2,), generator=draw).tolist()
        pixels = pixels[..., top : top + 32, left : left + 32]
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=draw) < 0.5
        optimiser.zero_grad()
        F.cross_entropy(net(torch.where(mirrored, pixels.flip(3), pixels)), known[1][index]).backward()
        optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(part) for part in held_out[0].split(250)])
    return 100 * (logits.argmax(1) == held_out[1]).float().mean().item()


def table(found: dict[str, float]) -> list[str]:
    """Markdown: a row for each net that has a run."""
    lines = ["| net | accuracy of each seed, % | mean |", "|---|---|---|"]
    for name in NETS:
        runs = [found[f"{name}/{seed}"] for seed in range(SEEDS) if f"{name}/{seed}" in found]
        if runs:
            lines.append(f"| {name} | {', '.join(f'{r:.1f}' for r in runs)} | {sum(runs) / len(runs):.1f} |")
    return lines


def main(arguments: list[str]) -> None:
    """Measure what is missing and write the table between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="NAME:DIR of CIFAR-10")
    parser.add_argument("--store", type=Path, default=Path("var/resnet_study.json"))
    parser.add_argument("--doc", type=Path, default=Path("docs/classification.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = json.loads(options.store.read_text()) if options.store.exists() else {}
    splits = None
    for seed, name in itertools.product(range(SEEDS), NETS):
        if f"{name}/{seed}" in found:
            continue
        splits = splits or (images(options.data, "train", IMAGES), images(options.data, "test", HELD_OUT))
        start = time.process_time()
        found[f"{name}/{seed}"] = accuracy = train(name, seed, *splits)
        options.store.parent.mkdir(parents=True, exist_ok=True)
        options.store.write_text(json.dumps(found))
        print(f"{name}, seed {seed}: {accuracy:.1f} %, {time.process_time() - start:.0f} s", flush=True)
    text = "\n".join(["", *table(found), ""])
    pattern = r"(<!-- short: begin -->\n).*(<!-- short: end -->)"
    page = options.doc.read_text()
    options.doc.write_text(re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S))


if __name__ == "__main__":
    main(sys.argv[1:])
