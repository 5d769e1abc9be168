"""Export of a trained model to a directory, and import of a foreign checkpoint as a model directory.

model.safetensors, config.json, tokenizer.json, preprocessor_config.json, README.md (the model card); of a run also
recipe.json and metrics.json; when asked for image.onnx, text.onnx and published.pth. Written atomically.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyco.models.checkpoints import read_checkpoint, to_published
from hyco.models.clip import DualEncoder
from hyco.models.encoders.block import Activation
from hyco.models.encoders.tokenizer import CLIP_MERGES, Tokenizer
from hyco.models.encoders.vit import VisionConfig
from hyco.models.files import read_json
from hyco.pipeline.config import digest
from hyco.pipeline.embedder import Embedder, save_model
from hyco.pipeline.evaluation.metrics.document import read_metrics
from hyco.pipeline.export.model_card import model_card
from hyco.pipeline.export.onnx import require_onnx, write_onnx
from hyco.pipeline.training.run_dir import RunConfig
from hyco.storage.files import atomic_directory
from hyco.storage.folder import Folder
from hyco.storage.home import Home

PUBLISHED = "published.pth"
_MODEL_FILES = (
    "model.safetensors",
    "tokenizer.json",
    "recipe.json",
    "origin.json",
)  # where no run is around them


def export(
    source: str | Path,
    out: str | Path,
    *,
    home: str = "var",
    onnx: bool = False,
    published: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write the model of a run (or a model directory) with its card, and verify that it loads identically.

    Args:
        source: directory of a finished run, its name in home/runs, or a model directory.
        out: directory to create; must be absent or empty.
        home: home of runs and dataset versions, for names and for the data's facts in the card.
        onnx: write both towers as ONNX too.
        published: write MERU's and HyCoCLIP's state dict too.
        licence: SPDX name for the card.

    Returns:
        out, files, the largest differences found (reload, and one for each ONNX file), and with `published` the numbers
        of attention heads, which a state dict does not hold.

    Raises:
        FileNotFoundError: no such run or model.
        ValueError: out exists; an architecture that the published layout cannot hold; the extra `onnx` is
            not installed.
        RuntimeError: the written model computes other results.
    """
    if onnx:
        require_onnx()
    run, model_dir = find_model(source, Home(home))
    embedder = Embedder.load(model_dir, device="cpu")
    config = _run_config(run)
    measured = (run or model_dir) / "metrics.json"
    metrics = read_metrics(measured) if measured.is_file() else None
    result: dict[str, Any] = {"out": str(out)}
    with _whole(Path(out)) as draft:
        embedder.save(draft)
        result["reload_difference"] = _reload_difference(embedder, draft)
        if onnx:
            result["onnx_difference"] = write_onnx(embedder.model, draft)
        if published:
            torch.save({"model": to_published(embedder.model)}, draft / PUBLISHED)
            vision, text = embedder.model.config.vision, embedder.model.config.text
            assert isinstance(vision, VisionConfig), "no other tower has a published form"
            result["published_heads"] = {"vision": vision.heads, "text": text.heads}
        origin = _json(model_dir / "origin.json") or {}
        name = run.name if run else origin.get("name", model_dir.name)
        facts = _facts(config, _json(run / "train.json") if run else None, metrics)
        facts = facts or [(fact, said) for fact, said in origin.get("facts", [("Model", name)])]
        if config:
            (draft / "recipe.json").write_text(config.recipe.model_dump_json(indent=1) + "\n")
        elif (model_dir / "recipe.json").is_file():
            shutil.copyfile(model_dir / "recipe.json", draft / "recipe.json")
        if metrics:
            shutil.copyfile(measured, draft / "metrics.json")
        licence = licence or origin.get("licence")
        _describe(draft, name, embedder.model, facts, metrics, licence, onnx)
        result["files"] = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
    return result


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation | None = None,
) -> dict[str, Any]:
    """Convert a published, Hugging Face or OpenCLIP checkpoint into a model directory.

    Args:
        path: the file or directory; see models.checkpoints.read_checkpoint.
        out: directory to create; must be absent or empty.
        tokenizer: directory with a CLIP tokenizer or CLIP's file of merges, for a checkpoint without one.
        vision_heads: heads of a published image tower of unusual width.
        text_heads: heads of a published text tower, where it has not one per 64 dimensions.
        activation: GELU of a bare OpenCLIP state dict.

    Returns:
        out, layout, geometry, dim and parameters.

    Raises:
        FileNotFoundError: no checkpoint, no tokenizer.
        ValueError: out exists; an unknown layout; no tokenizer given; a tokenizer of another vocabulary.
    """
    path = Path(path)
    found = read_checkpoint(path, vision_heads=vision_heads, text_heads=text_heads, activation=activation)
    where = tokenizer or found.tokenizer
    if where is None:
        raise ValueError(
            f"{path} has no tokenizer: give --tokenizer with CLIP's {CLIP_MERGES}, or a directory with "
            "tokenizer.json, or vocab.json and merges.txt"
        )
    words = Tokenizer.load(where, found.config.text.context_length)
    text = found.config.text
    if words.end != text.end_token or len(words) > text.vocab_size:
        raise ValueError(
            f"the tokenizer in {where} has {len(words)} tokens and ends texts with {words.end}, but the text tower has "
            f"{text.vocab_size} and {text.end_token}: give the tokenizer it was trained with"
        )
    model = found.model().eval()
    facts = [("Imported from", path.name), ("Layout", found.layout)]
    with _whole(Path(out)) as draft:
        save_model(draft, model, words)
        _describe(draft, path.stem, model, facts, None, None, False)
    return {
        "out": str(out),
        "layout": found.layout,
        "geometry": found.config.geometry,
        "dim": found.config.dim,
        "parameters": sum(value.numel() for value in model.parameters()),
    }


