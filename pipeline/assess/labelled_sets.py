"""Evaluations on labelled image sets: zero-shot."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.assess.data import Embedder, batched, whole
from pipeline.assess.outcome import Outcome
from pipeline.assess.suite import Evaluation, Setting, folder_called
from pipeline.assess.zero_shot import rank_and_answer, set_accuracy, vectors_of
from pipeline.labelled import LabelledSet, open_labelled
from pipeline.labelled.card import card, cards
from pipeline.labelled.registry import ADAPTERS
from pipeline.progress import Progress

READERS = 4


def measure(name: str) -> Callable[[Embedder, Path, Setting], Outcome | str]:
    """The evaluation of one set: the block zero_shot."""

    def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> Outcome | str:
        images = open_labelled(f"{name}:{folder}", "test")
        asked = setting.choose(len(images))
        setting.progress.expect(len(asked))
        points, kept = embed(embedder, images, asked, setting.progress)
        truth = images.labels[kept]
        vectors = vectors_of(embedder, images.names, card(name).prompts)
        rank, _ = rank_and_answer(embedder.score, points, vectors, truth)
        found = set_accuracy(rank, truth, len(images.classes), setting.boot)
        found.numbers["undecodable"] = len(asked) - len(kept)
        return blocks({"zero_shot": found})

    return evaluate


def blocks(found: dict[str, Outcome]) -> Outcome:
    """Several outcomes as blocks of one."""
    return Outcome(
        {name: outcome.numbers for name, outcome in found.items()},
        {f"{name}.{key}": span for name, o in found.items() for key, span in o.intervals.items()},
    )


def embed(
    embedder: Embedder, images: LabelledSet, asked: Int[np.ndarray, " n"], progress: Progress
) -> tuple[Float[Tensor, "m D"], Int[np.ndarray, " m"]]:
    """Points of the images asked about that can be decoded, and which they are."""
    kept: list[int] = []
    points = []
    for indices, squares in _read(images, asked, embedder.size, embedder.batch_size):
        pairs = [(i, s) for i, s in zip(indices, squares, strict=True) if s is not None]
        points.append(embedder.encode_pixels(square for _, square in pairs))
        kept += [index for index, _ in pairs]
        progress.advance(len(indices))
    if len(kept) < 2:
        raise ValueError(
            f"{images.name}: {len(kept)} of {len(asked)} images can be decoded: too few to measure"
        )
    return torch.cat(points), np.array(kept, np.int64)


def _read(
    images: LabelledSet, asked: Int[np.ndarray, " n"], size: int, batch: int
) -> Iterator[tuple[list[int], list[np.ndarray | None]]]:
    """Batches of indices and squares of the model's size; the next is read while one is worked on."""

    def load(index: int) -> np.ndarray | None:
        try:
            return whole(images.image(index), size)
        except ValueError:  # a picture that cannot be decoded is counted by the caller
            return None

    with ThreadPoolExecutor(READERS) as pool:
        waiting: tuple[list[int], list[Future[np.ndarray | None]]] | None = None
        for indices in [*batched((int(i) for i in asked), batch), []]:
            coming = (indices, [pool.submit(load, index) for index in indices])
            if waiting:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = coming


EVALUATIONS = {
    known.name: Evaluation(
        known.title,
        folder_called(known.name, *known.folders),
        measure(known.name),
        f"{known.name}/ with {ADAPTERS[known.name].layout}",
    )
    for known in cards()
    if known.name in ADAPTERS
}
