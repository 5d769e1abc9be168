"""groundingdino-py against transformers on the same random weights. Runs in an environment of its own:

python3.11 -m venv .venv-groundingdino
.venv-groundingdino/bin/pip install -r tests/groundingdino/requirements.txt
.venv-groundingdino/bin/python -m pytest tests/groundingdino --noconftest
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

try:
    found = find_spec("groundingdino.models")
except ModuleNotFoundError:
    found = None
if found is None:
    pytest.skip("groundingdino-py is not installed: make test-groundingdino", allow_module_level=True)

from hyco.models.grounding.groundingdino_py import GroundingDinoPy, build, digest, import_package

import_package()  # repairs torchvision, without which transformers' model cannot be imported either

from transformers import (  # noqa: E402
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: E402
    GroundingDinoImageProcessorPil,
)

from hyco.models.grounding.transformers_dino import TransformersDino  # noqa: E402

CPU = torch.device("cpu")
TOLERANCE = 2e-4
PHRASES = [["a red duck", "the blue car"], ["a dog"], ["a man", "two big ducks", "a tree"]]
WORDS = ["a", "the", "red", "blue", "big", "two", "duck", "ducks", "car", "dog", "man", "tree"]


def config(**changes):
    options = {
        "backbone_config": SwinConfig(
            image_size=224, embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], out_indices=[2, 3, 4]
        ),
        "text_config": BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ),
        "num_queries": 20,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_text_len": 32,
    }
    return GroundingDinoConfig(**{**options, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a Swin backbone in the transformers format, spread so that ranks mean something."""
    at = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
            elif "vision_param" in name or "text_param" in name:
                parameter.fill_(0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if "bbox_embed" in name and "layers.2" in name:
                parameter.mul_(0.3)  # boxes stay inside the picture; see test_where_the_two_differ
    model.save_pretrained(at)
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    vocabulary |= {word: number for number, word in enumerate(WORDS, 1)}
    taken = set(vocabulary.values())
    vocabulary |= {f"[unused{number}]": number for number in range(1100) if number not in taken}
    images = GroundingDinoImageProcessorPil(size={"height": 160, "width": 192})
    GroundingDinoProcessor(images, BertTokenizer(vocab=vocabulary)).save_pretrained(at)
    return at


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (160, 192, 3), dtype=np.uint8) for _ in PHRASES]


def both(detectors, pixels, ids, mask):
    with torch.inference_mode():
        return [detector.forward(pixels, ids, mask) for detector in detectors]


def test_logits_and_boxes_agree_with_transformers_on_the_same_weights(folder):
    detectors = TransformersDino(folder, device=CPU), GroundingDinoPy(folder, device=CPU)
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 160, 192)
    ids = torch.tensor([[101, 1, 3, 7, 1012, 2, 4, 9, 1012, 102]])
    (logits, boxes), (other_logits, other_boxes) = both(detectors, pixels, ids, torch.ones_like(ids).bool())
    count = ids.shape[1]
    assert logits[..., :count].std() > 0.05 and boxes.std() > 0.01
    torch.testing.assert_close(other_logits[..., :count], logits[..., :count], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(other_boxes, boxes, atol=TOLERANCE, rtol=TOLERANCE)


def test_detections_agree_in_batches_with_prompts_of_different_lengths(folder, images):
    theirs = TransformersDino(folder, device=CPU, per_phrase=8)(images, PHRASES)
    ours = GroundingDinoPy(folder, device=CPU, per_phrase=8)(images, PHRASES)
    for one, other in zip(ours, theirs, strict=True):
        assert one.phrases.tolist() == other.phrases.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=TOLERANCE)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=10 * TOLERANCE)


def test_batches_say_what_single_images_say(folder, images):
    detector = GroundingDinoPy(folder, device=CPU, per_phrase=8, batch_size=3)
    for image, phrases, many in zip(images, PHRASES, detector(images, PHRASES), strict=True):
        (alone,) = detector([image], [phrases])
        np.testing.assert_allclose(alone.scores, many.scores, atol=TOLERANCE)


def test_the_package_alone_mixes_the_masks_of_a_batch(folder, images):
    """The reason for _order_masks: without it a prompt in a batch is masked by another prompt's phrases."""
    detector = GroundingDinoPy(folder, device=CPU, per_phrase=8, batch_size=3)
    expected = detector(images, PHRASES)
    for layer in detector.network.transformer.encoder.text_layers:
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks_with_kwargs.clear()
    changed = detector(images, PHRASES)
    assert (
        max(np.abs(a.scores - b.scores).max() for a, b in zip(expected, changed, strict=True))
        > 10 * TOLERANCE
    )


def test_where_the_two_differ(folder):
    """Within 0.001 of the border the package clamps a reference point and transformers does not (1e-3 against 1e-5)."""
    util = sys.modules["groundingdino.util.misc"]
    point = torch.tensor([0.5, 0.01, 0.0005])
    torch.testing.assert_close(util.inverse_sigmoid(point)[:2], torch.special.logit(point, eps=1e-5)[:2])
    assert (util.inverse_sigmoid(point)[2] - torch.special.logit(point, eps=1e-5)[2]).abs() > 0.5


def test_weights_of_the_original_release_load_too(folder, tmp_path, images):
    detector = GroundingDinoPy(folder, device=CPU)
    released = shutil.copytree(folder, tmp_path / "released", ignore=shutil.ignore_patterns("*.safetensors"))
    names = detector.network.state_dict()
    state = {f"module.{key.replace('bert.model.', 'bert.')}": value.clone() for key, value in names.items()}
    torch.save({"model": state}, released / "groundingdino.pth")
    again = GroundingDinoPy(released, device=CPU)
    for one, other in zip(detector(images, PHRASES), again(images, PHRASES), strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
    del state["module.transformer.level_embed"]
    torch.save({"model": state}, released / "groundingdino.pth")
    with pytest.raises(
        ValueError, match=r"do not fit.*1 parameters without a value \(transformer\.level_embed"
    ):
        GroundingDinoPy(released, device=CPU)


def test_another_architecture_is_refused_by_name():
    with pytest.raises(ValueError, match=r"backbone 'convnext' \(needs 'swin'\), d_model 64"):
        build(config(backbone_config=ConvNextConfig(), d_model=64))


def test_the_digest_is_not_that_of_the_other_backend(folder):
    assert (
        digest(folder)
        == GroundingDinoPy(folder, device=CPU).digest
        != TransformersDino(folder, device=CPU).digest
    )
    with pytest.raises(FileNotFoundError, match=r"/no/such/place.*does not exist"):
        digest(Path("/no/such/place"))