def find_model(source: str | Path, home: Home) -> tuple[Path | None, Path]:
    """(run, model directory) of a run, a name in home/runs, or a model directory, which has no run.

    Those of a remote home are fetched.
    """
    given = home.run(source)
    named = [] if given.path == Path(source).absolute() else [given]
    for one in (Folder(source), *named):
        folder = one.fetch("model", "config.json", "train.json", "metrics.json", *_MODEL_FILES)
        if (folder / "model" / "model.safetensors").is_file():
            return folder, folder / "model"
        if (folder / "model.safetensors").is_file():
            run = folder.resolve().parent
            return (run if folder.name == "model" and (run / "train.json").is_file() else None), folder
    raise FileNotFoundError(
        f"no finished run and no model in {' or '.join(map(str, (source, *named)))}: give the directory that "
        "`hyco train` printed"
    )


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A draft directory that is renamed to `out` at the end and deleted after an error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} already exists: name another directory, or remove it")
    with atomic_directory(out) as draft:
        yield draft


def _describe(
    folder: Path,
    name: str,
    model: DualEncoder,
    facts: list[tuple[str, str]],
    metrics: dict[str, Any] | None,
    licence: str | None,
    onnx: bool,
) -> None:
    """Write the card and origin.json."""
    (folder / "README.md").write_text(model_card(name, model, facts, metrics, licence, onnx))
    origin = {"name": name, "licence": licence, "facts": facts}
    (folder / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")


def _reload_difference(embedder: Embedder, folder: Path) -> float:
    """Largest difference of embeddings between a model and its written copy; RuntimeError above 1e-6."""
    again = Embedder.load(folder, device="cpu")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    texts = ["a dog", "a red square on white", "two people and a boat"]
    worst = max(
        float((again.encode_image(images) - embedder.encode_image(images)).abs().max()),
        float((again.encode_text(texts) - embedder.encode_text(texts)).abs().max()),
    )
    if not worst <= 1e-6:
        raise RuntimeError(f"the written model differs from the original by {worst:.2g}: nothing was written")
    return worst


def _facts(
    config: RunConfig | None, train: dict[str, Any] | None, metrics: dict[str, Any] | None
) -> list[tuple[str, str]]:
    """Data version, its parent and counts, recipe and training, as far as they are known."""
    facts = []
    if config:
        recipe, start = config.recipe, config.recipe.start
        parent, counts = ((metrics or {}).get("versions") or {}).get("parent"), ""
        with contextlib.suppress(OSError, ValueError):  # the data may not be on this machine
            version = Home(config.home).versions.load(config.version)
            parent = version.parent
            counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in version.counts.items() if n)
        facts = [
            ("Dataset version", config.version + (f": {counts}" if counts else "")),
            ("Parent version", parent or "none"),
            ("Recipe", f"{recipe.name} ({(train or {}).get('recipe_digest') or digest(recipe)})"),
            (
                "Code",
                f"commit {config.environment.get('commit', 'unknown')}, torch {config.environment.get('torch')}",
            ),
        ]
        if start.checkpoint:
            facts.append(("Started from", f"{Path(start.checkpoint).name}, learning {start.learn}"))
    if train:
        facts.append(
            (
                "Training",
                f"{train['steps']:,} steps, {train['samples_seen']:,} samples seen, {train['seconds']:,.0f} s on "
                f"{train['device']}",
            )
        )
    return facts


def _run_config(run: Path | None) -> RunConfig | None:
    if run is None or not (run / "config.json").is_file():
        return None
    return RunConfig.model_validate_json((run / "config.json").read_bytes())


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
