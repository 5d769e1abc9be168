"""Index vectors rank as the score does; embeddings files survive interruptions and are searched by text."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from hyco.flows.__main__ import main
from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.objective import scores
from hyco.pipeline import embeddings
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.embeddings import Embeddings, embed_source, embed_version
from hyco.storage.home import Home
from tests.factories.mining import write_tar
from tests.factories.training import make_home, sample, tiny_recipe


def embedder(geometry="lorentz", factors=1, dim=16, **changes) -> Embedder:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_recipe().model, geometry=geometry, factors=factors, dim=dim, **changes)
    words = Tokenizer.train([text for i in range(20) for text in sample(i).captions], 560, 16)
    return Embedder(DualEncoder(config), words)


def source_row(number):
    made = sample(number)
    return str(number), made.image, {"captions": list(made.captions)}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    embedder().save(folder)
    return folder


@pytest.fixture
def polar(tmp_path):
    folder = tmp_path / "polar"
    embedder(polar=True, text_radii=(0.01, 0.1)).save(folder)
    return folder


@pytest.fixture
def home(tmp_path):
    make_home(tmp_path / "home", counts=(5, 4))
    return Home(tmp_path / "home")


@pytest.fixture
def hyco(monkeypatch, capsys):
    """Run a command line; return its exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hyco", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("geometry", "length"), [("euclid", 1.0), ("lorentz", 0.1), ("lorentz", 1.0), ("lorentz", 3.0)]
)
def test_inner_products_of_index_vectors_rank_as_the_score_does(geometry, length):
    """10,000 images and 1,000 texts in float32, as they are stored; the products in float64, as search takes them."""
    towers = embedder(geometry, dim=64)
    log_scale = None if geometry == "euclid" else torch.tensor(length).log()
    texts, images = (towers.model.lift(torch.randn(n, 64) / 8, log_scale) for n in (1000, 10_000))
    products = towers.index_vectors(texts, query=True).double() @ towers.index_vectors(images).double().T
    score = scores(geometry, texts.double(), images.double(), towers.model.curvature.double())
    chosen = products.topk(100, dim=1).indices
    ranked, best = score.gather(1, chosen), score.topk(100, dim=1).values
    assert (ranked - best).abs().max() < 1e-5, "the same hundred in the same order, near ties apart"


def test_index_vectors_of_a_polar_model_rank_as_its_cosines():
    towers = embedder(polar=True, text_radii=(0.01, 0.1))
    texts, images = (torch.randn(n, towers.model.projected) for n in (20, 50))
    found = towers.lift_text(texts), towers.model.lift_image(images)
    products = towers.index_vectors(found[0], query=True) @ towers.index_vectors(found[1]).T
    torch.testing.assert_close(products, towers.score(*found))
    texts, again = ["a red square", "two dots"], towers.encode_text(["a red square", "two dots"])
    torch.testing.assert_close(towers.lift_text(towers.project_text(texts)), again)


def test_a_product_of_hyperboloids_has_no_index_vectors():
    towers = embedder("product", 4)
    with pytest.raises(ValueError, match=r"product of 4 .* score\(\)"):
        towers.index_vectors(torch.zeros(1, 16))


@pytest.mark.parametrize(("geometry", "factors"), [("lorentz", 1), ("product", 4)])
def test_entailment_is_positive_inside_the_cone_and_zero_on_its_edge(geometry, factors):
    towers = embedder(geometry, factors)
    c = towers.curvatures
    general, specific = (product.exp0(torch.randn(n, 16), c, factors) for n in (6, 9))
    inside = towers.entailment(general, specific, k=0.2)
    assert inside.shape == (6, 9)
    pairs = [(q, n) for q in range(6) for n in range(9)]
    want = [
        (
            product.half_aperture(general[q], c, factors, 0.2)
            - product.exterior_angle(general[q], specific[n], c, factors)
        ).mean()
        for q, n in pairs
    ]
    assert torch.allclose(inside.flatten(), torch.stack(want), atol=1e-6)
    # A point further out on the same ray lies inside, by the whole half-aperture.
    further = product.exp0(2 * product.log0(general, c, factors), c, factors)
    aperture = product.half_aperture(general, c, factors, 0.2).mean(-1)
    assert torch.allclose(towers.entailment(general, further, k=0.2).diagonal(), aperture, atol=1e-3)


