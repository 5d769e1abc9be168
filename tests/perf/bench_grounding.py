"""Mining's two expensive steps and the whole of it, beside spaCy and transformers as their documentation uses them.

`nouns` reads the 25,000 captions of Flickr8k, where it is; the others read scenes of the embedded world with the
embedded grounder. Models are loaded before the clock starts, on both sides.
"""

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from hyco.demo.write import write
from hyco.models.grounding.boxes import iou
from hyco.models.grounding.transformers_dino import TransformersDino
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.mining.noun_phrases import NounExtractor, Phrase
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.detections import read_detections
from hyco.storage.home import Home
from tests.perf.runner import Case

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = Path("demo/weights/grounder")
SCENES, BATCH, PER_PHRASE, AT_ONCE = 128, 16, 16, 640
STOP, SPECIAL = 1012, (101, 102, 1012)  # the full stop's token, and those that belong to no phrase

Found = tuple[np.ndarray, np.ndarray]  # boxes [N, 4] as corners in [0, 1], scores [N], best first


def cases() -> Iterator[Case]:
    """Processor time on one thread."""
    yield Case(
        f"grounding, batch {BATCH}", "plain transformers", "ms", ground, ground_plainly, same_boxes, floor=1.6
    )
    if (SHARED / "flickr8k").is_dir():
        peer = "for c: nlp(c)"
        yield Case(
            "nouns of Flickr8k", peer, "s", lambda: nouns()[0], lambda: nouns()[1], same_phrases, floor=6.0
        )
    yield Case(
        f"mining {SCENES} scenes", "plain script", "ms", mine, lambda: mine_plainly(), same_rows, floor=3.5
    )


# Nouns


@cache
def extractor() -> NounExtractor:
    """Our parser and the noun rules; the peer uses the rules only."""
    return NounExtractor()


@cache
def spacy_itself() -> Any:
    """The whole pipeline, as spacy.load gives it."""
    import spacy

    return spacy.load(extractor().config.model)


def read_plainly(captions: Sequence[str]) -> list[list[Phrase]]:
    """Return the phrases of captions, parsed one at a time."""
    nlp, rules = spacy_itself(), extractor()
    return [rules._phrases(nlp(caption)) for caption in captions]


@cache
def nouns() -> tuple[float, float, int, int]:
    """Seconds of both sides in turns of AT_ONCE captions, the number of captions, and of those read differently."""
    captions = []
    for path in sorted((SHARED / "flickr8k").glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".json"):
                    captions += json.load(shard.extractfile(member))["captions"]  # type: ignore[arg-type]
    for read in (extractor(), read_plainly):
        read(captions[:AT_ONCE])
    spent, other = [0.0, 0.0], 0
    for start in range(0, len(captions), AT_ONCE):
        part, found = captions[start : start + AT_ONCE], []
        for side, read in enumerate((extractor(), read_plainly)):
            begin = time.process_time()
            found.append(read(part))
            spent[side] += time.process_time() - begin
        other += sum(a != b for a, b in zip(*found, strict=True))
    return spent[0], spent[1], len(captions), other


def same_phrases() -> str:
    """Assert that no caption has other phrases."""
    _, _, captions, other = nouns()
    assert other == 0, f"{other} of {captions} captions have other phrases"
    return f"{captions} captions"


# Grounding


@cache
def scenes() -> Path:
    """Held-out scenes as source shards, in a folder that stays until this program ends."""
    folder = Path(_FOLDER.name)
    write(folder / "scenes", 0, SCENES, 0, 128, 0)
    return folder / "scenes" / "heldout"


_FOLDER = tempfile.TemporaryDirectory()


def samples() -> Iterator[tuple[str, bytes, list[str]]]:
    """Yield name, encoded image and captions of each scene, read from the tars."""
    for path in sorted(scenes().glob("*.tar")):
        with tarfile.open(path) as shard:
            members = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
        for name in members:
            if name.endswith(".json"):
                stem = name.removesuffix(".json")
                (image,) = (members[other] for other in members if other in (f"{stem}.jpg", f"{stem}.png"))
                yield stem, image, json.loads(members[name])["captions"]


def asked(captions: Sequence[str], phrases: Sequence[Sequence[Phrase]]) -> list[str]:
    """Return the distinct phrases of an image."""
    return list(dict.fromkeys(phrase.text.lower() for some in phrases for phrase in some))


@cache
def questions() -> tuple[list[np.ndarray], list[list[str]]]:
    """One batch of images with their phrases."""
    chosen = list(samples())[:BATCH]
    images = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for _, image, _ in chosen]
    return images, [asked(captions, extractor()(captions)) for _, _, captions in chosen]


@cache
def detector() -> TransformersDino:
    """Ours."""
    return TransformersDino(WEIGHTS, device=torch.device("cpu"), per_phrase=PER_PHRASE, batch_size=BATCH)


