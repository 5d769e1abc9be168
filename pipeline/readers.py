"""Readers of source files, one for each kind: each yields rows and never stops at a bad one."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.rows import CAPTIONS, Limits, Row, RowError, captions_of, parse_object
from storage.store import Store
from storage.tar import read_members

_IMAGES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img", "image"}
_NUMBERED = re.compile(r"(?:caption|text|sentence)_?\d+")
_FILES = ("file", "image", "file_name", "filename", "path")
_NAMES = ("__key__", "key", "id", "image_id")
_BATCH = 32

Admit = Callable[[bytes], str]
"""Checks and keeps an image and returns its key; RowError when it cannot be used."""


def tar_rows(file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit) -> Iterator[Row]:
    """Rows of a webdataset or img2dataset tar: NAME.jpg (or .png ...) with NAME.txt, NAME.json or both.

    A name is everything before the last dot, so names may hold dots; members of a row need not be neighbours.
    `captions` in the json wins over the .txt, and that over `caption` in the json. TornTarError for a file
    that is not a whole tar.
    """
    images: dict[str, str | RowError] = {}
    texts: dict[str, dict[str, bytes | RowError]] = {}
    for member in read_members(file, path):
        stem, _, suffix = member.name.rpartition(".")
        suffix = suffix.lower()
        if stem.rpartition("/")[2].startswith(".") or member.name.rpartition("/")[2].startswith("."):
            continue  # ".DS_Store", "._NAME.jpg": another system's notes
        if suffix in _IMAGES and stem not in images:
            try:
                if member.size > limits.max_bytes:
                    raise RowError(
                        "too_many_bytes", f"image has {member.size} bytes: more than {limits.max_bytes}"
                    )
                images[stem] = admit(member.read())
            except RowError as error:
                images[stem] = error
        elif suffix in ("txt", "json"):
            large = member.size > limits.max_text
            code = "caption_too_long" if suffix == "txt" else "bad_json"
            error = RowError(code, f"{member.name} has {member.size} bytes: more than {limits.max_text}")
            texts.setdefault(stem, {})[suffix] = error if large else member.read()
    paired = {_first_part(stem) for stem in images if stem in texts}
    for stem in dict.fromkeys([*images, *texts]):
        if stem in images and stem in texts:
            yield _tar_row(stem, images[stem], texts[stem])
        elif (
            _first_part(stem) not in paired
        ):  # else NAME.mask.png beside NAME.jpg: a further field of that row
            code, absent = ("no_caption", ".txt or .json") if stem in images else ("no_image", "image")
            yield Row(stem, error=RowError(code, f"{stem} has no {absent} beside it in {path}"))


def _first_part(stem: str) -> str:
    folder, slash, base = stem.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _tar_row(stem: str, image: str | RowError, texts: dict[str, bytes | RowError]) -> Row:
    try:
        if isinstance(image, RowError):
            raise image
        meta = parse_object(_unwrap(texts["json"])) if "json" in texts else {}
        if isinstance(meta.get("captions"), list) and meta["captions"]:
            captions = meta.pop("captions")
        elif "txt" in texts:
            captions = [_decode(_unwrap(texts["txt"]))]
        else:
            captions = captions_of(meta)
        return Row(stem, image, captions, meta)
    except RowError as error:
        return Row(stem, error=error)


def parquet_rows(file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit) -> Iterator[Row]:
    """Rows of a parquet file: an image column (binary, or struct with `bytes`) and caption column(s).

    Caption columns: the first of captions, caption, text, texts, sentences that exists in any case, string
    or list of strings; else all numbered ones (caption_0, caption_1 ...). Other columns become meta as far
    as JSON can hold them. ValueError for a file without such columns, naming those it has.
    """
    try:
        # No thread of Arrow's may hold a Python file: the process could abort when it exits.
        table = pq.ParquetFile(file, pre_buffer=False)
        image, captions = _columns(table.schema_arrow, path)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
            for values in batch.to_pylist():
                yield _parquet_row(f"{path}:{number}", values, image, captions, limits, admit)
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and (error.errno or type(error) is not OSError):
            raise  # of the disk or the network; pyarrow's own have no number and no class
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole parquet file ({first}): fetch it or make it again") from None


def _columns(schema: pa.Schema, path: str) -> tuple[str, list[str]]:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)

    listed = ", ".join(f"{column.name} ({column.type})" for column in schema)
    binary = [column.name for column in schema if holds_bytes(column.type)]
    named = [name for name in binary if name.lower() in {*_IMAGES, "image_bytes", "bytes"}]
    if not binary or (len(binary) > 1 and len(named) != 1):
        found = (
            "no column of image bytes" if not binary else f"several columns of bytes ({', '.join(binary)})"
        )
        raise ValueError(f"{path} has {found}; call it 'image'. Its columns: {listed}")
    lower = {column.name.lower(): column.name for column in schema}
    captions = [lower[name] for name in CAPTIONS if name in lower][:1]
    captions = captions or [column.name for column in schema if _NUMBERED.fullmatch(column.name.lower())]
    if not captions:
        raise ValueError(
            f"{path} has no caption column; call it one of {', '.join(CAPTIONS)}. Its columns: {listed}"
        )
    return (named or binary)[0], captions


def _parquet_row(
    place: str, values: dict[str, Any], image: str, captions: list[str], limits: Limits, admit: Admit
) -> Row:
    name = next((str(values[key]) for key in _NAMES if values.get(key) is not None), place)
    data = values.pop(image)
    data = data.get("bytes") if isinstance(data, dict) else data
    found: list[Any] = []
    for column in captions:
        value = values.pop(column)
        found += value if isinstance(value, list) else [value]
    try:
        if data is None:
            raise RowError("no_image", f"{place} holds no image bytes")
        if len(data) > limits.max_bytes:
            raise RowError("too_many_bytes", f"image has {len(data)} bytes: more than {limits.max_bytes}")
        meta = {key: value for key, value in values.items() if value is not None and _is_json(value)}
        return Row(name, admit(data), found, meta)
    except RowError as error:
        return Row(name, error=error)


def jsonl_rows(file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit) -> Iterator[Row]:
    """Rows of a jsonl file, one object a line: {"file": "a/b.jpg", "caption": "..."} or a list of "captions".

    Files are looked for below the jsonl's own folder only. Other entries become meta.
    """
    for number, line in enumerate(iter(lambda: file.readline(limits.max_text + 1), b""), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > limits.max_text:
                while line and not line.endswith(b"\n"):
                    line = file.readline(limits.max_text)
                raise RowError("bad_json", f"line {number} of {path} is longer than {limits.max_text} bytes")
            meta = parse_object(line)
            name = next((meta.pop(key) for key in _FILES if isinstance(meta.get(key), str)), None)
            if name is None:
                raise RowError(
                    "no_image", f"line {number} of {path} names no file: one of {', '.join(_FILES)}"
                )
            captions = captions_of(meta)
            yield Row(name, admit(_image_file(store, path, name, limits)), captions, meta)
        except RowError as error:
            yield Row(f"{path}:{number}", error=error)


def jsonl_sizes(store: Store, path: str) -> list[int]:
    """Sizes in bytes of the images a jsonl names, -1 where there is none: a cheap mark of their content."""
    sizes = []
    with store.open(path) as file:
        for line in file:
            try:
                meta = parse_object(line)
                name = next((meta[key] for key in _FILES if isinstance(meta.get(key), str)), "")
                sizes.append(store.size(_beside(path, name)) if name else -1)
            except (RowError, ValueError, OSError):
                sizes.append(-1)
    return sizes


def _image_file(store: Store, path: str, name: str, limits: Limits) -> bytes:
    try:
        size = store.size(_beside(path, name))
        if size > limits.max_bytes:
            raise RowError("too_many_bytes", f"{name} has {size} bytes: more than {limits.max_bytes}")
        return store.read_bytes(_beside(path, name))
    except RowError:
        raise
    except (OSError, ValueError) as error:
        raise RowError("no_image", f"{name} named in {path} cannot be read: {error}") from None


def _beside(path: str, name: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name.removeprefix("./")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("bad_text", f"caption is not UTF-8: {error}") from None


def _unwrap(data: bytes | RowError) -> bytes:
    if isinstance(data, RowError):
        raise data
    return data


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
