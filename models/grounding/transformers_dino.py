"""Grounding DINO, MM Grounding DINO and LLMDet as the transformers library runs them, from a directory of safetensors.

The directory has the files of `save_pretrained` and the hub: config.json, model.safetensors, tokenizer.json and
preprocessor_config.json (or processor_config.json). LLMDet is an MM Grounding DINO to the library. The embedded
grounder in demo/weights/grounder is an example.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyco.models.grounding.dino import DinoDetector, Preprocessing
from hyco.models.grounding.fast_dino import accelerate
from hyco.models.grounding.model_folder import digest_for, image_settings, load_network
from hyco.models.grounding.prompt import CLS, QUESTION, SEP, STOP, known_token

digest = digest_for("transformers")


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

        name = digest(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        check_tokenizer(folder, tokenizer)
        self.network = load_network(AutoModelForZeroShotObjectDetection, folder, device)
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
    raw = image_settings(folder)
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