def test_the_cones_of_a_stored_polar_model_are_those_of_its_points(polar):
    """The lengths of its points decide, whatever its score compares."""
    towers = Embedder.load(polar, "cpu")
    same = embedder(polar=True, text_radii=(0.01, 0.1))
    texts, pixels = ["a red square", "two dots"], [np.full((20, 20, 3), 90, np.uint8)]
    points, picture = towers.encode_text(texts), towers.encode_image(pixels)
    assert torch.equal(points, same.encode_text(texts)) and torch.equal(picture, same.encode_image(pixels))
    radii = points.norm(dim=-1) * towers.curvature**0.5
    assert ((radii > 0.01) & (radii < 0.1)).all()
    c = towers.curvatures
    for k in (0.005, 0.05):
        want = lorentz.half_aperture(points, c, k) - lorentz.exterior_angle(points, picture, c)
        torch.testing.assert_close(towers.entailment(points, picture, k)[:, 0], want)
    further = picture / picture.norm() * radii[0] * 5
    assert towers.score(further, points).allclose(towers.score(picture, points))
    assert not towers.entailment(points, further, 0.005).allclose(towers.entailment(points, picture, 0.005))


def test_a_polar_model_is_asked_for_the_constant_of_its_cones(polar):
    """With K = .1 every text within .2 of the origin would contain a half-space."""
    towers = Embedder.load(polar, "cpu")
    points = towers.encode_text(["a red square"])
    with pytest.raises(
        ValueError, match=r"give k=0\.005 for phrases, k=0\.05 for captions, k=0\.05 for parts\."
    ):
        towers.entailment(points, points)
    plain = embedder()
    x = plain.encode_text(["a red square"])
    assert torch.equal(plain.entailment(x, x), plain.entailment(x, x, 0.1))


def test_a_euclidean_model_has_no_cones():
    with pytest.raises(ValueError, match="no entailment cones"):
        embedder("euclid").entailment(torch.zeros(1, 16), torch.zeros(1, 16))


@pytest.mark.parametrize("kind", ["model", "polar"])
def test_search_finds_what_the_score_ranks_first(home, kind, tmp_path, request):
    model, out = request.getfixturevalue(kind), tmp_path / "x.parquet"
    made = embed_version(home, "latest", model, out)
    assert made["images"] == 9 and made["failures"] == {} and not list(tmp_path.glob("*.parts"))
    found = Embeddings(out)
    towers = found.load_model()
    text = "a red square"
    hits = found.search(towers, [text], k=9)[0]
    images = [row.image for row in (sample(i) for i in range(9))]
    picture = towers.encode_pixels(embeddings.whole(embeddings.decode(data), towers.size) for data in images)
    score = towers.score(towers.encode_text([text]), picture)[0]
    best = score.argsort(descending=True)
    assert [hit.key for hit in hits] == [sample(int(i)).key for i in best]
    assert np.allclose([hit.score for hit in hits], score[best], atol=1e-5)
    assert hits[0].captions == sample(int(best[0])).captions


