"""OWLv2 (Minderer et al. 2023, arXiv 2306.09683) as the transformers library runs it, from a directory of safetensors.

Every phrase is encoded by itself, so its scores do not depend on the other phrases of its image. An image is padded to
a square at the right and the bottom, and boxes are fractions of the square; here they become fractions of the image.

The tokenizer spells every script in bytes and knows no unknown token, so no phrase is left out as unknown. Of a phrase
of more than 16 tokens (the published models) the first are read.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hyco.models.grounding.batching import Halving
from hyco.models.grounding.detector import Detection, best_boxes, check_asked
from hyco.models.grounding.model_folder import digest_for, image_settings, load_network

digest = digest_for("owlv2")


class Owlv2:
    """An OWLv2 directory behind the Detector interface.

    Args:
        folder: the model directory, see models.grounding.model_folder.
        device: torch device.
        autocast: bfloat16 or float16 for the matrix products, None for float32.
        per_phrase: maximum number of boxes per phrase.
        batch_size: maximum number of images in one forward pass.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        per_phrase: int = 16,
        batch_size: int = 16,
    ) -> None:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection

        self.digest = digest(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network = load_network(Owlv2ForObjectDetection, folder, device)
        self.device, self.autocast, self.per_phrase = device, autocast, per_phrase
        self.halving = Halving(batch_size)
        images = image_settings(folder)
        self.side = _square(images.get("size"), self.network.config.vision_config.image_size, folder)
        self.mean, self.std = (
            torch.tensor(images[name], device=device).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
        )

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """See Detector."""
        check_asked(images, phrases)
        found = [Detection.empty()] * len(images)
        asked = sorted(
            (index for index, texts in enumerate(phrases) if texts), key=lambda i: -len(phrases[i])
        )

        def work(part: Sequence[int]) -> list[Detection]:
            return self._batch([images[i] for i in part], [phrases[i] for i in part])

        for index, detection in zip(asked, self.halving.run("owlv2", asked, work), strict=True):
            found[index] = detection
        return found

    @torch.inference_mode()
    def _batch(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        ids, mask = self._tokens(phrases)
        pixels = torch.stack([padded_square(image, self.side, self.device) for image in images])
        pixels = (pixels - self.mean) / self.std
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.network(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        scores = output.logits.float().sigmoid().nan_to_num(0.0).cpu().numpy()
        boxes = output.pred_boxes.float().nan_to_num(0.0)
        centres, halves = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([centres - halves, centres + halves], -1).cpu().numpy()
        return [
            best_boxes(
                corners[row] * _of_image(image),
                scores[row, :, : len(texts)],
                range(len(texts)),
                self.per_phrase,
            )
            for row, (image, texts) in enumerate(zip(images, phrases, strict=True))
        ]

    def _tokens(self, phrases: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of all phrases, int64 [B * P, N]; P is the largest number of phrases of an image."""
        most = max(map(len, phrases))
        texts = [text for row in phrases for text in (*row, *[""] * (most - len(row)))]
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)


def _square(size: dict[str, int] | None, side: int, folder: Path) -> int:
    """The side to which images are resized, which must be the model's."""
    if size is not None and (size.get("height"), size.get("width")) != (side, side):
        raise ValueError(
            f"the processor in {folder} has size {size}, the model needs {side} x {side}: save the processor that "
            "the model was trained with"
        )
    return side


def _of_image(image: np.ndarray) -> np.ndarray:
    """Factors from fractions of the padded square to fractions of the image, [4]."""
    height, width = image.shape[:2]
    return np.array([1 / width, 1 / height] * 2, np.float32) * max(height, width)


def padded_square(image: np.ndarray, side: int, device: torch.device) -> Float[Tensor, "3 side side"]:
    """Pad an image with 0 to a square and resize it as OWLv2 does; values in [0, 1].

    A Gaussian filter against aliasing, then linear interpolation, both with mirrored borders. Both are linear and
    separable, so the result is one matrix product for the rows and one for the columns; the padding, being 0, takes no
    part in either. Reference implementation: transformers' Owlv2ImageProcessorPil.

    Args:
        image: uint8 [H, W, 3].
        side: side of the result in pixels.
        device: where it is computed.
    """
    height, width = image.shape[:2]
    rows, columns = (
        torch.from_numpy(_weights(length, max(height, width), side)).to(device) for length in (height, width)
    )
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    return torch.stack([rows @ (pixels[..., channel].float() / 255) @ columns.T for channel in range(3)])


@functools.lru_cache(maxsize=64)
def _weights(length: int, padded: int, side: int) -> Float[np.ndarray, "side length"]:
    """Weights of the `length` pixels of an axis, padded with 0 to `padded`, in the `side` pixels of the result."""
    factor = padded / side
    deviation = max(0.0, (factor - 1) / 2)
    radius = int(4 * deviation + 0.5)
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / deviation) ** 2) if deviation > 0 else np.ones(1)
    kernel /= kernel.sum()
    centres = (np.arange(side) + 0.5) * factor - 0.5
    below = np.floor(centres).astype(np.int64)
    above = (centres - below)[:, None]
    result = np.zeros((side, padded))
    for first, share in ((below, 1 - above), (below + 1, above)):
        at = _mirrored(first[:, None] + taps, padded)
        np.add.at(result, (np.arange(side)[:, None], at), share * kernel)
    return np.ascontiguousarray(result[:, :length], np.float32)


def _mirrored(at: np.ndarray, length: int) -> np.ndarray:
    """Indices reflected about the centres of the first and the last pixel."""
    if length == 1:
        return np.zeros_like(at)
    at = np.abs(at) % (2 * length - 2)
    return np.minimum(at, 2 * length - 2 - at)
