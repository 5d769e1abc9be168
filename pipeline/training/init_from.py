"""Starting from a trained CLIP: its towers in the recipe, its weights in the model, and the trained parameters."""

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from hyco.models.checkpoints import read_checkpoint
from hyco.models.clip import DualEncoder, load_weights
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.lora import adapt_, freeze_, require_peft
from hyco.pipeline.training.recipes import Recipe
from hyco.storage.folder import Folder

OF_SOME_ROWS = ("log_scale_", "sigmoid_bias")  # left out where the recipe's rows do not use them
# Parameters that do not depend on the space; alphas, curvature and temperature do.
PROJECTIONS = ("visual_projection.", "textual_projection.")
OF_EVERY_SPACE = ("visual.", "textual.", *PROJECTIONS)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with its checkpoint's towers, dim, pixel statistics and tokenizer; itself without a checkpoint.

    Geometry, curvature and temperature stay the recipe's. FileNotFoundError or ValueError where the checkpoint
    cannot be read or has no tokenizer and the recipe names none, or LoRA is asked for without peft.
    """
    start = recipe.start
    if not start.checkpoint:
        if start.learn != "all":
            raise ValueError(
                f"start.learn is {start.learn!r} without a checkpoint: set start.checkpoint to a CLIP's "
                "directory, or start.learn to 'all'"
            )
        return recipe
    if start.learn == "lora":
        require_peft()
    remote = "://" in start.checkpoint  # a path of this machine's copy would mean nothing elsewhere
    path = start_path(start.checkpoint)
    found = read_checkpoint(path)
    tokenizer = recipe.tokenizer
    if tokenizer == "train":
        if found.tokenizer is None:
            raise ValueError(f"{path} has no tokenizer: set tokenizer to a directory with tokenizer.json")
        tokenizer = start.checkpoint if remote else str(found.tokenizer)
    model = dataclasses.replace(
        recipe.model,
        vision=found.config.vision,
        text=found.config.text,
        dim=found.config.dim,
        projection_bias=found.config.projection_bias,
        pixel_mean=found.config.pixel_mean,
        pixel_std=found.config.pixel_std,
    )
    known = start.replace(checkpoint=start.checkpoint if remote else str(path), digest=_digest(found.weights))
    return recipe.replace(model=model, tokenizer=tokenizer, start=known)


def start_path(checkpoint: str) -> Path:
    """The file or directory of a start.checkpoint; that of a remote home, such as a champion, is fetched."""
    if "://" in checkpoint:
        return Folder(checkpoint).fetch()
    return Path(checkpoint).expanduser().resolve()


def started(recipe: Recipe, tokenizer: Tokenizer, fresh: bool) -> DualEncoder:
    """The model of a resolved recipe, frozen and adapted accordingly; with the checkpoint's weights when `fresh`.

    ValueError when the tokenizer's size or end token is not the one the text tower was trained with.
    """
    start, text = recipe.start, recipe.model.text
    if tokenizer.end != text.end_token or len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"the tokenizer ({recipe.tokenizer}) has {len(tokenizer)} tokens and ends texts with {tokenizer.end}, but "
            f"the text tower of {start.checkpoint} has {text.vocab_size} and {text.end_token}: use the tokenizer it "
            "was trained with"
        )
    model = DualEncoder(recipe.model)
    if fresh:
        found = read_checkpoint(start_path(start.checkpoint))
        if _digest(found.weights) != start.digest:
            raise ValueError(
                f"{start.checkpoint} holds other weights than when this run was prepared: restore them, or start "
                "another run"
            )
        own = model.state_dict()
        spaces = [
            (c.geometry, c.factors, c.factor_alphas, c.polar, c.image_radii, c.text_radii)
            for c in (found.config, recipe.model)
        ]
        same = spaces[0] == spaces[1]
        taken = {
            name: value
            for name, value in found.weights.items()
            if name.startswith(OF_EVERY_SPACE)
            or (same and (name in own or not name.startswith(OF_SOME_ROWS)))
        }
        if recipe.model.polar != found.config.polar:  # the last output of a polar projection is the radius
            for name in (name for name in taken if name.startswith(PROJECTIONS)):
                directions = taken[name][: recipe.model.dim]
                taken[name] = torch.cat([directions, own[name][recipe.model.dim :]])
        load_weights(model, own | taken, start.checkpoint)
    if start.learn == "heads":
        freeze_(model)
    elif start.learn == "lora":
        adapt_(model, start.lora_rank, start.lora_alpha, start.lora_blocks)
    return model


def _digest(weights: dict[str, Tensor]) -> str:
    """16 hex digits that identify the weights, independent of the file format."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().numpy().data)
    return found.hexdigest()[:16]
