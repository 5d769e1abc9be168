"""The steps that tests/perf/gpu.py measures: ours, compiled or not, and the published way in plain torch."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.losses.objective import ObjectiveConfig, clip_objective, hycoclip_objective, loss
from hyco.pipeline.runtime.device import now
from hyco.pipeline.training import strategy
from hyco.pipeline.training.meter import Meter, backward_factor
from hyco.pipeline.training.step import Scalars, gradient
from tests.perf.plain_model import PlainHyCoClip, four_matrices

ROUNDS = 5
CAPTION, PHRASE = (8, 25), (4, 8)  # tokens, first and last included; GRIT's captions have 13 on average
HYCOCLIP = hycoclip_objective()

SIZES: dict[str, ClipConfig] = {
    "ViT-S/16": ClipConfig(),
    "ViT-B/16": ClipConfig(vision=VisionConfig(width=768)),
    "small": ClipConfig(
        vision=VisionConfig(image_size=64, patch_size=16, width=128, depth=3, heads=4),
        text=TextConfig(vocab_size=2048, context_length=32, width=128, depth=3, heads=4, end_token=0),
        dim=128,
    ),
}


@dataclass(frozen=True)
class Inputs:
    """A batch with one part per image; the texts padded to the longest of them, on the host as in training."""

    images: Tensor
    tokens: Tensor
    image_boxes: Tensor
    token_boxes: Tensor
    lengths: tuple[int, ...]

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of the model."""
        return self.images, self.tokens, self.image_boxes, self.token_boxes


def draw(config: ClipConfig, size: int, device: torch.device) -> Inputs:
    """Random pixels and texts with lengths like GRIT's."""
    drawn = torch.Generator().manual_seed(0)
    side, text = config.vision.image_size, config.text

    def texts(low: int, high: int) -> tuple[Tensor, list[int]]:
        lengths = torch.randint(low, min(high, text.context_length), (size,), generator=drawn)
        ids = torch.randint(1, text.vocab_size - 1, (size, int(lengths.max())), generator=drawn)
        after = torch.arange(ids.shape[1]) >= lengths[:, None] - 1
        return ids.masked_fill(after, text.end_token), lengths.tolist()

    def pixels() -> Tensor:
        return torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=drawn).to(device)

    (tokens, long), (phrases, short) = texts(*CAPTION), texts(*PHRASE)
    return Inputs(pixels(), tokens, pixels(), phrases, (*long, *short))


class OurStep:
    """The trainer's step: `half` under autocast, fused optimiser, fused loss."""

    def __init__(
        self,
        config: ClipConfig,
        inputs: Inputs,
        half: torch.dtype | None,
        compiled: bool = False,
        micro_batch: int = 0,
    ) -> None:
        device = inputs.images.device
        torch.manual_seed(0)
        self.model = DualEncoder(config).to(device)
        self.inputs, self.half, self.micro_batch = inputs, half, micro_batch
        self.owner = torch.arange(len(inputs.images), device=device)
        strategy.apply(self.model, compiled=compiled)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> None:
        self.grad()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.constrain_()

    def grad(self) -> Tensor:
        """The loss; its gradient is added to the parameters."""

        def of(nodes: dict[str, Tensor], scalars: Scalars) -> tuple[Tensor, dict[str, Tensor]]:
            return loss(nodes, self.owner, scalars.scale, scalars.curvature, HYCOCLIP)

        counts = [1] * len(self.owner)
        return gradient(
            self.model,
            self.model,
            self.inputs.all(),
            counts,
            of,
            micro_batch=self.micro_batch,
            half=self.half,
        ).loss


class PublishedStep:
    """Plain torch as published: padded, four passes, four matrices, float16 with a scaled loss on a GPU."""

    def __init__(self, config: ClipConfig, inputs: Inputs, half: torch.dtype | None) -> None:
        device = inputs.images.device
        torch.manual_seed(0)
        self.model = PlainHyCoClip(DualEncoder(config)).to(device)
        self.inputs, self.half = inputs, half
        self.owner = torch.arange(len(inputs.images), device=device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)

    def __call__(self) -> None:
        self.grad()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)

    def grad(self) -> Tensor:
        """The loss; its gradient is added to the parameters."""
        with torch.autocast(self.owner.device.type, self.half, enabled=self.half is not None):
            nodes = self.model(*(tensor.to(self.owner.device) for tensor in self.inputs.all()))
        scale, c = self.model.log_scale.exp(), self.model.log_curvature.exp()
        total = four_matrices(nodes, self.owner, scale, c, HYCOCLIP)
        self.scaler.scale(total).backward()
        return total.detach()


