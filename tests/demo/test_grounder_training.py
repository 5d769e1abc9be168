"""Prompts, pictures and the run that makes the embedded grounder."""

import contextlib
import io
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyco.demo import train_grounder
from hyco.demo.grounder_loss import corners
from hyco.demo.grounder_prompts import (
    Lesson,
    Named,
    batch_of,
    choose_prompt,
    lesson_of,
    look,
    prompt_text,
    target_of,
    without_article,
)
from hyco.demo.scenes import World
from hyco.demo.train_grounder import Recipe, rate_at

DUCK, CAR, CARS = (0.1, 0.2, 0.4, 0.5), (0.6, 0.6, 0.9, 0.8), (0.55, 0.1, 0.8, 0.3)
TINY = Recipe(steps=3, scenes=6, processes=1, batch=2, warmup=2, refine_steps=2, refine_scenes=4)


def lesson(named, absent=(), jpeg=b"") -> Lesson:
    return Lesson(jpeg, 1 + max(n.caption for n in named), tuple(named), tuple(absent))


def test_a_prompt_names_the_boxes_of_all_captions_that_say_the_same():
    shown = lesson(
        [Named("A duck", 0, (DUCK,)), Named("a duck", 1, (DUCK,)), Named("two cars", 1, (CAR, CARS))]
    )
    seen = set()
    for seed in range(60):
        prompt = choose_prompt(shown, np.random.default_rng(seed))
        for text, boxes in prompt.items():
            assert boxes == ([DUCK] if "duck" in text else [CAR, CARS])
        seen.add(tuple(sorted(prompt)))
    assert {("a duck",), ("a duck", "two cars"), ("duck",)} <= seen


def test_absent_phrases_come_in_every_number_up_to_six_and_name_nothing():
    absent = [f"a thing{i}" for i in range(12)] + ["a duck"]  # the last one is there after all
    shown = lesson([Named("a duck", 0, (DUCK,))], absent)
    counts = set()
    for seed in range(80):
        prompt = choose_prompt(shown, np.random.default_rng(seed))
        assert [boxes for text, boxes in prompt.items() if "duck" in text] == [[DUCK]]
        assert all(not boxes for text, boxes in prompt.items() if "duck" not in text)
        counts.add(len(prompt) - 1)
    assert counts == set(range(7))


def test_articles_and_the_prompts_form():
    assert without_article("An owl") == "owl" and without_article("two owls") == "two owls"
    assert prompt_text(["a duck", "car"]) == "a duck . car ."


@pytest.mark.parametrize("seed", range(12))
def test_boxes_go_with_the_picture(seed):
    pixels = np.full((128, 128, 3), 60, np.uint8)
    x0, y0, x1, y1 = (round(v * 128) for v in DUCK)
    pixels[y0:y1, x0:x1] = 220
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    shown = lesson([Named("a duck", 0, (DUCK,))], jpeg=buffer.getvalue())
    image, carry = look(shown, np.random.default_rng(seed))
    target = target_of({"a duck": [DUCK], "a car": []}, carry)
    rows, columns = np.nonzero(image[..., 0] > 140)
    bright = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
    np.testing.assert_allclose(corners(target.boxes)[0].numpy(), bright, atol=2 / 128)
    assert target.positive.tolist() == [[True, False]]


def test_a_scene_keeps_its_background_phrases_as_phrases_without_boxes():
    world = World(size=128)
    scene = next(s for s in (world.scene(i, "train") for i in range(200)) if s.surroundings)
    kept = lesson_of(scene, world, np.random.default_rng(0))
    assert len(kept.named) == len(scene.phrases) + len(scene.surroundings)
    assert sum(not n.boxes for n in kept.named) == len(scene.surroundings)
    images, texts, targets = batch_of([kept], 4, np.random.default_rng(0))
    again = batch_of([kept], 4, np.random.default_rng(0))
    assert images.shape == (4, 128, 128, 3) and texts == again[1] and (images == again[0]).all()
    assert [text.count(" .") for text in texts] == [target.positive.shape[1] for target in targets]


def test_the_rate_warms_up_holds_and_falls_to_nothing_twice():
    recipe = Recipe(steps=1000, warmup=100, cooling=0.4, rate=1.0, refine_steps=250, refine_rate=0.5)
    assert rate_at(0, recipe) == 0.01 and rate_at(99, recipe) == 1.0 == rate_at(600, recipe)
    assert rate_at(800, recipe) == pytest.approx(0.5) and rate_at(999, recipe) < 1e-4
    assert rate_at(1000, recipe) == 0.01 and rate_at(1049, recipe) == 0.5 == rate_at(1050, recipe)
    assert rate_at(1150, recipe) == pytest.approx(0.25) and rate_at(1249, recipe) < 1e-4


def test_a_run_cut_short_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    train_grounder.run(TINY, tmp_path / "whole", tmp_path / "work", every=0.0)
    other = tmp_path / "other"
    other.mkdir()
    for kept in (tmp_path / "work").iterdir():  # the same scenes and words, no state
        if kept.name != "state.pt":
            kept.rename(other / kept.name)
    calls = []

    def cut(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch_of(*given)

    monkeypatch.setattr(train_grounder, "batch_of", cut)
    with pytest.raises(KeyboardInterrupt):
        train_grounder.run(TINY, tmp_path / "cut", other, every=0.0)
    train_grounder.run(TINY, tmp_path / "cut", other, every=0.0)
    torch.set_num_threads(threads)
    assert "resuming from step 2" in capsys.readouterr().out
    whole, cut_short = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut_short.read_bytes()
    train_grounder.run(TINY, tmp_path / "again", other)  # finished: the product is written once more
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match="another recipe"):
        train_grounder.run(replace(TINY, rate=1e-4), tmp_path / "cut", other)


def alive(group: int) -> list[int]:
    """Processes of a process group that still run (a dead one that nobody has reaped does not)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.chaos
def test_a_run_survives_kill_9(tmp_path):
    """Two processes; the parent is killed, its helper goes with it, the same command finishes the job."""
    options = "--every 0 --steps 9 --scenes 12 --batch 2 --warmup 2 --refine-steps 3 --refine-scenes 4"
    command = [sys.executable, "-W", "ignore", "-m", "hyco.demo.train_grounder", *options.split()]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    run = subprocess.Popen(command, start_new_session=True)
    state, deadline = tmp_path / "work" / "state.pt", time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(run.pid)
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "resuming from step" in done.stdout and "step 12/12" in done.stdout
