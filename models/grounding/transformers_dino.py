"""Grounding DINO and MM-Grounding-DINO as the transformers library runs them, from a directory of safetensors.

The directory has the files of `save_pretrained` and the hub: config.json, model.safetensors, tokenizer.json and
preprocessor_config.json (or processor_config.json). The embedded grounder in demo/weights/grounder is an example.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyco.models.grounding.detector import digest_of
from hyco.models.grounding.dino import DinoDetector, Preprocessing
from hyco.models.grounding.fast_dino import accelerate
from hyco.models.grounding.prompt import CLS, QUESTION, SEP, STOP, known_token

MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def settings_of(folder: Path) -> list[Path]:
    """Return the files beside the weights that determine the output of the model in `folder`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no grounding model in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"grounder directory {str(folder)!r} does not exist: give one with model.safetensors"
        )
    read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json: save the processor there with save_pretrained")
    return [path for name in _SETTINGS if (path := folder / name).is_file()]


def files_of(folder: Path) -> list[Path]:
    """Return settings and weights; errors as in settings_of, and ValueError without weights."""
    settings = settings_of(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{folder} holds no *.safetensors: save the model with save_pretrained (no pickle is read)"
        )
    return settings + weights


def digest(folder: Path) -> str:
    """Return the digest of the model in `folder`, reading files only."""
    return digest_of(files_of(folder))


class TransformersDino(DinoDetector):
    """A model directory behind the Detector interface.

    Args:
        folder: the model directory, see the module.
        device: torch device.
        autocast: bfloat16 or float16 for the matrix products, None for float32.
        per_phrase: maximum number of boxes per phrase.
        batch_size: maximum number of images in one forward pass.
        align: see Preprocessing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        per_phrase: int = 16,
        batch_size: int = 16,
        align: int = 32,
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # one bar per worker would hide our own
        name = digest(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        check_tokenizer(folder, tokenizer)
        self.network = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self.network.eval().requires_grad_(False).to(device)
        if device.type == "cpu" and autocast is None:
            accelerate(self.network)
        super().__init__(
            digest=name,
            encode=encoder(tokenizer),
            known=known_tokens(tokenizer),
            preprocessing=preprocessing_of(folder, align),
            longest_prompt=int(self.network.config.max_text_len),
            device=device,
            autocast=autocast,
            per_phrase=per_phrase,
            batch_size=batch_size,
        )

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See DinoDetector."""
        output = self.network(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
        return output.logits, output.pred_boxes


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json; ValueError when it is not that of a grounding model."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no config.json: give the directory of a {' or '.join(MODEL_TYPES)} model"
        )
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{folder} holds a model of type {kind!r}: a grounder must be {' or '.join(MODEL_TYPES)}"
        )
    return config


def check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer with other ids: it would load without an error, and the model would find nothing."""
    wanted = {"[CLS]": CLS, "[SEP]": SEP, ".": STOP, "?": QUESTION}
    for token, number in wanted.items():
        if (given := tokenizer.convert_tokens_to_ids(token)) != number:
            raise ValueError(
                f"the tokenizer in {folder} gives {token!r} the id {given}, Grounding DINO needs {number}: "
                "use the tokenizer the model was trained with"
            )


def encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Return texts -> token ids of each; prompts are cut later, so long texts give no warning."""
    return lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False).input_ids


def known_tokens(tokenizer: Any) -> Callable[[int], bool | None]:
    """Return token id -> result of prompt.known_token."""
    return functools.cache(
        lambda number: known_token(tokenizer.convert_ids_to_tokens(number), tokenizer.unk_token)
    )


def preprocessing_of(folder: Path, align: int) -> Preprocessing:
    """The processor's own size, mean, std and filter."""
    raw: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            raw = json.loads((folder / name).read_bytes())
            raw = raw.get("image_processor", raw)
            break
    if not raw:
        raise ValueError(
            f"{folder} holds no preprocessor_config.json: save the processor there with save_pretrained"
        )
    size = raw.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    plain = Preprocessing(align=align)
    common = {
        "align": align,
        "mean": tuple(raw.get("image_mean", plain.mean)),
        "std": tuple(raw.get("image_std", plain.std)),
        "resample": int(raw.get("resample", plain.resample)),
    }
    if size.get("height") and size.get("width"):
        return Preprocessing(size=(int(size["height"]), int(size["width"])), **common)
    if size.get("shortest_edge"):
        longest = int(size.get("longest_edge") or 1333)
        return Preprocessing(shortest=int(size["shortest_edge"]), longest=longest, **common)
    raise ValueError(
        f"the processor in {folder} has size {size}: give height and width, or shortest and longest edge"
    )
