"""Lists of images with captions: csv and tsv, COCO and Karpathy json, a json list of objects.

The rows that name one image are one entry.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from typing import Any

from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.image_files import FILES
from hyco.pipeline.sources.records import (
    CAPTION_OPTION,
    CAPTIONS,
    IMAGE_OPTION,
    MAX_DEPTH,
    Limits,
    RecordError,
    captions_of,
    depth_of,
    parse_json,
)
from hyco.pipeline.sources.table_rows import NUMBERED
from hyco.pipeline.sources.tar_rows import IMAGES
from hyco.storage.sample import short

_DELIMITERS = ",\t;|"
_SHOWN = 50  # annotations whose fields a message names
csv.field_size_limit(Limits().max_text)


@dataclass(slots=True)
class Entry:
    """One image with its captions, or with the text files that hold them (extension to path)."""

    image: str
    captions: list[Any] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    error: RecordError | None = None


def csv_entries(data: bytes, path: str, columns: Columns) -> list[Entry]:
    """Return the images of a csv or tsv with their captions; ValueError, naming its columns, when they are not found.

    The first line names the columns: one of FILES, and the first of CAPTIONS or all numbered ones. Two columns
    without a header, the first of which is an image's name, are image and caption; others are given by number.
    """
    text = data.decode("utf-8-sig", "surrogateescape")  # a caption that is not UTF-8 fails its row only
    first = text.partition("\n")[0]
    mark = "\t" if path.lower().endswith(".tsv") else max(_DELIMITERS, key=first.count)
    quoting = csv.QUOTE_NONE if mark in "\t|" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, quoting=quoting, skipinitialspace=True)
    entries: dict[str, Entry] = {}
    try:
        header = [name.strip() for name in next(reader, [])]
        image, captions, has_header = _csv_columns(header, path, columns)
        for cells in () if has_header else (header,):
            _take(entries, cells, header, image, captions, path, 1, has_header)
        for cells in reader:
            if any(cells):
                _take(entries, cells, header, image, captions, path, reader.line_num, has_header)
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read at line {reader.line_num} ({error}): look for an open quote"
        ) from None
    return list(entries.values())


def _csv_columns(header: list[str], path: str, columns: Columns) -> tuple[int, list[int], bool]:
    """The places of the image and of the captions, and whether the first line is a header."""
    wanted = [name for name in (columns.image, *columns.captions) if name]
    lower = {name.lower(): place for place, name in enumerate(header)}
    numbers = [int(name) for name in wanted if name.isdigit() and name not in header]
    if wanted and len(numbers) == len(wanted) and max(numbers) < len(header):
        image = numbers.pop(0) if columns.image else 0
        return image, numbers or [place for place in range(len(header)) if place != image][:1], False
    listed = ", ".join(header) or "nothing"
    for name, option in (
        (columns.image, IMAGE_OPTION),
        *((name, CAPTION_OPTION) for name in columns.captions),
    ):
        if name and name not in header:
            raise ValueError(f"{path} has no column '{name}': set {option} to one of its columns: {listed}")
    image = (
        header.index(columns.image) if columns.image else next((lower[n] for n in FILES if n in lower), -1)
    )
    captions = [header.index(name) for name in columns.captions]
    captions = captions or [lower[name] for name in CAPTIONS if name in lower][:1]
    captions = captions or [place for name, place in lower.items() if NUMBERED.fullmatch(name)]
    if image < 0 and not captions and len(header) == 2 and header[0].rpartition(".")[2].lower() in IMAGES:
        return 0, [1], False
    if image < 0 or not captions:
        option = IMAGE_OPTION if image < 0 else CAPTION_OPTION
        what = "file names" if image < 0 else "captions"
        raise ValueError(
            f"{path} has no column of {what}: set {option}, or its number from 0 without a header. Its columns: "
            f"{short(listed)}"
        )
    return image, captions, True


def _take(
    entries: dict[str, Entry],
    cells: list[str],
    header: list[str],
    image: int,
    captions: list[int],
    path: str,
    line: int,
    has_header: bool,
) -> None:
    """Add one line to the entry of its image."""
    if len(cells) <= max(image, *captions) or not cells[image].strip():
        text = f"line {line} of {path} has {len(cells)} fields, and names no image with a caption"
        entries[f"{path}:{line}"] = Entry("", error=RecordError("bad_line", text))
        return
    name = cells[image].strip()
    named = dict(zip(header, cells, strict=False)) if has_header else {}
    used = {header[place] for place in (image, *captions)} if has_header else set()
    meta = {key: value for key, value in named.items() if key and value and key not in used}
    entry = entries.setdefault(name, Entry(name, meta=meta))
    entry.captions += [_unquoted(cells[place]) for place in captions]


def _unquoted(text: str) -> str:
    """Return a field without quotes, in a file whose format has none."""
    plain = text.strip()
    return plain[1:-1].replace('""', '"') if len(plain) > 1 and plain[0] == plain[-1] == '"' else text


def json_entries(data: bytes, path: str, columns: Columns, instances: bytes = b"") -> list[Entry]:
    """Return the images of a json: COCO captions, Karpathy's splits, or a list of objects as in jsonl.

    `instances` is COCO's json of boxes for the same images: they become `objects` in fractions of width and height.

    ValueError, naming what there is, for any other.
    """
    try:
        return _of_json(parse_json(data, path), path, columns, instances)
    except (TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {short(str(error))}"
        raise ValueError(f"{path} has an entry of another form ({what}): make the file again") from None


def _of_json(value: Any, path: str, columns: Columns, instances: bytes) -> list[Entry]:
    document: dict[str, Any] = value if isinstance(value, dict) else {}
    images, annotations = document.get("images"), document.get("annotations")
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return _of_list(value, path, columns)
    if isinstance(images, list) and isinstance(annotations, list):
        entries = _of_coco(images, annotations, path)
        if instances:
            add_boxes(entries, parse_json(instances, path))
        return entries
    if (
        isinstance(images, list)
        and images
        and all(isinstance(one, dict) and "sentences" in one for one in images)
    ):
        return [
            Entry(
                "/".join(str(one[key]) for key in ("filepath", "filename") if one.get(key)),
                [said.get("raw") for said in one["sentences"] if isinstance(said, dict)],
                {key: one[key] for key in ("split", "imgid", "cocoid") if key in one},
            )
            for one in images
        ]
    there = ", ".join(list(value)[:8]) if isinstance(value, dict) else f"a {type(value).__name__}"
    raise ValueError(
        f"{path} is no list of captions (it holds {short(there)}): expected COCO's images and annotations, Karpathy's "
        "images with sentences, or a list of objects with file and caption"
    )


def _of_coco(images: list[Any], annotations: list[Any], path: str) -> list[Entry]:
    entries: dict[Any, Entry] = {}
    for one in images:
        if isinstance(one, dict) and isinstance(name := one.get("file_name"), str):
            entries[one.get("id")] = Entry(name, meta={"image_id": one.get("id")})
    said = 0
    for one in annotations:
        entry = entries.get(one.get("image_id")) if isinstance(one, dict) else None
        if entry is not None and "caption" in one:
            entry.captions.append(one["caption"])
            said += 1
    if not said:
        kinds = sorted({key for one in annotations[:_SHOWN] if isinstance(one, dict) for key in one})
        raise ValueError(
            f"{path} has no caption for any of its {len(entries)} images (its annotations hold {', '.join(kinds)}): "
            "give captions_*.json"
        )
    return [entry for entry in entries.values() if entry.captions]


def add_boxes(entries: list[Entry], instances: Any) -> None:
    """Give entries the boxes of COCO's instances; a category gets its place in the first caption that names it.

    Boxes of crowds are left out. Categories that no caption names keep the span (-1, -1).
    """
    names = {
        one.get("id"): one.get("name") for one in instances.get("categories", []) if isinstance(one, dict)
    }
    sizes = {one.get("id"): (one.get("width"), one.get("height")) for one in instances.get("images", [])}
    by_image = {entry.meta.get("image_id"): entry for entry in entries}
    for entry in entries:
        entry.meta["objects"] = []
    for one in instances.get("annotations", []):
        entry, name = by_image.get(one.get("image_id")), names.get(one.get("category_id"))
        width, height = sizes.get(one.get("image_id"), (None, None))
        if entry is None or not name or one.get("iscrowd") or not width or not height:
            continue
        x, y, w, h = one["bbox"]
        caption, span = _named(name, entry.captions)
        box = [x / width, y / height, (x + w) / width, (y + h) / height]
        label = {"phrase": name, "box": box, "caption": caption, "span": span, "score": 1.0}
        entry.meta["objects"].append(label)


def _named(name: str, captions: list[Any]) -> tuple[int, list[int]]:
    """The first caption that holds a name (or its plural) as a word, and where; caption 0 and (-1, -1) without one."""
    for number, text in enumerate(captions):
        if isinstance(text, str) and (found := re.search(rf"\b{re.escape(name)}(?:e?s)?\b", text, re.I)):
            return number, [found.start(), found.start() + len(name)]
    return 0, [-1, -1]


def _of_list(items: list[dict[str, Any]], path: str, columns: Columns) -> list[Entry]:
    wanted = (columns.image,) if columns.image else FILES
    entries: dict[str, Entry] = {}
    for number, item in enumerate(items):
        name = next((item[key] for key in wanted if isinstance(item.get(key), str)), None)
        meta = dict(item)
        if name is None or depth_of(item) > MAX_DEPTH:
            text = (
                f"entry {number} of {path} names no file ({', '.join(wanted)}); its fields: {', '.join(item)}"
            )
            entries[f"{path}:{number}"] = Entry(
                "", error=RecordError("no_image", f"{text}: set {IMAGE_OPTION}")
            )
            continue
        captions = captions_of(meta, columns)
        meta = {key: held for key, held in meta.items() if held != name}
        entries.setdefault(name, Entry(name, meta=meta)).captions += captions
    return list(entries.values())
