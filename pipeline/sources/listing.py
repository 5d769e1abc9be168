"""From the spelling of a source to its files: a folder, a file, a pattern, a range in braces, or a list with commas.

A folder holds one kind of source, looked for in this order: tars, parquet files and jsonl; arrow files; csv or tsv;
json with captions; images with texts beside them. Sub-folders are searched when the folder itself has none of these.
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import fsspec.utils

from hyco.pipeline.sources.tar_rows import IMAGES, TEXTS
from hyco.storage.store import Store

BESIDE = "*"
"""Kind of a folder of images with a text file beside each; the paths of its units end so."""
KINDS = {
    ".tar": ".tar",
    ".tar.gz": ".tar",
    ".tgz": ".tar",
    ".parquet": ".parquet",
    ".jsonl": ".jsonl",
    ".arrow": ".arrow",
    ".csv": ".csv",
    ".tsv": ".csv",
    ".json": ".json",
}
"""Extension to kind."""
_KIND = re.compile(rf"(?:{'|'.join(re.escape(end) for end in sorted(KINDS, key=len, reverse=True))})\Z")
_USUAL = {".tar": ".tar"}  # of 10^5 files most: told by the last characters alone
_SHARDS = (".tar", ".parquet", ".jsonl")
_CHUNK = re.compile(r"#\d+$")
_NO_SOURCE = re.compile(r"(?:cache-|indices-|tmp).*\.arrow|(?:dataset_info|dataset_dict|state)\.json", re.I)
_OF_LIBRARIES = (".arrow", ".json")  # kinds of the files of _NO_SOURCE
_CAPTIONS_JSON = re.compile(r".*caption.*\.json|dataset(?:_\w+)?\.json", re.I)
_CAPTIONS_TEXT = re.compile(r"captions?\.txt", re.I)
_MAGIC = re.compile(r"[*?\[]")
_COMMA = re.compile(r",(?![^{]*\})")  # outside of braces
_SHOWN = 5


class EmptySourceError(ValueError):
    """A source that holds no file of a known kind (yet)."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source: paths in the store, all of one kind."""

    store: Store
    kind: str
    files: list[str]


def kind_of(path: str) -> str | None:
    """Return the kind of a file (or of a unit's path) by its name; None for an unknown one."""
    if kind := _USUAL.get(path[-4:]):
        return kind
    name = path.rpartition("/")[2].lower()
    if "#" in name:
        name = _CHUNK.sub("", name)
    if name == BESIDE:
        return BESIDE
    if _CAPTIONS_TEXT.fullmatch(name):
        return ".csv"
    found = _KIND.search(name.partition("?")[0])  # of a URL with a query
    return KINDS[found[0]] if found else None


def store_of(url: str) -> Store:
    """Return the store in which the files of a source lie; ValueError for a list across several stores."""
    return Store(_common([_base(part) for part in _parts(url)], url))


def list_source(url: str) -> Listing:
    """List the files of a source.

    Raises:
        FileNotFoundError: the path, or a file of a list, is absent.
        EmptySourceError: a folder or pattern without any file of a known kind.
        ValueError: an unknown extension, or files of different kinds.
    """
    parts, store = _parts(url), store_of(url)
    found: list[str] = []
    kinds: set[str] = set()
    missing: list[str] = []
    for part in parts:
        place = _relative(part, store)
        if _is_pattern(part):
            files = _matching(store, place)
        elif _is_file(part):
            files = [place]
            missing += [] if store.exists(place) else [part]
        elif store.local and Path(store.path(place)).exists() and not Path(store.path(place)).is_dir():
            raise ValueError(f"source {part} is a pipe or a device: give a file or a folder")
        else:
            kind, files = _folder(store, place, part)
            found += files
            kinds.add(kind)
            continue
        for file in files:
            if (kind := kind_of(file)) is None:
                end = os.path.splitext(file)[1]  # noqa: PTH122  (may be a URL)
                known = ", ".join(KINDS)
                raise ValueError(
                    f"source {part} has the unknown extension {end!r}: give {known} or a folder of them"
                )
            kinds.add(kind)
        found += files
    if missing:
        more = f", the first of {len(missing)} that are absent" if len(missing) > 1 else ""
        raise FileNotFoundError(f"source {missing[0]} does not exist{more}")
    if not found:
        raise EmptySourceError(
            f"source {url} matches no file: check the pattern (quote it, so that the shell leaves it)"
        )
    if len(kinds) > 1:
        raise ValueError(f"source {url} mixes {' and '.join(sorted(kinds))} files: give one kind")
    return Listing(store, kinds.pop(), list(dict.fromkeys(found)))


