"""SAM 3's detector (Meta 2025, arXiv 2511.16719) as the transformers library runs it, from a directory of safetensors.

Every phrase is one pass of the detector over the features of its image, which are computed once; scores of a phrase do
not depend on the other phrases. A score is the box's probability times the phrase's presence in the image, as the
library's post-processing has it. Masks are computed by the library and not used.

Needs torchvision (extra `sam3`). Of a phrase of more than 32 tokens the first are read; the tokenizer spells every
script in bytes, so no phrase is left out as unknown.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyco.models.grounding.batching import Halving
from hyco.models.grounding.detector import Detection, best_boxes, check_asked, join
from hyco.models.grounding.model_folder import digest_for, load_network
from hyco.models.grounding.torchvision_import import import_torchvision

digest = digest_for("sam3")


class Sam3:
    """A SAM 3 directory behind the Detector interface.

    Args:
        folder: the model directory, see models.grounding.model_folder.
        device: torch device.
        autocast: bfloat16 or float16 for the matrix products, None for float32.
        per_phrase: maximum number of boxes per phrase.
        batch_size: maximum number of phrases in one pass of the detector; images are encoded one at a time.

    Raises:
        ValueError: torchvision is not installed.
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
        self.digest = digest(folder)
        try:
            import_torchvision()  # before transformers, which fails to import beside a broken torchvision
        except ImportError as error:
            raise ValueError(
                f"the sam3 backend needs torchvision ({error}): `pip install 'hyco[sam3]'`"
            ) from None
        from transformers import Sam3Model, Sam3Processor

        self.processor: Any = Sam3Processor.from_pretrained(folder, local_files_only=True)
        self.network = load_network(Sam3Model, folder, device)
        self.device, self.autocast, self.per_phrase = device, autocast, per_phrase
        self.halving = Halving(batch_size)

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """See Detector."""
        check_asked(images, phrases)
        return [self._image(image, texts) for image, texts in zip(images, phrases, strict=True)]

    @torch.inference_mode()
    def _image(self, image: np.ndarray, texts: Sequence[str]) -> Detection:
        if not texts:
            return Detection.empty()
        pixels = self.processor(images=image, return_tensors="pt").pixel_values.to(self.device)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            seen = self.network.get_vision_features(pixel_values=pixels)

        def work(part: Sequence[int]) -> list[Detection]:
            return self._phrases(seen, [texts[number] for number in part], part)

        return join(self.halving.run("sam3", range(len(texts)), work))

    def _phrases(self, seen: Any, texts: Sequence[str], numbers: Sequence[int]) -> list[Detection]:
        tokens = self.processor.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        repeated = type(seen)(
            fpn_hidden_states=_repeated(seen.fpn_hidden_states, len(texts)),
            fpn_position_encoding=_repeated(seen.fpn_position_encoding, len(texts)),
        )
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.network(
                vision_embeds=repeated, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
        present = output.presence_logits.float().sigmoid()
        scores = (output.pred_logits.float().sigmoid() * present).nan_to_num(0.0).cpu().numpy()
        boxes = output.pred_boxes.float().nan_to_num(0.0).cpu().numpy()
        return [
            best_boxes(boxes[row], scores[row][:, None], [number], self.per_phrase)
            for row, number in enumerate(numbers)
        ]


def _repeated(features: Sequence[torch.Tensor], times: int) -> tuple[torch.Tensor, ...]:
    """Features of one image for each of `times` phrases, without a copy."""
    return tuple(level.expand(times, *level.shape[1:]) for level in features)
