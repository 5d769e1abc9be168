"""The transformers backend on a random model: it must say what the library's own code says, only sorted by phrase."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from hyco.models.grounding.detector import Reader
from hyco.models.grounding.dino import DinoDetector, Preprocessing
from hyco.models.grounding.transformers_dino import TransformersDino, digest
from tests.factories.grounder import save_tiny

CPU = torch.device("cpu")
TOLERANCE = 1e-4  # stated in models/grounding/dino.py
PHRASES = [
    ["a red duck", "the blue car"],
    ["a dog"],
    ["two big ducks on the tree", "a man", "a woman", "a green ball", "three red cars", "a small dog"],
    [],
    ["the ball", "a"],
]


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("square"))


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("free"), size={"shortest_edge": 64, "longest_edge": 96})


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    sizes = [(64, 64), (120, 80), (80, 120), (50, 50), (99, 81)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def by_the_library(folder, image, phrases, per_phrase):
    """Processor, model and token positions, one image at a time: slow, plain and what our code must agree with."""
    tokens = AutoTokenizer.from_pretrained(folder)
    processor = GroundingDinoImageProcessorPil.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    text = tokens("".join(f"{phrase}. " for phrase in phrases), return_tensors="pt")
    with torch.no_grad():
        output = model(**processor(images=[image], return_tensors="pt"), **text)
    owner = (text.input_ids[0] == 1012).cumsum(0)
    special = torch.isin(text.input_ids[0], torch.tensor([101, 102, 1012]))
    found = []
    for number in range(len(phrases)):
        mine = torch.nonzero((owner == number) & ~special)[:, 0]
        scores, queries = output.logits[0][:, mine].sigmoid().max(1).values.sort(descending=True, stable=True)
        x, y, w, h = output.pred_boxes[0][queries].unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).clamp(0, 1)
        found.append((corners[:per_phrase].numpy(), scores[:per_phrase].numpy()))
    return found


@pytest.mark.parametrize("mm", [False, True])
@pytest.mark.parametrize("size", [{"height": 64, "width": 64}, {"shortest_edge": 64, "longest_edge": 96}])
def test_agrees_with_the_library_used_plainly(tmp_path, images, size, mm):
    save_tiny(tmp_path, size=size, mm=mm)
    detector = TransformersDino(tmp_path, device=CPU, per_phrase=5, align=1)
    for image, phrases in zip(images[:2], PHRASES[:2], strict=True):
        (ours,) = detector([image], [phrases])
        assert ours.boxes.dtype == ours.scores.dtype == np.float32 and ours.phrases.dtype == np.int64
        for number, (boxes, scores) in enumerate(by_the_library(tmp_path, image, phrases, 5)):
            mine = ours.phrases == number
            assert len(boxes) == 5 and scores.max() - scores.min() > 10 * TOLERANCE
            np.testing.assert_allclose(ours.scores[mine], scores, atol=TOLERANCE)
            np.testing.assert_allclose(ours.boxes[mine], boxes, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["square", "free"])
def test_batches_say_what_single_images_say(kind, images, request):
    folder = request.getfixturevalue(kind)
    detector = TransformersDino(folder, device=CPU, batch_size=8)
    together = detector(images, PHRASES)
    assert [len(set(detection.phrases)) for detection in together] == [2, 1, 6, 0, 2]
    for image, phrases, many in zip(images, PHRASES, together, strict=True):
        (alone,) = detector([image], [phrases])
        assert len(alone.scores) == 16 * len(phrases)
        np.testing.assert_array_equal(alone.phrases, many.phrases)
        np.testing.assert_allclose(alone.scores, many.scores, atol=TOLERANCE)
        np.testing.assert_allclose(alone.boxes, many.boxes, atol=TOLERANCE)


def test_padding_an_image_would_break_that(square):
    """The reason for equal sizes in a batch: the model itself answers otherwise when an image is padded."""
    model = AutoModelForZeroShotObjectDetection.from_pretrained(square).eval()
    torch.manual_seed(0)
    pixels, ids = torch.randn(1, 3, 64, 64), torch.tensor([[101, 1, 2, 1012, 102]])
    padded = torch.nn.functional.pad(pixels, (0, 32, 0, 0))
    mask = torch.nn.functional.pad(torch.ones(1, 64, 64, dtype=torch.long), (0, 32, 0, 0))
    with torch.no_grad():
        plain = model(pixel_values=pixels, input_ids=ids).logits[0, :, :5].sigmoid()
        changed = model(pixel_values=padded, pixel_mask=mask, input_ids=ids).logits[0, :, :5].sigmoid()
    assert (plain - changed).abs().max() > 100 * TOLERANCE


def test_aspect_is_kept_in_multiples_of_align_and_one_size_shares_a_batch(free, images):
    detector = TransformersDino(free, device=CPU, batch_size=8)
    seen = []
    forward = detector.forward
    detector.forward = lambda pixels, ids, mask: (
        seen.append(tuple(pixels.shape)) or forward(pixels, ids, mask)
    )
    detector(images[:3], [["a dog"]] * 3)
    assert {shape[2:] for shape in seen} == {(64, 64), (96, 64), (64, 96)}


@pytest.mark.parametrize(
    "height,width", [(480, 640), (640, 480), (333, 500), (1000, 300), (800, 1333), (50, 50)]
)
def test_sizes_without_rounding_are_the_librarys(height, width):
    from transformers.image_transforms import get_size_with_aspect_ratio

    assert Preprocessing(align=1).size_of(height, width) == get_size_with_aspect_ratio(
        (height, width), 800, 1333
    )
    rounded = Preprocessing().size_of(height, width)
    exact = Preprocessing(align=1).size_of(height, width)
    assert all(side % 32 == 0 and abs(side - other) <= 16 for side, other in zip(rounded, exact, strict=True))


def test_more_phrases_than_a_prompt_holds_are_asked_in_several(square, images):
    detector = TransformersDino(square, device=CPU, per_phrase=3)  # 24 tokens a prompt
    (all_at_once,) = detector([images[1]], [PHRASES[2]])
    assert all_at_once.phrases.tolist() == [number for number in range(6) for _ in range(3)]
    (first,) = detector([images[1]], [PHRASES[2][:5]])
    (last,) = detector([images[1]], [PHRASES[2][5:]])
    np.testing.assert_allclose(all_at_once.scores, np.r_[first.scores, last.scores], atol=TOLERANCE)


def test_phrases_of_unknown_tokens_only_are_not_asked_and_told(square, images):
    """The boxes it would get are those of whatever the picture shows."""
    detector = TransformersDino(square, device=CPU, per_phrase=3)
    texts = ["собака", "a dog", "犬 ☃", "собака dog", "犬."]
    found, alone, none = detector(images[:3], [texts, ["a dog"], ["собака", "собака"]])
    assert found.unknown == (0, 2, 4) and set(found.phrases) == {1, 3}
    assert alone.unknown == () and len(alone.boxes) == 3
    assert none.unknown == (0, 1) and len(none.boxes) == 0
    (dog,) = detector([images[0]], [["a dog", "собака dog"]])
    np.testing.assert_allclose(found.scores, dog.scores, atol=TOLERANCE)


def test_the_fraction_of_the_words_that_the_tokenizer_knows(square):
    detector = TransformersDino(square, device=CPU)
    texts = ["a red dog", "собака", "2024, 犬", "7!", "собака a dog on", "a " * 500]
    assert detector.known_fractions(texts) == [1, 0, 0, 0, 3 / 4, 1]
    assert detector.known_fractions([]) == []
    assert isinstance(detector, Reader)


class Scripted(DinoDetector):
    """Answers with a given table of token probabilities, so that the way from tokens to phrases can be read off."""

    def __init__(self, probabilities, boxes, **options):
        plain = {
            "digest": "",
            "preprocessing": Preprocessing(size=(32, 32)),
            "longest_prompt": 64,
            "device": CPU,
        }
        words = {"red": 5, "blue": 6, "car": 7}
        encode = lambda texts: [[words[word] for word in text.split()] for text in texts]  # noqa: E731
        options = {"known": lambda token: True, **options}
        super().__init__(**plain, autocast=None, per_phrase=2, batch_size=4, encode=encode, **options)
        self.answer = torch.logit(torch.tensor(probabilities)), torch.tensor(boxes)

    def forward(self, pixels, ids, mask):
        assert ids.tolist() == [[101, 5, 7, 1012, 6, 7, 1012, 102]]
        return self.answer[0][None], self.answer[1][None]


def test_phrases_that_share_a_word_are_told_apart_by_position():
    #         CLS  red  car  .    blue car  .    SEP
    table = [[0.9, 0.8, 0.3, 0.9, 0.1, 0.2, 0.9, 0.9], [0.1, 0.1, 0.2, 0.1, 0.4, 0.7, 0.1, 0.1]]
    boxes = [[0.5, 0.5, 0.2, 0.4], [0.95, 0.5, 0.2, 0.2]]
    (found,) = Scripted(table, boxes)([np.zeros((9, 9, 3), np.uint8)], [["red car", "Blue car"]])
    assert found.phrases.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.scores, [0.8, 0.2, 0.7, 0.2], atol=1e-6)
    first, second = [0.4, 0.3, 0.6, 0.7], [0.85, 0.4, 1.0, 0.6]  # clipped at the right edge
    np.testing.assert_allclose(found.boxes, [first, second, second, first], atol=1e-6)


def test_recovers_from_a_batch_that_does_not_fit(square, images):
    detector = TransformersDino(square, device=CPU, batch_size=4)
    expected = detector(images, PHRASES)
    forward, sizes = detector.forward, []

    def cramped(pixels, ids, mask):
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("made up")
        return forward(pixels, ids, mask)

    detector.forward = cramped
    for one, other in zip(detector(images, PHRASES), expected, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=TOLERANCE)
    assert sizes[:3] == [4, 2, 1]


def test_bfloat16_stays_near_float32(square, images):
    exact = TransformersDino(square, device=CPU)([images[0]], [["a dog"]])[0]
    rough = TransformersDino(square, device=CPU, autocast=torch.bfloat16)([images[0]], [["a dog"]])[0]
    assert 0 < np.abs(exact.scores - rough.scores).max() < 0.1


def test_refuses_what_is_not_an_image_or_not_paired(square):
    detector = TransformersDino(square, device=CPU)
    with pytest.raises(ValueError, match="2 images with 1 lists"):
        detector([np.zeros((4, 4, 3), np.uint8)] * 2, [["a"]])
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="image 0 is"):
            detector([wrong], [["a"]])


def test_digest_names_the_bytes_not_the_place(square, tmp_path):
    copy = shutil.copytree(square, tmp_path / "copy")
    assert digest(copy) == digest(square) == TransformersDino(copy, device=CPU).digest
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("value_proj.weight"))
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert digest(copy) != digest(square)


@pytest.mark.parametrize(
    "spoil,error,text",
    [
        (lambda at: shutil.rmtree(at), FileNotFoundError, "does not exist"),
        (lambda at: (at / "config.json").unlink(), ValueError, "no config.json"),
        (lambda at: (at / "config.json").write_text("{"), ValueError, "not JSON"),
        (lambda at: (at / "config.json").write_text('{"model_type": "bert"}'), ValueError, "type 'bert'"),
        (lambda at: (at / "model.safetensors").unlink(), ValueError, "save_pretrained"),
        (lambda at: (at / "tokenizer.json").unlink(), ValueError, "no tokenizer.json"),
        (lambda at: (at / "processor_config.json").unlink(), ValueError, "no preprocessor_config.json"),
        (lambda at: renumber(at), ValueError, "the id 1013, Grounding DINO needs 1012"),
    ],
)
def test_a_directory_that_is_no_grounder_is_named_with_the_way_out(square, tmp_path, spoil, error, text):
    folder = shutil.copytree(square, tmp_path / "grounder")
    spoil(folder)
    with pytest.raises(error, match=text) as caught:
        TransformersDino(folder, device=CPU)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def renumber(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["."], vocabulary["[unused1013]"] = 1013, 1012
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