def absolute_source(url: str, root: Path) -> str:
    """Return a spelling whose local paths do not depend on the working directory, which `root` is."""
    if (root / url).exists():
        return str((root / url).resolve())
    parts = re.split(_COMMA, url)
    return ",".join(part if "://" in part else str((root / part.strip()).resolve()) for part in parts)


def _parts(url: str) -> list[str]:
    """Return the paths and patterns of a spelling, local ones absolute."""
    text = url.rstrip("/") or "/"
    if _exists(text):
        return [_plain(text)]
    split = re.split(_COMMA, text)
    return [_plain(one) for part in split if part for one in braceexpand.braceexpand(part.strip())] or [text]


def _plain(part: str) -> str:
    return Store(part).url.rstrip("/") or "/"


@functools.lru_cache(4096)
def _is_remote(part: str) -> bool:
    return not Store(part).local


def _exists(text: str) -> bool:
    try:
        store = Store(text)
    except ValueError:
        return False
    return store.local and Path(store.root).exists()


def _is_pattern(part: str) -> bool:
    if _is_remote(part):
        return bool(re.search(r"[*\[]", part))  # a URL may have a query
    return not Path(part).exists() and bool(_MAGIC.search(part))


def _is_file(part: str) -> bool:
    """Return whether a part is one file, not a folder."""
    if _is_remote(part):
        return kind_of(part) is not None
    return Path(part).is_file() or (not Path(part).exists() and kind_of(part) is not None)


def _base(part: str) -> str:
    """Return the folder that contains all files of a part."""
    if _is_pattern(part):
        fixed = part[: re.search(r"[*?\[]", part).start()]  # type: ignore[union-attr]
        return fixed.rpartition("/")[0] or "/"
    if not _is_file(part):
        return part
    folder = part.rpartition("/")[0] or "/"
    # COCO keeps its json in annotations/ beside the folders of images.
    return (
        folder.rpartition("/")[0] or "/"
        if kind_of(part) == ".json" and folder.endswith("/annotations")
        else folder
    )


