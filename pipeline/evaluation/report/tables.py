"""The numbers of metrics.json as the tables of the report: rows of words, with the bars that go beside them."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.evaluation.report.charts import PER_CENT, interval_bar, number, share
from pipeline.evaluation.report.suite_table import suite_table

WAYS = {
    "image_to_text": "Image to caption",
    "text_to_image": "Caption to image",
    "crop_to_phrase": "Part to phrase",
    "phrase_to_crop": "Phrase to part",
}
GALLERIES = {  # what a way ranks, and its number in metrics written before each way told its gallery
    "image_to_text": "captions",
    "text_to_image": "images",
    "crop_to_phrase": "phrases",
    "phrase_to_crop": "crops",
}
LOWER_IS_BETTER = ("tie", "lca")
HIERARCHY = {
    "tie": ("Tree distance (TIE)", "edges between answer and truth"),
    "lca": ("Height of the common ancestor (LCA)", "1 is best"),
    "jaccard": ("Shared ancestors (Jaccard)", ""),
    "p_h": ("Hierarchical precision", ""),
    "r_h": ("Hierarchical recall", ""),
}
BOXES = {
    "classification.top1": ("Named right", "top 1"),
    "classification.mean_per_class": ("Named right, mean per class", ""),
    "detection.map": ("Mean average precision", "by softmax over the classes"),
    "detection.map_distance": ("Mean average precision", "by the bare distance"),
}
FOILS = {
    "color": "Colours exchanged",
    "count": "Numbers exchanged",
    "relation": "Sides of a relation exchanged",
    "noun": "Called by a sibling's name",
    "mean": "Mean of the kinds",
}
WALKS = {
    "texts.phrases_near_image": ("Phrases among the texts met", "near the image"),
    "texts.phrases_near_root": ("Phrases among the texts met", "near the root"),
    "texts.own_near_image": ("The image's own words", "near the image"),
    "texts.own_near_root": ("The image's own words", "near the root"),
    "pictures.parts_near_image": ("Parts among the pictures met", "near the image"),
    "pictures.parts_near_root": ("Parts among the pictures met", "near the root"),
    "names.on_path": ("The true name or one above it", "names of the tree"),
    "names.rising": ("Changes to a name above", "names of the tree"),
}


def times(value: float, chance: float) -> str:
    """How many times chance a share is, in words."""
    if chance <= 0 or value <= 0:
        return ""
    ratio = value / chance
    return f"{ratio:,.0f} times chance" if ratio >= 9.95 else f"{ratio:.1f} times chance"


def span_text(span: Sequence[float] | None) -> str:
    """An interval of shares in words: 40.0 to 60.0 %."""
    return f"{share(span[0]).removesuffix(PER_CENT)} to {share(span[1])}" if span else ""


def tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables that the metrics have numbers for: {name, note, rows}."""
    made = [*_zero_shot(metrics), *_retrieval(metrics), *_boxes(metrics), *_foils(metrics), *_walks(metrics)]
    made += _hierarchy(metrics)
    suite = suite_table(metrics)
    return [*made, suite] if suite else made


def _row(
    metrics: dict[str, Any], name: str, key: str, value: float, chance: float | None, note: str = ""
) -> dict[str, Any]:
    span = (metrics.get("intervals") or {}).get(key)
    return {
        "name": name,
        "note": note,
        "value": share(value),
        "bar": interval_bar(value, chance, span),
        "interval": span_text(span),
        "chance": "" if chance is None else share(chance),
        "gain": "" if chance is None else times(value, chance).removesuffix(" chance"),
    }


def _zero_shot(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if zero := m.get("zero_shot"):
        mean = zero["mean_per_class"]
        rows = [
            _row(m, "Right at first", "zero_shot.top1", zero["top1"], zero["chance"], "top 1"),
            _row(m, "Right among five", "zero_shot.top5", zero["top5"], zero["chance_top5"], "top 5"),
            _row(m, "Mean per class", "zero_shot.mean_per_class", mean, zero["chance"]),
        ]
        of = f" of {zero['scenes']:,}, {zero['labelled']:,} of them labelled," if "scenes" in zero else ""
        note = f"{zero['images']:,} scenes{of} with one kind of thing, {zero['classes']} classes"
        yield {"name": "Zero-shot", "note": note, "rows": rows}


def _retrieval(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section, name in (("retrieval", "Retrieval"), ("parts", "Parts")):
        if found := m.get(section):
            rows = [
                _row(
                    m,
                    WAYS[way],
                    f"{section}.{way}.{k}",
                    found[way][k],
                    found["chance"][way][k],
                    f"R@{k[1:]} {gallery(found, way)}",
                )
                for way in WAYS
                if way in found
                for k in found["chance"][way]
            ]
            if section == "retrieval":
                note = f"{found['images']:,} images, {found['captions']:,} captions"
                note += f", {found['distinct']:,} of them distinct"
            else:
                note = f"{found['crops']:,} cut-out parts, {found['phrases']:,} distinct phrases"
            yield {"name": name, "note": note, "rows": rows}


def gallery(found: dict[str, Any], way: str) -> str:
    """The size of what a way of retrieval ranks, in words: among 2,015 captions."""
    ranked = GALLERIES[way]
    return f"among {found[way].get('gallery', found[ranked]):,} {ranked.replace('crops', 'parts')}"


def _blocks(m: dict[str, Any], section: str, names: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of a section of blocks, by "BLOCK.number"; what was not measured is left out."""
    rows = []
    for path, (name, note) in names.items():
        block, _, key = path.partition(".")
        held = m[section].get(block) or {}
        if held.get(key) is not None:
            rows.append(_row(m, name, f"{section}.{path}", held[key], held["chance"][key], note))
    return rows


def _boxes(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found := m.get("boxes"):
        size = found["classification"]
        note = f"{size['boxes']:,} boxes cut out of {size['n']:,} images, {size['classes']} classes"
        yield {"name": "Ground-truth boxes", "note": note, "rows": _blocks(m, "boxes", BOXES)}


def _foils(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found := m.get("compositional"):
        rows = [
            _row(
                m,
                FOILS.get(kind) or kind.replace("_", " "),
                f"compositional.{kind}.accuracy",
                held["accuracy"],
                held["chance"]["accuracy"],
                f"{held['pairs']:,} pairs",
            )
            for kind, held in found.items()
        ]
        note = "the true caption scores above a foil of the same words"
        yield {"name": "Compositional", "note": note, "rows": rows}


def _walks(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found := m.get("traversal"):
        note = f"{found['texts']['n']:,} images to the root, the share of steps at which this is nearest"
        yield {"name": "Walks", "note": note, "rows": _blocks(m, "traversal", WALKS)}


def _hierarchy(m: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if tree := m.get("hierarchy"):
        rows = []
        for key, (name, note) in HIERARCHY.items():
            value, chance, span = (
                tree[key],
                tree["chance"][key],
                (m.get("intervals") or {}).get(f"hierarchy.{key}"),
            )
            low = key in LOWER_IS_BETTER
            rows.append(
                {
                    "name": name,
                    "note": f"{note}, lower is better".strip(", ") if low else note,
                    "value": number(value),
                    "bar": interval_bar(value, chance, span, top=max(value, chance) * 1.15 if low else 1.0),
                    "interval": f"{number(span[0])} to {number(span[1])}" if span else "",
                    "chance": number(chance),
                    "gain": f"{number(abs(value - chance), 2)} {'below' if value < chance else 'above'}",
                }
            )
        yield {"name": "Hierarchy", "note": f"{tree['images']:,} answers on the tree", "rows": rows}
