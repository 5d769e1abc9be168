"""An image in several units of a source is packed once: in the first unit, in order, that can use it."""

import functools
import hashlib
from collections.abc import Container, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hyco.pipeline.packing.select_parts import SelectionConfig, select_parts
from hyco.pipeline.sources.source import Unit
from hyco.storage.detections import read_detections
from hyco.storage.objects import open_object
from hyco.storage.store import Store

_READS = 8


def repeats(
    store: Store,
    units: Sequence[Unit],
    records: dict[str, dict[str, Any]],
    config: SelectionConfig,
    partless: bool,
    refused: Mapping[str, Container[str]] = MappingProxyType({}),
) -> dict[str, tuple[str, ...]]:
    """Return by unit name the sorted keys of images that another unit packs; units without any are left out.

    Depends only on the mining results and the order of the units, not on when or where each is packed.

    Args:
        store: the home.
        units: of the source, in order.
        records: mining records by unit name; units without one count as empty.
        config: the rules by which boxes are selected.
        partless: whether images without parts are packed.
        refused: keys by unit name that the unit must not pack.
    """
    mined = [(unit.name, records[unit.name]["detections"]["path"]) for unit in units if unit.name in records]
    with ThreadPoolExecutor(_READS) as pool:
        hashes = list(pool.map(lambda named: _hashes(store.url, named[1]), mined))
    together = np.concatenate([np.zeros(0, np.int64), *hashes])
    values, counts = np.unique(together, return_counts=True)
    suspects = values[counts > 1]
    if not len(suspects):
        return {}
    holders: dict[
        str, list[tuple[str, bool]]
    ] = {}  # key -> the units that hold it and whether they can use it
    for (name, path), own in zip(mined, hashes, strict=True):
        if np.isin(own, suspects).any():
            table, suspected = _table(store, path), set(suspects.tolist())
            keys = {key for key in table["key"].unique().to_pylist() if _hash(key) in suspected}
            for key, usable in usable_keys(table, keys, config, partless).items():
                holders.setdefault(key, []).append((name, usable and key not in refused.get(name, ())))
    others: dict[str, list[str]] = {}
    for key, held in holders.items():
        owner = next((name for name, usable in held if usable), held[0][0])
        for name, _ in held:
            if name != owner:
                others.setdefault(name, []).append(key)
    return {name: tuple(sorted(keys)) for name, keys in others.items()}


def mark(keys: Sequence[str]) -> str:
    """Digest of a set of keys for a pack record; "" for none, as in older records."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16] if keys else ""


def usable_keys(table: pa.Table, keys: Set[str], config: SelectionConfig, partless: bool) -> dict[str, bool]:
    """Return whether packing has a use for each of some images of a detections table, by key."""
    chosen = select_parts(table.filter(pc.field("key").isin(sorted(keys))), config)
    return {key: partless or bool(parts) for key, parts in chosen.items()}


def detections_of(store: Store, record: dict[str, Any]) -> pa.Table:
    """Return the detections that a mining record names."""
    return _table(store, record["detections"]["path"])


@functools.lru_cache(maxsize=1 << 14)
def _hashes(url: str, path: str) -> np.ndarray:
    """Eight bytes per image of a detections file, int64 [N]: twelve million images take 96 MB."""
    keys = _table(Store(url), path)["key"].unique().to_pylist()
    return np.array([_hash(key) for key in keys], np.int64)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def _table(store: Store, path: str) -> pa.Table:
    with open_object(store, path) as file:
        return read_detections(file)
