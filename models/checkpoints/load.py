"""Read a checkpoint of any supported layout: configuration, weights and the directory of its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyco.models.checkpoints.huggingface import from_huggingface
from hyco.models.checkpoints.hyper3 import from_hyper3
from hyco.models.checkpoints.meru import from_published
from hyco.models.checkpoints.openclip import from_openclip
from hyco.models.clip import ClipConfig, DualEncoder, config_from_dict, load_weights
from hyco.models.encoders.block import Activation
from hyco.models.encoders.tokenizer import CLIP_MERGES
from hyco.models.files import read_json, read_safetensors

# Names that wrappers put around a state dict, and around every name in it.
BOXES = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """A trained dual encoder in this project's terms.

    Attributes:
        layout: "hyco", "huggingface", "hyper3", "openclip" or "published".
        config: towers and space.
        weights: of DualEncoder.state_dict().
        tokenizer: directory with the tokenizer's files; None where the layout has none.
    """

    layout: str
    config: ClipConfig
    weights: dict[str, Tensor]
    tokenizer: Path | None

    def model(self) -> DualEncoder:
        """The model with these weights, on the CPU."""
        model = DualEncoder(self.config)
        load_weights(model, self.weights, f"the {self.layout} checkpoint")
        return model


def read_checkpoint(
    path: str | Path,
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation | None = None,
) -> Checkpoint:
    """Read a checkpoint of any supported layout.

    Args:
        path: a directory (ours, Hugging Face's, Hyper3-CLIP's, OpenCLIP's) or a file with a state dict.
        vision_heads: attention heads of a published image tower that is not ViT-S, B or L.
        text_heads: attention heads of a published text tower, where it has not one per 64 dimensions.
        activation: GELU of an OpenCLIP state dict without its open_clip_config.json.

    Raises:
        FileNotFoundError: no such path, or no weights in it.
        ValueError: an unknown layout or architecture; a file with objects other than tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _directory(path, vision_heads)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint in {path}: give a file or a directory")
    state = read_weights(path)
    if "textual.token_embed.weight" in state:
        return Checkpoint("published", *from_published(state, str(path), vision_heads, text_heads), None)
    if "visual.conv1.weight" in state:
        return Checkpoint("openclip", *from_openclip(state, str(path), None, activation), None)
    if any(name.startswith("vision_model.") for name in state):
        raise ValueError(f"{path} needs its config.json: give the directory, not the file")
    raise ValueError(
        f"{path} is of no layout that Hyco knows (its first tensor is {min(state)}): known are the state dicts of "
        "MERU, HyCoCLIP, UNCHA, PHyCLIP and OpenCLIP, and directories of Hugging Face's CLIPModel and of Hyper3-CLIP"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file, without the wrappers and prefixes that trainers add."""
    if path.suffix == ".safetensors":
        return _bare(read_safetensors(path), path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load may raise anything; its message advises unpickling
        raise ValueError(
            f"{path} cannot be read as tensors alone (incomplete, no checkpoint, or with other objects): Hyco "
            "unpickles nothing; save its state dict with torch.save or safetensors"
        ) from error
    return _bare(loaded, path)


def _bare(loaded: Any, path: Path) -> dict[str, Tensor]:
    for box in BOXES:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(box), Mapping):
            loaded = loaded[box]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path} holds no state dict")
    state = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path} holds {type(value).__name__} {name!r} where a tensor belongs")
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        state[name] = value
    return state


def _directory(folder: Path, vision_heads: int | None = None) -> Checkpoint:
    said = _json(folder / "config.json")
    if said.get("model_type") == "clip":
        state = _weights(folder, "model.safetensors", "pytorch_model.bin")
        return Checkpoint("huggingface", *from_huggingface(folder, state), _tokenizer(folder))
    if said.get("model_type") == "hyper3_clip":
        state = _weights(folder, "model.safetensors")
        return Checkpoint("hyper3", *from_hyper3(folder, said, state, vision_heads), _tokenizer(folder))
    if (folder / "open_clip_config.json").is_file():
        state = _weights(folder, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        described = _json(folder / "open_clip_config.json")
        return Checkpoint("openclip", *from_openclip(state, str(folder), described), _tokenizer(folder))
    if "geometry" in said:
        state = _weights(folder, "model.safetensors")
        return Checkpoint(
            "hyco", config_from_dict(said, str(folder / "config.json")), state, _tokenizer(folder)
        )
    kind = said.get("model_type")
    raise ValueError(
        f"{folder} holds no CLIP that Hyco knows"
        + (f" (model_type {kind!r})" if kind else "")
        + ": expected config.json with model_type 'clip' or 'hyper3_clip', open_clip_config.json, or a model directory "
        "of Hyco's"
    )


def _weights(folder: Path, *names: str) -> dict[str, Tensor]:
    """Tensors of the first of the named files that exists, as one file or as the shards that its index lists."""
    for name in names:
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            named = _json(index).get("weight_map")
            if not isinstance(named, dict) or not named:
                raise ValueError(f"{index} names no weights: the download is incomplete")
            pieces = sorted({Path(str(piece)).name for piece in named.values()})  # of this directory only
            return {k: v for piece in pieces for k, v in read_weights(folder / piece).items()}
    raise FileNotFoundError(f"{folder} has no {' and no '.join(names)}")


def _tokenizer(folder: Path) -> Path | None:
    return (
        folder
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", CLIP_MERGES))
        else None
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
