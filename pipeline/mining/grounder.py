"""Opens a grounding model by its name, BACKEND:PLACE. BACKENDS is the only list of backends."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from hyco.pipeline.config import nearest

if TYPE_CHECKING:
    import torch

    from hyco.models.grounding.detector import Detector

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
_HUB_FILES = ["*.json", "*.txt", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class Backend:
    """A family of grounding models.

    Attributes:
        place: the text after the colon, as shown in the command's help.
        text: description of the family, as shown in the command's help.
        module: has `digest(place: Path)`, which reads files only, and the class `detector`. It is imported when it is
            used.
        detector: a class behind models.grounding.detector.Detector: detector(place: Path, **options).
        options: keywords that it takes, of device, autocast, per_phrase and batch_size.
        hub: whether the place may be a name on the Hugging Face hub.
    """

    place: str
    text: str
    module: str
    detector: str
    options: tuple[str, ...] = ("device", "autocast", "per_phrase", "batch_size")
    hub: bool = False


BACKENDS = {
    "transformers": Backend(
        "DIR_OR_HUB_NAME",
        "Grounding DINO or MM-Grounding-DINO",
        "hyco.models.grounding.transformers_dino",
        "TransformersDino",
        hub=True,
    ),
    "groundingdino": Backend(
        "DIR",
        "Grounding DINO by groundingdino-py",
        "hyco.models.grounding.groundingdino_py",
        "GroundingDinoPy",
    ),
    "onnx": Backend(
        "FILE",
        "YOLOX, a closed vocabulary, on a CPU",
        "hyco.models.grounding.yolox_onnx",
        "YoloxOnnx",
        options=("per_phrase",),
    ),
}
SOURCE = "source"
"""Spelling of no grounder: the boxes are those that the source has (columns.boxes)."""
HELP = "; ".join(f"{name}:{row.place} ({row.text})" for name, row in BACKENDS.items())


def split_spec(spec: str) -> tuple[Backend, str]:
    """Return the backend and the place of a grounder's name; ValueError when it is not one."""
    name, colon, place = spec.partition(":")
    if not colon or not place:
        raise ValueError(f"grounder {spec!r}: write BACKEND:PLACE, with a backend of {', '.join(BACKENDS)}")
    if name not in BACKENDS:
        raise ValueError(f"grounder {spec!r}: unknown backend {name!r}{nearest(name, BACKENDS)}")
    return BACKENDS[name], place


def grounder_digest(spec: str) -> str:
    """Return the digest that open_detector(spec).digest will have, without loading the model.

    The digest of a hub name that is no local directory is "hub:NAME"; the network is not used.

    Raises FileNotFoundError or ValueError, in one line with the remedy, when there is no such model.
    """
    if spec == SOURCE:
        return SOURCE
    backend, place = split_spec(spec)
    if backend.hub and _is_hub_name(place):
        return f"hub:{place}"
    return importlib.import_module(backend.module).digest(Path(place).expanduser())


def open_detector(
    spec: str, device: str = "auto", dtype: str = "auto", per_phrase: int = 16, batch_size: int = 16
) -> "Detector":
    """Load a grounding model.

    Args:
        spec: BACKEND:PLACE, see the module.
        device: "auto" (a GPU when there is one, assigned by worker number), "cpu", "cuda", "cuda:1".
        dtype: "auto" (bfloat16 on a GPU that has it, else float16; float32 on a CPU) or one of DTYPES. Matrix
            products only: weights stay float32.
        per_phrase: maximum number of boxes per phrase, a rank cut; no threshold is applied.
        batch_size: maximum number of images per forward pass; halved when memory runs out.

    Raises:
        FileNotFoundError, ValueError: in one line with the remedy.
    """
    backend, place = split_spec(spec)
    if per_phrase < 1:
        raise ValueError(f"per_phrase is {per_phrase}: give at least 1")
    options: dict[str, Any] = {"per_phrase": per_phrase, "batch_size": batch_size}
    if "device" in backend.options:
        from hyco.pipeline.runtime.device import resolve_device

        options["device"] = resolve_device(device)
        options["autocast"] = _autocast(dtype, options["device"])
    detector = getattr(importlib.import_module(backend.module), backend.detector)
    where = _model_folder(place) if backend.hub else Path(place).expanduser()
    return detector(where, **{option: options[option] for option in backend.options})


def _autocast(name: str, device: "torch.device") -> "torch.dtype | None":
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: use one of {', '.join(DTYPES)}{nearest(name, DTYPES)}")
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)


def _is_hub_name(place: str) -> bool:
    owner, slash, name = place.partition("/")
    plain = slash and owner and name and "/" not in name and not place.startswith((".", "~"))
    return bool(plain) and not Path(place).exists()


def _model_folder(place: str) -> Path:
    """The local directory, or the downloaded snapshot of a hub name."""
    if not _is_hub_name(place):
        return Path(place).expanduser()
    import huggingface_hub

    try:  # a snapshot that was fetched once is used as it is: no silent change of weights, no network needed
        return Path(
            huggingface_hub.snapshot_download(place, allow_patterns=_HUB_FILES, local_files_only=True)
        )
    except (OSError, ValueError):
        pass
    try:
        return Path(huggingface_hub.snapshot_download(place, allow_patterns=_HUB_FILES))
    except (
        OSError,
        ValueError,
    ) as error:  # offline, unknown or gated: the hub's errors are all of these two classes
        raise FileNotFoundError(
            f"grounder {place!r} is not a local directory and could not be fetched from the hub "
            f"({type(error).__name__}): give a local directory, or run `hf download {place}` with a network"
        ) from None
