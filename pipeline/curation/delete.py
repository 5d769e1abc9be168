"""Delete images from a home, for good: what was mined, packed, embedded and shown of them, and whatever comes later.

A deletion is a record in the home's log (storage.deletions) and in force from that instant. `settle` then brings the
home into line. It may be killed at any instant and repeated, and two may run at once: what takes the place of an object
is decided by creating one file, and every step reads that decision. `hyco.storage.gc.collect` deletes the bytes.
The user's own source files are never touched.
"""

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyco.pipeline.curation.erase_derived import erase_derived
from hyco.pipeline.curation.erase_records import MinedEraser, adjust_pack
from hyco.pipeline.end_to_end import mined_of
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError, gate, scores_of
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.sources.source import Unit
from hyco.storage.deletions import Tombstones, url_hash
from hyco.storage.home import Home
from hyco.storage.layout import CHECKED, SHARDS
from hyco.storage.objects import read_object
from hyco.storage.sample import TrainingSample, check_key, content_key
from hyco.storage.sealed import seal, unseal
from hyco.storage.shard import read_shard, write_shard
from hyco.storage.versions import ShardRef, Version, shard_ref

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_KINDS = ("key", "sha256", "url")


@dataclass(slots=True)
class Settled:
    """What a deletion changed.

    Attributes:
        images: keys of deleted images that were found in shards or detections.
        shards: number of shards that were written again or dropped.
        units: number of mined units whose detections were written again.
        superseded: versions that held such an image.
        versions: new version by the name of the one it replaces; None where nothing is left.
        quarantined: why a new version is not `latest`, by its name.
        derived: reports, embeddings and other derived files that were removed, by path.
    """

    images: set[str] = field(default_factory=set)
    shards: int = 0
    units: int = 0
    superseded: list[str] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)


def read_list(path: str | Path) -> tuple[list[str], list[str]]:
    """Return the keys and the addresses in an opt-out list: one item a line, blank lines and # comments apart.

    An item is `key:KEY`, `sha256:HASH` or `url:ADDRESS`; without a prefix, 64 hex digits are a sha256, 32 a key, and
    what holds "://" is an address. ValueError, naming the line, for anything else.
    """
    keys, urls = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        item = line.strip()
        if not item or item.startswith("#"):
            continue
        kind, colon, value = item.partition(":")
        if not (colon and kind in _KINDS):
            value = item
            kind = (
                "url"
                if "://" in item
                else "sha256"
                if _SHA256.fullmatch(item)
                else "key"
                if len(item) == 32
                else ""
            )
        try:
            (urls if kind == "url" else keys).append(_item(kind, value.strip()))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return keys, urls


def delete(
    home: Home,
    keys: Iterable[str] = (),
    sha256: Iterable[str] = (),
    urls: Iterable[str] = (),
    reason: str = "",
    listener: Listener | None = None,
) -> Settled:
    """Delete images by content key, by the sha256 of their file or by address; see the module.

    An image that the home does not hold is kept out of it from now on.

    Raises:
        ValueError: nothing is named, or something that is no key, hash or address.
    """
    named = [_item("key", key) for key in keys] + [_item("sha256", one) for one in sha256]
    hashed = [url_hash(_item("url", url)) for url in urls]
    if not named and not hashed:
        raise ValueError("nothing to delete: give --key, --sha256, --url or --list")
    home.deletions.append(named, hashed, reason)
    return settle(home, listener)


def settle(home: Home, listener: Listener | None = None) -> Settled:
    """Bring a home into line with its deletions; does nothing where there are none, or where all is done."""
    stones = home.deletions.tombstones()
    done = Settled()
    if not stones.number:
        return done
    checked = _checked(home, stones.number)
    refs = _shards(home)
    unread = [ref for ref in refs.values() if ref.sha256 not in checked]
    hit: dict[str, ShardRef] = {}
    found = set[str]()
    with Progress(len(unread), "delete", "shards", listener) as progress:
        for ref in unread:
            held = {sample.key for sample in _read(home, ref) if _is_deleted(stones, sample)}
            if held:
                hit[ref.path] = ref
                found |= held
            progress.advance()
    if new := found - stones.keys:  # found by address: recorded before anything that says so is rewritten
        home.deletions.append(new, (), "the images at the addresses of an earlier deletion")
        stones = home.deletions.tombstones()
    before = home.deletions.hashes()
    eraser = MinedEraser(home, stones, checked)
    eraser.run()
    done.images, done.units = found | eraser.found, eraser.units
    for name in home.marks.names():
        if name.partition("-")[0] in stones.keys:  # it may hold a phrase of the image's caption
            home.marks.undo(name)
    heirs = {_rewrite(home, ref, stones) for ref in hit.values()}
    done.shards = len(hit)
    _adjust_packs(home)
    _supersede(home, before, done)
    done.derived = erase_derived(home, stones)
    clean = {ref.sha256 for ref in unread} - {ref.sha256 for ref in hit.values()}
    _note_checked(home, stones.number, checked | clean | (heirs - {""}))
    return done


def _item(kind: str, value: str) -> str:
    if kind == "sha256" and _SHA256.fullmatch(value):
        return value.lower()[:32]  # the content key is its start
    if kind == "url" and "://" in value:
        return value
    if kind == "key":
        return check_key(value.lower())
    raise ValueError(f"{value!r} is no key, no sha256 (64 hex digits) and no address with ://")


def _is_deleted(stones: Tombstones, sample: TrainingSample) -> bool:
    return stones.names(sample.meta, sample.key) or content_key(sample.image) in stones.keys


