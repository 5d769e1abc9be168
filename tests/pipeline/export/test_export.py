"""Models in and out: a fresh process gives the same embeddings, ONNX agrees or the command fails, the card tells."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyco.flows.__main__ import main
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.losses.objective import polar_cones_objective
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.export import onnx as onnx_towers
from hyco.pipeline.export.export import export, find_model, import_checkpoint
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from tests.factories.training import make_home, sample, tiny_recipe
from tests.models.checkpoints.layouts import published, transformers_clip
from tests.oracle.clip_towers import published_images, published_texts

TEXTS = ["a red square", "blue ground under a red square", ""]


def pictures(count: int = 3, height: int = 40, width: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home with three runs of one step: a hyperboloid, a product of four, and a polar model."""
    home = tmp_path_factory.mktemp("home")
    make_home(home, counts=(32,))
    optimiser = tiny_recipe().optimiser.replace(warmup_steps=0)
    for geometry, factors in (("lorentz", 1), ("product", 4)):
        asked = tiny_recipe(steps=1, optimiser=optimiser).model_dump()
        asked["model"] |= {"geometry": geometry, "factors": factors}
        train(home / "runs" / geometry, Home(home), "latest", Recipe.model_validate(asked))
    asked = tiny_recipe(steps=1, optimiser=optimiser).model_dump()
    asked["model"] |= {"polar": True, "text_radii": (0.0103, 0.118), "temperatures": ("cone",)}
    asked["objective"] = polar_cones_objective()
    train(home / "runs" / "polar", Home(home), "latest", Recipe.model_validate(asked))
    return home


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    Tokenizer.train([text for i in range(20) for text in sample(i).captions], 560, 16).save(folder)
    return folder


@pytest.fixture(scope="module")
def written(home, tmp_path_factory) -> Path:
    """The plain run exported with ONNX; made once, tracing takes seconds."""
    out = tmp_path_factory.mktemp("out") / "model"
    found = export("lorentz", out, home=str(home), onnx=True, licence="cc-by-4.0")
    assert max(found["onnx_difference"].values()) < 1e-5 and found["reload_difference"] == 0
    return out


FRESH = """
import sys, numpy as np
from hyco.pipeline.embedder import Embedder
model = Embedder.load(sys.argv[1], "cpu")
given = np.load(sys.argv[2])
texts, images = model.encode_text(given["texts"].tolist()), model.encode_image(list(given["images"]))
np.savez(sys.argv[3], texts=texts.numpy(), images=images.numpy(), scores=model.score(images, texts).numpy())
"""


def test_a_fresh_process_gives_the_same_embeddings(home, written, tmp_path):
    np.savez(tmp_path / "given.npz", texts=np.array(TEXTS), images=np.stack(pictures()))
    arguments = [str(written), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, timeout=120)
    found = np.load(tmp_path / "found.npz")
    trained = Embedder.load(home / "runs" / "lorentz" / "model", "cpu")
    texts, images = trained.encode_text(TEXTS), trained.encode_image(pictures())
    assert np.abs(found["texts"] - texts.numpy()).max() < 1e-6 and texts.norm() > 0.1
    assert np.abs(found["images"] - images.numpy()).max() < 1e-6 and images.norm() > 0.1
    assert np.abs(found["scores"] - trained.score(images, texts).numpy()).max() < 1e-6


def test_onnx_towers_take_any_batch_and_length(home, written):
    import onnxruntime

    trained = Embedder.load(home / "runs" / "lorentz" / "model", "cpu")
    image = onnxruntime.InferenceSession(written / "image.onnx")
    text = onnxruntime.InferenceSession(written / "text.onnx")
    for batch, texts in ((1, TEXTS[:1]), (5, TEXTS + TEXTS[:2])):
        pixels = torch.randn(batch, 3, 16, 16)
        (found,) = image.run(["image_embeds"], {"pixel_values": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), trained.model.encode_image(pixels))
        tokens = trained.tokenizer(texts)
        (found,) = text.run(["text_embeds"], {"input_ids": tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), trained.model.encode_text(tokens))
    said = image.get_modelmeta().custom_metadata_map
    assert json.loads(said["hyco.curvature"]) == [trained.curvature] and said["hyco.geometry"] == "lorentz"
    assert said["hyco.score"] == "distance"


