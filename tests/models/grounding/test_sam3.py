"""SAM 3 says what the library's own processor says. Needs torchvision (extra sam3), which the usual suite lacks."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed (extra sam3)", allow_module_level=True)

from hyco.models.grounding.torchvision_import import import_torchvision

import_torchvision()  # repairs torchvision, without which transformers cannot be imported either

from transformers import Sam3Model, Sam3Processor  # noqa: E402

from hyco.pipeline.mining.grounder import grounder_digest, open_detector  # noqa: E402
from tests.factories.grounder import save_tiny_sam3  # noqa: E402
from tests.factories.grounder_parity import PHRASES, SIZES, compare, parity_images  # noqa: E402


def test_sam3_says_what_the_processor_says(tmp_path):
    save_tiny_sam3(tmp_path)
    processor, model = Sam3Processor.from_pretrained(tmp_path), Sam3Model.from_pretrained(tmp_path).eval()
    images = parity_images()

    @torch.inference_mode()
    def by_the_library(index, number):
        inputs = processor(images=images[index], text=PHRASES[index][number], return_tensors="pt")
        sizes = inputs.pop("original_sizes")
        output = model(**inputs)
        assert tuple(sizes[0].tolist()) == SIZES[index]
        return processor.post_process_object_detection(output, 0.0, [SIZES[index]])[0]

    for batch_size in (1, 2, 16):
        detector = open_detector(f"sam3:{tmp_path}", device="cpu", per_phrase=5, batch_size=batch_size)
        compare(detector, images, 5, by_the_library)
        assert detector.digest == grounder_digest(f"sam3:{tmp_path}")
    (long,) = detector(images[:1], [["a very long phrase of more letters than the tokenizer takes"]])
    assert len(long.boxes) > 0
