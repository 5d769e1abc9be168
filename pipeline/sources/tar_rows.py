"""Rows of a webdataset or img2dataset tar: members in any order, never paired across a repeated name.

Members of one row are neighbours in most tars, but need not be. Where a member's name occurs again, two archives were
joined (`tar --concatenate`, shards that both begin at 000000) or a file was appended: a new pass begins there, and no
image is paired with a text of another pass. The exact start of the second archive is unknown, so after the repeated
member only neighbours are paired; a member without a partner is a failure.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.records import (
    Limits,
    RecordError,
    SourceRecord,
    captions_of,
    failed_download,
    parse_object,
)
from hyco.storage.sample import short
from hyco.storage.store import Store
from hyco.storage.tar import Member, TornTarError, read_members

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img", "image"))
TEXTS = ("txt", "caption", "text", "cap")
"""Extensions of plain captions; the first one with text is used."""

Admit = Callable[[bytes], str]
"""Checks and stores an image and returns its key; RecordError when it cannot be used."""


@dataclass(slots=True)
class Run:
    """Consecutive members of one name: the image's key, or its error, and texts by extension."""

    stem: str
    image: str | RecordError | None = None
    texts: dict[str, bytes | RecordError] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        """Whether it has an image and a text."""
        return self.image is not None and bool(self.texts)


def tar_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit, columns: Columns = USUAL
) -> Iterator[SourceRecord]:
    """Rows of a tar: NAME.jpg (or .png ...) with NAME.json, NAME.txt (.caption, .text, .cap) or both.

    A name is everything before the last dot, so names may hold dots. `captions` in the json wins over the .txt, and a
    .txt that holds any text over `caption` in the json; a caption column that is asked for is looked for in the json
    alone. A tar may be gzipped. TornTarError for a file that is not a whole tar, ValueError for a training shard.
    """
    for runs, again in _passes(uncompressed(file, path), path, limits, admit):
        whole = {run.stem for run in runs if run.whole}
        paired = {_first_part(stem) for stem in whole}
        for run in runs:
            if run.whole:
                yield sample_row(run, columns)
            elif run.stem in whole or _first_part(run.stem) not in paired:
                yield _alone(
                    run, path, again
                )  # others are further fields, such as NAME.mask.png beside NAME.jpg


def uncompressed(file: BinaryIO, path: str) -> BinaryIO:
    """Return the tar in a file whose name says that it is gzipped; any other file as it is."""
    if not path.lower().endswith(("gz", "gzip")):
        return file
    return cast(BinaryIO, io.BufferedReader(_Gunzip(file, path)))


class _Gunzip(io.RawIOBase):
    """A gzipped stream whose every fault is a TornTarError."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = gzip.GzipFile(fileobj=file), path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TornTarError(f"{self._path} is not a whole gzip file ({error}): fetch it again") from None
        buffer[: len(data)] = data
        return len(data)


def repeats_names(members: Iterable[Member]) -> bool:
    """Return whether the name of any row's member occurs twice in a tar."""
    seen: set[tuple[str, str]] = set()
    for member in members:
        if name := _name(member):
            if name in seen:
                return True
            seen.add(name)
    return False


def _passes(file: BinaryIO, path: str, limits: Limits, admit: Admit) -> Iterator[tuple[list[Run], str]]:
    """Yield the runs of each pass, and the repeated member at its start or end ("" for none)."""
    runs: list[Run] = []
    first: dict[tuple[str, str], int] = {}  # of this pass: member to the number of its run
    again = ""
    for member in read_members(file, path):
        if (name := _name(member)) is None:
            continue
        stem, suffix = name
        if stem.endswith(".numparents") and suffix == "txt":
            raise ValueError(
                f"{path} is a training shard (published HyCoCLIP layout: it holds {short(member.name)}), not captioned "
                "images: `hyco adopt DIR` makes a dataset version of such shards"
            )
        begins = not runs or runs[-1].stem != stem
        if name in first:
            again = short(member.name)
            own = [] if begins or suffix in runs[-1].seen else [runs.pop()]  # with its neighbours
            yield _gather(runs, first[name] + 1), again
            runs, begins = own, not own
            first = {(stem, suffix): 0 for run in own for suffix in run.seen}
        if begins:
            runs.append(Run(stem))
        first[name] = len(runs) - 1
        _take(runs[-1], member, suffix, limits, admit)
    yield _gather(runs, len(runs)), again