def _common(bases: list[str], url: str) -> str:
    if len(set(bases)) == 1:
        return bases[0]
    remote = {_is_remote(base) for base in bases}
    if remote == {False}:
        return os.path.commonpath([os.path.normpath(base) for base in bases])
    shared = []
    for pieces in zip(*(base.split("/") for base in bases), strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    if len(remote) > 1 or len(shared) < 3:  # "s3:", "", bucket
        raise ValueError(f"source {url} lies in several stores: give the files of one store")
    return "/".join(shared)


def _relative(part: str, store: Store) -> str:
    if not store.local:
        return part[len(store.url) :].strip("/")
    plain = os.path.relpath(part, store.url)
    return "" if plain == "." else plain


def _matching(store: Store, pattern: str) -> list[str]:
    if store.local:
        root = Path(store.root)
        return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
    names = store.list() if "/" in pattern else store.names()
    fits = re.compile(fsspec.utils.glob_translate(pattern))
    return [name for name in names if fits.match(name)]


def _folder(store: Store, place: str, url: str) -> tuple[str, list[str]]:
    """Return kind and files of a folder: the files in it, else those below it."""
    try:
        top = [name for name in store.names(place) if not name.startswith(".")]  # "._00.tar": a note of macOS
    except FileNotFoundError:
        raise FileNotFoundError(f"source {url} does not exist") from None
    prefix = f"{place}/" if place else ""
    if found := _of_one_kind([prefix + name for name in top], store, url):
        return found
    below = [path for path in store.list(place) if "/." not in f"/{path}"]
    if found := _of_one_kind(below, store, url):
        return found
    seen = sorted({os.path.splitext(name)[1] or name for name in below})[:_SHOWN]  # noqa: PTH122
    if any(end[1:].lower() in IMAGES for end in seen):
        raise EmptySourceError(
            f"source {url} holds images without captions ({', '.join(seen)}): put NAME.txt beside NAME.jpg, or a "
            "captions.csv with the columns file and caption into the folder"
        )
    holds = f"it holds {', '.join(seen)}" if seen else "it holds no files"
    known = ", ".join(dict.fromkeys(KINDS.values()))
    raise EmptySourceError(
        f"source {url} has no {known} file and no images with captions ({holds}): name the folder of "
        "the shards"
    )


def _of_one_kind(paths: list[str], store: Store, url: str) -> tuple[str, list[str]] | None:
    by_kind: dict[str, list[str]] = {}
    for path in paths:
        kind = _USUAL.get(path[-4:]) or kind_of(path)
        if kind and (kind not in _OF_LIBRARIES or not _NO_SOURCE.fullmatch(path.rpartition("/")[2])):
            by_kind.setdefault(kind, []).append(path)
    by_kind[".parquet"] = _without_tables(by_kind.get(".parquet", []), by_kind.get(".tar", []), paths, store)
    by_kind[".json"] = [
        path for path in by_kind.get(".json", []) if _CAPTIONS_JSON.fullmatch(path.rpartition("/")[2])
    ]
    shards = [kind for kind in _SHARDS if by_kind.get(kind)]
    if len(shards) > 1:
        one = f"'{url}/**/*{shards[0]}'"
        raise ValueError(
            f"source {url} mixes {' and '.join(shards)} files: keep one kind in a folder, or give {one}"
        )
    if kind := next((kind for kind in (*shards, ".arrow", ".csv", ".json") if by_kind.get(kind)), None):
        return kind, by_kind[kind]
    beside = _beside(paths)
    return (BESIDE, beside) if beside else None


def _without_tables(parquets: list[str], tars: list[str], paths: list[str], store: Store) -> list[str]:
    """Leave out img2dataset's tables, which have the name of a tar or of a folder of files."""
    if not parquets:
        return []
    stems = {re.sub(r"\.(tar|tar\.gz|tgz)$", "", path, flags=re.I) for path in tars}
    stems |= {path.rpartition("/")[0] for path in paths}
    stats = {path.removesuffix("_stats.json") for path in paths if path.endswith("_stats.json")}
    left = {
        path.removesuffix(".parquet"): path for path in parquets if path.removesuffix(".parquet") not in stems
    }
    tables = [stem for stem in left if stem in stats]
    of_folders = bool(tables) and _is_folder(store, tables[0])
    return [path for stem, path in left.items() if not (of_folders and stem in stats)]


def _is_folder(store: Store, path: str) -> bool:
    return Path(store.path(path)).is_dir() if store.local else store.exists(path)


def _beside(paths: list[str]) -> list[str]:
    """The folders that hold an image with a text of the same name, as paths of kind BESIDE."""
    stems: dict[bool, set[str]] = {True: set(), False: set()}
    for path in paths:
        stem, _, end = path.rpartition(".")
        if end.lower() in IMAGES or end.lower() in TEXTS or end.lower() == "json":
            stems[end.lower() in IMAGES].add(stem)
    folders = {stem.rpartition("/")[0] for stem in stems[True] & stems[False]}
    return [f"{folder}/{BESIDE}" if folder else BESIDE for folder in sorted(folders)]
