"""A whole assessment of a tiny untrained model on made-up scenes, and the pieces it is made of."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.encoders.vit import VisionConfig
from hyco.pipeline.embedder import Embedder, whole
from hyco.pipeline.evaluation.embedded import embed, work
from hyco.pipeline.evaluation.evaluate import AssessConfig, EvaluationSpec, evaluate
from hyco.pipeline.evaluation.scenes import Region, Scene, limit_regions
from hyco.pipeline.imaging.crop import crop_box, letterbox
from hyco.pipeline.imaging.decode import decode, encode_jpeg
from hyco.storage.home import Home
from hyco.storage.sample import Part, Sample, TrainingSample
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.files import named, tarred

KINDS = {"duck": (230, 200, 40), "hen": (200, 60, 50), "saw": (90, 90, 160), "axe": (40, 140, 80)}
TREE = {"duck": "bird", "hen": "bird", "saw": "tool", "axe": "tool", "bird": "thing", "tool": "thing"}
SIZE = 32


def scene(number):
    """A square of one kind, and on every third scene a second kind; captions, parts and labels that fit."""
    random = np.random.default_rng(number)
    pixels = random.integers(200, 256, (48, 64, 3)).astype(np.uint8)
    kinds = [list(KINDS)[number % 4]] + ([list(KINDS)[(number + 1) % 4]] if number % 3 == 0 else [])
    objects = []
    for place, kind in enumerate(kinds):
        x, y = 4 + 30 * place, int(random.integers(0, 28))
        pixels[y : y + 20, x : x + 20] = KINDS[kind]
        box = [x / 64, y / 48, (x + 20) / 64, (y + 20) / 48]
        for caption in (0, 1):
            phrase = f"a {kind}" if caption else f"one {kind}"
            objects.append({"leaf": kind, "phrase": phrase, "caption": caption, "span": [0, 4], "box": box})
    captions = [
        " and ".join(f"one {k}" for k in kinds),
        " with ".join(f"a {k}" for k in kinds) + f" {number}",
    ]
    foils = [
        {"kind": kind, "caption": at, "foil": captions[at].replace(kinds[0], "moose")}
        for at, kind in enumerate(("noun", "count"))
    ]
    return encode_jpeg(pixels), {
        "captions": captions,
        "objects": objects,
        "labels": kinds,
        "foils": foils,
    }


def write_source(folder, numbers, change=lambda meta: meta):
    folder.mkdir(parents=True)
    members = {}
    for number in numbers:
        image, meta = scene(number)
        meta = change(meta)
        files = {"jpg": image, "txt": meta["captions"][0], "json": json.dumps(meta)}
        members |= named(f"{number:05d}", files)
    tarred(folder / "00000.tar", members)


def packed(number):
    image, meta = scene(number)
    parts = []
    for item in meta["objects"]:
        crop = encode_jpeg(crop_box(decode(image), item["box"], SIZE))
        parts.append(Part(crop, item["phrase"], tuple(item["box"]), 0.8, (0, 4), item["caption"]))
    return TrainingSample(
        f"k{number}", image, tuple(meta["captions"]), tuple(parts), {"labels": meta["labels"]}
    )


def tiny(geometry="lorentz", factors=1, **changes):
    captions = [text for n in range(40) for text in scene(n)[1]["captions"]]
    tokenizer = Tokenizer.train(captions, 600, 16)
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=len(tokenizer), context_length=16, width=32, depth=1, heads=2, end_token=tokenizer.end
    )
    vision = VisionConfig(image_size=SIZE, patch_size=16, width=32, depth=1, heads=2)
    space = {"dim": 16, "geometry": geometry, "factors": factors} | changes
    return DualEncoder(ClipConfig(vision=vision, text=text, **space)), tokenizer


def wide_embedder() -> Embedder:
    """Untrained, its projections so wide that colours tell: not every image gets the same answer."""
    model, tokenizer = tiny()
    with torch.no_grad():
        model.visual_projection.weight.mul_(30)
        model.textual_projection.weight.mul_(30)
    return Embedder(model, tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A home with one version and one run, a labelled source, a taxonomy."""
    root = tmp_path_factory.mktemp("assess")
    write_source(root / "heldout", range(100, 140))
    nodes = [{"id": name, "parent": above, "names": [name]} for name, above in TREE.items()]
    (root / "taxonomy.json").write_text(json.dumps({"root": "thing", "prompts": ["one {}"], "nodes": nodes}))
    store = Store(str(root / "home"))
    shards = {}
    for split, numbers in {"train": range(8), "val": range(8, 30)}.items():
        samples = [packed(n) for n in numbers]
        made = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
        shards[split] = [shard_ref(made, len(samples), sum(len(s.parts) for s in samples))]
    Versions(store).publish(
        {"mine": {"source": "made up", "grounder": "none"}},
        {"mine": "d1"},
        shards,
        {"images": 30},
        ["detector7"],
    )
    write_run(root / "home" / "runs" / "r", *tiny())
    return root