def _name(member: Member) -> tuple[str, str] | None:
    """Return stem and extension of a member that may belong to a row; None for others and for files of macOS."""
    stem, _, suffix = member.name.rpartition(".")
    suffix = suffix.lower()
    if stem.rpartition("/")[2].startswith(".") or member.name.rpartition("/")[2].startswith("."):
        return None  # ".DS_Store", "._NAME.jpg"
    return (stem, suffix) if suffix in IMAGES or suffix in TEXTS or suffix == "json" else None


def _take(run: Run, member: Member, suffix: str, limits: Limits, admit: Admit) -> None:
    run.seen.add(suffix)
    if suffix not in IMAGES:
        code = "bad_json" if suffix == "json" else "caption_too_long"
        text = f"{short(member.name)} has {member.size} bytes: more than {limits.max_text} (limits.max_text)"
        run.texts[suffix] = RecordError(code, text) if member.size > limits.max_text else member.read()
    elif run.image is None:
        try:
            if member.size > limits.max_bytes:
                text = f"image has {member.size} bytes: more than {limits.max_bytes} (limits.max_bytes)"
                raise RecordError("too_many_bytes", text)
            run.image = admit(member.read())
        except RecordError as error:
            run.image = error


def _gather(runs: list[Run], certain: int) -> list[Run]:
    """Join the runs of one name among the first `certain` runs of a pass; later runs stay separate.

    A whole run is a row and takes in the other runs of its name, unless there are two whole ones.
    """
    with_image = [run.stem for run in runs[:certain] if run.image is not None]
    by_stem: dict[str, list[Run]] = {
        stem: [] for stem in with_image
    }  # rows come in the order of their images
    for run in runs[:certain]:
        by_stem.setdefault(run.stem, []).append(run)
    joined: list[Run] = []
    for stem, same in by_stem.items():
        if len(same) == 1 or sum(run.whole for run in same) > 1:
            joined += same
            continue
        images = [run.image for run in sorted(same, key=lambda run: not run.whole) if run.image is not None]
        texts = {suffix: text for run in same for suffix, text in run.texts.items()}
        joined.append(Run(stem, images[0] if images else None, texts))
    return joined + runs[certain:]


def _first_part(stem: str) -> str:
    folder, slash, base = stem.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _alone(run: Run, path: str, again: str) -> SourceRecord:
    stem = short(run.stem)
    if run.image is None and "json" in run.texts:
        try:
            if lost := failed_download(parse_object(_unwrap(run.texts["json"]))):
                return SourceRecord(run.stem, error=lost)
        except RecordError:
            pass  # there is no image either way
    code, absent = ("no_image", "image") if run.image is None else ("no_caption", ".txt, .caption or .json")
    why = f"; names come again ({again}), and pairs are not made across that: write the archives apart"
    return SourceRecord(
        run.stem, error=RecordError(code, f"{stem} has no {absent} beside it in {path}{why if again else ''}")
    )


def sample_row(run: Run, columns: Columns) -> SourceRecord:
    """Return the row of an image and the texts that bear its name."""
    try:
        if isinstance(run.image, RecordError):
            raise run.image
        assert run.image is not None
        meta = parse_object(_unwrap(run.texts["json"])) if "json" in run.texts else {}
        return SourceRecord(run.stem, run.image, _captions(run, meta, columns), meta)
    except RecordError as error:
        return SourceRecord(run.stem, error=error)


def _captions(run: Run, meta: dict[str, Any], columns: Columns) -> list[Any]:
    if columns.caption:
        return captions_of(meta, columns)
    if isinstance(meta.get("captions"), list) and meta["captions"]:
        return meta.pop("captions")
    texts = [_decode(_unwrap(run.texts[suffix])) for suffix in TEXTS if suffix in run.texts]
    if said := next((text for text in texts if text.strip()), None):
        return [said]
    return captions_of(meta) or texts


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("bad_text", f"caption is not UTF-8: {error}") from None


def _unwrap(data: bytes | RecordError) -> bytes:
    if isinstance(data, RecordError):
        raise data
    return data
