"""Leave deleted images out of detections, failures and pack records; see pipeline.curation.delete."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing.copies import REASONS, LeftOut, left_out, marked
from hyco.pipeline.packing.filters import FILTERED
from hyco.pipeline.packing.image_hashes import Place
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.sources.source import Unit
from hyco.storage.deletions import OPTED_OUT, Tombstones
from hyco.storage.detections import read_detections, read_failures, write_detections, write_failures
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import name_sha256, open_object, read_object
from hyco.storage.sealed import read_table, write_table
from hyco.storage.versions import Version


class MinedEraser:
    """Writes detections and failures again without deleted images, unit by unit.

    Attributes:
        found: keys of deleted images that were in detections.
        units: number of units that were written again.
    """

    def __init__(self, home: Home, stones: Tombstones, checked: set[str]) -> None:
        self.home, self.stones, self.checked = home, stones, checked
        self.found: set[str] = set()
        self.units = 0

    def run(self) -> None:
        """Write every unit again that holds a deleted image; objects without one are added to `checked`."""
        erased = self.home.deletions.hashes()
        for mined in self.home.all_detections():
            for unit, record in mined.records().items():
                changes = {**self._detections(mined, record, erased), **self._failures(mined, record, erased)}
                if changes:
                    mined.replace(unit, {**record, **changes})
                    self.units += 1

        tables = [("hashes", one) for one in self.home.all_hashes()]
        tables += [("columns", one) for one in self.home.all_columns()]
        for name, made in tables:
            for unit, record in made.records().items():
                if (changes := self._keyed(made, record[name]["path"], erased)) is not None:
                    made.replace(unit, {**record, name: changes})

    def _keyed(self, results: UnitResults, path: str, erased: set[str]) -> dict[str, Any] | None:
        """The heir of a table with a row for each image, such as its hash; None when no row has to go."""
        if name_sha256(path) in self.checked:
            return None
        if name_sha256(path) not in erased:
            table = read_table(read_object(self.home.store, path))
            kept = table.filter(~pc.field("key").isin(sorted(self.stones.keys)))
            if kept.num_rows == table.num_rows:
                self.checked.add(name_sha256(path))
                return None
            made = self.home.store.commit(results.objects, ".parquet", lambda file: write_table(kept, file))
            by = {"path": made.path, "sha256": made.sha256, "rows": kept.num_rows}
            self.home.deletions.erase(path, by, {}, ())
        return self.home.deletions.heir(path)[0]

    def _detections(self, mined: UnitResults, record: dict[str, Any], erased: set[str]) -> dict[str, Any]:
        path = record["detections"]["path"]
        if name_sha256(path) in self.checked:
            return {}
        if name_sha256(path) not in erased:
            with open_object(self.home.store, path) as file:
                table = read_detections(file)
            hit = pc.field("key").isin(sorted(self.stones.keys))
            kept, gone = table.filter(~hit), table.filter(hit)
            if not gone.num_rows:
                self.checked.add(name_sha256(path))
                return {}
            self.found |= set(gone["key"].unique().to_pylist())
            made = self.home.store.commit(
                mined.objects, ".parquet", lambda file: write_detections(file, kept)
            )
            by = {"path": made.path, "sha256": made.sha256, "rows": kept.num_rows}
            self.home.deletions.erase(path, by, _counts(gone), gone["key"].unique().to_pylist())
        heir, minus, keys = self.home.deletions.heir(path)
        left = {
            name: record[name] - minus.get(name, 0) for name in _COUNTED if isinstance(record.get(name), int)
        }
        return {"detections": heir, **left, OPTED_OUT: record.get(OPTED_OUT, 0) + len(keys)}

    def _failures(self, mined: UnitResults, record: dict[str, Any], erased: set[str]) -> dict[str, Any]:
        held = record.get("failures")
        if not isinstance(held, dict) or name_sha256(held["path"]) in self.checked:
            return {}
        made = without_failures(self.home, mined, held["path"], self.stones, erased)
        if made is None:
            self.checked.add(name_sha256(held["path"]))
            return {}
        heir, minus, _ = made
        codes = Counter(record.get("failed_by_code", {}))
        codes.subtract(
            {name.removeprefix("code:"): n for name, n in minus.items() if name.startswith("code:")}
        )
        failed = record.get("failed", 0) - minus.get("failed", 0)
        return {
            "failures": heir,
            "failed": failed,
            "failed_by_code": {code: n for code, n in codes.items() if n},
        }


def without_failures(
    home: Home, results: UnitResults, path: str, stones: Tombstones, erased: set[str]
) -> tuple[dict[str, Any] | None, dict[str, int], tuple[str, ...]] | None:
    """Write a table of failures again without deleted images; the heir as Deletions.heir, None without any."""
    if name_sha256(path) not in erased:
        with open_object(home.store, path) as file:
            rows = read_failures(file)
        gone = [row for row in rows if row.key in stones.keys]
        if not gone:
            return None
        kept = [row for row in rows if row.key not in stones.keys]
        made = home.store.commit(results.objects, ".parquet", lambda file: write_failures(file, kept))
        minus = Counter(failed=len(gone))
        minus.update(f"code:{row.code}" for row in gone)
        by = {"path": made.path, "sha256": made.sha256, "rows": len(kept)}
        home.deletions.erase(path, by, dict(minus), {row.key for row in gone})
    return home.deletions.heir(path)


def adjust_pack(
    home: Home,
    packs: UnitResults,
    unit: str,
    record: dict[str, Any],
    erased: set[str],
    versions: dict[str | None, Version],
) -> dict[str, Any] | None:
    """Return a pack record with the heirs of the objects that were erased; None when it names none.

    {} when its configuration is not known, because no version was made with it: the unit has to be packed again.

    Args:
        home: holds the objects.
        packs: the results that the record belongs to.
        unit: name of the record.
        record: as it is.
        erased: hashes of all objects that were erased.
        versions: a version of each packing, by its digest: its configuration and the order of its units.
    """
    paths = [ref["path"] for refs in record["shards"].values() for ref in refs]
    stones = home.deletions.tombstones()
    failed = None
    if record.get("failures"):
        failed = without_failures(home, packs, record["failures"], stones, erased)
    mined_path = record.get("detections")
    moved = bool(mined_path) and name_sha256(str(mined_path)) in erased
    if not moved and failed is None and not any(name_sha256(path) in erased for path in paths):
        return None
    version = versions.get(packs.folder.rpartition("/")[2])
    if version is None or "mine" not in version.config:
        return {}
    counts, scores, shards, removed = (
        Counter(record["counts"]),
        list(record.get("scores", ())),
        {},
        set[str](),
    )
    for split, refs in record["shards"].items():
        shards[split] = []
        for ref in refs:
            heir, minus, keys = home.deletions.heir(ref["path"])
            shards[split] += [heir if "sha256" in heir else ref] if heir else []
            removed |= set(keys)
            images = minus.get("images", 0)
            counts.subtract(
                {"images": images, f"{split}_images": images, "partless": minus.get("partless", 0)}
            )
            counts.subtract({name: minus.get(name, 0) for name in ("captions", "parts")})
            for place in range(len(scores)):
                scores[place] -= minus.get(f"score{place}", 0)
    if failed is not None:
        counts["pack_failures"] -= failed[1].get("failed", 0)
        removed |= set(failed[2])
    detections = mined_path
    without = record.get("without", "")
    if moved:
        heir, minus, keys = home.deletions.heir(str(mined_path))
        assert heir is not None, "detections always have an heir"
        detections = heir["path"]
        counts["mined_images"] -= len(keys)
        try:
            left = _left_out(home, version, unit)
        except (ValueError, OSError):  # an evaluation source has moved: the unit has to be packed again
            return {}
        without, now = marked(left), Counter(why.reason for why in left.values())
        fewer = sum(counts[reason] - now[reason] for reason in REASONS)
        counts.update({reason: now[reason] - counts[reason] for reason in REASONS})
        unseen = max(0, len(set(keys) - removed) - max(0, fewer))
        if unseen and any(counts[f"{FILTERED}_{name}"] for name in ("size", "aspect", "captions")):
            return {}  # which filter left them out is not known any more: the unit has to be packed again
        counts["partless"] -= unseen
    told = {
        name: n
        for name, n in counts.items()
        if n or record["counts"].get(name) == 0 or name == "pack_failures"
    }
    failures = record.get("failures") if failed is None or failed[0] is None else failed[0]["path"]
    if failed is not None and failed[0] is not None and not failed[0]["rows"]:
        failures = None
    return {**record, "shards": shards, "counts": told, "scores": scores, "detections": detections,
            "without": without, "failures": failures}  # fmt: skip


def _left_out(home: Home, version: Version, unit: str) -> dict[str, LeftOut]:
    """The images that a unit leaves out, by the present detections."""
    mine, pack = (
        MineConfig.model_validate(version.config["mine"]),
        PackConfig.model_validate(version.config["pack"]),
    )
    units = [Unit(name, name, "") for name in version.units]
    records = home.detections(version.digests.get("mine")).records()
    place = Place(mine.source, mine.limits, mine.columns)
    found = left_out(
        home, place, units, records, pack, pack.keep_partless, pack.near_duplicates, pack.exclude
    )
    return found.get(unit, {})


_COUNTED = ("images", "captions", "phrases", "boxes", "phrases_with_boxes")


def _counts(rows: pa.Table) -> dict[str, int]:
    """What a mining record counts of these rows. A caption without any phrase has no row and is not counted."""
    phrases = rows.filter(pc.field("phrase").is_valid())
    where = ["key", "caption", "span_start", "span_end", "phrase"]
    boxes = phrases.filter(pc.field("score").is_valid())
    return {
        "images": len(rows["key"].unique()),
        "captions": rows.group_by(["key", "caption"]).aggregate([]).num_rows,
        "phrases": phrases.group_by(where).aggregate([]).num_rows,
        "boxes": boxes.num_rows,
        "phrases_with_boxes": boxes.group_by(where).aggregate([]).num_rows,
    }
