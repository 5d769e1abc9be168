"""curves.svg: the report's own charts, as a picture that stands alone."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hyco.pipeline.ui import curves

SVG = "{http://www.w3.org/2000/svg}"


def log(run: Path, steps: int) -> None:
    rows = [
        {"step": n, "loss": 9 - n, "terms": {"contrast/image>text": 1 / n}, "lr": 1e-3}
        for n in range(1, steps + 1)
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_every_chart_of_the_report_is_drawn_with_its_legend(tmp_path: Path) -> None:
    log(tmp_path, 5)
    picture = ElementTree.fromstring(curves.draw(tmp_path))
    said = [element.text for element in picture.iter(f"{SVG}text")]
    assert {"Loss", "Contrastive loss by direction", "Learning rate"} <= set(said)
    assert "total: 4.00" in said
    assert "image to caption: 0.200" in said
    assert "var(--" in (picture.findtext(f"{SVG}style") or ""), "it brings its own palette"


def test_one_step_says_that_two_are_needed(tmp_path: Path) -> None:
    log(tmp_path, 1)
    assert b"Curves need two logged steps" in curves.draw(tmp_path)


def test_no_step_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has logged no step yet"):
        curves.draw(tmp_path)