def test_onnx_that_computes_something_else_fails_the_command(home, written, tmp_path, monkeypatch, capsys):
    """The files of one model stand in for what the exporter makes of another."""

    class Program:
        def __init__(self, name: str) -> None:
            self.name = name
            self.model = type("Model", (), {"metadata_props": {}})()

        def save(self, path: Path) -> None:
            shutil.copyfile(written / self.name, path)

    def exported(tower, *arguments, input_names, **options):
        return Program("image.onnx" if input_names == ["pixel_values"] else "text.onnx")

    monkeypatch.setattr(onnx_towers.torch.onnx, "export", exported)
    words = ["hyco", "export", "product", "--home", str(home), "--out", str(tmp_path / "out"), "--onnx"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "image.onnx differs from torch by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_origin_numbers_licence_and_use(home, written, tmp_path):
    card = (written / "README.md").read_text()
    version = json.loads((home / "runs" / "lorentz" / "train.json").read_text())["version"]
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    for said in (
        version,
        "32 train images",
        "tiny",
        "1 steps, 16 samples seen",
        "Embedder.load",
        "image.onnx",
    ):
        assert said in card, said
    curvature = Embedder.load(home / "runs" / "lorentz" / "model", "cpu").curvature
    assert "was not evaluated" in card and f"curvature -{curvature:.4g}," in card
    # The three lines of the card are run as they stand.
    lines = card.split("```python\n")[1].split("```")[0].replace("DIR", str(written))
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pictures(1)[0]).save(photo)
    exec(lines.replace("photo.jpg", str(photo)), {})
    assert Recipe.model_validate_json((written / "recipe.json").read_text()).name == "tiny"

    run = tmp_path / "assessed"
    shutil.copytree(home / "runs" / "lorentz", run)
    metrics = {
        "retrieval": None,
        "zero_shot": {"top1": 0.5, "top5": 0.9, "mean_per_class": 0.4, "chance": 0.25, "chance_top5": 1.0}
        | {"images": 20, "classes": 4, "classes_seen": 4},
        "intervals": {"zero_shot.top1": [0.31, 0.69]},
        "skipped": {"retrieval": "one caption only"},
        "versions": {"dataset": version, "parent": "v-0123456789ab"},
        "assessed": {"images": 20, "captions": 40},
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text().replace("\u00a0", " ")
    assert "| 50.0 % | 31.0 to 69.0 % | 25.0 % |" in card
    assert "retrieval: not measured, one caption only" in card
    assert "On 20 held-out images with 40 captions" in card and "license: other" in card
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_a_product_of_factors_goes_out_and_comes_back(home, tmp_path):
    export("product", tmp_path / "once", home=str(home), licence="cc0-1.0")
    export(tmp_path / "once", tmp_path / "twice")  # a model directory is a source too
    first, second = (Embedder.load(tmp_path / name, "cpu") for name in ("once", "twice"))
    assert second.model.config.factors == 4 and second.model.curvature.shape == (4,)
    assert torch.equal(first.encode_text(TEXTS), second.encode_text(TEXTS))
    cards = [(tmp_path / name / "README.md").read_text() for name in ("once", "twice")]
    assert cards[0] == cards[1] and "a product of 4 hyperboloids" in cards[0]  # origin and licence came along
    assert (tmp_path / "twice" / "recipe.json").is_file()


def test_a_polar_model_goes_out_with_onnx_and_its_card_names_the_cosine(home, tmp_path, capsys, monkeypatch):
    import onnxruntime

    out = tmp_path / "out"
    found = export("polar", out, home=str(home), licence="cc0-1.0", onnx=True)
    assert max(found["onnx_difference"].values()) < 1e-5 and found["reload_difference"] == 0
    trained, again = (Embedder.load(folder, "cpu") for folder in (home / "runs" / "polar" / "model", out))
    assert again.polar and torch.equal(again.encode_text(TEXTS), trained.encode_text(TEXTS))
    text = onnxruntime.InferenceSession(out / "text.onnx")
    (points,) = text.run(["text_embeds"], {"input_ids": trained.tokenizer(TEXTS).numpy()})
    torch.testing.assert_close(torch.from_numpy(points), trained.encode_text(TEXTS))
    assert text.get_modelmeta().custom_metadata_map["hyco.score"] == "cosine"
    card = (out / "README.md").read_text()
    assert "the score is the cosine of their directions" in card and "# the cosine: larger" in card
    assert "minus the" not in card and "ranks differently from the model" not in card
    assert "leave --published out" in error_of(
        capsys, monkeypatch, "export", "polar", "--home", str(home), "--out", str(out / "p"), "--published"
    )


def test_a_published_checkpoint_comes_in_and_goes_back_out(words, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(words, 16)
    state = published(vocabulary=len(tokenizer))
    torch.save({"model": state}, tmp_path / "hycoclip.pth")
    found = import_checkpoint(
        tmp_path / "hycoclip.pth", tmp_path / "ours", tokenizer=str(words), vision_heads=4
    )
    assert (found["layout"], found["geometry"], found["dim"]) == ("published", "lorentz", 24)
    model = Embedder.load(tmp_path / "ours", "cpu")
    square = pictures(2, 32, 32)
    pixels = torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2) / 255
    expected = published_images(state, pixels, heads=4)
    torch.testing.assert_close(model.encode_image(square).double(), expected, atol=1e-5, rtol=1e-5)
    expected = published_texts(state, tokenizer(TEXTS))
    torch.testing.assert_close(model.encode_text(TEXTS).double(), expected, atol=1e-5, rtol=1e-5)
    said = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert said["image_mean"] == said["image_std"] == pytest.approx([0.229, 0.224, 0.225])

    export(tmp_path / "ours", tmp_path / "theirs", published=True)
    back = torch.load(tmp_path / "theirs" / "published.pth", weights_only=True)["model"]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_a_hugging_face_directory_comes_in_with_its_tokenizer(words, tmp_path):
    tokenizer = Tokenizer.load(words, 16)
    theirs = transformers_clip(tmp_path / "clip", vocab_size=len(tokenizer), eos=tokenizer.end)
    tokenizer.save(tmp_path / "clip")
    import_checkpoint(tmp_path / "clip", tmp_path / "ours")
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=tokenizer(TEXTS)).pooler_output
    found = Embedder.load(tmp_path / "ours", "cpu").encode_text(TEXTS)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected), atol=1e-5, rtol=1e-5)


