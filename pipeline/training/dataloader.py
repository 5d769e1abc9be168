"""Training shards to batches. Each batch carries the reader's position, {"epoch", "batch"}.

The order is a function of (seed, epoch, lane): shards are shuffled each epoch, divided between the lanes by sample
count (so fewer shards than lanes is no special case), and samples are mixed within a window of shards. A run has as
many lanes as processes when it starts, so that each process reads one. The batch of all processes together is made of
a batch of every lane; a process takes its part of it, so that another number of processes gets the same batches. There
is no other state: a reader started at a saved position gives exactly the remaining batches.
"""

import functools
import hashlib
import io
import itertools
import os
import queue
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.runtime.calls import carried
from hyco.pipeline.runtime.parent_death import die_with
from hyco.pipeline.training.augment import Choice, DataConfig, choose, render
from hyco.pipeline.training.batch import START, Batch, Position
from hyco.storage.local_cache import open_cached
from hyco.storage.objects import DamagedError, check_sha256
from hyco.storage.sample import TrainingSample
from hyco.storage.shard import read_shard
from hyco.storage.store import Store
from hyco.storage.versions import ShardRef

Index = np.ndarray  # int64 [n, 2]: shard, sample within it
SWITCH_SECONDS = 5e-4
"""For sys.setswitchinterval in a process whose threads read batches. A decoder that needs Python's lock for some 20
microseconds waits this long for a thread that keeps it; with Python's 5 ms a second decoder gains next to nothing.
"""
_STRETCH = 16  # samples per decoding task
# The purpose of a random stream; first in its seed, so that no two streams are equal.
_SHARDS, _WITHIN, _WINDOW, _VIEW = range(1, 5)


@dataclass(frozen=True)
class ShardFile:
    """A training shard for the reader: its name, its number of samples, how to open it, its sha256."""

    name: str
    samples: int
    open: Callable[[], BinaryIO]
    sha256: str = ""

    def read(self) -> list[TrainingSample]:
        """Return the samples; DamagedError when the shard is missing or has another sha256 than recorded."""
        try:
            with self.open() as file:
                data = file.read()
        except FileNotFoundError:
            raise DamagedError(self.name, "is missing") from None
        if self.sha256:
            check_sha256(self.name, hashlib.sha256(data).hexdigest(), self.sha256)
        return list(read_shard(io.BytesIO(data), self.name, self.samples))


def shard_file(store: Store, ref: ShardRef) -> ShardFile:
    """A shard of a dataset version for the reader; that of a remote home is read through this machine's cache.

    The cache compares hashes itself, when an object arrives and when a process first opens it.
    """
    if store.local:
        return ShardFile(ref.path, ref.samples, functools.partial(store.open, ref.path), ref.sha256)
    cached = functools.partial(open_cached, store, ref.path, ref.sha256, ref.size)
    return ShardFile(ref.path, ref.samples, cached)


