"""Sources of loose images: a csv, a COCO or Karpathy json, or text files beside the images, cut into units.

The rows that name one image are one entry. A unit is a run of consecutive entries, identified by their content and
the sizes of their images: rows added at the end make new units and leave the others unchanged.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.sources.columns import Columns
from pipeline.sources.image_files import FILES, image_file
from pipeline.sources.listing import BESIDE, kind_of
from pipeline.sources.records import (
    CAPTION_OPTION,
    CAPTIONS,
    IMAGE_OPTION,
    MAX_DEPTH,
    Limits,
    RecordError,
    SourceRecord,
    captions_of,
    depth_of,
    parse_json,
)
from pipeline.sources.table_rows import NUMBERED
from pipeline.sources.tar_rows import IMAGES, TEXTS, Admit, Run, sample_row
from storage.sample import short
from storage.store import Store, content_mark

PER_UNIT = 1000
"""Entries of one unit, the last one excepted."""
_IMAGE_COLUMNS = (*FILES, "image_name", "image_path", "filepath", "file_path", "img")
_DELIMITERS = ",\t;|"
_TRIED = 50  # entries whose images are looked for when their folder is searched
_KEPT = 2
_PARSED: "dict[tuple[str, ...], list[Entry]]" = {}
"""The last files that were read, by path, mark and columns: every unit of a file is cut out of all its entries."""
csv.field_size_limit(Limits().max_text)


@dataclass(slots=True)
class Entry:
    """One image with its captions, or with the text files that hold them (extension to path)."""

    image: str
    captions: list[Any] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    error: RecordError | None = None


def units_of(store: Store, path: str, columns: Columns) -> list[tuple[str, str, list[Entry]]]:
    """Return the units of a file (or of a folder, a path that ends in BESIDE): path, sha256 and entries of each.

    Raises FileNotFoundError when it is gone, ValueError when it is not of its kind, naming what is there.
    """
    entries = _entries(store, path, columns)
    marks = {} if store.local else store.marks(path.rpartition("/")[0] if path.endswith(BESIDE) else "")
    units = []
    for number, start in enumerate(range(0, len(entries), PER_UNIT)):
        part = entries[start : start + PER_UNIT]
        said = [[one.image, one.captions, one.meta, *_marks(store, one, marks)] for one in part]
        text = json.dumps(said, default=str)
        units.append(
            (f"{path}#{number}", hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(), part)
        )
    return units


def rows(
    store: Store, entries: list[Entry], limits: Limits, admit: Admit, columns: Columns
) -> Iterator[SourceRecord]:
    """Yield the row of each entry."""
    for entry in entries:
        try:
            if entry.error:
                raise entry.error
            key = admit(image_file(store, "", entry.image, limits))
            if not entry.texts:
                yield SourceRecord(entry.image, key, list(entry.captions), dict(entry.meta))
                continue
            held = {suffix: _text(store, path, limits) for suffix, path in entry.texts.items()}
            yield sample_row(Run(entry.image.rpartition(".")[0], key, held), columns)
        except RecordError as error:
            yield SourceRecord(entry.image, error=error)


def _text(store: Store, path: str, limits: Limits) -> bytes | RecordError:
    if (size := store.size(path)) > limits.max_text:
        code = "bad_json" if path.endswith("json") else "caption_too_long"
        return RecordError(
            code, f"{short(path)} has {size} bytes: more than {limits.max_text} (limits.max_text)"
        )
    return store.read_bytes(path)


def _marks(store: Store, entry: Entry, marks: dict[str, str]) -> list[str]:
    """Return marks of the content of an entry's files: the size of the image, the hash of each text."""
    if not store.local:
        return [marks.get(path, "") for path in (entry.image, *entry.texts.values())]
    try:
        size = str(Path(store.path(entry.image)).stat().st_size)
    except (OSError, ValueError):
        size = ""
    texts = (Path(store.path(path)) for path in entry.texts.values())
    return [size, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in texts if path.exists())]


