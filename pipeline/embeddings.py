"""The embeddings of an image collection in one parquet file, and exact search in it by text.

A row is an image: key, unit, source_key, captions, and `vector`, float32 [E], from `Embedder.index_vectors`. The
inner product of `vector` with the query vector of a text ranks images as the model's score does, so any exact
inner-product index can hold the column. The schema's metadata names the model and the space.
"""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hyco.pipeline.embedder import Embedder, batched
from hyco.pipeline.imaging.crop import whole
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.sources.source import open_source
from hyco.storage.files import sha256_of
from hyco.storage.home import Home
from hyco.storage.sample import Failure, Sample, TrainingSample
from hyco.storage.sealed import read_table, write_table
from hyco.storage.store import Store
from hyco.storage.versions import read_ref

_METADATA = b"hyco"
_FAILURES = b"failures"
TEXTS, ROWS = 64, 65_536  # texts and vectors that are multiplied at once
Failed = Callable[[Failure], None]
Unit = tuple[str, Callable[[Failed], Iterator[Sample | TrainingSample]]]
"""Its name, and the images in it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that a search found; score is the model's, larger is nearer."""

    key: str
    score: float
    unit: str
    source_key: str
    captions: tuple[str, ...]


def embed_source(
    source: str, model: str | Path, out: str | Path, device: str = "auto", listener: Listener | None = None
) -> dict[str, Any]:
    """Embed every image of a source into one parquet file. The same command continues after an interruption.

    Args:
        source: what `open_source` takes.
        model: a model directory.
        out: the file to write; must not exist.
        device: "auto", "cpu", "cuda" ...
        listener: gets the progress.

    Returns:
        out, images, failures (how many, by code), dim and geometry.

    Raises:
        FileNotFoundError: no source, no model.
        ValueError: `out` exists; a product space (see `Embedder.index_vectors`).
    """
    opened = open_source(source)
    units: list[Unit] = [
        (unit.path, lambda failed, unit=unit: opened.samples(unit, failed)) for unit in opened.units()
    ]
    return _embed(units, Path(model), Path(out), device, listener)