@cache
def library() -> tuple[Any, Any, Any]:
    """The library's image processor, tokenizer and model."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    model = AutoModelForZeroShotObjectDetection.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    processor = GroundingDinoImageProcessorPil.from_pretrained(WEIGHTS)
    return processor, AutoTokenizer.from_pretrained(WEIGHTS), model


def ground() -> list[list[Found]]:
    """The boxes of each phrase of a batch."""
    images, phrases = questions()
    every = detector()(images, phrases)
    return [
        [(one.boxes[one.phrases == n], one.scores[one.phrases == n]) for n in range(len(texts))]
        for one, texts in zip(every, phrases, strict=True)
    ]


def ground_plainly() -> list[list[Found]]:
    """The same by the library."""
    return by_library(*questions())


def by_library(images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[list[Found]]:
    """Processor, tokenizer, model, and the best boxes of each phrase by its largest token probability."""
    processor, tokenizer, model = library()
    text = tokenizer(
        ["".join(f"{phrase}. " for phrase in texts) for texts in phrases], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = model(**processor(images=list(images), return_tensors="pt"), **text)
    found = []
    for row, texts in enumerate(phrases):
        ids = text.input_ids[row]
        owner, real = (ids == STOP).cumsum(0), ~torch.isin(ids, torch.tensor([0, *SPECIAL]))
        x, y, w, h = output.pred_boxes[row].unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).clamp(0, 1)
        probability = output.logits[row].sigmoid()
        of_image = []
        for number in range(len(texts)):
            mine = torch.nonzero((owner == number) & real)[:, 0]
            scores, queries = probability[:, mine].max(1).values.topk(PER_PHRASE)
            of_image.append((corners[queries].numpy(), scores.numpy()))
        found.append(of_image)
    return found


def agree(ours: Found, theirs: Found) -> tuple[float, float]:
    """Assert equal boxes and scores; return the smallest IoU and the largest difference of scores."""
    assert len(ours[1]) == len(theirs[1]) > 0
    off = float(np.abs(ours[1] - theirs[1]).max())
    # Two boxes of nearly equal scores may change places: each box is compared with its nearest.
    least = float(iou(ours[0][:, None], theirs[0][None]).max(1).min())
    assert off < 1e-3 and least > 0.99, (off, least)
    return least, off


def same_boxes() -> str:
    """Assert that every phrase of the batch has the same boxes."""
    pairs = [
        agree(a, b)
        for some, others in zip(ground(), ground_plainly(), strict=True)
        for a, b in zip(some, others, strict=True)
    ]
    return f"IoU {min(least for least, _ in pairs):.5f}, score {max(off for _, off in pairs):.0e}"


# The whole of mining


def mine() -> pa.Table:
    """Detections of all scenes by a fresh home."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(folder)
        config = MineConfig(source=str(scenes()), grounder=f"transformers:{WEIGHTS}", per_phrase=PER_PHRASE)
        mine_all(config, home, InProcess(), lambda *_: None)
        (path,) = [file for file in Path(folder).rglob("*.parquet") if "score" in pq.read_schema(file).names]
        with path.open("rb") as file:
            return read_detections(file)


def mine_plainly() -> pa.Table:
    """The same as a loop over the images: open, parse, ask, write."""
    rows = []
    for _, data, captions in samples():
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        phrases = read_plainly(captions)
        texts = asked(captions, phrases)
        (found,) = by_library([image], [texts])
        boxes = dict(zip(texts, found, strict=True))
        for number, some in enumerate(phrases):
            for phrase in some:
                for box, score in zip(*boxes[phrase.text.lower()], strict=True):
                    corners = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
                    row = {"text": captions[number], "caption": number, "phrase": phrase.text}
                    rows.append({**row, "span_start": phrase.start, **corners, "score": float(score)})
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, io.BytesIO())
    return table


def same_rows() -> str:
    """Assert that both find the same phrases in the same captions, with the same boxes."""
    by_phrase: list[dict[tuple[Any, ...], list[tuple[float, ...]]]] = []
    for table in (mine(), mine_plainly()):
        rows: dict[tuple[Any, ...], list[tuple[float, ...]]] = {}
        for row in table.to_pylist():
            place = (row["text"], row["caption"], row["phrase"], row["span_start"])
            rows.setdefault(place, []).append(tuple(row[name] for name in ("x0", "y0", "x1", "y1", "score")))
        by_phrase.append(rows)
    ours, theirs = by_phrase
    assert ours.keys() == theirs.keys()
    pairs = []
    for place in ours:
        one, other = (np.array(side[place]) for side in by_phrase)
        pairs.append(agree((one[:, :4], one[:, 4]), (other[:, :4], other[:, 4])))
    return f"{len(ours)} phrases, IoU {min(least for least, _ in pairs):.5f}"