def _entries(store: Store, path: str, columns: Columns) -> list[Entry]:
    if path.endswith(BESIDE):
        return _beside(store, path.rpartition("/")[0])
    instances = path.replace("captions", "instances")
    beside = instances if columns.boxes and instances != path and store.exists(instances) else ""
    marks = [_file_mark(store, one) for one in (path, beside) if one]
    name = (store.url, path, *marks, columns.model_dump_json())
    if name not in _PARSED:
        data = store.read_bytes(path)
        if kind_of(path) == ".csv":
            parsed = csv_entries(data, path, columns)
        else:
            parsed = _json_entries(data, path, columns, store.read_bytes(beside) if beside else b"")
        while len(_PARSED) >= _KEPT:
            _PARSED.pop(next(iter(_PARSED)))
        _PARSED[name] = parsed
    return _placed(store, path, _PARSED[name])


def _file_mark(store: Store, path: str) -> str:
    if not store.local:
        return content_mark(path, store.info(path))
    stat = Path(store.path(path)).stat()
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _placed(store: Store, path: str, entries: list[Entry]) -> list[Entry]:
    """Return the entries with the paths of their images: beside the file, else where most of the first ones are."""
    tried = [entry.image for entry in entries if entry.image][:_TRIED]
    folder = path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    if not any(_is_there(store, prefix + name) for name in tried):
        wanted = {f"/{name}" for name in tried}
        last = {name.rpartition("/")[2] for name in tried}
        files = [f"/{file}" for file in store.list() if file.rpartition("/")[2] in last]
        found = Counter(
            file[1 : len(file) - len(name) + 1] for file in files for name in wanted if file.endswith(name)
        )
        # annotations/captions_val2017.json means val2017/ where train2017/ holds files of the same names.
        spoken = [start for start in found if start.rstrip("/").rpartition("/")[2] in path and start]
        prefix = max(sorted(found), key=lambda start: (found[start], start in spoken), default=prefix)
    return [
        replace(entry, image=prefix + entry.image.removeprefix("./")) if entry.image else entry
        for entry in entries
    ]


def _is_there(store: Store, path: str) -> bool:
    try:
        return store.exists(path)
    except ValueError:  # it leaves the store
        return False


def _beside(store: Store, folder: str) -> list[Entry]:
    """One entry for each image of a folder, with the text files of its name."""
    prefix = f"{folder}/" if folder else ""
    images: dict[str, str] = {}
    texts: dict[str, dict[str, str]] = {}
    for name in store.names(folder):
        stem, _, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if name.startswith("."):
            continue
        if suffix in IMAGES:
            images.setdefault(stem, name)
        elif suffix in TEXTS or suffix == "json":
            texts.setdefault(stem, {})[suffix] = prefix + name
    nothing = "has no .txt, .caption or .json beside it"
    return [
        Entry(prefix + name, texts=texts[stem])
        if stem in texts
        else Entry(prefix + name, error=RecordError("no_caption", f"{short(name)} {nothing}"))
        for stem, name in images.items()
    ]


def csv_entries(data: bytes, path: str, columns: Columns) -> list[Entry]:
    """Return the images of a csv or tsv with their captions; ValueError, naming its columns, when they are not found.

    The first line names the columns: one of _IMAGE_COLUMNS, and the first of CAPTIONS or all numbered ones. Two columns
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
        header.index(columns.image)
        if columns.image
        else next((lower[n] for n in _IMAGE_COLUMNS if n in lower), -1)
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


def _json_entries(data: bytes, path: str, columns: Columns, instances: bytes) -> list[Entry]:
    try:
        return json_entries(data, path, columns, instances)
    except (TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {short(str(error))}"
        raise ValueError(f"{path} has an entry of another form ({what}): make the file again") from None


def json_entries(data: bytes, path: str, columns: Columns, instances: bytes = b"") -> list[Entry]:
    """Return the images of a json: COCO captions, Karpathy's splits, or a list of objects as in jsonl.

    `instances` is COCO's json of boxes for the same images: they become `objects` in fractions of width and height.

    ValueError, naming what there is, for any other.
    """
    value = parse_json(data, path)
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
        kinds = sorted({key for one in annotations[:_TRIED] if isinstance(one, dict) for key in one})
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
    wanted = (columns.image,) if columns.image else _IMAGE_COLUMNS
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
