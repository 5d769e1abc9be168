"""Training that starts from a trained CLIP: what learns, what stays, resuming, and a plain model at the end."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from hyco.models.checkpoints import read_checkpoint
from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.training.init_from import resolved, started
from hyco.pipeline.training.recipes import Recipe, StartConfig
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.training.train import make_optimiser, prepare, train
from hyco.storage.home import Home
from tests.factories.training import make_home, sample, tiny_recipe
from tests.models.checkpoints.layouts import transformers_clip

LORA = {"learn": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_blocks": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A tiny transformers CLIP with the tokenizer it goes with."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = Tokenizer.train([text for i in range(20) for text in sample(i).captions], 560, 16)
    transformers_clip(folder, vocab_size=len(tokenizer) + 1, eos=tokenizer.end)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("home")
    make_home(home, counts=(32,))
    return str(home)


def recipe(clip: Path, **start) -> Recipe:
    optimiser = tiny_recipe().optimiser.replace(warmup_steps=0)
    return tiny_recipe(
        start=StartConfig(checkpoint=str(clip), **start), optimiser=optimiser, steps=2, checkpoint_steps=1
    )


@pytest.fixture(scope="module")
def lora_run(clip, home) -> Path:
    run = Path(home) / "runs" / "lora"
    train(run, Home(home), "latest", recipe(clip, **LORA))
    return run


def test_towers_come_from_the_checkpoint_and_the_space_from_the_recipe(clip):
    known = read_checkpoint(clip).config
    full = resolved(recipe(clip))
    assert (full.model.vision, full.model.text, full.model.dim) == (known.vision, known.text, 24)
    assert (full.model.geometry, full.model.pixel_mean) == ("lorentz", known.pixel_mean)
    assert full.tokenizer == str(clip.resolve()) and resolved(full) == full
    model = started(full, Tokenizer.load(clip, 16), fresh=True)
    pixels = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(
        model.project_image(pixels), read_checkpoint(clip).model().project_image(pixels)
    )
    assert model.scale.item() == pytest.approx(1 / 0.07)  # the recipe's: the checkpoint's belongs to cosines


def test_scalars_are_kept_within_one_space(clip, tmp_path):
    trained = read_checkpoint(clip).model()
    trained.save_pretrained(tmp_path)
    Tokenizer.load(clip, 16).save(tmp_path)
    flat = recipe(tmp_path).model_dump()
    flat["model"]["geometry"], flat["objective"]["entailment"] = "euclid", ()
    model = started(resolved(Recipe.model_validate(flat)), Tokenizer.load(clip, 16), fresh=True)
    assert model.log_scale.item() == trained.log_scale.item() != pytest.approx(2.659, abs=1e-3)


def test_scalars_of_rows_that_the_recipe_does_not_have_are_left_out(clip, tmp_path):
    """A run that starts from a model of UNCHA-lite's rows, with HyCoCLIP's."""
    plain = read_checkpoint(clip).model()
    DualEncoder(dataclasses.replace(plain.config, geometry="lorentz", temperatures=("box",))).save_pretrained(
        tmp_path
    )
    Tokenizer.load(clip, 16).save(tmp_path)
    model = started(resolved(recipe(tmp_path)), Tokenizer.load(clip, 16), fresh=True)
    assert "log_scale_box" not in model.state_dict()


def test_a_polar_model_starts_from_the_directions_of_another(clip, tmp_path):
    """Its radii start in the middle; and a model with a radius gives its directions to one without."""
    from_clip = recipe(clip)
    polar = from_clip.replace(model=dataclasses.replace(from_clip.model, polar=True))
    words = Tokenizer.load(clip, 16)
    model = started(resolved(polar), words, fresh=True)
    plain, pixels = read_checkpoint(clip).model(), torch.randn(2, 3, 24, 24)
    found = model.project_image(pixels)
    torch.testing.assert_close(found[:, :-1], plain.project_image(pixels))
    assert not found[:, -1].any()
    model.save_pretrained(tmp_path)
    words.save(tmp_path)
    back = started(resolved(recipe(tmp_path)), words, fresh=True)
    torch.testing.assert_close(back.project_image(pixels), plain.project_image(pixels))


def test_only_adapters_projections_and_scalars_learn(clip, lora_run):
    model = started(resolved(recipe(clip, **LORA)), Tokenizer.load(clip, 16), fresh=True)
    learned = {name for name, value in model.named_parameters() if value.requires_grad}
    adapters = {name for name in learned if "lora_" in name}
    layers, towers, matrices = 4, 2, 2
    assert len(adapters) == layers * towers * matrices
    assert all(".blocks.1." in name for name in adapters)  # the last of two
    assert learned - adapters == {
        "visual_projection.weight",
        "textual_projection.weight",
        "log_scale",
        "log_curvature",
        "visual_alpha",
        "textual_alpha",
    }
    groups = make_optimiser(model, recipe(clip).optimiser).param_groups
    assert sum(len(group["params"]) for group in groups) == len(learned)

    result = json.loads((lora_run / "train.json").read_text())
    assert result["learned_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    before, after = (
        read_checkpoint(clip).weights,
        DualEncoder.from_pretrained(lora_run / "model").state_dict(),
    )
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parts = ("qkv", "attention_out", "mlp_in", "mlp_out")
    merged = {f"{tower}.blocks.1.{part}.weight" for tower in ("visual", "textual") for part in parts}
    heads = {"visual_projection.weight", "textual_projection.weight", "log_scale"}
    assert changed == merged | heads


def test_a_killed_run_goes_on_with_its_adapters(clip, home, lora_run, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def breaking(self, step, values, write=StepLog.write):
        write(self, step, values)
        if step == 2:
            raise StoppedError

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StepLog, "write", breaking)
        train(run, Home(home), "latest", recipe(clip, **LORA))
    with monkeypatch.context() as patch:  # what the first step learned lies in the checkpoint alone
        patch.setattr(
            "hyco.pipeline.training.init_from.read_checkpoint", lambda *a: pytest.fail("started anew")
        )
        train(run)
    assert [line["loss"] for line in read_log(run)] == [line["loss"] for line in read_log(lora_run)]
    ours, theirs = (DualEncoder.from_pretrained(r / "model").state_dict() for r in (run, lora_run))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_adapters_count_in_the_last_block_and_merge_into_the_weights(clip):
    """The last block computes one token only, from the weights of its layers: an adapter must not be passed over."""
    from hyco.models.lora import merge_

    model = started(resolved(recipe(clip, **LORA)), Tokenizer.load(clip, 16), fresh=True).eval()
    pixels, tokens = torch.randn(2, 3, 24, 24), Tokenizer.load(clip, 16)(["a red square", "blue"])
    plain = model.project_image(pixels)
    adapters = [value for name, value in model.named_parameters() if "blocks.1.qkv.lora_" in name]
    with torch.no_grad():
        for value in adapters:
            value.normal_(std=0.5)
    image, text = model.project_image(pixels), model.project_text(tokens)
    assert (image - plain).abs().max() > 0.01
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(image.sum() + text.sum(), adapters))
    merge_(model)
    torch.testing.assert_close(model.project_image(pixels), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.project_text(tokens), text, atol=1e-5, rtol=1e-5)
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]


def test_frozen_towers_stay_and_heads_learn(clip, home, tmp_path):
    train(tmp_path / "run", Home(home), "latest", recipe(clip, learn="heads"))
    before = read_checkpoint(clip).weights
    after = DualEncoder.from_pretrained(tmp_path / "run" / "model").state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"visual_projection.weight", "textual_projection.weight", "log_scale"}


def test_lora_without_peft_is_refused_before_a_run_is_made(clip, home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"LoRA needs peft: pip install -e '\.\[lora\]'"):
        prepare(tmp_path / "run", Home(home), "latest", recipe(clip, **LORA))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_changed_after_the_run_was_prepared_is_refused(clip, home, tmp_path):
    moving = tmp_path / "clip"
    shutil.copytree(clip, moving)
    run = tmp_path / "run"
    prepare(run, Home(home), "latest", recipe(moving))
    other = read_checkpoint(clip).model()
    other.log_scale.data += 1
    other.save_pretrained(moving)
    with pytest.raises(ValueError, match="other weights than when this run was prepared"):
        train(run)


def test_what_cannot_start_is_said(clip, home, tmp_path):
    with pytest.raises(ValueError, match=r"start\.learn is 'lora' without a checkpoint"):
        train(tmp_path / "run", Home(home), "latest", tiny_recipe(start=StartConfig(learn="lora")))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        train(tmp_path / "run", Home(home), "latest", recipe(tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    read_checkpoint(clip).model().save_pretrained(bare)
    with pytest.raises(ValueError, match="has no tokenizer: set tokenizer to a directory"):
        resolved(recipe(bare))
    Tokenizer.train(["other words"], 520, 16).save(bare)
    with pytest.raises(ValueError, match=r"ends texts with 513, but the text tower of .*bare has \d+ and"):
        train(tmp_path / "run", Home(home), "latest", recipe(bare))
