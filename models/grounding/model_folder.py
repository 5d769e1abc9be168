"""Directories of grounding models in the layout of `save_pretrained` and the hub, by the model type in config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyco.models.grounding.detector import digest_of

if TYPE_CHECKING:
    import torch

BACKENDS = {
    "grounding-dino": "transformers",
    "mm-grounding-dino": "transformers",
    "owlv2": "owlv2",
    "sam3": "sam3",
    "sam3_video": "sam3",
}
"""Model type -> name of the backend that reads it.

LLMDet is an mm-grounding-dino. SAM 3 is published with the config.json of its video model, which contains the detector.
"""
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_BPE = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
"""What stands for tokenizer.json in older uploads of byte-pair tokenizers (OWLv2)."""


def digest_for(backend: str) -> Callable[[Path], str]:
    """Return a function that returns the digest of the model in a folder, reading files only."""
    return lambda folder: digest_of(files_of(folder, backend))


def settings_of(folder: Path, backend: str) -> list[Path]:
    """Return the files beside the weights that determine the output of the model in `folder`.

    Args:
        folder: the model directory.
        backend: one of BACKENDS' values.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no model in it that the backend reads.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"grounder directory {str(folder)!r} does not exist: give one with model.safetensors"
        )
    read_config(folder, backend)
    names = _SETTINGS
    if not (folder / "tokenizer.json").is_file():
        if not all((folder / name).is_file() for name in _BPE[:2]):
            raise ValueError(
                f"{folder} holds no tokenizer.json: save the processor there with save_pretrained"
            )
        names += _BPE
    return [path for name in names if (path := folder / name).is_file()]


def files_of(folder: Path, backend: str) -> list[Path]:
    """Return settings and weights; errors as in settings_of, and ValueError without weights."""
    settings = settings_of(folder, backend)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{folder} holds no *.safetensors: save the model with save_pretrained (no pickle is read)"
        )
    return settings + weights


def read_config(folder: Path, backend: str) -> dict[str, Any]:
    """Return config.json; ValueError when it is not that of a model that the backend reads."""
    path = folder / "config.json"
    types = " or ".join(kind for kind, name in BACKENDS.items() if name == backend)
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json: give the directory of a {types} model")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    other = BACKENDS.get(str(kind))
    if other != backend:
        remedy = f"; write {other}:{folder}" if other else ""
        raise ValueError(f"{folder} holds a model of type {kind!r}: this backend needs {types}{remedy}")
    return config


def image_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the image processor; ValueError without them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            raw = json.loads((folder / name).read_bytes())
            if raw := raw.get("image_processor", raw):
                return raw
            break
    raise ValueError(
        f"{folder} holds no preprocessor_config.json: save the processor there with save_pretrained"
    )


def load_network(kind: Any, folder: Path, device: "torch.device") -> Any:
    """Return a network of transformers in float32, in eval mode and without gradients, from local safetensors.

    Args:
        kind: class of transformers with `from_pretrained`.
        folder: the model directory.
        device: where it computes.
    """
    import torch  # here, because whoever reads a digest needs no torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per worker would hide our own
    network = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return network.eval().requires_grad_(False).to(device)
