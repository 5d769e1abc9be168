"""The common part of all Grounding DINO backends: preprocessing, prompts, batches, boxes.

Liu et al. 2023 (arXiv 2303.05499). A query's score for a phrase is its largest token probability over the
phrase's tokens.

Padding changes the model's output (its group norms see the border), so no image is ever padded: sizes are
rounded to multiples of `align`, and a batch holds images of one size only. Text is padded, which the model's
masks make harmless. The remaining difference between batch 1 and batch N is the rounding of float32: below 1e-4
in boxes and scores.

A phrase of unknown tokens only would get boxes of anything in the picture; such phrases are not given to the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyco.models.grounding.batching import Halving, buckets
from hyco.models.grounding.detector import Detection, best_boxes, check_asked, join
from hyco.models.grounding.prompt import Prompt, build_prompts


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes pixels of the model.

    Attributes:
        size: (height, width) for every image, or None to preserve the aspect ratio with the next two.
        shortest: limit in pixels on the shorter side after resizing.
        longest: limit in pixels on the longer side after resizing.
        align: sides are rounded to multiples of this when the aspect ratio is preserved; 1 gives the library's sizes.
        mean, std: of the normalisation, for values in [0, 1].
        resample: PIL's number of the filter; 2 is bilinear.
    """

    size: tuple[int, int] | None = None
    shortest: int = 800
    longest: int = 1333
    align: int = 32
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resample: int = 2

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is resized."""
        if self.size is not None:
            return self.size
        short, long = min(height, width), max(height, width)
        limited = self.longest * short / long  # in the order of the library's own arithmetic
        small, large = (
            (round(limited), int(limited * long / short))
            if long / short * self.shortest > self.longest
            else (self.shortest, int(self.shortest * long / short))
        )
        small, large = (max(1, round(side / self.align)) * self.align for side in (small, large))
        return (small, large) if height <= width else (large, small)


class DinoDetector(ABC):
    """A Grounding DINO behind the Detector interface; subclasses implement `forward` with their library.

    Args:
        digest: of weights and configuration.
        encode: phrases -> token ids of each, without special tokens.
        known: token id -> whether the model knows it, see prompt.known_token.
        preprocessing: see `Preprocessing`.
        longest_prompt: the model's max_text_len.
        device: device of the network.
        autocast: type of the matrix products, or None for the weights' own.
        per_phrase: maximum number of boxes per phrase.
        batch_size: maximum number of images in one forward pass.
    """

    def __init__(
        self,
        *,
        digest: str,
        encode: Callable[[list[str]], list[list[int]]],
        known: Callable[[int], bool | None],
        preprocessing: Preprocessing,
        longest_prompt: int,
        device: torch.device,
        autocast: torch.dtype | None,
        per_phrase: int,
        batch_size: int,
    ) -> None:
        self.digest = digest
        self.encode = encode
        self.known = known
        self.preprocessing = preprocessing
        self.longest_prompt = longest_prompt
        self.device = device
        self.autocast = autocast
        self.per_phrase = per_phrase
        self.halving = Halving(batch_size)
        self.scale = 1.0 / (255.0 * torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1))
        self.shift = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255.0 * self.scale

    @abstractmethod
    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        Args:
            pixels: float32 [B, 3, H, W], normalised, without padding.
            ids: int64 [B, N] token ids, 0 where padded.
            mask: bool [B, N], true at tokens.

        Returns:
            Logits [B, Q, >= N] and boxes [B, Q, 4] as (centre x, centre y, width, height) in [0, 1].
        """

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """See Detector."""
        check_asked(images, phrases)
        ids = self._tokens(phrases)
        unknown = {text for text, tokens in ids.items() if self._unknown(tokens)}
        asked = [
            (index, prompt)
            for index, texts in enumerate(phrases)
            for prompt in build_prompts(
                [[] if text in unknown else ids[text] for text in texts], self.longest_prompt
            )
        ]
        sizes = [self.preprocessing.size_of(*images[index].shape[:2]) for index, _ in asked]
        found: list[list[Detection]] = [[] for _ in images]
        for size, members in buckets(sizes, [len(prompt.ids) for _, prompt in asked]):
            chosen = [asked[member] for member in members]
            work = lambda part, size=size: self._batch(images, part, size)  # noqa: E731
            for (index, _), detection in zip(chosen, self.halving.run(size, chosen, work), strict=True):
                found[index].append(detection)
        left_out = [tuple(n for n, text in enumerate(texts) if text in unknown) for texts in phrases]
        return [replace(join(parts), unknown=out) for parts, out in zip(found, left_out, strict=True)]

    def known_fractions(self, texts: Sequence[str]) -> list[float]:
        """See Reader."""
        ids = self._tokens([texts])
        words = {text: [known for known in map(self.known, ids[text]) if known is not None] for text in ids}
        return [sum(words[text]) / max(1, len(words[text])) for text in texts]

    def _unknown(self, tokens: list[int]) -> bool:
        known = {self.known(token) for token in tokens}
        return False in known and True not in known

    def _tokens(self, phrases: Sequence[Sequence[str]]) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(text for texts in phrases for text in texts))
        lowered = [text.lower() for text in distinct]
        return dict(zip(distinct, self.encode(lowered), strict=True)) if distinct else {}

    @torch.inference_mode()
    def _batch(
        self, images: Sequence[np.ndarray], part: Sequence[tuple[int, Prompt]], size: tuple[int, int]
    ) -> list[Detection]:
        pixels = self._pixels([images[index] for index, _ in part], size)
        longest = max(len(prompt.ids) for _, prompt in part)
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        mask = torch.zeros(len(part), longest, dtype=torch.bool)
        for row, (_, prompt) in enumerate(part):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = True
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits, boxes = self.forward(pixels, ids.to(self.device), mask.to(self.device))
        scores = logits.float().sigmoid().nan_to_num(0.0).cpu().numpy()
        boxes = boxes.float()
        corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
        corners = corners.nan_to_num(0.0).cpu().numpy()
        return [self._detection(prompt, scores[row], corners[row]) for row, (_, prompt) in enumerate(part)]

    def _pixels(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Resize to (height, width) and normalise: uint8 [H, W, 3] each -> float32 [B, 3, h, w] on the device."""
        height, width = size
        filter = Image.Resampling(self.preprocessing.resample)
        stacked = np.empty((len(images), height, width, 3), np.uint8)
        for row, image in enumerate(images):
            if image.shape[:2] != size:
                image = np.asarray(Image.fromarray(image).resize((width, height), filter))
            stacked[row] = image
        # Bytes are copied to the device, not floats; channels-last layout is the faster one for convolutions.
        pixels = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()
        return pixels.mul_(self.scale).sub_(self.shift)

    def _detection(self, prompt: Prompt, scores: np.ndarray, boxes: np.ndarray) -> Detection:
        """Scores [Q, T] of tokens and corner boxes [Q, 4] of one prompt -> its best boxes."""
        by_phrase = np.stack([scores[:, first:end].max(1) for _, first, end in prompt.spans], 1)
        return best_boxes(boxes, by_phrase, (index for index, _, _ in prompt.spans), self.per_phrase)
