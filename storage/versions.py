"""Immutable dataset versions: which shards, made from what, and proof that they are still those bytes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from storage.shard import read_shard
from storage.store import Object, Store

FOLDER = "versions"
LATEST = "versions/latest"
QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A training shard: where it lies in the store, the hash and size of its bytes, how much it holds."""

    path: str
    sha256: str
    size: int
    samples: int
    parts: int


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable dataset.

    Attributes:
        name: "v-" and 12 hex digits made from digests, shards, counts and detectors, so it proves them.
        parent: the version that was `latest` when this one was published, or None.
        config: resolved configurations by stage ("mine", "pack"), enough to make the version again.
        digests: of those configurations, by stage; incidental options (batch size, device) are not in them.
        shards: "train" and "val", each in a fixed order.
        counts: images, captions, parts, failures ...
        detectors: digests of the models that found the boxes.
        created: UTC time, ISO 8601.
    """

    name: str
    parent: str | None
    config: dict[str, Any]
    digests: dict[str, str]
    shards: dict[str, list[ShardRef]]
    counts: dict[str, int]
    detectors: list[str] = field(default_factory=list)
    created: str = ""


class Versions:
    """The dataset versions of one home."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def publish(
        self,
        config: dict[str, Any],
        digests: dict[str, str],
        shards: dict[str, list[ShardRef]],
        counts: dict[str, int],
        detectors: Sequence[str] = (),
        latest: bool = True,
    ) -> Version:
        """Make a version of shards that are already committed, and point `latest` at it unless told not to.

        Publishing the same content again makes no second version and returns the one there was.

        Raises:
            ValueError: no training shards, or a shard that is not in the store.
        """
        if not shards.get("train"):
            raise ValueError("no training sample is left to publish: lower threshold, min_area_px or holdout")
        for split in shards.values():
            for shard in split:
                if not self.store.exists(shard.path):
                    raise ValueError(f"shard {shard.path} is not in {self.store.url}: pack again")
        body = {"digests": digests, "shards": shards, "counts": counts, "detectors": sorted(detectors)}
        name = _name(body)
        try:
            parent = self.store.read_bytes(LATEST).decode().strip()
        except FileNotFoundError:
            parent = None
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {**body, "config": config, "name": name, "parent": parent, "created": created}
        text = json.dumps(_plain(record), indent=1, sort_keys=True)
        self.store.create(f"{FOLDER}/{name}.json", text.encode())
        if latest:
            self.point(name)
        return self.load(name)

    def point(self, name: str) -> None:
        """Make a version `latest`."""
        self.store.replace(LATEST, f"{name}\n".encode())

    def quarantine(self, name: str, reasons: "list[dict[str, Any]]") -> None:
        """Mark a version as not to be trained on, and say why."""
        self.store.replace(f"{QUARANTINE}/{name}.json", json.dumps(reasons, indent=1).encode())

    def quarantined(self, name: str) -> "list[dict[str, Any]] | None":
        """Why a version is in quarantine, or None when it is not."""
        try:
            return json.loads(self.store.read_bytes(f"{QUARANTINE}/{name}.json"))
        except FileNotFoundError:
            return None

    def release(self, name: str) -> bool:
        """Take a version out of quarantine and make it `latest`; False when it was not in quarantine."""
        if self.quarantined(name) is None:
            return False
        self.store.delete(f"{QUARANTINE}/{name}.json")
        self.point(name)
        return True

    def load(self, name: str = "latest") -> Version:
        """Return a version by name, by the beginning of its name, or "latest".

        Raises ValueError, naming the versions there are, when it is absent, ambiguous or unreadable.
        """
        if name == "latest":
            try:
                name = self.store.read_bytes(LATEST).decode().strip()
            except FileNotFoundError:
                raise ValueError(f"no dataset version in {self.store.url}: run mine and pack first") from None
        names = self.names()
        found = [name] if name in names else [known for known in names if known.startswith(name)]
        if len(found) != 1:
            what = "is ambiguous" if found else "does not exist"
            there = f"in {self.store.url}; there are: {', '.join(names) or 'none'}"
            raise ValueError(f"dataset version '{name}' {what} {there}")
        path = f"{FOLDER}/{found[0]}.json"
        try:
            return _version(json.loads(self.store.read_bytes(path)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"{self.store.url}/{path}"
            raise ValueError(f"{where} is not a dataset version ({error}): pack again") from None

    def names(self) -> list[str]:
        """Return the names of all versions, sorted."""
        paths = self.store.list(FOLDER)
        return [path.rpartition("/")[2][:-5] for path in paths if path.endswith(".json")]

    def list(self) -> "list[Version]":
        """Return all versions, oldest first."""
        return sorted(
            (self.load(name) for name in self.names()), key=lambda version: (version.created, version.name)
        )

    def verify(self, version: Version) -> "list[str]":
        """Read every shard and return what is wrong, one line for each problem; an intact version gives [].

        Catches a changed record, a missing or altered file, a tar cut at a member boundary, and wrong counts.
        """
        problems = []
        if _name(_body(version)) != version.name:
            problems.append(f"version {version.name}: its record was changed after it was published")
        for split, shards in version.shards.items():
            for shard in shards:
                problems += [f"{split} shard {shard.path}: {problem}" for problem in self._problems(shard)]
        for count, split in (("train_images", "train"), ("val_images", "val")):
            held = sum(shard.samples for shard in version.shards.get(split, []))
            if count in version.counts and version.counts[count] != held:
                problems.append(
                    f"version {version.name}: {count} is {version.counts[count]}, its shards hold {held}"
                )
        return problems

    def _problems(self, shard: ShardRef) -> "list[str]":
        try:
            size, sha256 = self.store.size(shard.path), self.store.sha256(shard.path)
        except FileNotFoundError:
            return ["missing"]
        problems = []
        if size != shard.size:
            problems.append(f"{size} bytes, expected {shard.size}")
        if sha256 != shard.sha256:
            problems.append(f"sha256 {sha256[:12]}, expected {shard.sha256[:12]}")
        try:
            with self.store.open(shard.path) as file:
                parts = sum(len(sample.parts) for sample in read_shard(file, "tar", shard.samples))
        except ValueError as error:
            return [*problems, str(error)]
        if parts != shard.parts:
            problems.append(f"{parts} parts, expected {shard.parts}")
        return problems


def shard_ref(made: Object, samples: int, parts: int) -> ShardRef:
    """Return the reference of a committed shard."""
    return ShardRef(made.path, made.sha256, made.size, samples, parts)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def _name(body: dict[str, Any]) -> str:
    text = json.dumps(_plain(body), sort_keys=True, separators=(",", ":"))
    return "v-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _body(version: Version) -> dict[str, Any]:
    return {name: getattr(version, name) for name in ("digests", "shards", "counts", "detectors")}


def _version(record: dict[str, Any]) -> Version:
    shards = {split: [ShardRef(**shard) for shard in refs] for split, refs in record["shards"].items()}
    return Version(**{**record, "shards": shards})
