"""Write scenes as ordinary source shards (img2dataset layout), so that the demo uses the same input as users do.

A shard is a pure function of (generator, seed, split, number), is written atomically, and is not made again when it
exists: an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyco.demo import holdout
from hyco.demo.scenes import SPLITS, Mention, Scene, World
from hyco.demo.taxonomy import load
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.runtime.executor import open_executor
from hyco.pipeline.runtime.progress import Progress
from hyco.storage.sample import content_key

SHARD = 500
QUALITY = 92
_SEEDS = 10_000_000  # seeds reserved per world seed; more scenes than anyone writes
_SOURCES = (
    "taxonomy.txt",
    *(f"{name}.py" for name in ("taxonomy", "art", "backdrops", "layout", "holdout", "phrases", "captions")),
    *(f"{name}.py" for name in ("foils", "scenes", "write")),
)
# Digests of earlier code that draws the same scenes, byte for byte.
_SAME_SCENES = {"3ebe87745e833024", "6fa474cc5549a4d1"}
_world = cache(World)


def generator_digest() -> str:
    """16 hex digits that change whenever the code or the taxonomy that draws scenes does."""
    folder = files("hyco.demo")
    together = hashlib.sha256()
    for name in _SOURCES:
        together.update((folder / name).read_bytes())
    return together.hexdigest()[:16]


def sample_meta(scene: Scene) -> dict[str, Any]:
    """KEY.json of a scene; "objects" has one entry for each (caption, phrase, box), "foils" one for each."""
    objects = [_entry(mention, box) for mention in scene.phrases for box in mention.boxes]
    meta = {
        "captions": list(scene.captions),
        "objects": objects,
        "labels": list(scene.kinds),
        "backdrop": scene.backdrop[0],
        "heldout": list(scene.heldout),
    }
    if scene.foils:
        meta["foils"] = [{"kind": f.kind, "caption": f.caption, "foil": f.text} for f in scene.foils]
    return meta


def _entry(mention: Mention, box: tuple[float, float, float, float]) -> dict[str, Any]:
    return {
        "leaf": mention.leaf,
        "phrase": mention.phrase,
        "caption": mention.caption,
        "span": list(mention.span),
        "box": [round(v, 6) for v in box],
        "color": mention.color,
    }


def write_shard(
    out: str,
    split: str,
    number: int,
    count: int,
    seed: int,
    size: int,
    report: Callable[[int], None] = lambda n: None,
) -> str:
    """Make OUT/SPLIT/NNNNN.tar with scenes number * SHARD .. number * SHARD + count; returns its path.

    Returns at once when the shard exists. `report` gets the number of scenes drawn since its last call.
    """
    path = Path(out) / split / f"{number:05d}.tar"
    if path.exists():
        return str(path)
    world = _world(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for index in range(number * SHARD, number * SHARD + count):
                    scene = world.scene(seed * _SEEDS + index, split)
                    image = encode_jpeg(scene.image, QUALITY)
                    key = content_key(image)
                    meta = json.dumps(sample_meta(scene), separators=(",", ":"), ensure_ascii=False)
                    _add(tar, f"{key}.jpg", image)
                    _add(tar, f"{key}.txt", scene.captions[0].encode())
                    _add(tar, f"{key}.json", meta.encode())
                    if index % 25 == 24:
                        report(25)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    report(count % 25)
    return str(path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, mode and time stay at their defaults: equal scenes, equal bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write(
    out: Path, train: int = 6000, heldout: int = 1000, seed: int = 0, size: int = 128, workers: int = 2
) -> dict[str, Any]:
    """Write OUT/{train,heldout}/NNNNN.tar, OUT/taxonomy.json and OUT/scenes.json; returns the last one.

    Raises ValueError when OUT holds the scenes of other settings.
    """
    counts: dict[str, int] = dict(zip(SPLITS, (train, heldout), strict=True))
    for split, count in counts.items():
        if not 0 <= count < _SEEDS:
            raise ValueError(f"{split} is {count}: give a number of scenes from 0 to {_SEEDS - 1}")
    plan = _plan(counts, seed, size)
    _settle(Path(out) / "scenes.json", plan)
    _replace(Path(out) / "taxonomy.json", json.dumps(load().to_json(), indent=1) + "\n")
    jobs = [
        (split, number, min(SHARD, count - number * SHARD))
        for split, count in counts.items()
        for number in range(-(-count // SHARD))
    ]
    missing = [job for job in jobs if not (Path(out) / job[0] / f"{job[1]:05d}.tar").exists()]
    total, left = sum(job[2] for job in jobs), sum(job[2] for job in missing)
    with (
        Progress(total, "scenes", "scenes", done=total - left) as progress,
        open_executor(min(workers, len(missing))) as executor,
    ):
        futures = [
            executor.submit(write_shard, str(out), *job, seed, size, report=progress.advance)
            for job in missing
        ]
        for future in futures:
            future.result()
    return plan


def _plan(counts: dict[str, int], seed: int, size: int) -> dict[str, Any]:
    leaves = load().leaves.values()
    return {
        "seed": seed,
        "size": size,
        "counts": counts,
        "shard": SHARD,
        "generator": generator_digest(),
        "heldout": {
            "colors": {leaf.id: list(holdout.colors(leaf)) for leaf in leaves if holdout.colors(leaf)},
            "backdrops": {leaf.id: holdout.backdrop(leaf) for leaf in leaves if holdout.backdrop(leaf)},
            "relation_share": holdout.RELATION_SHARE,
        },
        "art": "OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0, recoloured",
    }


def _settle(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan of a new folder, or check that the folder was started with the same plan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _replace(path, json.dumps(plan, indent=1) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete {path.parent} and write it again") from error
    if known.get("generator") in _SAME_SCENES:
        known["generator"] = plan["generator"]
    for name in ("seed", "size", "counts", "shard", "generator"):
        if known.get(name) != plan[name]:
            raise ValueError(
                f"{path.parent} holds scenes with {name} = {known.get(name)!r}, not {plan[name]!r}: "
                "choose another --out or delete it"
            )


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
