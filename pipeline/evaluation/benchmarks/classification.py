"""Evaluations on labelled image sets: zero-shot, the hierarchy of ImageNet's classes, a linear probe."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hyco.pipeline.datasets import LabelledSet, open_labelled
from hyco.pipeline.datasets.adapters import ADAPTERS
from hyco.pipeline.datasets.dataset_card import Card, cards
from hyco.pipeline.datasets.edge_list import find_edges, tree_of_edges
from hyco.pipeline.datasets.wordnet import PLACES, WordNet, find_wordnet, is_wnid
from hyco.pipeline.embedder import Embedder, batched, whole
from hyco.pipeline.evaluation.benchmarks.base import Evaluation, Setting, folder_called
from hyco.pipeline.evaluation.benchmarks.protocol import names_of
from hyco.pipeline.evaluation.coverage import Coverage, as_numbers
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.hierarchy import tree_metrics
from hyco.pipeline.evaluation.metrics.linear_probe import probe
from hyco.pipeline.evaluation.metrics.prompt_regimes import prompt_sensitivity, regimes
from hyco.pipeline.evaluation.metrics.prototypes import prototype_probe
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.metrics.zero_shot import rank_and_answer, set_accuracy, vectors_of
from hyco.pipeline.runtime.progress import Progress

READERS = 4  # threads that decode
ON_WORDNET = ("imagenet", "tiny_imagenet")
NO_WORDNET = (
    f"no WordNet 3.0: put data.noun (plain, .xz or .gz) into {PLACES[0]} of the directory of data sets"
)


def measure(known: Card) -> Callable[[Embedder, Path, Setting], MetricResult | str]:
    """The evaluation of one set: blocks zero_shot, hierarchy (ImageNet's classes), and probe_HEAD."""

    def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
        if why := setting.protocol.lacks(known.name):
            return why
        spec, told = f"{known.name}:{folder}", setting.protocol.texts(known.name)
        test = open_labelled(spec, "test", paper=setting.protocol.published)
        there = published(known, test)
        for coverage in there:
            coverage.require(setting.least)
        train = _training_part(spec, test, setting) if known.probe and setting.heads else None
        path = find_wordnet(setting.data) if known.name in ON_WORDNET else None
        wordnet = WordNet(path) if path else None
        names = names_of(test, told) if told.names else class_names(test, wordnet)
        if names is None:
            return f"the names of its classes are unknown: {NO_WORDNET}, or add LOC_synset_mapping.txt to the images"
        asked, taught = setting.choose(len(test)), setting.choose(len(train or ()))
        setting.progress.expect(len(asked) + len(taught))
        seen = embed(embedder, test, asked, setting.progress, setting.least)
        truth = test.labels[seen.kept]
        published_way = setting.protocol.published
        vectors = vectors_of(embedder, names, told.prompts or known.prompts, verbatim=published_way)
        rank, answer = rank_and_answer(embedder.score, seen.points, vectors, truth)
        said = answer if published_way else None
        found = {"zero_shot": set_accuracy(rank, truth, len(test.classes), setting.boot, said)}
        if setting.prompt_sensitivity:
            prompts = told.prompts or known.prompts
            found["prompts"] = _by_prompt(embedder, seen.points, names, prompts, truth, setting)
        if known.name in ON_WORDNET:
            edges = find_edges(setting.data) or setting.protocol.files.edges
            published_tree = edges if known.name == "imagenet" else None  # it has ImageNet's classes
            try:
                found["hierarchy"] = _on_the_tree(
                    published_tree or wordnet, test.classes, answer, truth, setting
                )
            except ValueError as error:
                setting.skipped["hierarchy"] = str(error)
        if train is not None:
            try:
                learnt = embed(embedder, train, taught, setting.progress, setting.least)
                labels = train.labels[learnt.kept], truth
                found |= _probes(embedder, learnt, seen, labels, len(test.classes), setting)
                there.append(replace(learnt.read, unit="training images"))
            except ValueError as error:  # too few of its images can be decoded
                setting.skipped["probe"] = str(error)
        return MetricResult(
            {block: outcome.numbers for block, outcome in found.items()}
            | {"coverage": as_numbers([seen.read, *there])},
            {f"{block}.{key}": span for block, o in found.items() for key, span in o.intervals.items()},
        )

    return evaluate


def _by_prompt(
    embedder: Embedder,
    points: Float[Tensor, "m D"],
    names: Sequence[Sequence[str]],
    prompts: Sequence[str],
    truth: Int[np.ndarray, " m"],
    setting: Setting,
) -> MetricResult:
    """Zero-shot accuracy with every prompt by itself."""
    hits = {}
    for name, own in regimes(prompts).items():
        vectors = vectors_of(embedder, names, own, verbatim=setting.protocol.published)
        rank, answer = rank_and_answer(embedder.score, points, vectors, truth)
        hits[name] = (answer == truth if setting.protocol.published else rank < 1).astype(np.float64)
    return prompt_sensitivity(hits, truth, len(names), setting.boot)


def published(known: Card, test: LabelledSet) -> list[Coverage]:
    """The coverage of the published set: its test images, where their number is known, and its classes.

    A folder of class folders has no list of images: only the set's card (sets/NAME.toml) shows what is missing. A class
    without a test image counts as missing.
    """
    seen, classes = len(np.unique(test.labels)), max(known.classes, len(test.classes))
    found = [Coverage("classes", classes, max(classes - seen, 0))]
    if known.test:
        found.append(Coverage("published images", known.test, max(known.test - len(test), 0)))
    return found


def _training_part(spec: str, test: LabelledSet, setting: Setting) -> LabelledSet | None:
    """The training part; None unless it has the classes of the test part: labels are numbers within a part."""
    try:
        train = open_labelled(spec, "train", paper=setting.protocol.published)
    except (OSError, ValueError) as error:
        setting.skipped["probe"] = f"no training part: {error}"
        return None
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:3]) or "in another order"
        setting.skipped["probe"] = f"the training part has other classes than the test part ({odd})"
        return None
    return train


