"""A challenger made worse on purpose: trained weights with noise on them, judged beside the trained ones."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from hyco.pipeline.evaluation.evaluate import AssessConfig, EvaluationSpec, evaluate
from hyco.pipeline.registry.model_gate import GateConfig
from hyco.pipeline.registry.promotion import challenge, rollback
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from hyco.storage.model_registry import fingerprint
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample, tiny_recipe

GATE = GateConfig(
    metrics=("retrieval.image_to_text.r5", "retrieval.text_to_image.r5", "parts.crop_to_phrase.r1")
)


def home_of_squares(home):
    store, refs = Store(home), {}
    for split, numbers in {"train": range(96), "val": range(96, 144)}.items():
        samples = [sample(n) for n in numbers]
        made = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
        refs[split] = [shard_ref(made, len(samples), sum(len(s.parts) for s in samples))]
    return Versions(store).publish({"mine": {"source": "squares"}}, {"mine": "m"}, refs, {"images": 144}).name


def test_it_is_refused_and_the_champion_stays_to_the_byte(tmp_path):
    home, run = str(tmp_path / "home"), tmp_path / "home" / "runs" / "good"
    version = home_of_squares(home)
    train(run, Home(home), version, tiny_recipe(steps=100))
    spec = EvaluationSpec(version=version, config=AssessConfig(draws=200, samples=0, answers=0))

    def judged(folder):
        return challenge(folder, Home(home), spec, GATE, evaluate(folder, Home(home), spec))

    good = judged(run)
    assert good.kind == "promoted"
    bad = shutil.copytree(run, run.with_name("bad"))
    weights = load_file(bad / "model" / "model.safetensors")
    torch.manual_seed(0)
    noisy = {
        name: value + value.std(correction=0) * torch.randn_like(value) for name, value in weights.items()
    }
    save_file(noisy, bad / "model" / "model.safetensors")

    row = judged(bad)
    assert row.kind == "refused" and row.reason.startswith("worse than the champion")
    assert (
        Home(home).registry.champion().model == good.model
        and fingerprint(Home(home).registry.path(good.model)) == good.files
    )

    same = shutil.copytree(run, run.with_name("same"))  # as good, by a hair: no reason to refuse
    slight = {name: value + 1e-5 * torch.randn_like(value) for name, value in weights.items()}
    save_file(slight, same / "model" / "model.safetensors")
    assert judged(same).kind == "promoted"
    back = rollback(Home(home))
    assert (
        back.files
        == good.files
        == fingerprint(Home(home).registry.path(good.model))
        == fingerprint(run / "model")
    )
