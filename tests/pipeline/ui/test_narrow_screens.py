"""Nothing on a page is wider than a phone: tables scroll in a box of their own, long words break."""

import re
from pathlib import Path

import pytest

import hyco.pipeline.evaluation.report
import hyco.pipeline.ui

FOLDERS = [Path(module.__path__[0]) for module in (hyco.pipeline.ui, hyco.pipeline.evaluation.report)]
TEMPLATES = sorted(path for folder in FOLDERS for path in folder.glob("*.html.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_table_scrolls_in_a_box_of_its_own(template: Path) -> None:
    text = template.read_text()
    tables = [found for found in re.finditer(r'<table class="([^"]*)"', text) if found[1] != "metrics"]
    bare = [
        text[found.start() :].splitlines()[0][:90]
        for found in tables
        if not re.search(r'<div class="scroll"[^>]*>\s*$', text[: found.start()])
    ]
    assert bare == [], "on a phone the whole page would scroll sideways"


def test_long_words_of_facts_break() -> None:
    style = (FOLDERS[1] / "report.css").read_text()
    assert re.search(r"\.facts dd \{[^}]*overflow-wrap: anywhere", style)