def _shards(home: Home) -> dict[str, ShardRef]:
    """Every shard that a version or a pack record names, by path, without those that were erased."""
    found = {
        ref.path: ref for version in home.versions.list() for refs in version.shards.values() for ref in refs
    }
    for packs in home.all_packs():
        for record in packs.records().values():
            found |= {ref["path"]: ShardRef(**ref) for refs in record["shards"].values() for ref in refs}
    erased = home.deletions.hashes()
    return {path: ref for path, ref in found.items() if ref.sha256 not in erased and home.store.exists(path)}


def _read(home: Home, ref: ShardRef) -> Iterator[TrainingSample]:
    yield from read_shard(io.BytesIO(read_object(home.store, ref.path, ref.sha256)), ref.path, ref.samples)


def _rewrite(home: Home, ref: ShardRef, stones: Tombstones) -> str:
    """Write a shard again without its deleted samples, record what takes its place, and return its sha256, or ""."""
    samples = list(_read(home, ref))
    kept = [sample for sample in samples if not _is_deleted(stones, sample)]
    gone = [sample for sample in samples if _is_deleted(stones, sample)]
    by = None
    if kept:
        made = home.store.commit(SHARDS, ".tar", lambda file: write_shard(file, kept))
        by = dataclasses.asdict(shard_ref(made, len(kept), sum(len(sample.parts) for sample in kept)))
    minus = Counter(images=len(gone))
    for sample in gone:
        minus.update(captions=len(sample.captions), parts=len(sample.parts), partless=not sample.parts)
        minus.update(f"score{scores_of([part.score]).index(1)}" for part in sample.parts if part.score >= 0)
    home.deletions.erase(ref.path, by, dict(minus), (sample.key for sample in gone))
    return str(by["sha256"]) if by else ""


def _adjust_packs(home: Home) -> None:
    """Put what took their place into the pack records that name erased objects."""
    erased = home.deletions.hashes()
    configs = {version.digests.get("pack"): version for version in home.versions.list() if version.units}
    for packs in home.all_packs():
        for unit, record in packs.records().items():
            if (adjusted := adjust_pack(home, packs, unit, record, erased, configs)) is not None:
                packs.replace(unit, adjusted) if adjusted else packs.forget(unit)


def _supersede(home: Home, before: set[str], done: Settled) -> None:
    """Publish a version in the place of `latest` and of each that has a name, where images of it were deleted."""
    versions, erased = home.versions, home.deletions.hashes()
    every = {version.name: version for version in versions.list()}
    fresh = erased - before
    done.superseded = [name for name, one in every.items() if versions.superseded(one, fresh)]
    latest, labels = versions.latest(), versions.labels()
    for name in dict.fromkeys(name for name in (latest, *labels.values()) if name in every):
        old = every[name]
        if not versions.superseded(old, erased):
            continue
        new = _successor(home, old)
        done.versions[name] = new.name if new else None
        if new is None:
            continue
        for label in (label for label, named in labels.items() if named == name):
            versions.label(label, new.name)
        try:
            gate(home, new, _gate_of(old), latest=name == latest)
        except QualityError as error:
            done.quarantined[new.name] = str(error)


def _successor(home: Home, old: Version) -> Version | None:
    """The version that takes the place of one from which images were deleted; None when no training image is left."""
    try:
        mine, pack, _ = mined_of(old.name, home)
        units = [Unit(name, name, "") for name in old.units]
        if not units:
            raise ValueError("its units are not recorded")
        made = packing.publish(mine, pack, home, units)
        if _keys_left(home, old) == [ref.sha256 for refs in made.shards.values() for ref in refs]:
            return made
    except ValueError:
        pass  # adopted, or its units have other records by now: from the shards themselves
    shards: dict[str, list[ShardRef]] = {}
    counts = Counter(old.counts)
    for split, refs in old.shards.items():
        shards[split] = []
        for ref in refs:
            heir, minus, _ = home.deletions.heir(ref.path)
            shards[split] += [ShardRef(**heir) if "sha256" in heir else ref] if heir else []
            told = {
                name: minus.get(name, 0)
                for name in ("images", "captions", "parts", "partless")
                if name in counts
            }
            counts.subtract(
                told | ({f"{split}_images": minus.get("images", 0)} if f"{split}_images" in counts else {})
            )
    if not shards.get("train"):
        return None
    return home.versions.publish(
        old.config, old.digests, shards, dict(counts), old.detectors, latest=False, units=old.units
    )


def _keys_left(home: Home, old: Version) -> list[str]:
    heirs = [home.deletions.heir(ref.path)[0] or {} for refs in old.shards.values() for ref in refs]
    refs = [ref for refs in old.shards.values() for ref in refs]
    return [heir.get("sha256", ref.sha256) for heir, ref in zip(heirs, refs, strict=True) if heir]


def _gate_of(version: Version) -> QualityConfig:
    held = (version.config.get("pack") or {}).get("gate")
    return QualityConfig.model_validate(held) if held else QualityConfig()


def _checked(home: Home, through: int) -> set[str]:
    """The objects that were read and hold nothing that is deleted up to this number: an object never changes."""
    try:
        held = unseal(home.store.read_bytes(CHECKED))
        return set(held["objects"]) if held["through"] == through else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _note_checked(home: Home, through: int, objects: set[str]) -> None:
    if objects != _checked(home, through):
        home.store.replace(CHECKED, seal({"through": through, "objects": sorted(objects)}))