def write_run(run, model, tokenizer):
    model.save_pretrained(run / "model")
    tokenizer.save(run / "model")
    cone = {"general": "text", "specific": "image", "eta": 0.5, "weight": 0.1}
    recipe = {"name": "made", "objective": {"aperture": 0.2, "entailment": [cone]}}
    (run / "config.json").write_text(json.dumps({"recipe": recipe, "environment": {"commit": "abc123"}}))
    (run / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 3.0 / s}) + "\n" for s in (1, 2, 3))
    )
    (run / "train.json").write_text(json.dumps({"steps": 3, "loss_first": 3.0, "loss_last": float("nan")}))


FAST = AssessConfig(draws=100)


def run(world, name="r", mining=None, listener=None, **fields):
    home, spec = world / "home", EvaluationSpec(**{"config": FAST} | fields)
    return evaluate(home / "runs" / name, Home(home), spec, mining=mining, listener=listener)


def labelled(world):
    return {"assess_source": str(world / "heldout"), "taxonomy": str(world / "taxonomy.json")}


def test_everything_is_measured_on_a_labelled_source(world):
    states = []
    mining = {
        "images": 8,
        "phrases": 16,
        "boxes": 16,
        "recall": 1.0,
        "precision": 1.0,
        "images_per_second": 9.0,
    }
    metrics = run(world, **labelled(world), mining=mining, listener=states.append)
    folder = world / "home" / "runs" / "r"
    assert json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail) == metrics
    assert metrics["mining"] == mining and metrics["train"]["loss_last"] is None
    numbers = metrics["metrics"]
    assert {"zero_shot.top1", "zero_shot.mean_per_class"} <= numbers.keys() and metrics["schema"] == 2
    assert numbers["zero_shot.top1"]["chance"] == 0.25
    single = sum(n % 3 != 0 for n in range(100, 140))
    assert metrics["zero_shot"]["images"] == metrics["hierarchy"]["images"] == single
    assert metrics["retrieval"]["images"] == 40 and metrics["retrieval"]["captions"] == 80
    assert metrics["parts"]["crops"] == 40 + (40 - single) and metrics["parts"]["phrases"] == 8
    for way in ("image_to_text", "text_to_image"):
        assert {f"retrieval.{way}.{k}" for k in ("r1", "r5", "r10")} <= numbers.keys()
        assert metrics["retrieval"][way].keys() == {"gallery", "queries"}
    assert metrics["retrieval"]["image_to_text"]["gallery"] == 80
    assert metrics["retrieval"]["text_to_image"]["gallery"] == 40
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    drawn = {row["name"]: row["n"] for row in rows if row["name"].startswith("parts.")}
    ways = {"crop_to_phrase": "40", "phrase_to_crop": "8"}  # scenes, and phrases one by one
    assert drawn == {f"parts.{way}.r{k}": n for way, n in ways.items() for k in (1, 5, 10)}
    boxes = metrics["boxes"]
    assert boxes["classification"]["boxes"] == metrics["parts"]["crops"]
    assert boxes["classification"]["classes"] == boxes["classification"]["classes_seen"] == 4
    assert {"boxes.detection.map", "boxes.detection.map_distance"} <= numbers.keys()
    foils = metrics["compositional"]
    assert list(foils) == ["noun", "count", "mean"] and foils["mean"]["pairs"] == 80
    assert foils["noun"]["n"] == 40 and numbers["compositional.noun.accuracy"]["chance"] == 0.5
    walks = metrics["traversal"]
    assert walks.keys() == {"texts", "pictures", "names"}
    assert walks["texts"]["n"] == 40 and walks["names"]["n"] == single and walks["names"]["pool"] == 6
    assert walks["pictures"]["pool"] == 40 + metrics["parts"]["crops"]
    geometry = metrics["geometry"]
    assert geometry["k"] == 0.2 and geometry["curvature"] == pytest.approx(1.0)
    assert (
        geometry["satisfied"].keys() == {"text>image"} and geometry["satisfied"]["text>image"]["eta"] == 0.5
    )
    assert (
        geometry["radius"].keys()
        == geometry["saturated"].keys()
        == {"text_box", "image_box", "text", "image"}
    )
    told = metrics["attribution"]
    assert told["hierarchical_retrieval"]["n"] == 6 and told["depth"].keys() == {"1", "2"}
    assert told["separation"].keys() == {
        "text>image",
        "text_box>image_box",
        "image_box>image",
        "text_box>text",
    }
    assert numbers["attribution.direction.angle"]["value"] == numbers["attribution.direction.norm"]["value"]
    assert numbers["attribution.hierarchical_retrieval.score"]["low"] is not None
    assert metrics["skipped"] == {} and metrics["commit"] == "abc123"
    for key in (
        "zero_shot.top1",
        "retrieval.image_to_text.r5",
        "hierarchy.tie",
        "parts.crop_to_phrase.r1",
        "boxes.detection.map",
        "compositional.mean.accuracy",
    ):
        assert numbers[key]["low"] <= numbers[key]["high"]
    assert states[-1]["finished"] and states[-1]["done"] == states[-1]["total"]
    report = (folder / "report.html").read_text()
    assert report.count("data:image/jpeg") >= 12 and "detector7" in report
    assert "Names of the taxonomy by depth" in report and "Norms alone" in report


