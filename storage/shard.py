"""Training shards: tar files in the published HyCoCLIP layout (docs/shards.md), written and read as streams.

Equal samples give equal bytes: times, owners and order are fixed, so a shard's hash names its content.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from hyco.storage.sample import Part, TrainingSample, check_key, short
from hyco.storage.tar import TornTarError, read_members, write_end, write_member

_MOST_PARTS = 1000  # parent000 ... parent999


def write_shard(file: BinaryIO, samples: Iterable[TrainingSample]) -> int:
    """Write samples as one tar and return how many there were.

    Args:
        file: writable binary file.
        samples: with distinct keys, one caption or more and 1,000 parts or fewer each; else ValueError.
    """
    seen: set[str] = set()
    for sample in samples:
        if check_key(sample.key) in seen:
            raise ValueError(
                f"sample {sample.key} appears twice in one shard: webdataset would merge the two"
            )
        seen.add(sample.key)
        for suffix, data in _members(sample):
            write_member(file, f"{sample.key}.{suffix}", data)
    write_end(file)
    return len(seen)


def read_shard(file: BinaryIO, name: str = "shard", samples: int | None = None) -> Iterator[TrainingSample]:
    """Yield the samples of a shard, ours or those of HyCoCLIP's own tools (without boxes and scores).

    Args:
        file: binary stream; need not be seekable.
        name: what to call the shard in errors.
        samples: expected number, as the dataset version records it.

    Raises:
        ValueError: a truncated tar, a sample without its parts, or another count than `samples`.
    """
    count = 0
    key: str | None = None
    members: dict[str, bytes] = {}
    for member in read_members(file, name):
        head, dot, suffix = member.name.rpartition("/")[2].partition(".")
        if not dot:
            continue
        if head != key and key is not None:
            yield _sample(key, members, name)
            count, members = count + 1, {}
        key = head
        if suffix in members:
            raise ValueError(f"{name}: {short(member.name)} appears twice: make the shard again")
        members[suffix] = member.read()
    if key is not None:
        yield _sample(key, members, name)
        count += 1
    if samples is not None and count != samples:
        raise TornTarError(f"{name} holds {count} samples, its record says {samples}: fetch or pack it again")


def _members(sample: TrainingSample) -> Iterator[tuple[str, bytes]]:
    if not sample.captions:
        raise ValueError(f"sample {sample.key} has no caption: child.txt needs one")
    if len(sample.parts) > _MOST_PARTS:
        raise ValueError(f"sample {sample.key} has {len(sample.parts)} parts: the layout holds {_MOST_PARTS}")
    yield "child.jpg", sample.image
    yield "child.txt", sample.captions[0].encode()
    yield "numparents.txt", str(len(sample.parts)).encode()
    for index, part in enumerate(sample.parts):
        yield f"parent{index:03d}.jpg", part.image
        yield f"parent{index:03d}.txt", part.phrase.encode()
    record = {
        "source_key": sample.meta.get("source_key", sample.key),
        "captions": sample.captions,
        "parts": [
            {
                "phrase": part.phrase,
                "box": None if any(map(math.isnan, part.box)) else part.box,
                "score": None if math.isnan(part.score) else part.score,
                "span": part.span,
                "caption": part.caption,
                "rule": part.rule,
                **({"origin": part.origin} if part.origin else {}),
            }
            for part in sample.parts
        ],
        "source": sample.meta,
    }
    yield "meta.json", json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _sample(key: str, members: dict[str, bytes], shard: str) -> TrainingSample:
    def need(suffix: str) -> bytes:
        if suffix not in members:
            raise ValueError(
                f"{shard}: sample {key} has no {suffix}: the shard is truncated or not in the HyCoCLIP layout"
            )
        return members[suffix]

    text = need("numparents.txt").decode().strip()
    if not text.isdigit() or int(text) > _MOST_PARTS:
        raise ValueError(
            f"{shard}: sample {key} has numparents {text!r}: expected a number up to {_MOST_PARTS}"
        )
    try:
        record: dict[str, Any] = json.loads(members.get("meta.json", b"{}"))
        known = record.get("parts", [])
        parts = tuple(
            _part(
                need(f"parent{index:03d}.jpg"),
                need(f"parent{index:03d}.txt"),
                known[index] if index < len(known) else {},
            )
            for index in range(int(text))
        )
        captions = tuple(record.get("captions") or (need("child.txt").decode(),))
        return TrainingSample(key, need("child.jpg"), captions, parts, record.get("source", {}))
    except (RecursionError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        if str(error).startswith(f"{shard}: sample {key} "):
            raise
        what = f"{type(error).__name__}: {short(str(error))}"
        raise ValueError(f"{shard}: sample {key} cannot be read ({what}): make the shard again") from None


def _part(image: bytes, phrase: bytes, known: dict[str, Any]) -> Part:
    part = Part(image, phrase.decode())
    if not known:
        return part
    box, score, span = known.get("box"), known.get("score"), known.get("span") or (-1, -1)
    return Part(
        image,
        part.phrase,
        (float(box[0]), float(box[1]), float(box[2]), float(box[3])) if box else part.box,
        part.score if score is None else float(score),
        (int(span[0]), int(span[1])),
        int(known.get("caption", 0)),
        str(known.get("rule", "")),
        str(known.get("origin", "")),
    )
