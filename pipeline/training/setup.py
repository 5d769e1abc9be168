"""What a training starts with: data, tokenizer, model, optimiser, and where the last checkpoint left them."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from hyco.models.clip import DualEncoder, load_weights
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.losses import objective as objectives
from hyco.pipeline.runtime.device import autocasts, precision_of
from hyco.pipeline.training import sharding, strategy
from hyco.pipeline.training.batch import START, Batch, Position
from hyco.pipeline.training.dataloader import Batches, ShardFile, shard_file
from hyco.pipeline.training.ema import WeightAverage
from hyco.pipeline.training.init_from import start_path, started
from hyco.pipeline.training.recipes import OptimiserConfig, Recipe
from hyco.pipeline.training.run_dir import LOGS, RunConfig
from hyco.pipeline.training.run_protocol import decay_groups
from hyco.pipeline.training.step import Gradient, Scalars, gradient
from hyco.storage.checkpoint import Checkpoints, open_checkpoints
from hyco.storage.folder import Folder
from hyco.storage.home import Home

TOKENIZER_CAPTIONS = 200_000  # maximum number of texts for training a tokenizer


@dataclass
class Setup:
    """The parts of a training, and the state that a checkpoint restores: step, seconds, position, substituted."""

    tokenizer: Tokenizer
    batches: Batches
    model: DualEncoder
    optimiser: torch.optim.Optimizer
    average: WeightAverage | None
    checkpoints: Checkpoints
    half: torch.dtype | None
    step: int = 0
    seconds: float = 0.0
    position: Position = dataclasses.field(default_factory=lambda: dict(START))
    substituted: int = 0

    @property
    def precision(self) -> str:
        """That of the towers."""
        return precision_of(self.half is not None)


def assemble(
    folder: Folder, run: RunConfig, rank: int, ranks: int, device: torch.device, control: Any = None
) -> Setup:
    """Make the parts of a run in this process, at its last checkpoint where there is one.

    `control` is a process group on the CPU, None for one process.
    """
    recipe, lead = run.recipe, rank == 0
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # on this machine: it fetches for the others
    if recipe.batch_size % ranks:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of {ranks} processes; change either"
        )

    # Data: the shards of the version, and the tokenizer, which the first process makes and the others read.
    home = Home(run.home)
    shards = [shard_file(home.store, ref) for ref in home.versions.load(run.version).shards["train"]]
    if lead:
        folder.fetch(*LOGS)
        if not folder.exists("tokenizer.json"):
            folder.write("tokenizer.json", _make_tokenizer(recipe, shards).to_json().encode())
    barrier(ranks)
    if first:
        folder.fetch("tokenizer.json")
    barrier(ranks)
    tokenizer = Tokenizer.load(folder.path, recipe.model.text.context_length)
    checkpoints = open_checkpoints(folder)
    found = _resumed(checkpoints, lead, first, control)
    state = json.loads((found[1] / "state.json").read_text()) if found else {}
    batches = Batches(
        shards,
        tokenizer,
        recipe.data,
        batch_size=recipe.batch_size // ranks,
        image_size=recipe.model.vision.image_size,
        seed=recipe.seed,
        rank=rank,
        ranks=ranks,
        lanes=state.get("lanes"),  # older checkpoints do not record it
        with_parts=recipe.objective.uses_boxes,
        pin=device.type == "cuda",
    )

    # Model: random weights with the tokenizer's vocabulary, or a trained CLIP. All processes share the seed.
    torch.manual_seed(recipe.seed)
    if recipe.start.checkpoint:
        model = started(recipe, tokenizer, fresh=found is None).to(device)
    else:
        text = dataclasses.replace(recipe.model.text, vocab_size=len(tokenizer), end_token=tokenizer.end)
        model = DualEncoder(dataclasses.replace(recipe.model, text=text)).to(device)
    if found:
        load_weights(model, load_file(found[1] / "model.safetensors"), str(found[1]))
    strategy.apply(model, recipe.execution.checkpoint_activations, recipe.execution.compile)
    if recipe.execution.sharded and ranks > 1:
        sharding.shard(model, device, ranks)
    optimiser = make_optimiser(model, recipe.optimiser)
    average = WeightAverage(model, recipe.optimiser.ema) if recipe.optimiser.ema else None
    # Older checkpoints do not record the precision.
    half = lead and autocasts(recipe.precision, device, state.get("precision"))
    half = torch.bfloat16 if _as_the_first(half, control) else None
    setup = Setup(tokenizer, batches, model, optimiser, average, checkpoints, half)

    # Resume: the average of the weights, optimiser and the reader's position.
    if found:
        setup.step, saved_in = found
        saved = torch.load(saved_in / "optimiser.pt", map_location=device, weights_only=True)
        sharding.load_optimiser(optimiser, saved)
        if average:
            average.load(load_file(saved_in / "ema.safetensors"))
        setup.seconds, setup.position = state["seconds"], state["position"]
        setup.substituted = state.get("substituted", 0)  # older checkpoints do not record it
    return setup


def step_gradient(setup: Setup, net: nn.Module, recipe: Recipe, batch: Batch, step: int) -> Gradient:
    """Add the gradient of a batch on the device to the parameters, `step` steps into the training."""
    distributed = setup.batches.ranks > 1

    def loss(nodes: dict[str, Tensor], scalars: Scalars) -> tuple[Tensor, dict[str, Tensor]]:
        return objectives.loss(
            nodes,
            batch.owner,
            scalars.scale,
            scalars.curvature,
            recipe.objective,
            recipe.model.geometry,
            distributed=distributed,
            entailment_share=recipe.entailment_share(step),
            scales=scalars.scales,
            bias=scalars.bias,
            polar=recipe.model.polar,
        )

    inputs = (batch.images, batch.tokens, batch.image_boxes, batch.token_boxes)
    micro_batch, half = recipe.execution.micro_batch, setup.half
    return gradient(net, setup.model, inputs, batch.counts, loss, micro_batch=micro_batch, half=half)


def update(setup: Setup, recipe: Recipe, step: int) -> None:
    """Take the optimiser step that makes `step` steps from the gradient, and keep scalars and average up to date."""
    divided = sharding.is_sharded(setup.model)
    if divided:
        sharding.average_scalars(setup.model)
    if recipe.optimiser.clip_norm:
        learned = [value for group in setup.optimiser.param_groups for value in group["params"]]
        clip = sharding.clip_ if divided else nn.utils.clip_grad_norm_
        clip(learned, recipe.optimiser.clip_norm)
    setup.optimiser.step()
    setup.optimiser.zero_grad(set_to_none=True)
    setup.model.constrain_()
    if setup.average:
        setup.average.update(step)


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW of the trained parameters; no decay of norms, biases and scalars: tensors of fewer than two dimensions."""
    groups = sharding.split_groups(decay_groups(model, config.weight_decay, lambda name, p: p.ndim < 2))
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def barrier(ranks: int) -> None:
    """Wait for the other processes."""
    if ranks > 1:
        dist.barrier()


def checkpoint_state(setup: Setup) -> dict[str, Any]:
    """What state.json holds besides the step."""
    return {
        "seconds": setup.seconds,
        "position": setup.position,
        "substituted": setup.substituted,
        "lanes": setup.batches.lanes,
        "precision": setup.precision,
    }


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


def _as_the_first(flag: bool, group: Any) -> bool:
    """The flag of the first process; `group` is None for one process."""
    if group is None:
        return flag
    told = torch.tensor(flag)
    dist.broadcast(told, 0, group=group)
    return bool(told)


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