def agreement(config: ClipConfig, size: int, device: torch.device) -> str:
    """Assert that both ways compute the same loss and gradients in float32, and say how near."""
    return same_step(config, draw(config, size, device))


def same_step(config: ClipConfig, inputs: Inputs) -> str:
    """The same for given inputs."""
    ours, theirs = OurStep(config, inputs, None), PublishedStep(config, inputs, None)
    a, b = ours.grad(), theirs.grad()
    pairs = [(ours.model.log_curvature, theirs.model.log_curvature)]
    pairs += [
        (own.mlp_in.weight, layer.linear1.weight)
        for tower, plain in (
            (ours.model.visual, theirs.model.visual),
            (ours.model.textual, theirs.model.textual),
        )
        for own, layer in zip(tower.blocks, plain.layers, strict=True)
    ]
    off = [float((a - b).abs() / b.abs())]
    off += [float((own.grad - other.grad).norm() / other.grad.norm()) for own, other in pairs]
    assert max(off) < 2e-3, f"losses or gradients differ by {max(off):.1e}"
    return f"{max(off):.0e}"


def seconds(
    steps: dict[str, Callable[[], object]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of each step; one warm-up each, then the steps take turns."""
    for step in steps.values():
        step()
        step()
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = now(device)
            step()
            spent[name].append(now(device) - began)
    return {name: statistics.median(times) for name, times in spent.items()}


def step_flops(config: ClipConfig, inputs: Inputs) -> float:
    """Model FLOPs of a training step, see pipeline/training/meter.py."""
    meter = Meter(config, backward_factor("all"))
    meter.add(2 * len(inputs.images), inputs.lengths)
    return meter.take()[1]


def loss_steps(size: int, dim: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of three losses from embeddings: cosine CLIP, CLIP + part queries, HyCoCLIP."""
    drawn = torch.Generator().manual_seed(0)
    raw = {
        name: torch.randn(size, dim, generator=drawn).to(device)
        for name in ("image", "text", "image_box", "text_box")
    }
    owner = torch.arange(size, device=device)
    scale, c = (torch.tensor(value, device=device, requires_grad=True) for value in (14.3, 1.0))

    def step(objective: ObjectiveConfig, geometry: str, nodes: dict[str, Tensor]) -> Callable[[], object]:
        leaves = {name: value.requires_grad_() for name, value in nodes.items()}

        def run() -> None:
            for leaf in (*leaves.values(), scale, c):
                leaf.grad = None
            loss(leaves, owner, scale, c, objective, geometry)[0].backward()  # pyright: ignore[reportArgumentType]

        return run

    units = {name: nn.functional.normalize(value, dim=-1) for name, value in raw.items()}
    near = {name: value * dim**-0.5 for name, value in raw.items()}
    return {
        "cosine CLIP": step(clip_objective(), "euclid", dict(units)),
        "CLIP + part queries": step(
            clip_objective(boxes=True), "euclid", {n: u.clone() for n, u in units.items()}
        ),
        "HyCoCLIP": step(HYCOCLIP, "lorentz", near),
    }


def largest_batches(
    dim: int, device: torch.device, first: int, last: int, limit: float
) -> Iterator[tuple[int, float, float]]:
    """(batch, seconds, GB) of the streaming loss for doubled batches, until memory, `last` or `limit` ends it."""
    size = first
    while size <= last:
        gpu = device.type == "cuda"
        try:
            if gpu:
                torch.cuda.reset_peak_memory_stats(device)
            step = loss_steps(size, dim, device)["HyCoCLIP"]
            began = now(device)
            step()
            spent = now(device) - began
        except torch.OutOfMemoryError:
            return
        yield size, spent, torch.cuda.max_memory_allocated(device) / 1e9 if gpu else float("nan")
        if spent > limit:
            return
        size *= 2