def test_a_product_of_hyperboloids_is_measured_like_one(world):
    write_run(world / "home" / "runs" / "product", *tiny("product", 4))
    metrics = run(world, name="product", **labelled(world))
    assert len(metrics["geometry"]["curvatures"]) == 4 and metrics["skipped"].keys() == {"mining"}
    assert (
        0 <= metrics["metrics"]["zero_shot.top1"]["value"] <= 1
        and metrics["geometry"]["radius"]["image"]["mean"] > 0
    )


def test_the_same_run_gives_the_same_numbers(world):
    first, second = (run(world, **labelled(world)) for _ in range(2))
    for name in ("seconds", "created"):
        del first[name], second[name]
    assert first == second


def test_without_a_source_the_val_split_is_taken(world):
    metrics = run(world)
    assert metrics["assessed"]["source"].startswith("val split")
    assert metrics["retrieval"]["images"] == 22 and metrics["parts"]["phrases"] == 8
    assert metrics["zero_shot"] is None and metrics["skipped"]["zero_shot"] == "no taxonomy was given"
    assert metrics["mining"] is None and "mining" in metrics["skipped"]
    assert run(world, taxonomy=str(world / "taxonomy.json"))["zero_shot"]["classes"] == 4


def test_what_a_source_lacks_is_said(world, tmp_path):
    write_source(tmp_path / "bare", range(6), lambda meta: {"captions": meta["captions"]})
    metrics = run(world, assess_source=str(tmp_path / "bare"), taxonomy=str(world / "taxonomy.json"))
    assert metrics["retrieval"]["images"] == 6
    assert metrics["parts"] is None and "no parts" in metrics["skipped"]["parts"]
    assert "no foils" in metrics["skipped"]["compositional"] and "labelled" in metrics["skipped"]["boxes"]
    assert metrics["skipped"]["hierarchy"] == "the held-out images have no labels"
    assert metrics["geometry"]["radius"].keys() == {"text", "image"}
    write_source(tmp_path / "one", range(1))
    alone = run(world, assess_source=str(tmp_path / "one"))
    assert alone["retrieval"] is None and "1 held-out images" in alone["skipped"]["retrieval"]


