"""The model card of a written model: architecture, training data, metrics, limits."""

from typing import Any

from hyco.models.clip import DualEncoder
from hyco.pipeline.evaluation.report.summary import markdown_table

USE = """```python
from hyco.pipeline.embedder import Embedder

model = Embedder.load("DIR")  # this directory
texts, images = model.encode_text(["a dog", "a cat"]), model.encode_image(["photo.jpg"])
print(model.score(images, texts))  # {score}: larger is nearer
```"""

ONNX = """`image.onnx` takes `pixel_values` [B, 3, {size}, {size}] as preprocessor_config.json makes them and gives
`image_embeds`; `text.onnx` takes `input_ids` [B, N], N up to {context}, as tokenizer.json makes them (start and end
token included, padded with the end token) and gives `text_embeds`. Geometry, curvature and the kind of score
(distance or cosine) are in their metadata."""

SPACES = {
    "euclid": "unit vectors; the score is their cosine",
    "lorentz": "points of a hyperboloid of curvature -{c}, given by their space parts x with time part "
    "sqrt(1/c + |x|^2); the score is minus the geodesic distance, never a cosine",
    "polar": "points of a hyperboloid of curvature -{c}, given by their space parts x with time part "
    "sqrt(1/c + |x|^2); the score is the cosine of their directions x / |x|, and their lengths are for the entailment "
    "cones",
    "product": "points of a product of {k} hyperboloids of curvatures -{c}, given by their space parts; the score is "
    "minus the mean of the factors' distances, never a cosine",
}


def model_card(
    name: str,
    model: DualEncoder,
    facts: list[tuple[str, str]],
    metrics: dict[str, Any] | None,
    licence: str | None,
    onnx: bool = False,
) -> str:
    """README.md of a model directory.

    Args:
        name: name of the model.
        model: the model to describe.
        facts: origin: data version, parent, recipe ...
        metrics: metrics.json, None when the model has not been assessed.
        licence: as an SPDX name, None when none was given.
        onnx: whether the towers were exported to ONNX.
    """
    config = model.config
    vision, text = config.vision, config.text
    counted = sum(value.numel() for value in model.parameters())
    shape = [
        (
            "Image tower",
            f"{vision.kind}, {vision.image_size} x {vision.image_size} pixels, width {vision.width}",
        ),
        (
            "Text tower",
            f"{text.depth} causal blocks of width {text.width}, {text.context_length} tokens of {text.vocab_size:,}",
        ),
        ("Embeddings", f"{config.dim} numbers: {_space(model)}"),
        ("Parameters", f"{counted:,}"),
    ]
    parts = [
        _front_matter(licence),
        f"# {name}",
        "A dual encoder of images and texts, made with Hyco. This card was generated with the model.",
        "## Use",
        USE.format(score="the cosine" if model.config.by_cosine else "minus the distance"),
        *([ONNX.format(size=vision.image_size, context=text.context_length)] if onnx else []),
        "## Model",
        _table(shape),
        "## Origin",
        _table(facts),
        "## Evaluation",
        markdown_table(metrics)
        if metrics
        else "The model was not evaluated before the export (`hyco assess`).",
        *([_assessed(metrics)] if metrics else []),
        "## Licence",
        licence
        or "No licence was given at the export. The licences of its training data and of any checkpoint it "
        "started from apply.",
        "## Limits",
        _limits(model, metrics),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(licence: str | None) -> str:
    return "\n".join(
        [
            "---",
            f"license: {licence or 'other'}",
            "pipeline_tag: zero-shot-image-classification",
            "tags: [clip, hyperbolic, hyco]",
            "---",
        ]
    )


def _space(model: DualEncoder) -> str:
    geometry = model.config.geometry
    curvatures = model.curvature.detach().reshape(-1)
    low, high = curvatures.min().item(), curvatures.max().item()
    c = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return SPACES["polar" if model.config.polar else geometry].format(c=c, k=model.config.factors)


def _table(rows: list[tuple[str, str]]) -> str:
    pipe = "\\|"
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value.replace('|', pipe)} |" for name, value in rows)]
    )


def _assessed(metrics: dict[str, Any]) -> str:
    where = metrics.get("assessed") or {}
    if not where:
        return "Each metric has its chance level."
    images, captions = where["images"], where["captions"]
    return f"On {images:,} held-out images with {captions:,} captions; each metric with its chance level."


def _limits(model: DualEncoder, metrics: dict[str, Any] | None) -> str:
    config = model.config
    said = [
        "It is limited to its training data and repeats the data's biases; anything not in the table above was "
        "not measured.",
        "Scores are for ranking; they are not probabilities. No threshold is right for every use.",
        f"Texts beyond {config.text.context_length - 2} tokens are cut; images are scaled to "
        f"{config.vision.image_size} pixels, so small things vanish.",
    ]
    if not config.by_cosine:
        said.append(
            "A cosine of these embeddings, or a vector store that uses one, ranks differently from the model."
        )
    if not metrics:
        said.append("It was not evaluated: evaluate it before you rely on it.")
    return "\n".join(f"- {line}" for line in said)
