"""Immutable dataset versions: their shards, their origin, and hashes that prove the shards are unchanged."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hyco.storage.deletions import Deletions
from hyco.storage.layout import EXPERIMENTS, LABELS, LATEST, VERSIONS, quarantine_path, version_path
from hyco.storage.local_cache import open_cached
from hyco.storage.objects import DamagedError, open_object
from hyco.storage.sample import TrainingSample
from hyco.storage.sealed import seal, unseal
from hyco.storage.shard import read_shard
from hyco.storage.store import Object, Store

_NAME = re.compile(r"v-[0-9a-f]{12}")
_LABEL = re.compile(r"(?!latest$|v-[0-9a-f]*$)[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A training shard: its path in the store, the hash and size of its bytes, and its counts."""

    path: str
    sha256: str
    size: int
    samples: int
    parts: int


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable dataset. Its file holds its own checksum (storage.sealed), unless an earlier Hyco wrote it.

    Attributes:
        name: "v-" and 12 hex digits made from digests, shards, counts and detectors, so it verifies them.
        parent: the version that was `latest` when this one was published, or None.
        config: resolved configurations by stage ("mine", "pack"), sufficient to make the version again; "adopt" where
            the shards existed already.
        digests: of those configurations, by stage; incidental options (batch size, device) are not in them.
        shards: "train" and "val", each in a fixed order.
        counts: images, captions, parts, failures ...
        detectors: digests of the models that found the boxes.
        created: UTC time, ISO 8601.
        units: names of its source units, in order; () in versions that do not record them.
    """

    name: str
    parent: str | None
    config: dict[str, Any]
    digests: dict[str, str]
    shards: dict[str, list[ShardRef]]
    counts: dict[str, int]
    detectors: list[str] = field(default_factory=list)
    created: str = ""
    units: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The source of the captioned images; "" in versions that do not record it."""
        return self._mined_with("source")

    @property
    def grounder(self) -> str:
        """The model that found the boxes, BACKEND:PLACE; "" in versions that do not record it."""
        return self._mined_with("grounder")

    def _mined_with(self, option: str) -> str:
        return str((self.config.get("mine") or self.config.get("adopt") or {}).get(option) or "")


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
        units: Sequence[str] = (),
    ) -> Version:
        """Make a version of shards that are already committed, and point `latest` at it unless `latest` is False.

        Publishing the same content again makes no second version and returns the existing one.

        Raises:
            ValueError: no training shards, or a shard that is not in the store.
        """
        if not shards.get("train"):
            raise ValueError("no training sample is left to publish: lower threshold, min_area_px or holdout")
        for split in shards.values():
            for shard in split:
                if not self.store.exists(shard.path):
                    raise DamagedError(shard.path, "is missing", self.store.url)
        body = {"digests": digests, "shards": shards, "counts": counts, "detectors": sorted(detectors)}
        name = _name(body)
        parent = self.latest()
        if parent == name or parent not in self.names():  # `latest` belongs to a version that is made again
            parent = None
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {
            **body,
            "config": config,
            "name": name,
            "parent": parent,
            "created": created,
            "units": list(units),
        }
        self.store.create(version_path(name), seal(_plain(record)))
        if latest:
            self.point(name)
        return self.load(name)

    def point(self, name: str) -> None:
        """Make a version `latest`: the file holds the name and, to detect a change, the name's hash."""
        self.store.replace(LATEST, f"{name} {_check(name)}\n".encode())
        self.store.delete(f"{EXPERIMENTS}/{name}")

    def experiment(self, name: str) -> None:
        """Mark a version as an experiment: nothing trains on it unless it is named. One that is `latest` stays it."""
        if self.latest() != name:
            self.store.create(f"{EXPERIMENTS}/{name}", b"")

    def experiments(self) -> set[str]:
        """Return the names of the experiments."""
        return {path.rpartition("/")[2] for path in self.store.list(EXPERIMENTS)}

    def latest(self) -> str | None:
        """Return the name of the latest version, None before the first; DamagedError when the file holds no name."""
        try:
            data = self.store.read_bytes(LATEST)
        except FileNotFoundError:
            return None
        return self._pointed(LATEST, data)

    def superseded(self, version: Version, erased: "set[str] | None" = None) -> bool:
        """Return whether images of a version were deleted since; `erased` are the hashes of Deletions.hashes()."""
        erased = Deletions(self.store).hashes() if erased is None else erased
        return any(ref.sha256 in erased for refs in version.shards.values() for ref in refs)

    def label(self, label: str, name: str) -> None:
        """Give a version a name of a person's choice, which `load` accepts; a name that is taken moves to it.

        Raises ValueError for one that is not lower-case letters, digits, "-" and "_", or could be another version.
        """
        check_label(label)
        self.store.replace(f"{LABELS}/{label}", f"{name} {_check(name)}\n".encode())

    def labels(self) -> dict[str, str]:
        """Return the version of every name that was given, by name; DamagedError for a damaged one."""
        found = {}
        for path in self.store.list(LABELS):
            found[path.rpartition("/")[2]] = self._pointed(path, self.store.read_bytes(path))
        return found

    def _pointed(self, path: str, data: bytes) -> str:
        text = data.decode("ascii", "replace")
        name, space, check = text.removesuffix("\n").partition(" ")
        intact = text.endswith("\n") and _NAME.fullmatch(name)
        if space:
            intact = intact and check == _check(name)
        elif intact and name not in self.names():  # an earlier Hyco wrote no hash
            intact = None
        if not intact:
            raise DamagedError(path, f"holds no name of a version: {text[:40]!r}", self.store.url)
        return name

    def quarantine(self, name: str, reasons: "list[dict[str, Any]]") -> None:
        """Mark a version as not to be trained on, with the reason."""
        self.store.replace(quarantine_path(name), seal({"checks": _plain(reasons)}))

    def quarantined(self, name: str) -> "list[dict[str, Any]] | None":
        """Why a version is in quarantine, or None when it is not; DamagedError when the file is damaged."""
        try:
            data = self.store.read_bytes(quarantine_path(name))
        except FileNotFoundError:
            return None
        try:
            if data.startswith(b"["):  # an earlier Hyco wrote the bare list
                return [dict(check) for check in json.loads(data)]
            return [dict(check) for check in unseal(data)["checks"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(quarantine_path(name), f"is not readable ({error})", self.store.url) from None

    def lift(self, name: str) -> bool:
        """Take a version out of quarantine; False when it was not in quarantine."""
        return self.store.delete(quarantine_path(name))

    def release(self, name: str) -> bool:
        """Take a version out of quarantine and make it `latest`; False when it was not in quarantine."""
        if not self.lift(name):
            return False
        self.point(name)
        return True

    def load(self, name: str = "latest") -> Version:
        """Return a version by name, by the beginning of its name, by a name that was given to it, or "latest".

        Raises ValueError, naming the existing versions, when it is absent, ambiguous or unreadable.
        """
        names = self.names()
        if name == "latest":
            told = self.latest()
            if told is None and names and self.experiments().issuperset(names):
                raise ValueError(
                    f"every dataset version in {self.store.url} is an experiment: name one, or pack again"
                )
            if told is None and names:
                raise DamagedError(
                    LATEST, f"is missing, although there are {len(names)} versions", self.store.url
                )
            if told is None:
                raise ValueError(f"no dataset version in {self.store.url}: run mine and pack first")
            if told not in names:
                raise DamagedError(
                    version_path(told), "is missing, and it is the latest version", self.store.url
                )
            name = told
        if _LABEL.fullmatch(name) and self.store.exists(f"{LABELS}/{name}"):
            name = self._pointed(f"{LABELS}/{name}", self.store.read_bytes(f"{LABELS}/{name}"))
        found = [name] if name in names else [known for known in names if known.startswith(name)]
        if len(found) != 1:
            what = "is ambiguous" if found else "does not exist"
            there = f"in {self.store.url}; there are: {', '.join(names) or 'none'}"
            raise ValueError(f"dataset version '{name}' {what} {there}")
        path = version_path(found[0])
        try:
            version = _version(unseal(self.store.read_bytes(path)))
            if version.name != found[0]:
                raise ValueError(f"it is {version.name}")
            return version
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(path, f"is not a dataset version ({error})", self.store.url) from None

    def names(self) -> list[str]:
        """Return the names of all versions, sorted."""
        paths = self.store.list(VERSIONS)
        return [path.rpartition("/")[2][:-5] for path in paths if path.endswith(".json")]

    def list(self) -> "list[Version]":
        """Return all versions, oldest first."""
        return sorted(
            (self.load(name) for name in self.names()), key=lambda version: (version.created, version.name)
        )

    def verify(self, version: Version) -> "list[str]":
        """Read every shard and return the faults, one line each; an intact version gives [].

        Catches a changed record, a missing or altered file, a tar cut at a member boundary, and wrong counts.
        pipeline.integrity.verify checks the detections and failures behind the shards.
        """
        return [f"{kind} {path}: {what}" for kind, path, what in self.problems(version)]

    def problems(self, version: Version, seen: "set[str] | None" = None) -> Iterator[tuple[str, str, str]]:
        """Yield (kind, path, fault) of every fault of a version's record and shards.

        Args:
            version: as it was loaded.
            seen: paths of shards that need not be read; those that are read are added.
        """
        seen = set() if seen is None else seen
        record = version_path(version.name)
        if _name(_body(version)) != version.name:
            yield "version", record, f"{version.name}: its record was changed after it was published"
        for shards in version.shards.values():
            for shard in shards:
                if shard.path not in seen:
                    seen.add(shard.path)
                    yield from (("shard", shard.path, problem) for problem in self._problems(shard))
        for count, split in (("train_images", "train"), ("val_images", "val")):
            held = sum(shard.samples for shard in version.shards.get(split, []))
            if count in version.counts and version.counts[count] != held:
                yield "version", record, f"{count} is {version.counts[count]}, its shards hold {held}"

    def _problems(self, shard: ShardRef) -> "list[str]":
        try:
            size, sha256 = self.store.size(shard.path), self.store.sha256(shard.path)
        except FileNotFoundError:
            return ["missing"]
        except OSError as error:
            return [f"not readable ({error})"]
        problems = []
        if size != shard.size:
            problems.append(f"{size} bytes, expected {shard.size}")
        if sha256 != shard.sha256:
            problems.append(f"sha256 {sha256[:12]}, expected {shard.sha256[:12]}")
        try:
            with self.store.open(shard.path) as file:
                parts = sum(len(sample.parts) for sample in read_shard(file, "tar", shard.samples))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return [*problems, f"{type(error).__name__}: {error}"]
        if parts != shard.parts:
            problems.append(f"{parts} parts, expected {shard.parts}")
        return problems


def check_label(label: str) -> str:
    """Return a name that may be given to a version; ValueError for any other."""
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"name {label!r} of a dataset version: use lower-case letters, digits, - and _, not latest and not v-..."
        )
    return label


def read_ref(store: Store, shard: ShardRef) -> Iterator[TrainingSample]:
    """Yield the samples of a version's shard; DamagedError, before the first one, when it has changed.

    Of a shard from which images were deleted, the samples that are left.
    """
    deletions = Deletions(store)
    if deletions.erased(shard.path) is not None:
        heir = deletions.heir(shard.path)[0]
        if heir is None:
            return
        shard = ShardRef(**heir)
    if store.local:
        opened = open_object(store, shard.path, shard.sha256)
    else:
        opened = open_cached(store, shard.path, shard.sha256, shard.size)
    with opened as file:
        yield from read_shard(file, shard.path, shard.samples)


def shard_ref(made: Object, samples: int, parts: int) -> ShardRef:
    """Return the reference of a committed shard."""
    return ShardRef(made.path, made.sha256, made.size, samples, parts)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def _name(body: dict[str, Any]) -> str:
    text = json.dumps(_plain(body), sort_keys=True, separators=(",", ":"))
    return "v-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _body(version: Version) -> dict[str, Any]:
    return {name: getattr(version, name) for name in ("digests", "shards", "counts", "detectors")}


def _version(record: dict[str, Any]) -> Version:
    shards = {split: [ShardRef(**shard) for shard in refs] for split, refs in record["shards"].items()}
    return Version(**{**record, "shards": shards, "units": tuple(record.get("units", ()))})
