"""What the published protocol changes on one model, set by set: both figures, and their difference on the same images.

    python -m hyco.pipeline.experiments.protocols RUN --home var/photos --data DIR --prompts FILE   # the val split
    python -m hyco.pipeline.experiments.protocols RUN --home var/demo --assess-source var/demo/scenes/heldout --data DIR

Each row changes one thing and keeps the rest. The model sees every image once for each way of cutting it, and the
interval of a difference resamples images, so that it is much narrower than the two intervals suggest.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.datasets.dataset_card import Card, cards
from hyco.pipeline.datasets.prompt_files import SetTexts
from hyco.pipeline.datasets.wordnet import WordNet, find_wordnet
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.classification import ON_WORDNET, class_names, embed
from hyco.pipeline.evaluation.benchmarks.protocol import Protocol, names_of
from hyco.pipeline.evaluation.benchmarks.suite import evaluations
from hyco.pipeline.evaluation.held_out import held_out
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.hierarchy import NAMES, tables
from hyco.pipeline.evaluation.metrics.order import order_of
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, ranks_both_ways
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.metrics.zero_shot import rank_and_answer, vectors_of
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.experiments.comparison import wrapped
from hyco.pipeline.experiments.grid import command, write_section
from hyco.pipeline.imaging.crop import stretch, whole
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.runtime.progress import Progress
from hyco.storage.home import Home

PREFACE = "# What the published protocol changes"
KS = (1, 10)
WIDE = 4 / 3
"""Aspect ratio of most photographs of Flickr."""
TREE = {
    "tie": ("TIE", 1.0),
    "jaccard": ("Jaccard, %", 100.0),
    "p_h": ("P_H, %", 100.0),
    "r_h": ("R_H, %", 100.0),
}
"""Title and factor of the hierarchy metrics that the table has."""


@dataclass(frozen=True)
class Row:
    """One change of the protocol on one set.

    Attributes:
        name: of the set.
        change: what is asked in another way.
        metric: title of the figure.
        values: of every item under "hyco" and with the change, times 100 where they are fractions.
        clusters: image of every item; None where an item is an image.
    """

    name: str
    change: str
    metric: str
    values: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]
    clusters: Int[np.ndarray, " N"] | None = None

    def cells(self, boot: Bootstrap) -> list[str]:
        """The cells of the table: both figures and their difference, each with its interval."""
        ours, theirs = (np.asarray(values, np.float64) for values in self.values)
        columns = np.stack([ours, theirs, theirs - ours], axis=1)
        spans = boot.means(columns, self.clusters)
        both = [
            f"{mean:.2f} [{low:.2f}, {high:.2f}]"
            for mean, (low, high) in zip(columns.mean(0)[:2], spans[:2], strict=True)
        ]
        low, high = spans[2]
        difference = f"{columns[:, 2].mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        return [self.name, self.change, self.metric, *both, difference]


class FirstHypernym(WordNet):
    """WordNet whose trees hang a synset of several hypernyms below the first one that is listed."""

    def depth(self, wnid: str) -> int:
        """0, so that no hypernym is deeper than the first."""
        return 0


def labelled(
    embedder: Embedder, known: Card, place: Path, data: Path, told: SetTexts, limit: int
) -> list[Row]:
    """Zero-shot top-1 of a labelled set with other sentences, and the metrics of ImageNet's classes on another tree."""
    test = open_labelled(f"{known.name}:{place}", "test")
    path = find_wordnet(data) if known.name in ON_WORDNET else None
    names = class_names(test, WordNet(path) if path else None)
    if names is None:
        raise ValueError(
            f"the names of the classes of {known.name} are unknown: put WordNet's data.noun into {data}"
        )
    asked = np.arange(len(test)) if not limit else np.random.default_rng(0).permutation(len(test))[:limit]
    with Progress(len(asked), known.name, "images") as progress:
        seen = embed(embedder, test, np.sort(asked), progress)
    truth = test.labels[seen.kept]

    def asks(
        names: Sequence[Sequence[str]], prompts: Sequence[str], verbatim: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        vectors = vectors_of(embedder, names, prompts, verbatim=verbatim)
        return rank_and_answer(embedder.score, seen.points, vectors, truth)

    rank, answer = asks(names, known.prompts, False)
    ours = 100.0 * (rank < 1)
    articles = asks(names, known.prompts, True)
    title = f"{known.title}, {len(truth):,} images"
    rows = [
        Row(
            title, 'articles as they are: "a photo of a apple"', "top 1, %", (ours, 100.0 * (articles[0] < 1))
        ),
        Row(
            title, "a tie is the first class instead of a miss", "top 1, %", (ours, 100.0 * (answer == truth))
        ),
    ]
    if told.prompts or told.names:
        given = names_of(test, told) if told.names else names
        theirs = asks(given, told.prompts or known.prompts, True)[1]
        rows.append(
            Row(
                title,
                "prompts and names of the file; all of the protocol",
                "top 1, %",
                (ours, 100.0 * (theirs == truth)),
            )
        )
    if path:
        rows += _on_trees(title, path, test.classes, answer, truth)
    return rows


def _on_trees(
    title: str,
    path: Path,
    classes: Sequence[str],
    answer: Int[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
) -> list[Row]:
    trees = [Taxonomy.build(kind(path).tree(classes)) for kind in (WordNet, FirstHypernym)]
    parents = [
        dict(zip(tree.ids, (tree.ids[p] if p >= 0 else "" for p in tree.parents), strict=True))
        for tree in trees
    ]
    moved = sum(parents[1].get(node) != parent for node, parent in parents[0].items())
    change = f"another tree: the first hypernym ({moved} of {len(trees[0].ids)} parents differ)"
    values = [tables(tree.ancestors())[:, answer, truth] for tree in trees]
    return [
        Row(title, change, metric, (factor * values[0][at], factor * values[1][at]))
        for at, name in enumerate(NAMES)
        if name in TREE
        for metric, factor in [TREE[name]]
    ]


def captioned(embedder: Embedder, scenes: Sequence[Scene], name: str) -> list[Row]:
    """Recall of held-out captions: a caption's own image alone, and images stretched to a square."""
    pictures, kept = [], []
    for scene in scenes:
        try:
            pictures.append(decode(scene.image))
        except ImageError:
            continue
        kept.append(scene.captions)
    square = all(picture.shape[0] == picture.shape[1] for picture in pictures)
    shared, own = Pairing.of(kept), Pairing.own(kept)
    texts = embedder.encode_text(shared.texts)
    alone = texts[list(shared.text)]  # equal captions have one embedding
    images = embedder.encode_pixels(whole(picture, embedder.size) for picture in pictures)
    title = f"{name}, {len(kept):,} images, {len(own.texts):,} captions"
    rows = _recalls(
        title,
        f"a hit is the caption's own image ({_copies(shared):.1%} of the captions belong to several)",
        (_hits(embedder, images, texts, shared, False), _hits(embedder, images, alone, own, True)),
        own.image,
    )
    if square:
        pictures = [_widened(picture) for picture in pictures]
        images = embedder.encode_pixels(whole(picture, embedder.size) for picture in pictures)
    change = (
        "stretched instead of cropped; square images made 4:3 first"
        if square
        else "stretched instead of cropped"
    )
    flat = embedder.encode_pixels(stretch(picture, embedder.size) for picture in pictures)
    both = tuple(_hits(embedder, points, texts, shared, False) for points in (images, flat))
    return rows + _recalls(title, change, (both[0], both[1]), own.image)


def _copies(pairing: Pairing) -> float:
    """Fraction of the captions whose text belongs to more than one image."""
    pairs = pairing.distinct()
    owners = np.bincount(pairs.text, minlength=len(pairing.texts))
    return float((owners[pairing.text] > 1).mean())


def _widened(picture: np.ndarray) -> np.ndarray:
    height = picture.shape[0]
    return np.asarray(
        Image.fromarray(picture).resize((round(WIDE * height), height), Image.Resampling.BICUBIC)
    )


def _hits(
    embedder: Embedder, images: Tensor, texts: Tensor, pairing: Pairing, in_order: bool
) -> Mapping[str, Float[np.ndarray, "N K"]]:
    """100 where a query has a paired item among its first k: of every captioned image, and of every caption."""
    to_text, to_image, _ = ranks_both_ways(order_of(embedder), images, texts, pairing, in_order=in_order)
    ranks = {"image to caption": to_text.rank, "caption to image": to_image.rank[pairing.text]}
    return {way: 100.0 * (rank[:, None] < np.array(KS)) for way, rank in ranks.items()}


def _recalls(
    title: str,
    change: str,
    both: tuple[Mapping[str, Float[np.ndarray, "_ K"]], Mapping[str, Float[np.ndarray, "_ K"]]],
    image: Int[np.ndarray, " captions"],
) -> list[Row]:
    return [
        Row(
            title,
            change,
            f"{way} R@{k}, %",
            (both[0][way][:, at], both[1][way][:, at]),
            image if way == "caption to image" else None,
        )
        for way in ("image to caption", "caption to image")
        for at, k in enumerate(KS)
    ]


def measured(
    run: Path, home: Home, source: str | None, data: Path | None, prompts: str | None, limit: int, draws: int
) -> tuple[list[list[str]], list[str]]:
    """The cells of all rows, and the names of the sets of the suite that are not in the directory of data sets.

    Raises:
        FileNotFoundError: no model in the run, no such directory, source or file.
        ValueError: no such version, a file of prompts that names no known set.
    """
    embedder, boot = Embedder.load(run / "model", "cpu"), Bootstrap(draws)
    found = held_out(home, home.versions.load("latest"), source, 5000)
    rows = captioned(embedder, found.scenes, found.name if source is None else Path(source).name)
    missing: list[str] = []
    if data is not None:
        told = Protocol.load("hyco", None, prompts)
        known = {card.name: card for card in cards()}
        for name, evaluation in evaluations().items():
            place = evaluation.find(data)
            if place is None or name not in known:
                missing.append(name)
                continue
            rows += labelled(embedder, known[name], place, data, told.texts(name), limit)
    return [row.cells(boot) for row in rows], missing


HEAD = ("set", "what is changed", "figure", "hyco", "changed", "difference")


def document(cells: Sequence[Sequence[str]], missing: Sequence[str], told: str) -> str:
    """The section: how it was made, the table, and what is missing."""
    parts = [wrapped(told), "\n".join(table(HEAD, cells))]
    if missing:
        parts.append(wrapped(f"Not on this machine, so not measured: {', '.join(missing)}."))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Measure what the published protocol changes on one model; writes a section of docs/evaluation.md."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.experiments.protocols", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--home", default="var/photos", help="home of the dataset version")
    parser.add_argument("--assess-source", help="held-out captioned images; by default the val split")
    parser.add_argument("--data", type=Path, help="directory of published data sets")
    parser.add_argument("--prompts", help="file with prompts and class names, as of hyco assess")
    parser.add_argument(
        "--limit", type=int, default=0, help="images of a published set, drawn by seed; 0 takes all"
    )
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws")
    parser.add_argument("--name", default="photos", help="of the section")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation.md"), help="path of the document")
    given = parser.parse_args(arguments)

    def work() -> None:
        if given.data is not None and not given.data.is_dir():
            raise FileNotFoundError(f"{given.data} is not a directory: give the directory of your data sets")
        cells, missing = measured(
            given.run,
            Home(given.home),
            given.assess_source,
            given.data,
            given.prompts,
            given.limit,
            given.draws,
        )
        name = f"protocols, {given.name}"
        marks = f"<!-- {name}: written by pipeline.experiments.protocols -->", f"<!-- end of {name} -->"
        write_section(given.out, marks, document(cells, missing, told(given)), PREFACE)
        print(f"{given.out} is written")

    return command(work)


def told(given: argparse.Namespace) -> str:
    """The command, for the document."""
    options = {"assess-source": given.assess_source and "SOURCE", "data": given.data and "DIR"}
    options |= {"prompts": given.prompts and "FILE", "limit": given.limit or None}
    options |= {"name": given.name if given.name != "photos" else None}
    words = "".join(f" --{name} {value}" for name, value in options.items() if value)
    return f"`python -m hyco.pipeline.experiments.protocols RUN --home HOME{words}`:"


if __name__ == "__main__":
    sys.exit(main())