class Batches:
    """An endless sequence of batches, prepared in a background thread, or in processes of their own.

    Args:
        shards: the training shards of a dataset version, in its order.
        tokenizer: turns captions and phrases into token ids.
        config: see DataConfig.
        batch_size: samples per batch of this process.
        image_size: side of the square images, in pixels.
        seed: determines order and crops, together with the epoch and the rank.
        rank: index of this process.
        ranks: number of processes that share the data.
        lanes: number of processes when the run started; by default that of now.
        with_parts: False leaves parts undecoded (objectives that use no boxes).
        pin: page-locked memory, for a GPU.
    """

    def __init__(
        self,
        shards: Sequence[ShardFile],
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        batch_size: int,
        image_size: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        lanes: int | None = None,
        with_parts: bool = True,
        pin: bool = False,
    ) -> None:
        self.shards, self.tokenizer, self.config = list(shards), tokenizer, config
        self.batch_size, self.image_size = batch_size, image_size
        self.seed, self.rank, self.ranks, self.lanes = seed, rank, ranks, lanes or ranks
        self.with_parts, self.pin = with_parts, pin
        self.samples = sum(shard.samples for shard in shards)
        if batch_size * ranks % self.lanes:
            raise ValueError(
                f"batch_size {batch_size * ranks} is not a multiple of the {self.lanes} processes that the run was "
                "started with; change either"
            )
        self.lane_batch = batch_size * ranks // self.lanes
        self.per_epoch = self.samples // self.lanes // self.lane_batch
        if not self.per_epoch:
            raise ValueError(
                f"{self.samples} samples cannot fill a batch of {batch_size} on each of {ranks} ranks; "
                "use a smaller batch_size or more data"
            )
        self._pixels = _Pixels(image_size * image_size * 3)
        self._cache: dict[int, Future[list[TrainingSample]]] = {}
        self._compared: set[int] = set()

    def start(self, position: Position = START) -> Generator[Batch]:
        """Batches after `position`, START or that of a batch; closing the iterator ends its thread or processes.

        Errors of the reader (a damaged shard, a missing file) are raised here. One iterator at a time.
        """
        if self.config.workers:
            return self._from_workers(position)
        return self.from_threads(position, self.config.prefetch, pin=self.pin)

    def from_threads(
        self, position: Position, prefetch: int, first: int = 0, every: int = 1, pin: bool = False
    ) -> Generator[Batch]:
        """As `start`, by threads of this process: every n-th batch, from the first-th on."""
        # One of the batches prepared ahead is in the decoders while another one is put together.
        ahead = int(prefetch > 1)
        ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch - ahead)
        stop = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                with ThreadPoolExecutor(self.config.threads) as decoders, ThreadPoolExecutor(1) as reader:
                    for batch in self._make(position, decoders, reader, ahead, first, every):
                        put(batch.pin_memory() if pin else batch)
                        if stop.is_set():
                            reader.shutdown(cancel_futures=True)
                            return
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=produce, name="batches", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
            self._cache = {shard: read for shard, read in self._cache.items() if not read.cancelled()}

    def _from_workers(self, position: Position) -> Generator[Batch]:
        workers = self.config.workers
        loader = DataLoader(
            _Shares(self, position),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=-(-self.config.prefetch // workers),
            pin_memory=self.pin,
            worker_init_fn=functools.partial(_begin, os.getpid()),
            multiprocessing_context="spawn",  # threads and connections of this process do not survive a fork
            generator=torch.Generator(),  # it draws a number, and not one of the training's
        )
        for item in loader:
            if isinstance(item, Exception):
                raise item
            yield item

    def order(self, epoch: int, skip: int = 0, lane: int | None = None) -> Iterator[tuple[set[int], Index]]:
        """A lane's samples of an epoch, window by window, with the shards of this window and the next.

        The lane is this process's by default. The first `skip` samples are left out, and their shards are not
        requested.
        """
        lane = self.rank if lane is None else lane
        share = self.samples // self.lanes
        low, high = lane * share, (lane + 1) * share
        pieces: list[tuple[int, int, int]] = []
        at = 0
        for shard in _rng(_SHARDS, self.seed, epoch).permutation(len(self.shards)).tolist():
            count = self.shards[shard].samples
            first, last = max(low - at, 0), min(high - at, count)
            if first < last:
                pieces.append((shard, first, last))
            at += count
        size = self.config.window
        for begin in range(0, len(pieces), size):
            window = pieces[begin : begin + size]
            held = sum(last - first for _, first, last in window)
            if skip >= held:
                skip -= held
                continue
            rows = np.concatenate([self._rows(epoch, *piece) for piece in window])
            _rng(_WINDOW, self.seed, epoch, lane, begin).shuffle(rows)
            yield {shard for shard, _, _ in pieces[begin : begin + 2 * size]}, rows[skip:]
            skip = 0

    def _rows(self, epoch: int, shard: int, first: int, last: int) -> Index:
        """Samples first..last of a shard's order in this epoch: lanes that share it take disjoint ones."""
        own = _rng(_WITHIN, self.seed, epoch, shard).permutation(self.shards[shard].samples)
        return np.stack([np.full(last - first, shard), own[first:last]], 1)

    def _make(
        self,
        position: Position,
        decoders: ThreadPoolExecutor,
        reader: ThreadPoolExecutor,
        ahead: int,
        first: int,
        every: int,
    ) -> Iterator[Batch]:
        begin = self.rank * self.batch_size  # in the batch of all processes, lane after lane
        lanes = range(begin // self.lane_batch, -(-(begin + self.batch_size) // self.lane_batch))
        own = slice(begin - lanes[0] * self.lane_batch, begin - lanes[0] * self.lane_batch + self.batch_size)
        slots = [(lane, slot) for lane in lanes for slot in range(self.lane_batch)][own]
        fetched: set[int] = set()
        begun: deque[Callable[[], Batch]] = deque()
        numbered = zip(*(self._lane(lane, position) for lane in lanes), strict=True)
        for parts in itertools.islice(numbered, first, None, every):
            near = set[int]().union(*(part[0] for part in parts))
            if near != fetched:
                # Raises what a read has raised: the batches before it come first.
                while begun and self._failed():
                    yield begun.popleft()()
                self._fetch(near, reader)
                fetched = near
            rows = np.concatenate([part[1] for part in parts])[own]
            epoch, number = parts[0][2:]
            after = {"epoch": epoch, "batch": number}
            if number == self.per_epoch:
                after = {"epoch": epoch + 1, "batch": 0}
            views = [(epoch, lane, number, slot) for lane, slot in slots]
            while begun and not self._here(rows):
                yield begun.popleft()()
            begun.append(self._batch(rows, views, after, decoders))
            if len(begun) > ahead:
                yield begun.popleft()()

    def _failed(self) -> bool:
        return any(read.done() and read.exception() for read in self._cache.values())

    def _here(self, rows: Index) -> bool:
        """Whether the shards of these samples are read, so that neither a wait nor an error is to come."""
        reads = [self._cache[shard] for shard in np.unique(rows[:, 0]).tolist()]
        return all(read.done() and not read.exception() for read in reads)

    def _lane(self, lane: int, position: Position) -> Iterator[tuple[set[int], Index, int, int]]:
        """A lane's part of every batch: the shards needed soon, the samples, the epoch and the number in it, from 1."""
        # A position of another number of lanes (runs of earlier versions) may lie beyond the epoch's end.
        epoch, number = (
            position["epoch"] + position["batch"] // self.per_epoch,
            position["batch"] % self.per_epoch,
        )
        while True:
            left = np.zeros((0, 2), np.int64)
            for near, rows in self.order(epoch, number * self.lane_batch, lane):
                near |= set(left[:, 0].tolist())
                rows = np.concatenate([left, rows])
                while len(rows) >= self.lane_batch and number < self.per_epoch:
                    number += 1
                    yield near, rows[: self.lane_batch], epoch, number
                    rows = rows[self.lane_batch :]
                left = rows
            epoch, number = epoch + 1, 0

    def _fetch(self, wanted: set[int], reader: ThreadPoolExecutor) -> None:
        """Start reading the wanted shards; drop the oldest others while the cache exceeds its size."""
        for shard in sorted(wanted - self._cache.keys()):
            self._cache[shard] = reader.submit(self._read, shard)
        sizes = {
            shard: sum(len(s.image) + sum(len(part.image) for part in s.parts) for s in read.result())
            for shard, read in self._cache.items()
            if read.done()
        }
        for shard in [shard for shard in sizes if shard not in wanted]:
            if sum(sizes.values()) <= self.config.cache_bytes:
                break
            del self._cache[shard], sizes[shard]

    def _read(self, shard: int) -> list[TrainingSample]:
        """A shard's samples. Its hash is compared once: when its bytes are first read from the disk."""
        file = self.shards[shard]
        if shard not in self._compared:
            samples = file.read()
            self._compared.add(shard)
            return samples
        with file.open() as stream:
            return list(read_shard(stream, file.name, file.samples))

    def _batch(
        self, rows: Index, visits: list[tuple[int, ...]], after: Position, decoders: ThreadPoolExecutor
    ) -> Callable[[], Batch]:
        """Begin to decode a batch; what is returned waits for it. The decoders work on it while another one ends."""
        samples = [self._cache[shard].result()[index] for shard, index in rows.tolist()]
        rngs = [_rng(_VIEW, self.seed, *visit) for visit in visits]
        choices = [
            choose(sample, self.config, rng, self.with_parts)
            for sample, rng in zip(samples, rngs, strict=True)
        ]
        ends = np.cumsum([len(choice.parts) for choice in choices]).tolist()
        size = self.image_size
        images = self._pixels.take(len(samples), (len(samples), size, size, 3))
        parts = self._pixels.take(len(samples) * self.config.parts, (ends[-1], size, size, 3))

        def stretch(first: int) -> list[bool]:
            return [
                render(samples[slot], choices[slot], self.config, rngs[slot], images[slot],
                       parts[ends[slot] - len(choices[slot].parts) : ends[slot]])
                for slot in range(first, min(first + _STRETCH, len(samples)))
            ]  # fmt: skip

        decoded = decoders.map(stretch, range(0, len(samples), _STRETCH))

        def finish() -> Batch:
            drawn = [done for some in decoded for done in some]
            return self._together(rows, samples, choices, images, parts, drawn, after)

        return finish

    def _together(
        self,
        rows: Index,
        samples: list[TrainingSample],
        choices: list[Choice],
        images: np.ndarray,
        parts: np.ndarray,
        drawn: list[bool],
        after: Position,
    ) -> Batch:
        """The batch of decoded images; `drawn` says which samples could be decoded."""
        ends = np.cumsum([len(choice.parts) for choice in choices]).tolist()
        good = [slot for slot, done in enumerate(drawn) if done]
        if not good:
            raise ValueError(
                f"no image of a batch can be decoded; its first sample is {samples[0].key} in "
                f"{self.shards[int(rows[0, 0])].name}: run hyco verify, or pack again"
            )
        # Where an image cannot be decoded, the sample's place is taken by another one.
        shown = [slot if done else good[slot % len(good)] for slot, done in enumerate(drawn)]
        if len(good) < len(drawn):
            images = images[shown]
            parts = np.concatenate(
                [parts[ends[slot] - len(choices[slot].parts) : ends[slot]] for slot in shown]
            )
        tokens = self.tokenizer([samples[slot].captions[choices[slot].caption] for slot in shown])
        token_boxes = self.tokenizer([part.phrase for slot in shown for part in choices[slot].parts])
        return Batch(
            images=torch.from_numpy(images),
            tokens=tokens,
            image_boxes=torch.from_numpy(parts),
            token_boxes=token_boxes,
            owner=torch.tensor(
                [place for place, slot in enumerate(shown) for _ in choices[slot].parts], dtype=torch.long
            ),
            position=after,
            substituted=len(drawn) - len(good),
            # Texts are padded with their end token.
            lengths=tuple(
                length
                for text in (tokens, token_boxes)
                for length in ((text != self.tokenizer.end).sum(1) + 1).tolist()
            ),
            counts=tuple(len(choices[slot].parts) for slot in shown),
        )


class _Shares(IterableDataset):
    """Batches for a worker of a DataLoader, which takes one of each worker in turn, and the error that ends them."""

    def __init__(self, batches: Batches, position: Position) -> None:
        self.batches, self.position = batches, position

    def __iter__(self) -> Iterator[Batch | Exception]:
        own = get_worker_info()
        assert own is not None, "in a worker"
        try:
            # What is ahead waits in the DataLoader's queue.
            yield from self.batches.from_threads(self.position, 1, own.id, own.num_workers)
        except Exception as error:
            yield carried(error)


def _begin(parent: int, worker: int) -> None:
    """Prepare a worker: a terminal's Ctrl-C reaches it too, and the trainer decides when it ends.

    DataLoader's own watch takes the parent that a worker has after its imports: one whose trainer was killed meanwhile
    would stay for ever.
    """
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)


class _Pixels:
    """Memory for batches, used again when nothing refers to its batch any more: fresh pages cost a tenth of a batch.

    Args:
        row: bytes of one image.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        self.free: dict[int, list[np.ndarray]] = {}

    def take(self, most: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return uint8 [shape] in memory for `most` images; its values are whatever was there."""
        free = self.free.setdefault(most, [])
        memory = free.pop() if free else np.empty(most * self.row, np.uint8)
        array = np.ndarray(shape, np.uint8, memory.data)
        weakref.finalize(array, free.append, memory).atexit = False
        return array


def _rng(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(entropy)
