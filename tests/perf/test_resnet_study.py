"""The study of residual nets: a stopped training goes on along the same losses, and the tables' numbers."""

import pytest
import torch

from hyco.models.resnets.resnet import EuclideanResNet
from hyco.pipeline.classification.in_memory import Images
from tests.perf import resnet_study
from tests.perf.resnet_study import Run, Sets, Study, table, train, write

STUDY = Study(("first", "second"), steps=6, batch=8, seeds=3)


def drawn(count):
    return Images(torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,)))


def net():
    return EuclideanResNet(depth=8, widths=(2, 2, 4))


def test_a_stopped_training_goes_on_along_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet_study, "SAVED", 2)
    torch.manual_seed(0)
    sets, file = Sets(drawn(30), drawn(50)), tmp_path / "state.pt"  # an epoch has three batches of 8
    whole = train(net, STUDY, 1, sets, file)
    assert not file.exists() and train(net, STUDY, 2, sets, file) != whole
    batches = 0

    def stop(pixels):
        nonlocal batches
        batches += 1
        if batches == 6:
            raise InterruptedError
        return Sets.normal(sets, pixels)

    monkeypatch.setattr(sets, "normal", stop)
    with pytest.raises(InterruptedError):
        train(net, STUDY, 1, sets, file)
    assert len(torch.load(file, weights_only=True)["losses"]) == 4
    assert train(net, STUDY, 1, sets, file) == whole


def test_the_table_pairs_the_seeds():
    found = {
        "first": {0: Run(50, 1.0), 1: Run(52, 1.0), 2: Run(54, 1.2)},
        "second": {0: Run(53, 0.5), 2: Run(55, 0.5)},
    }
    lines = table(STUDY, found)
    assert lines[0].startswith("| net | accuracy of each seed, % | mean | beside first |")
    assert lines[2] == "| first | 50.0, 52.0, 54.0 | 52.0 ± 5.0 |  | 1.07 |"
    assert lines[3] == "| second | 53.0, 55.0 | 54.0 ± 12.7 | +2.0 ± 12.7 | 0.50 |"


def test_each_study_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    marks = "<!-- {0}: begin -->\nold {0}\n<!-- {0}: end -->\n"
    page.write_text(marks.format("init") + marks.format("start"))
    (tmp_path / "init, ResNet-20, 0.json").write_text('{"accuracy": 61.04, "loss": 1.0}')
    write(tmp_path, page)
    text = page.read_text()
    assert "| ResNet-20 | 61.0 | 61.0 |  | 1.00 |" in text and "old init" not in text and "old start" in text