def embed_version(
    home: Home,
    version: str,
    model: str | Path,
    out: str | Path,
    device: str = "auto",
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Embed every whole image of a dataset version; arguments, result and errors of `embed_source`."""
    splits = home.versions.load(version).shards.values()
    units: list[Unit] = [
        (shard.path, lambda _, shard=shard: read_ref(home.store, shard))
        for split in splits
        for shard in split
    ]
    return _embed(units, Path(model), Path(out), device, listener)


class Embeddings:
    """An embeddings file in memory, searched exhaustively.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that `hyco embed` did not write.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            table = read_table(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        found = (table.schema.metadata or {}).get(_METADATA)
        if found is None:
            raise ValueError(f"{path} has no embeddings: give a file that `hyco embed` wrote")
        self.path = Path(path)
        self.about: dict[str, Any] = json.loads(found)
        self.table = table
        flat = table["vector"].combine_chunks().flatten().to_numpy()
        self.vectors = flat.reshape(len(table), self.about["width"])

    def load_model(self, folder: str | Path | None = None, device: str = "auto") -> Embedder:
        """Load the model that made the file, from its place at that time or from another.

        Raises ValueError for a folder that holds another model, or none.
        """
        folder = Path(folder or self.about["model"])
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ValueError(
                f"{folder} holds no model: give --model with the directory that {self.path} was made with"
            )
        if (has := sha256_of(weights)) != (wants := self.about["weights"]):
            raise ValueError(
                f"{folder} holds the weights {has[:12]} and {self.path} was made with {wants[:12]}: give --model with "
                "that model, or embed again"
            )
        return Embedder.load(folder, device)

    def search(self, embedder: Embedder, texts: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return the k nearest images of each text by the model of the file (`load_model`), the nearest first."""
        points = embedder.encode_text(texts)
        queries = embedder.index_vectors(points, query=True).cpu().double().numpy()
        ranked = (
            row
            for start in range(0, len(queries), TEXTS)
            for row in self._products(queries[start : start + TEXTS])
        )
        hits = []
        for point, products in zip(points, ranked, strict=True):
            best = np.argsort(-products, kind="stable")[:k]
            stored = torch.from_numpy(self.vectors[best, : points.shape[1]]).to(point.device)
            scores = embedder.score(point[None], stored)[0].tolist()
            hits.append([self._hit(int(row), score) for row, score in zip(best, scores, strict=True)])
        return hits

    def _products(self, queries: np.ndarray) -> np.ndarray:
        """Inner products [Q, N] in float64, where rounding decides no near ties; each vector is widened once."""
        products = np.empty((len(queries), len(self.vectors)))
        for start in range(0, len(self.vectors), ROWS):
            block = slice(start, start + ROWS)
            products[:, block] = queries @ self.vectors[block].astype(np.float64).T
        return products

    def _hit(self, row: int, score: float) -> Hit:
        values = {name: self.table[name][row].as_py() for name in ("key", "unit", "source_key", "captions")}
        return Hit(values["key"], score, values["unit"], values["source_key"], tuple(values["captions"]))


def _embed(
    units: list[Unit], model: Path, out: Path, device: str, listener: Listener | None
) -> dict[str, Any]:
    if out.exists():
        raise ValueError(f"{out} exists already: give another --out, or remove it")
    embedder = Embedder.load(model, device)
    about = {
        "model": str(model.resolve()),
        "weights": sha256_of(model / "model.safetensors"),
        "geometry": embedder.model.config.geometry,
        "curvature": embedder.curvature,
        "width": _width(embedder),
    }
    parts = out.with_name(f"{out.name}.{about['weights'][:12]}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    failures = Counter[str]()
    with Progress(None, "embed", "images", listener) as progress:
        tables = [_table([], np.zeros((0, about["width"]), np.float32))]
        for number, unit in enumerate(units, 1):
            rows, failed = _unit_table(unit, embedder, parts, progress)
            tables.append(rows)
            failures.update(failed)
            progress.expect(
                progress.done * len(units) // number
            )  # an estimate: a source is not counted first
        table = pa.concat_tables(tables).combine_chunks()
        _write(table.replace_schema_metadata({_METADATA: json.dumps(about)}), out)
    shutil.rmtree(parts)
    return {"out": str(out), "images": len(table), "failures": dict(failures), **about}


def _unit_table(
    unit: Unit, embedder: Embedder, parts: Path, progress: Progress
) -> tuple[pa.Table, Counter[str]]:
    """The rows of one unit and its failures by code, from its part file where an earlier run wrote it."""
    name, samples = unit
    failures = Counter[str]()
    part = parts / f"{len(name)}-{name.replace('/', '_')}.parquet"
    if part.is_file():
        try:
            table = read_table(part.read_bytes())
            failures.update(json.loads((table.schema.metadata or {}).get(_FAILURES, b"{}")))
            progress.advance(len(table))
            return table, failures
        except ValueError:
            part.unlink()  # torn by a full disk or a power cut

    def failed(failure: Failure) -> None:
        failures[failure.code] += 1

    def images() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        for sample in samples(failed):
            try:
                pixels = whole(decode(sample.image), embedder.size)
            except ImageError as error:
                failed(Failure(sample.key, "embed", error.code, str(error)))
                continue
            source_key = str(sample.meta.get("source_key", ""))
            row = {
                "key": sample.key,
                "unit": name,
                "source_key": source_key,
                "captions": list(sample.captions),
            }
            yield row, pixels

    rows: list[dict[str, Any]] = []
    vectors = []
    for batch in batched(images(), embedder.batch_size):
        points = embedder.encode_pixels(pixels for _, pixels in batch)
        vectors.append(embedder.index_vectors(points).cpu().numpy())
        rows += [row for row, _ in batch]
        progress.advance(len(batch))
    none = np.zeros((0, _width(embedder)), np.float32)
    table = _table(rows, np.concatenate([none, *vectors]))
    _write(table.replace_schema_metadata({_FAILURES: json.dumps(failures)}), part)
    return table, failures


def _width(embedder: Embedder) -> int:
    """Coordinates of an index vector."""
    return embedder.index_vectors(torch.zeros(1, embedder.model.config.dim, device=embedder.device)).shape[1]


def _table(rows: list[dict[str, Any]], vectors: np.ndarray) -> pa.Table:
    columns = {
        "key": pa.array([row["key"] for row in rows], pa.string()),
        "unit": pa.array([row["unit"] for row in rows], pa.string()),
        "source_key": pa.array([row["source_key"] for row in rows], pa.string()),
        "captions": pa.array([row["captions"] for row in rows], pa.list_(pa.string())),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1]
        ),
    }
    return pa.table(columns)


def _write(table: pa.Table, path: Path) -> None:
    """Write the file whole or not at all."""
    data = io.BytesIO()
    write_table(table, data)
    Store(path.parent).replace(path.name, data.getvalue())
