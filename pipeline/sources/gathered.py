"""Sources of loose images: a csv, a COCO or Karpathy json, or text files beside the images, cut into units.

The rows that name one image are one entry. A unit is a run of consecutive entries, identified by their content and
the sizes of their images: rows added at the end make new units and leave the others unchanged.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hyco.pipeline.sources.caption_lists import Entry, csv_entries, json_entries
from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.image_files import image_file
from hyco.pipeline.sources.known_hashes import KnownHashes
from hyco.pipeline.sources.listing import BESIDE, kind_of
from hyco.pipeline.sources.records import (
    Limits,
    RecordError,
    SourceRecord,
)
from hyco.pipeline.sources.tar_rows import IMAGES, TEXTS, Admit, Run, sample_row
from hyco.storage.sample import short
from hyco.storage.store import Store, content_mark

PER_UNIT = 1000
"""Entries of one unit, the last one excepted."""
_TRIED = 50  # entries whose images are looked for when their folder is searched
_KEPT = 2
_PARSED: "dict[tuple[str, ...], list[Entry]]" = {}
"""The last files that were read, by path, mark and columns: every unit of a file is cut out of all its entries."""


def units_of(
    store: Store, path: str, columns: Columns, hashes: KnownHashes | None = None
) -> list[tuple[str, str, list[Entry]]]:
    """Return the units of a file (or of a folder, a path that ends in BESIDE): path, sha256 and entries of each.

    `hashes` has those of local text files that were read before.

    Raises FileNotFoundError when it is gone, ValueError when it is not of its kind, naming what is there.
    """
    entries = _entries(store, path, columns)
    marks = {} if store.local else store.marks(path.rpartition("/")[0] if path.endswith(BESIDE) else "")
    units, hashes = [], hashes or KnownHashes(store)
    for number, start in enumerate(range(0, len(entries), PER_UNIT)):
        part = entries[start : start + PER_UNIT]
        said = [[one.image, one.captions, one.meta, *_marks(store, one, marks, hashes)] for one in part]
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


def _marks(store: Store, entry: Entry, marks: dict[str, str], hashes: KnownHashes) -> list[str]:
    """Return marks of the content of an entry's files: the size of the image, the hash of each text."""
    if not store.local:
        return [marks.get(path, "") for path in (entry.image, *entry.texts.values())]
    try:
        size = str(Path(store.path(entry.image)).stat().st_size)
    except (OSError, ValueError):
        size = ""
    texts = []
    for path in entry.texts.values():
        with contextlib.suppress(FileNotFoundError):
            texts.append(hashes.sha256(path))
    return [size, *texts]


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
            parsed = json_entries(data, path, columns, store.read_bytes(beside) if beside else b"")
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
