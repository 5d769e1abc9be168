"""A YOLOX detector in ONNX behind the grounding interface: a closed vocabulary, for photographs on a CPU.

A phrase is matched to classes through its head: the last words of the phrase, in the singular, looked up
among the class names and in coco_synonyms.json. A phrase that names no class gets no boxes.
Legend: A anchors, K classes, Q candidates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.grounding.detector import Detection, best_boxes, check_asked, digest_of

STRIDES = (8, 16, 32)
PAD = 114  # the grey that YOLOX letterboxes with
CANDIDATES = 300  # boxes that enter suppression, the best by objectness times class
NMS_IOU = 0.65  # YOLOX's own, class by class: its decoding, not a filter of ours
_SYNONYMS = Path(__file__).with_name("coco_synonyms.json")
_IRREGULAR = {"knives": "knife", "children": "child", "people": "person", "mice": "mouse", "geese": "goose"}


def digest(weights: Path) -> str:
    """Name the weights, their class names and the synonym table; FileNotFoundError when the weights are absent."""
    return digest_of([_existing(weights), *_names_file(weights), _SYNONYMS])


class YoloxOnnx:
    """See Detector. One thread: mining runs a process for each core.

    Args:
        weights: .onnx file, 1 x 3 x S x S BGR 0-255 in, 1 x A x (5 + K) out, strides 8, 16, 32.
        per_phrase: boxes kept for each phrase.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a YOLOX model, or class names that do not fit it.
    """

    def __init__(self, weights: Path, per_phrase: int = 16) -> None:
        self._session = _open(_existing(weights))
        self.digest, self.per_phrase = digest(weights), per_phrase
        self._input = self._session.get_inputs()[0]
        self.size = int(self._input.shape[-1])
        self._centres, self._strides = _grid(self.size)
        anchors, width = self._session.get_outputs()[0].shape[1:]
        if anchors != len(self._strides):
            raise ValueError(
                f"{weights} puts out {anchors} anchors, YOLOX at {self.size} px has {len(self._strides)}"
            )
        self.names = class_names(weights, width - 5)
        self._classes = vocabulary(self.names)

    def classes_of(self, phrase: str) -> list[int]:
        """Class indices that the head of a phrase names; [] for none."""
        for head in heads(phrase):
            if head in self._classes:
                return self._classes[head]
        return []

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """See Detector."""
        check_asked(images, phrases)
        return [self._one(image, texts) for image, texts in zip(images, phrases, strict=True)]

    def _one(self, image: np.ndarray, phrases: Sequence[str]) -> Detection:
        asked = [(index, classes) for index, text in enumerate(phrases) if (classes := self.classes_of(text))]
        if not asked:
            return Detection.empty()
        pixels, scale = letterbox_bgr(image, self.size)
        output = self._session.run(None, {self._input.name: pixels})[0][0]  # [A, 5 + K]
        scores = output[:, 4:5] * output[:, 5:]  # [A, K]
        best = np.argsort(-scores.max(axis=1), kind="stable")[:CANDIDATES]
        centre = (output[best, :2] + self._centres[best]) * self._strides[best, None]
        half = np.exp(output[best, 2:4]) * self._strides[best, None] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) / scale  # pixels of the image
        boxes /= np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        kept = suppress(boxes, scores[best])
        columns = np.stack([kept[:, classes].max(axis=1) for _, classes in asked], axis=1)
        return best_boxes(boxes, columns, (index for index, _ in asked), self.per_phrase)


def letterbox_bgr(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Fit an RGB image into the top left of a grey square: float32 [1, 3, S, S] BGR 0-255, and the scale used."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    canvas = np.full((size, size, 3), PAD, np.uint8)
    canvas[:high, :wide] = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)[None], np.float32), scale


def suppress(boxes: np.ndarray, scores: np.ndarray, iou: float = NMS_IOU) -> np.ndarray:
    """Non-maximum suppression, class by class.

    Args:
        boxes: [Q, 4] corners.
        scores: [Q, K].
        iou: of two boxes of a class that overlap by more, the lower-scored one loses its score.

    Returns:
        scores with 0 where a box was suppressed for a class.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    low, high = (
        np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    both = (high - low).clip(0).prod(axis=-1)
    areas = sides.prod(axis=1)
    overlaps = both / np.maximum(areas[:, None] + areas[None] - both, 1e-12) > iou  # [Q, Q]
    kept = scores.copy()
    for column in kept.T:  # a view: writing to it writes to `kept`
        for index in np.argsort(-column, kind="stable"):
            if column[index] <= 1e-3:  # too low to hide anything that matters
                break
            rest = overlaps[index] & (column < column[index])
            column[rest] = 0
    return kept


def heads(phrase: str) -> list[str]:
    """What may name the thing of a phrase, best first: its last three, two, one words, as they are and singular."""
    words = "".join(c if c.isalnum() or c == "'" else " " for c in phrase.lower()).split()
    found = []
    for count in (3, 2, 1):
        if len(words) >= count:
            front, last = words[-count:-1], words[-1]
            found += [" ".join([*front, form]) for form in (last, *singulars(last))]
    return found


def singulars(word: str) -> list[str]:
    """Candidates for the singular of an English noun."""
    if word in _IRREGULAR:
        return [_IRREGULAR[word]]
    found = []
    if word.endswith("ies"):
        found.append(word[:-3] + "y")
    if word.endswith("es"):
        found.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        found.append(word[:-1])
    if word.endswith("men"):
        found.append(word[:-3] + "man")
    return found


def vocabulary(names: Sequence[str]) -> dict[str, list[int]]:
    """Head -> class indices, from the class names and the synonyms of those among them."""
    found: dict[str, list[int]] = {}
    table = json.loads(_SYNONYMS.read_text(encoding="utf-8"))
    for index, name in enumerate(names):
        for word in {name, *table.get(name, ())}:
            found.setdefault(word, []).append(index)
    return found


def class_names(weights: Path, count: int) -> list[str]:
    """The class names beside the weights (coco.names, or any single .names file); ValueError when they do not fit."""
    files = _names_file(weights)
    if not files:
        raise ValueError(f"no class names beside {weights}: put a .names file there, one class a line")
    names = [
        line.strip().lower() for line in files[0].read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    if len(names) != count:
        raise ValueError(f"{files[0]} has {len(names)} names, {weights} has {count} classes")
    return names


def _names_file(weights: Path) -> list[Path]:
    found = sorted(weights.parent.glob("*.names"))
    return [path for path in found if path.stem == weights.stem][:1] or found[:1]


def _existing(weights: Path) -> Path:
    if not weights.is_file():
        raise FileNotFoundError(f"grounder onnx:{weights}: there is no such file")
    return weights


def _open(weights: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("grounder onnx: needs onnxruntime: pip install 'hyco[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{weights} is not an ONNX model ({str(error).splitlines()[0][:120]})") from None


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell corners [A, 2] and strides [A] of all anchors, stride by stride, row by row."""
    centres, strides = [], []
    for stride in STRIDES:
        side = size // stride
        rows, columns = np.divmod(np.arange(side * side), side)
        centres.append(np.stack([columns, rows], axis=1))
        strides.append(np.full(side * side, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)
