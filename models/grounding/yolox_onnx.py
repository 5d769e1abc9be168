"""YOLOX from an ONNX file: a small detector with a closed vocabulary, for photographs on a CPU.

Ge et al. 2021 (arXiv 2107.08430). It reads no words: a phrase is first matched to classes (vocabulary.py); a phrase
that names no class gets no box. The score of a box for a class is objectness times class probability. Neighbouring
cells report the same object, so boxes of one phrase that overlap by more than 0.65 (YOLOX's own evaluation) count
once.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hyco.models.grounding.boxes import nms
from hyco.models.grounding.detector import Detection, check_asked, digest_of, join
from hyco.models.grounding.vocabulary import SYNONYMS, Vocabulary, coco_names

STRIDES = (8, 16, 32)
FILL = 114
NMS_IOU = 0.65
_CANDIDATES = 200  # boxes that enter the suppression: far more than any phrase gets


def names_file(weights: Path) -> Path | None:
    """Return the file of class names beside the weights, NAME.names or coco.names (one name per line), or None."""
    for path in (weights.with_suffix(".names"), weights.with_name("coco.names")):
        if path.is_file():
            return path
    return None


def digest(weights: Path) -> str:
    """Return the digest of weights, class names and synonyms. FileNotFoundError when the weights are absent."""
    if not weights.is_file():
        raise FileNotFoundError(
            f"detector {str(weights)!r} does not exist: give the path of a YOLOX .onnx file"
        )
    names = names_file(weights)
    return digest_of([weights, SYNONYMS, *([names] if names else [])])


class YoloxOnnx:
    """A YOLOX file behind the Detector interface, on one CPU thread.

    Args:
        weights: ONNX file with one input [1, 3, S, S] (BGR, 0-255) and one output [1, cells, 5 + classes], undecoded.
        per_phrase: maximum number of boxes per phrase.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such model, or does not fit the list of names.
    """

    def __init__(self, weights: Path, *, per_phrase: int = 16) -> None:
        self.digest = digest(weights)
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(
                "the onnx backend needs onnxruntime: pip install -e '.[onnx]' -c constraints.txt"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = (
            1  # the engine runs one process for each core
        )
        try:
            self.session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise ValueError(
                f"{weights} is not a model onnxruntime can load: {str(error).splitlines()[0]}"
            ) from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape = inputs[0].shape
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or shape[1:2] != [3]
            or len(shape) != 4
            or shape[2] != shape[3]
        ):
            raise ValueError(
                f"{weights} takes {[entry.shape for entry in inputs]}: YOLOX takes one [1, 3, S, S]"
            )
        if not isinstance(shape[2], int) or shape[2] % STRIDES[-1]:
            raise ValueError(
                f"{weights} takes images of {shape[2]} pixels: export it with a fixed multiple of 32"
            )
        self.input, self.side = inputs[0].name, shape[2]
        listed = names_file(weights)
        lines = listed.read_text().splitlines() if listed else coco_names()
        self.names = tuple(line.strip() for line in lines if line.strip())
        cells = sum((self.side // stride) ** 2 for stride in STRIDES)
        if outputs[0].shape[1:] != [cells, 5 + len(self.names)]:
            wanted = [1, cells, 5 + len(self.names)]
            raise ValueError(
                f"{weights} gives {outputs[0].shape}, expected {wanted} for {self.side} pixels and the "
                f"{len(self.names)} classes of {listed or 'COCO'}: put its own class names beside it, one per line, in "
                f"{weights.with_suffix('.names').name}"
            )
        self.vocabulary = Vocabulary(self.names)
        self.per_phrase = per_phrase
        self.offsets, self.strides = grid(self.side)

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """See Detector."""
        check_asked(images, phrases)
        return [self._look(image, texts) for image, texts in zip(images, phrases, strict=True)]

    def _look(self, image: np.ndarray, texts: Sequence[str]) -> Detection:
        meant = [self.vocabulary(text) for text in texts]
        if not any(meant):
            return Detection.empty()
        boxes, scores = self.boxes(image)
        kept: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        parts = []
        for number, classes in enumerate(meant):
            if not classes:
                continue
            if classes not in kept:
                best = scores[:, classes].max(1)
                order = np.argsort(-best, kind="stable")[:_CANDIDATES]
                order = order[best[order] > 0]
                order = order[nms(boxes[order], best[order], NMS_IOU)][: self.per_phrase]
                kept[classes] = boxes[order], best[order]
            mine = kept[classes]
            parts.append(Detection(*mine, np.full(len(mine[1]), number, np.int64)))
        return join(parts)

    def boxes(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the network: uint8 [H, W, 3] -> boxes float32 [N, 4] (corners in [0, 1]), scores float32 [N, classes].

        Cells whose box has no area inside the image are left out.
        """
        pixels, scale = letterbox(image, self.side)
        (output,) = self.session.run(None, {self.input: pixels})
        cells = np.asarray(output)[0]
        centre = (cells[:, :2] + self.offsets) * self.strides
        size = np.exp(np.minimum(cells[:, 2:4], 20)) * self.strides  # an unusual export must not overflow
        height, width = image.shape[:2]
        whole = np.array([width, height, width, height], np.float32) * scale
        boxes = np.concatenate([centre - size / 2, centre + size / 2], 1) / whole
        boxes = boxes.clip(0.0, 1.0).astype(np.float32)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[real], cells[real, 4:5] * cells[real, 5:]


def letterbox(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Fit an image into the upper left of a grey square, as in YOLOX's training.

    uint8 RGB [H, W, 3] -> float32 BGR [1, 3, side, side] with values 0-255, and the scale that was applied.
    """
    height, width = image.shape[:2]
    scale = min(side / height, side / width)
    new_height, new_width = max(1, int(height * scale)), max(1, int(width * scale))
    square = np.full((side, side, 3), FILL, np.uint8)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    square[:new_height, :new_width] = np.asarray(resized)
    return np.ascontiguousarray(square[:, :, ::-1].transpose(2, 0, 1)[None], np.float32), scale


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for every cell its column and row [cells, 2] and its stride in pixels [cells, 1], in YOLOX's order."""
    offsets, strides = [], []
    for stride in STRIDES:
        row, column = np.mgrid[: side // stride, : side // stride].reshape(2, -1)
        offsets.append(np.stack([column, row], 1))
        strides.append(np.full((len(row), 1), stride))
    return np.concatenate(offsets).astype(np.float32), np.concatenate(strides).astype(np.float32)