def test_pictures_are_arrays_images_or_paths(written, tmp_path):
    model, array = Embedder.load(written, "cpu"), pictures(1)[0]
    Image.fromarray(array).save(tmp_path / "image.png")
    points = model.encode_image(
        [array, Image.fromarray(array), str(tmp_path / "image.png"), tmp_path / "image.png"]
    )
    assert torch.equal(points, points[:1].expand(4, -1))
    with pytest.raises(ValueError, match=r"an image is float64 \(40, 60, 3\); give uint8"):
        model.encode_image([array / 255])
    with pytest.raises(FileNotFoundError):
        model.encode_image(["nowhere.jpg"])


def test_one_picture_or_text_is_no_list(home):
    model = Embedder.load(home / "runs" / "lorentz" / "model", "cpu")
    with pytest.raises(ValueError, match=r"'a dog' is not a list of texts: give \['a dog'\]"):
        model.encode_text("a dog")
    for encode in (model.encode_image, model.encode_part):
        with pytest.raises(ValueError, match=r"'photo.jpg' is not a list of pictures: give \['photo.jpg'\]"):
            encode("photo.jpg")


def test_onnx_without_its_extra_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"ONNX needs onnxscript: pip install -e '\.\[onnx\]'"):
        export("no run", tmp_path / "out", onnx=True)


def test_a_torn_file_beside_the_model_is_named(written, tmp_path):
    shutil.copytree(written, tmp_path / "torn")
    (tmp_path / "torn" / "metrics.json").write_text('{"run":')
    with pytest.raises(ValueError, match=r"torn/metrics\.json is not JSON .* again"):
        export(tmp_path / "torn", tmp_path / "out")


def error_of(capsys, monkeypatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_mistakes_are_one_line(home, words, tmp_path, capsys, monkeypatch):
    out, path = str(tmp_path / "out"), str(tmp_path / "meru.pth")
    assert "no finished run and no model in nowhere" in error_of(
        capsys, monkeypatch, "export", "nowhere", "--out", out
    )
    assert "already exists" in error_of(
        capsys, monkeypatch, "export", "product", "--home", str(home), "--out", str(words)
    )
    assert "geometry is product and the published architecture has lorentz or euclid only" in error_of(
        capsys, monkeypatch, "export", "product", "--home", str(home), "--out", out, "--published"
    )
    torch.save(published(), path)
    heads = ("--vision-heads", "4")
    assert "has no tokenizer: give --tokenizer with CLIP's bpe_simple" in error_of(
        capsys, monkeypatch, "import", path, "--out", out, *heads
    )
    assert "the text tower has 600 and 599: give the tokenizer it was trained with" in error_of(
        capsys, monkeypatch, "import", path, "--out", out, *heads, "--tokenizer", str(words)
    )
    assert "heads are not known" in error_of(capsys, monkeypatch, "import", path, "--out", out)
    assert not Path(out).exists()


def test_runs_and_models_are_found_by_path_or_name(home):
    run = home / "runs" / "product"
    assert find_model(run, Home("elsewhere")) == find_model("product", Home(home)) == (run, run / "model")
    assert find_model(run / "model", Home("elsewhere")) == (run, run / "model")