def interrupt_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt the second unit that is embedded; the list grows with each."""
    real, calls = Embedder.encode_pixels, list[int]()

    def encode(self, images):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(Embedder, "encode_pixels", encode)
    return calls


def test_an_interrupted_embedding_goes_on_and_ends_the_same(home, model, tmp_path, monkeypatch):
    whole_run = tmp_path / "whole.parquet"
    embed_version(home, "latest", model, whole_run)
    out, calls = tmp_path / "x.parquet", interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed_version(home, "latest", model, out)
    assert not out.exists()
    embed_version(home, "latest", model, out)
    assert len(calls) == 3, "the first unit is not embedded again"
    assert out.read_bytes() == whole_run.read_bytes()


def test_a_damaged_image_is_counted_and_the_others_are_embedded(model, tmp_path):
    name, image, meta = source_row(2)
    write_tar(tmp_path / "s.tar", [source_row(0), source_row(1), (name, image[:200], meta)])
    made = embed_source(str(tmp_path / "s.tar"), model, tmp_path / "x.parquet")
    assert made["images"] == 2 and sum(made["failures"].values()) == 1


def test_failures_of_finished_units_are_counted_after_an_interruption(model, tmp_path, monkeypatch):
    broken = [(name, image[:200], meta) for name, image, meta in map(source_row, (1, 2))]
    write_tar(tmp_path / "s" / "a.tar", [source_row(0), *broken])
    write_tar(tmp_path / "s" / "b.tar", [source_row(3)])
    whole_run = embed_source(str(tmp_path / "s"), model, tmp_path / "whole.parquet")
    interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        embed_source(str(tmp_path / "s"), model, tmp_path / "x.parquet")
    resumed = embed_source(str(tmp_path / "s"), model, tmp_path / "x.parquet")
    assert resumed["failures"] == whole_run["failures"] and sum(resumed["failures"].values()) == 2
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_texts_are_searched_together_as_one_by_one(home, model, tmp_path, monkeypatch):
    embed_version(home, "latest", model, tmp_path / "x.parquet")
    found = Embeddings(tmp_path / "x.parquet")
    towers, texts = found.load_model(), ["a red square", "a blue disc", "three green things"]
    alone = [found.search(towers, [text], k=9)[0] for text in texts]
    monkeypatch.setattr(embeddings, "TEXTS", 2)
    monkeypatch.setattr(embeddings, "ROWS", 4)
    assert [[hit.key for hit in hits] for hits in found.search(towers, texts, k=9)] == [
        [hit.key for hit in hits] for hits in alone
    ]
    widened = []

    class Counting(np.ndarray):
        def astype(self, *args, **kwargs):
            widened.append(len(self))
            return np.asarray(super().astype(*args, **kwargs))

    found.vectors = found.vectors.view(Counting)
    found.search(towers, texts, k=1)
    assert sum(widened) == 2 * 9, "once for each block of texts"


@pytest.mark.parametrize("kind", ["model", "polar"])
def test_the_command_line_embeds_and_searches(home, kind, tmp_path, hyco, request):
    model = request.getfixturevalue(kind)
    write_tar(tmp_path / "s.tar", (source_row(i) for i in range(4)))
    out = tmp_path / "x.parquet"
    code, printed, _ = hyco("embed", tmp_path / "s.tar", "--out", out, "--model", model)
    assert code == 0 and json.loads(printed)["images"] == 4
    code, printed, _ = hyco("search", out, "a red square", "-k", "2")
    assert code == 0 and len(json.loads(printed)["hits"]) == 2
    for _ in range(2):
        code, printed, _ = hyco("search", home, "a red square", "--model", model, "-k", "3")
        assert code == 0 and len(json.loads(printed)["hits"]) == 3
    assert len(list((home.folder / "embeddings").iterdir())) == 1


def test_errors_name_what_to_do(home, model, tmp_path, hyco):
    out = tmp_path / "x.parquet"
    embed_version(home, "latest", model, out)
    with pytest.raises(ValueError, match="exists already"):
        embed_version(home, "latest", model, out)
    other = embedder()
    torch.nn.init.ones_(other.model.textual_projection.weight)
    other.save(tmp_path / "other")
    code, _, told = hyco("search", out, "a dog", "--model", tmp_path / "other")
    assert code == 2 and "embed again" in told
    code, _, told = hyco("search", home, "a dog")
    assert code == 2 and "has no champion: give --model" in told
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    code, _, told = hyco("search", tmp_path / "no.parquet", "a dog")
    assert code == 2 and "no.parquet cannot be read" in told
    code, _, told = hyco("search", tmp_path / "absent", "a dog")
    assert code == 2 and "absent does not exist" in told
