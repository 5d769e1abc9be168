from typing import Any

from hyco.pipeline.config import digest
from hyco.pipeline.packing.select_parts import SelectionConfig, select_parts
from hyco.storage.detections import SCHEMA, _table

Box = tuple[float, float, float, float]


def row(box: Box | None, score: float | None, phrase: str | None = "a dog", **more: Any) -> dict[str, Any]:
    found = {
        "key": "k",
        "caption": 0,
        "text": "a dog on a mat",
        "image_sha256": "s",
        "width": 100,
        "height": 200,
    }
    found |= {
        "detector": "d",
        "rules": "r",
        "phrase": phrase,
        "span_start": 0,
        "span_end": 5,
        "rule": "expression",
    }
    found |= {"expression": phrase, "score": score} | dict(
        zip(("x0", "y0", "x1", "y1"), box or [None] * 4, strict=True)
    )
    return found | more


def chosen(rows: list[dict[str, Any]], **config: Any) -> list[tuple[str, float]]:
    keep_all = {"threshold": 0, "nms_iou": None, "nms_all_iou": None, "min_area_px": None}
    parts = select_parts(_table(rows, SCHEMA), SelectionConfig(**{**keep_all, **config}))
    return [(part.phrase, round(part.score, 3)) for part in parts["k"]]


ALL: Box = (0, 0, 1, 1)
LEFT: Box = (0, 0, 0.5, 1)
NEARLY_LEFT: Box = (0, 0, 0.49, 1)


def test_threshold_is_inclusive_in_float32() -> None:
    rows = [row(ALL, 0.35), row(LEFT, 0.3499)]
    assert chosen(rows, threshold=0.35) == [("a dog", 0.35)]


def test_area_in_pixels_of_the_original() -> None:
    rows = [row((0, 0, 0.32, 0.16), 0.9), row((0, 0, 0.31, 0.16), 0.8)]
    assert chosen(rows, min_area_px=32 * 32) == [("a dog", 0.9)]
    assert len(chosen(rows, min_area_px=None)) == 2


def test_what_has_no_box_is_no_part_but_its_image_is_known() -> None:
    rows = [
        row(None, None),
        row(None, None, None),
        row((0.5, 0.5, 0.5, 0.9), 0.9),
        row((0.6, 0.2, 0.5, 0.9), 0.9),
    ]
    table = _table([*rows, row((-1, -1, 0, 0), 1.0)], SCHEMA)
    assert select_parts(table, SelectionConfig(min_area_px=None, threshold=0)) == {"k": []}


def test_nms_of_a_phrase_spans_captions_and_case() -> None:
    rows = [
        row(LEFT, 0.5),
        row(NEARLY_LEFT, 0.9, "A dog", caption=1),
        row((0.5, 0, 1, 1), 0.4),
        row(NEARLY_LEFT, 0.3, "a cat"),
    ]
    assert chosen(rows, nms_iou=0.6) == [("a dog", 0.4), ("a cat", 0.3), ("A dog", 0.9)]


def test_nms_over_all_boxes_stays_within_a_caption() -> None:
    rows = [row(LEFT, 0.5), row(NEARLY_LEFT, 0.9, "a cat"), row(LEFT, 0.3, "a wolf", caption=1)]
    assert chosen(rows, nms_all_iou=0.8) == [("a cat", 0.9), ("a wolf", 0.3)]
    assert len(chosen(rows, nms_iou=0.6)) == 3


def test_most_parts_gives_each_phrase_its_turn() -> None:
    rows = [row((i / 10, 0, (i + 1) / 10, 1), 0.9 - i / 100) for i in range(5)]
    rows += [
        row(ALL, 0.2, "a mat", span_start=9, span_end=14),
        row(LEFT, 0.1, "a mat", span_start=9, span_end=14),
    ]
    assert chosen(rows, max_parts=3) == [("a dog", 0.9), ("a dog", 0.89), ("a mat", 0.2)]
    assert chosen(rows, max_parts=1) == [("a dog", 0.9)]
    two_images = [*rows, *({**r, "key": "other"} for r in rows)]
    table = select_parts(
        _table(two_images, SCHEMA), SelectionConfig(threshold=0, min_area_px=None, max_parts=2)
    )
    assert {key: len(parts) for key, parts in table.items()} == {"k": 2, "other": 2}


def test_expressions_take_the_outermost_and_its_span() -> None:
    text = "a mat, a mat under a dog"
    rows = [
        row(ALL, 0.9, "a mat", text=text, span_start=7, span_end=12, expression="a mat under a dog"),
        row(LEFT, 0.8, "a dog", text=text, span_start=19, span_end=24, expression="a dog", rule="chunk"),
    ]
    assert chosen(rows, phrases="chunk") == [("a mat", 0.9), ("a dog", 0.8)]
    assert chosen(rows, phrases="expression") == [("a mat under a dog", 0.9)]
    config = SelectionConfig(phrases="expression", min_area_px=None)
    (part,) = select_parts(_table(rows, SCHEMA), config)["k"]
    assert part.span == (7, 24) and text[7:24] == part.phrase and part.rule == "expression"
    repeated = [row(ALL, 0.9, "a mat", text=text, span_start=7, span_end=12, expression="a mat")]
    assert select_parts(_table(repeated, SCHEMA), config)["k"][0].span == (7, 12), (
        "not the first one in the caption"
    )


def test_boxes_are_clipped_and_fields_carried() -> None:
    (part,) = select_parts(_table([row((-0.5, 0.25, 0.5, 2), 0.75, caption=3)], SCHEMA), SelectionConfig())[
        "k"
    ]
    assert part.box == (0, 0.25, 0.5, 1)
    assert (part.score, part.span, part.caption, part.rule) == (0.75, (0, 5), 3, "chunk")


def test_both_takes_each_distinct_text_once_with_its_first_box() -> None:
    text = "a dog on a mat near a dog"
    rows = [
        row(LEFT, 0.7, "a dog", text=text, expression="a dog on a mat"),
        row(ALL, 0.6, "a dog", text=text, expression="a dog on a mat"),
        row(ALL, 0.9, "a mat", text=text, span_start=9, span_end=14, expression="a mat", rule="chunk"),
        row(ALL, 0.95, "A dog", text=text, span_start=20, span_end=25, expression="A dog"),
        row(LEFT, 0.8, "a cat", caption=1, text="a cat", expression="a cat"),
    ]
    everything = [("a dog", 0.7), ("a dog on a mat", 0.7), ("a mat", 0.9), ("a cat", 0.8)]
    assert chosen(rows, phrases="both") == everything
    assert chosen(rows, phrases="both", max_parts=2) == [("a mat", 0.9), ("a cat", 0.8)]
    parts = select_parts(_table(rows, SCHEMA), SelectionConfig(phrases="both", min_area_px=None))["k"]
    assert [(part.phrase, part.rule, part.span) for part in parts[:2]] == [
        ("a dog", "chunk", (0, 5)),
        ("a dog on a mat", "expression", (0, 14)),
    ]


def test_nested_expressions_are_kept_where_they_are_asked_for() -> None:
    rows = [
        row(ALL, 0.9, "a dog", expression="a dog on a mat"),
        row(LEFT, 0.8, "a mat", span_start=9, span_end=14, expression="a mat", rule="chunk"),
    ]
    assert chosen(rows, phrases="expression") == [("a dog on a mat", 0.9)]
    assert chosen(rows, phrases="expression", nested=True) == [("a dog on a mat", 0.9), ("a mat", 0.8)]
    assert (
        digest(SelectionConfig())
        == digest(SelectionConfig(nested=False))
        != digest(SelectionConfig(nested=True))
    )