def test_wrong_input_is_named(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(world, assess_source=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="model"):
        run(world, name="absent")
    torn = world / "home" / "runs" / "torn"
    write_run(torn, *tiny())
    (torn / "train.json").write_text('{"steps": 3')
    with pytest.raises(ValueError, match=r"torn/train\.json is not JSON"):
        run(world, name="torn")
    with pytest.raises(ValueError, match="v-nothing"):
        run(world, version="v-nothing")
    write_source(tmp_path / "odd", range(4), lambda meta: meta | {"labels": ["duk"]})
    with pytest.raises(ValueError, match="'duk' is not a leaf of the taxonomy; nearest: duck"):
        run(world, assess_source=str(tmp_path / "odd"), taxonomy=str(world / "taxonomy.json"))


def test_a_diverged_model_is_refused_and_a_euclidean_one_has_no_geometry(world):
    model, tokenizer = tiny()
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    write_run(world / "home" / "runs" / "nan", model, tokenizer)
    with pytest.raises(ValueError, match="diverged"):
        run(world, name="nan")
    write_run(world / "home" / "runs" / "flat", *tiny("euclid"))
    metrics = run(world, name="flat", **labelled(world))
    assert metrics["traversal"]["texts"]["n"] == 40
    assert metrics["geometry"] is None and "Euclidean" in metrics["skipped"]["geometry"]
    assert 0 <= metrics["metrics"]["zero_shot.top1"]["value"] <= 1


def test_a_polar_model_is_measured_and_has_a_page(world):
    folder = world / "home" / "runs" / "polar"
    write_run(folder, *tiny(polar=True, text_radii=(0.01, 0.1), image_radii=(0.11, 2.0)))
    metrics = run(world, name="polar", **labelled(world))
    radii = metrics["geometry"]["radius"]
    assert radii["text"]["max"] < 0.1 < 0.11 < radii["image"]["min"] < 2.0
    root = metrics["metrics"]["traversal.texts.root"]["value"]
    assert root >= 1 / 50, "the end of every walk; by cosine the root is nearest to nothing"
    assert metrics["traversal"]["names"]["pool"] == 6 and not metrics["skipped"].keys() & {"geometry"}
    assert "<svg" in (folder / "report.html").read_text()


def test_the_embedder_keeps_order_and_does_not_feel_its_batches():
    model, tokenizer = tiny()
    embedder = Embedder(model, tokenizer, batch_size=3)
    texts = ["a duck", "one saw and one axe with a hen", "x", "", "a hen with one duck 7"]
    together = embedder.encode_text(texts)
    alone = torch.cat([embedder.encode_text([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(embedder.lift_text(embedder.project_text(texts)), together)
    images = [decode(scene(n)[0]) for n in range(7)]
    whole_set = embedder.encode_image(images)
    assert torch.allclose(
        whole_set, torch.cat([embedder.encode_image([image]) for image in images]), atol=1e-6
    )
    distance = embedder.score(whole_set, together)
    assert distance.shape == (7, 5) and (distance < 0).all()
    assert embedder.encode_image([]).shape == (0, 16)


def test_whole_images_are_cut_in_the_middle_and_parts_letterboxed_as_packed():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert (whole(wide, 20) == 255).all()
    tall = whole(wide.transpose(1, 0, 2), 40)
    assert tall.shape == (40, 40, 3) and tall.mean() > 240
    box, image = (0.1, 0.2, 0.6, 0.5), scene(3)[0]
    exact = Region((("a saw", 0),), box=box)
    cut = crop_box(decode(image), box, SIZE)
    packed_part = Region((("a saw", 0),), image=encode_jpeg(cut, 95))
    model, tokenizer = tiny()
    embedder = Embedder(model, tokenizer)
    true = embed(embedder, [Scene("k", image, ("x",), (exact,))]).crops
    assert torch.equal(true, embedder.encode_part([cut]))
    near = embed(embedder, [Scene("k", image, ("x",), (packed_part,))]).crops
    assert torch.equal(near, embedder.encode_part([decode(encode_jpeg(cut, 95))]))
    assert not torch.equal(true, embedder.encode_image([cut[:, 4:-4]]))
    assert (letterbox(cut, SIZE) == cut).all()


def test_foils_meet_the_caption_and_the_image_they_are_of():
    scenes = [
        Scene.of_sample(Sample("k", scene(n)[0], tuple(scene(n)[1]["captions"]), scene(n)[1])) for n in (1, 0)
    ]
    found = embed(Embedder(*tiny()), scenes)
    assert found.foil_kinds == ("noun", "count") * 2
    for (image, caption, _), foil in zip(found.foils, [f for s in scenes for f in s.foils], strict=True):
        assert found.captions.texts[caption] == scenes[image].captions[foil.caption]
    same = embed(Embedder(*tiny()), [scenes[0]])
    assert torch.allclose(found.foil_points[found.foils[:2, 2]], same.foil_points, atol=1e-6)
    assert found.label_of_crop == ("hen", "duck", "hen")
    odd = [
        {"kind": "x", "caption": 2, "foil": "y"},
        3,
        {"kind": "x", "caption": 0},
        {"kind": "x", "caption": 0, "foil": " "},
    ]
    assert Scene.of_sample(Sample("k", b"", ("c",), {"foils": odd})).foils == ()


def test_parts_of_the_same_box_are_one_part_and_odd_objects_are_passed_over():
    box = [0.1, 0.1, 0.5, 0.5]
    odd = [
        {"phrase": "x"},
        "text",
        None,
        {"phrase": " ", "box": box},
        {"phrase": "y", "box": [0.5, 0, 0.1, 1]},
    ]
    odd += [
        {"phrase": "z", "box": ["a", 0, 1, 1]},
        {"phrase": 3, "box": box},
        {"phrase": "n", "box": [float("nan")] * 4},
    ]
    good = [
        {"phrase": "a duck", "box": box, "caption": 1},
        {"phrase": "the bird", "box": [0.1, 0.1, 0.50000001, 0.5]},
    ]
    made = Scene.of_sample(Sample("k", b"", ("c",), {"objects": odd + good, "labels": "duck"}))
    assert made.regions == (Region((("a duck", 1), ("the bird", -1)), (0.1, 0.1, 0.5, 0.5)),)
    assert made.labels is None
    assert (
        Scene.of_sample(Sample("k", b"", ("c",), {"objects": {"0": {"phrase": "x", "box": box}}})).regions
        == ()
    )
    trained = Scene.of_training(dataclasses.replace(packed(0), meta={}))
    assert [len(region.phrases) for region in trained.regions] == [2, 2]


def test_true_pairs_point_at_the_right_things():
    scenes = [
        Scene.of_sample(Sample(f"k{n}", scene(n)[0], tuple(scene(n)[1]["captions"]), scene(n)[1]))
        for n in (0, 1, 2)
    ]
    scenes.insert(1, Scene("bad", b"\xff\xd8 not an image", ("lost",)))
    model, tokenizer = tiny()
    told = []
    found = embed(Embedder(model, tokenizer, 2), scenes, told.append)
    assert found.undecodable == 1 and [s.key for s in found.scenes] == ["k0", "k1", "k2"]
    pairs = found.pairs()
    assert len(pairs["image_box", "image"]) == 4 and pairs["image_box", "image"][:, 1].tolist() == [
        0,
        0,
        1,
        2,
    ]
    for general, specific in (("text_box", "text"), ("text_box", "image_box"), ("text", "image")):
        assert len(pairs[general, specific])
    for phrase, caption in pairs["text_box", "text"]:
        assert found.phrases.texts[phrase] in found.captions.texts[caption]
    for phrase, crop in pairs["text_box", "image_box"]:
        kind = found.phrases.texts[phrase].split()[-1]
        assert kind in found.captions.texts[found.captions.text[2 * found.scene_of_crop[crop]]]
    same = [(p, t) for p, t in pairs["text_box", "text"] if found.phrases.texts[p] == found.captions.texts[t]]
    assert same and all(torch.equal(found.phrase_points[p], found.texts[t]) for p, t in same)
    assert sum(told) == work(scenes) - 1  # the caption of the lost image is never embedded
    with pytest.raises(ValueError, match="none of the 1 images"):
        embed(Embedder(model, tokenizer), [scenes[1]])


def test_the_limit_on_parts_is_kept():
    scenes = [Scene.of_training(packed(n)) for n in range(12)]
    total = sum(len(s.regions) for s in scenes)
    few = limit_regions(scenes, 5, seed=0)
    assert sum(len(s.regions) for s in few) == 5 and len(few) == 12
    assert few == limit_regions(scenes, 5, seed=0) != limit_regions(scenes, 5, seed=1)
    assert limit_regions(scenes, total, seed=0) == scenes
