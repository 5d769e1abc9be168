"""Every family of grounding models says what the library's own processor says: its tokens, pixels and post-processing.

The library ranks boxes by the largest of all scores; a phrase's own ranking comes from its post-processing of outputs
in which the scores of everything else are removed.
"""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForZeroShotObjectDetection,
    GroundingDinoProcessor,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)

from hyco.models.grounding.owlv2 import Owlv2, padded_square
from hyco.models.grounding.transformers_dino import TransformersDino
from hyco.pipeline.mining.grounder import BACKENDS, NAMES, grounder_digest, open_detector
from tests.factories.grounder import save_tiny, save_tiny_owlv2
from tests.factories.grounder_parity import PHRASES, SIZES, compare, parity_images

CPU = torch.device("cpu")
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(scope="module")
def images():
    return parity_images()


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    return save_tiny_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.mark.parametrize("mm", [False, True], ids=["Grounding DINO", "MM Grounding DINO and LLMDet"])
def test_grounding_dino(tmp_path, images, mm):
    save_tiny(tmp_path, size={"shortest_edge": 64, "longest_edge": 96}, mm=mm)
    processor = GroundingDinoProcessor.from_pretrained(tmp_path)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path).eval()

    @torch.inference_mode()
    def by_the_library(index, number):  # alone, because its padding of other sizes changes the outputs
        inputs = processor(images=images[index], text=[PHRASES[index]], return_tensors="pt")
        assert inputs.input_ids[0, -2:].tolist() == [1012, 102]  # ends with a full stop
        output = model(**inputs)
        phrase = (inputs.input_ids[0] == 1012).cumsum(0)
        word = ~torch.isin(inputs.input_ids[0], torch.tensor([101, 102, 1012]))
        mine = torch.zeros(output.logits.shape[-1], dtype=torch.bool)
        mine[: len(word)] = (phrase == number) & word
        output.logits[..., ~mine] = -torch.inf
        return processor.post_process_grounded_object_detection(
            output, inputs.input_ids, threshold=0, text_threshold=0, target_sizes=[SIZES[index]]
        )[0]

    detector = TransformersDino(tmp_path, device=CPU, per_phrase=5, align=1)
    seen, forward = [], detector.forward
    detector.forward = lambda pixels, ids, mask: seen.extend(ids.tolist()) or forward(pixels, ids, mask)
    compare(detector, images, 5, by_the_library)
    prompts = [[token for token in ids if token] for ids in seen]
    assert len(prompts) == 3 and all(ids[-2:] == [1012, 102] for ids in prompts)


def test_owlv2(owlv2, images):
    processor = Owlv2Processor.from_pretrained(owlv2)
    model = Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    asked = [texts for texts in PHRASES if texts]
    inputs = processor(images=images[: len(asked)], text=asked, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)

    def by_the_library(index, number):
        one = type(output)(
            logits=output.logits[index : index + 1, :, number : number + 1],
            pred_boxes=output.pred_boxes[index : index + 1],
        )
        return processor.post_process_grounded_object_detection(one, 0.0, [SIZES[index]])[0]

    compare(Owlv2(owlv2, device=CPU, per_phrase=5), images, 5, by_the_library)
    compare(Owlv2(owlv2, device=CPU, per_phrase=5, batch_size=1), images, 5, by_the_library)


@pytest.mark.parametrize(
    "height,width", [(64, 64), (333, 500), (700, 90), (64, 63), (31, 40), (1, 1), (1, 200)]
)
def test_owlv2_pixels_are_the_librarys(owlv2, height, width):
    processor = Owlv2Processor.from_pretrained(owlv2).image_processor
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (theirs,) = processor(images=[image], input_data_format="channels_last", return_tensors="pt").pixel_values
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    np.testing.assert_allclose((padded_square(image, 64, CPU) - mean) / std, theirs, atol=1e-4)


def test_owlv2_scores_a_phrase_alone_as_it_does_beside_others(owlv2, images):
    detector = Owlv2(owlv2, device=CPU, per_phrase=4)
    (alone,) = detector(images[:1], [["a dog"]])
    (beside,) = detector(
        images[:1], [["a red duck", "a dog", "a very long phrase that no prompt of 16 holds"]]
    )
    np.testing.assert_allclose(beside.scores[beside.phrases == 1], alone.scores, atol=1e-5)
    assert set(beside.phrases) == {0, 1, 2}


def test_owlv2_reads_the_tokenizer_of_older_uploads(owlv2, images, tmp_path):
    folder = shutil.copytree(owlv2, tmp_path / "older")
    tokenizer = Owlv2(owlv2, device=CPU).tokenizer
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        grounder_digest(f"owlv2:{folder}")
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    assert (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    (older,) = Owlv2(folder, device=CPU)(images[:1], [["a dog"]])
    (newer,) = Owlv2(owlv2, device=CPU)(images[:1], [["a dog"]])
    np.testing.assert_array_equal(older.boxes, newer.boxes)


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is installed")
def test_sam3_without_torchvision_names_the_extra(owlv2, tmp_path):
    folder = shutil.copytree(owlv2, tmp_path / "sam3")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"owlv2"', '"sam3"'))
    with pytest.raises(ValueError, match=r"needs torchvision .*hyco\[sam3\]"):
        open_detector(f"sam3:{folder}")


def test_a_model_of_another_family_names_its_backend(owlv2, tmp_path):
    with pytest.raises(ValueError, match=f"type 'owlv2': .*write owlv2:{owlv2}"):
        open_detector(f"transformers:{owlv2}")
    with pytest.raises(ValueError, match=r"type 'grounding-dino': .*write transformers:"):
        grounder_digest(f"owlv2:{save_tiny(tmp_path)}")
    assert open_detector(f"owlv2:{owlv2}", device="cpu").digest == grounder_digest(f"owlv2:{owlv2}")


@pytest.mark.parametrize("name", NAMES)
def test_a_short_name_is_a_hub_name_and_offline_says_which_files_to_fetch(name):
    backend, _, place = NAMES[name].partition(":")
    assert BACKENDS[backend].hub
    assert grounder_digest(name) == grounder_digest(NAMES[name]) == f"hub:{place}"
    with pytest.raises(
        FileNotFoundError, match=f"hf download {place}.*config.json, model.safetensors"
    ) as caught:
        open_detector(name)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_an_unknown_short_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"'llmdet_bas': .*did you mean 'llmdet_base'"):
        open_detector("llmdet_bas")