def class_names(test: LabelledSet, wordnet: WordNet | None) -> Sequence[Sequence[str]] | None:
    """Readable names of the classes: by default the set's own.

    WordNet's names where the set has only wnids (None without WordNet: a model knows no wnids), or where classes share
    all their names.
    """
    wnids = all(map(is_wnid, test.classes))
    bare = [own == (label,) for own, label in zip(test.names, test.classes, strict=True)]
    if wnids and any(bare):
        if wordnet is None:
            return None
        told = wordnet.names(test.classes)
        return [w if b else own for w, b, own in zip(told, bare, test.names, strict=True)]
    if not wordnet or not wnids:
        return test.names
    often = Counter(name for own in test.names for name in set(own))
    return [
        tuple(name for name in own if often[name] == 1) or told
        for own, told in zip(test.names, wordnet.names(test.classes), strict=True)
    ]


def _on_the_tree(
    source: Path | WordNet | None,
    classes: Sequence[str],
    answer: Int[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
    setting: Setting,
) -> MetricResult:
    """The five metrics on the tree of an edge list, or of WordNet; ValueError without either."""
    if source is None:
        raise ValueError(NO_WORDNET)
    wordnet = isinstance(source, WordNet)
    tree = Taxonomy.build(source.tree(classes) if wordnet else tree_of_edges(source, classes))
    if tree.leaf_ids() != tuple(classes):
        raise ValueError(f"a class is listed twice among the {len(classes)}: labels would be ambiguous")
    found = tree_metrics(answer, truth, tree, setting.boot)
    found.numbers.update(n=found.numbers.pop("images"), nodes=len(tree.ids))
    found.numbers["tree"] = str(source.path if wordnet else source)
    return found


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embedded images: points of the model's space, features of its tower, indices of the images, coverage."""

    points: Float[Tensor, "m D"]
    features: Float[Tensor, "m W"]
    kept: Int[np.ndarray, " m"]
    read: Coverage


def embed(
    embedder: Embedder,
    images: LabelledSet,
    asked: Int[np.ndarray, " n"],
    progress: Progress,
    least: float = 0.0,
) -> Embedded:
    """One pass over the evaluated images; missing and undecodable ones are counted.

    ValueError for fewer than two, or a fraction below `least`.
    """
    missing: list[str] = []
    kept: list[int] = []
    points: list[Tensor] = []
    features: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features.append(output)

    hook = embedder.model.visual.register_forward_hook(keep)
    try:
        for indices, squares in _read(images, asked, embedder.size, embedder.batch_size):
            pairs = [(i, s) for i, s in zip(indices, squares, strict=True) if isinstance(s, np.ndarray)]
            missing += [str(error) for error in squares if isinstance(error, OSError)]
            points.append(embedder.encode_pixels(square for _, square in pairs))
            kept += [index for index, _ in pairs]
            progress.advance(len(indices))
    finally:
        hook.remove()
    if len(kept) < 2:
        raise ValueError(
            f"{images.name}: {len(kept)} of {len(asked)} images can be decoded: too few to measure"
        )
    unusable, first = len(asked) - len(kept) - len(missing), missing[0] if missing else ""
    read = Coverage("images", len(asked), len(missing), unusable, len(images), first)
    read.require(least)
    return Embedded(torch.cat(points), torch.cat(features), np.array(kept, np.int64), read)


def _probes(
    embedder: Embedder,
    learnt: Embedded,
    seen: Embedded,
    labels: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
    classes: int,
    setting: Setting,
) -> dict[str, MetricResult]:
    """One block per head, fitted on the training part and evaluated on the test part; `labels` are of both."""
    found = {}
    for head in setting.heads:
        try:
            if head == "prototypes":  # of points on the hyperboloid, not of features before it
                c = embedder.curvature if embedder.model.config.geometry == "lorentz" else None
                rows = (learnt.points, labels[0]), (seen.points, labels[1])
                found[f"probe_{head}"] = prototype_probe(*rows, classes, c, setting.boot)
            else:
                rows = (learnt.features, labels[0]), (seen.features, labels[1])
                found[f"probe_{head}"] = probe(*rows, classes, setting.boot, head)
        except ValueError as error:  # too few features for so many classes
            setting.skipped[f"probe_{head}"] = str(error)
    return found


def _read(
    images: LabelledSet, asked: Int[np.ndarray, " n"], size: int, batch: int
) -> Iterator[tuple[list[int], list[np.ndarray | Exception]]]:
    """Batches of indices and square crops of the model's size; the next batch is read while one is processed."""

    def load(index: int) -> np.ndarray | Exception:
        try:
            return whole(images.image(index), size)
        except (ValueError, OSError) as error:  # missing or undecodable: the caller counts them
            return error

    with ThreadPoolExecutor(READERS) as pool:
        waiting: tuple[list[int], list[Future[np.ndarray | Exception]]] | None = None
        for indices in [*batched((int(i) for i in asked), batch), []]:
            coming = (indices, [pool.submit(load, index) for index in indices])
            if waiting:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = coming


def mean_of_paper_sets(found: dict[str, Any]) -> MetricResult | None:
    """Mean of the zero-shot mean_per_class over those of the paper's sixteen sets that were measured: n of 16.

    `found` is the result of `run_suite`. Its interval is that of a sum of independent estimates, from their own
    intervals (MOVER, Zou and Donner 2008). None for fewer than two sets.
    """
    names = [known.name for known in cards() if known.paper and known.name in found["suite"]]
    if len(names) < 2:
        return None
    blocks = [found["suite"][name]["zero_shot"] for name in names]
    spans = [found["intervals"][f"suite.{name}.zero_shot.mean_per_class"] for name in names]
    values = np.array([block["mean_per_class"] for block in blocks])
    low, high = (np.sqrt(np.square(values - edge).sum()) / len(names) for edge in np.array(spans).T)
    mean = float(values.mean())
    chance = float(np.mean([block["chance"]["mean_per_class"] for block in blocks]))
    known = sum(known.paper for known in cards())
    sets = Coverage("sets of the paper", known, known - len(names))
    numbers = {"mean_per_class": mean, "chance": {"mean_per_class": chance}, "n": len(names)}
    span = (mean - float(low), mean + float(high))
    return MetricResult(
        {"zero_shot": numbers, "coverage": as_numbers([sets])}, {"zero_shot.mean_per_class": span}
    )


EVALUATIONS = {
    known.name: Evaluation(
        known.title,
        folder_called(known.name, *known.folders),
        measure(known),
        f"{known.name}/ with {ADAPTERS[known.name].layout}",
        published=True,
    )
    for known in sorted(cards(), key=lambda known: (not known.paper, known.name))
}
