"""Both towers as ONNX, with variable batch size and text length, and a comparison with torch."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hyco.models.clip import DualEncoder

TOLERANCE = 1e-4
"""Tolerance: largest difference, as a fraction of the largest number of the output."""

IMAGE, TEXT = "image.onnx", "text.onnx"


class _ImageTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model.encode_text(input_ids)


def require_onnx() -> None:
    """ValueError where a package of the extra `onnx` is not installed."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install -e '.[onnx]' -c constraints.txt")


def write_onnx(model: DualEncoder, folder: Path) -> dict[str, float]:
    """Write image.onnx and text.onnx and compare them with torch on other batches than those traced.

    Returns:
        The largest difference of each, as a fraction of the largest number of its output.

    Raises:
        RuntimeError: a tower that differs by more than TOLERANCE, or that cannot be exported.
    """
    model = model.cpu().eval()
    length = model.config.text.context_length
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=length)
    towers: list[tuple[str, nn.Module, str, str, Tensor, dict]] = [
        (IMAGE, _ImageTower(model), "pixel_values", "image_embeds", _pixels(model, 2), {0: batch}),
        (TEXT, _TextTower(model), "input_ids", "text_embeds", _ids(model, 2, 5), {0: batch, 1: tokens}),
    ]
    for name, tower, given, gives, example, dynamic in towers:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                tower.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes={given: dynamic},
                input_names=[given],
                output_names=[gives],
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["hyco.geometry"] = model.config.geometry
        program.model.metadata_props["hyco.curvature"] = repr(model.curvature.detach().reshape(-1).tolist())
        program.model.metadata_props["hyco.score"] = "cosine" if model.config.by_cosine else "distance"
        program.save(folder / name)
    return {
        IMAGE: _difference(
            folder / IMAGE, "pixel_values", model.encode_image, [_pixels(model, 1), _pixels(model, 3)]
        ),
        TEXT: _difference(
            folder / TEXT, "input_ids", model.encode_text, [_ids(model, 1, 3), _ids(model, 3, length)]
        ),
    }


@torch.no_grad()
def _difference(path: Path, name: str, expected, inputs: list[Tensor]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for given in inputs:
        found = np.asarray(session.run(None, {name: given.numpy()})[0])
        want = expected(given).numpy()
        worst = max(worst, float(np.abs(found - want).max() / np.abs(want).max()))
    if not worst <= TOLERANCE:  # also true for NaN
        raise RuntimeError(
            f"{path.name} differs from torch by {worst:.2g} of the largest number, more than {TOLERANCE:.0e}: "
            "nothing was written"
        )
    return worst


def _pixels(model: DualEncoder, count: int) -> Tensor:
    side = model.config.vision.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def _ids(model: DualEncoder, count: int, length: int) -> Tensor:
    """Random texts, the last token of each the end token."""
    text = model.config.text
    ids = torch.randint(text.vocab_size, (count, length), generator=torch.Generator().manual_seed(length))
    ids[:, -1] = text.end_token
    return ids


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about absent packages and unchanged layers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
