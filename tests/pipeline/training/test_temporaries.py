"""Files and folders of a run are written under names that `hyco gc` knows, and are durable before train.json."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyco.pipeline.evaluation.report import report
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.experiments.grid import write_section
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.run_dir import RunConfig, finish
from hyco.pipeline.training.step_log import StepLog
from hyco.storage.folder import Folder
from hyco.storage.gc import collect
from hyco.storage.store import Store
from tests.factories.training import tiny_recipe
from tests.storage.test_atomic_directory import Disk


def killed(work: Callable[[], object]) -> None:
    """Do the work in a process that dies when it is about to make a file durable."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda handle: os._exit(9)
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "nothing was fsynced"


def write_log(run: Path) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(9)))
    StepLog(run, 4)


@pytest.mark.parametrize(
    "work",
    [
        write_log,
        lambda run: write_section(run / "ablation.md", ("<!-- demo -->", "<!-- end -->"), "text", "preface"),
        lambda run: report.write(run / "report.html", {}, Exhibits()),
    ],
    ids=["log.jsonl", "ablation.md", "report.html"],
)
def test_what_a_killed_writer_leaves_is_collected(tmp_path, monkeypatch, work):
    monkeypatch.setattr(report, "render", lambda metrics, exhibits: "<html>")
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    killed(lambda: work(run))
    left = {path.name for path in run.iterdir()} - {"log.jsonl"}
    assert len(left) == 1
    assert collect(Store(tmp_path), older_than_s=-1) == [f"runs/one/{left.pop()}"]


def test_the_model_of_a_run_is_durable_before_train_json_says_that_it_is_finished(tmp_path, monkeypatch):
    from hyco.models.clip import DualEncoder
    from hyco.models.encoders.tokenizer import Tokenizer

    recipe: Recipe = tiny_recipe()
    tokenizer = Tokenizer.train(["a red square on blue"], 560, 16)
    line = {"step": 1, "samples": 16, "epoch": 1.0, "loss": 1.0, "seconds": 1.0, "data_wait": 0.0}
    line |= {"seconds_here": 1.0, "temperature": 1.0, "substituted": 0}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/of_an_earlier_attempt").write_bytes(b"")
    disk = Disk(monkeypatch)
    run = RunConfig(home=str(tmp_path), version="v-1", recipe=recipe)
    finish(Folder(tmp_path), run, DualEncoder(recipe.model), tokenizer, 1, "float32")
    disk.assert_durable(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").stat().st_size > 0
    assert not (tmp_path / "model/of_an_earlier_attempt").exists()
    renames = [index for index, (what, path) in enumerate(disk.events) if what == "rename"]
    told = [
        index
        for index, (what, path) in enumerate(disk.events)
        if path.name.startswith(f".tmp-{os.getpid()}-")
    ]
    assert max(renames) < min(told), "train.json comes last"
