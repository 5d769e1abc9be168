"""Opens a grounding model by its spelling: the one place that knows which backends exist.

    transformers:DIR_OR_HUB_NAME  Grounding DINO or MM-Grounding-DINO (a local directory before a hub name)
    groundingdino:DIR             the same architecture run by groundingdino-py (optional extra)
    onnx:FILE                     a YOLOX detector with a closed vocabulary

`grounder_digest` reads files only: naming what was mined needs no torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pipeline.config import nearest

if TYPE_CHECKING:
    import torch

    from models.grounding.detector import Detector

BACKENDS = ("transformers", "groundingdino", "onnx")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
_HUB_FILES = ["*.json", "*.txt", "*.safetensors"]


def split_spec(spec: str) -> tuple[str, str]:
    """Return (backend, place) of a grounder's spelling; ValueError when it is not one."""
    backend, colon, place = spec.partition(":")
    if not colon or not place:
        raise ValueError(
            f"grounder {spec!r}: spell it BACKEND:PLACE, with a backend of {', '.join(BACKENDS)}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"grounder {spec!r}: unknown backend {backend!r}{nearest(backend, BACKENDS)}")
    return backend, place


def grounder_digest(spec: str) -> str:
    """Return the digest that open_detector(spec).digest will have, without loading the model.

    A hub name that is no directory here stands for itself, as "hub:NAME": no network is asked.

    Raises FileNotFoundError or ValueError, in one line with the remedy, when there is no such model.
    """
    backend, place = split_spec(spec)
    if backend == "transformers":
        from models.grounding import transformers_dino

        return f"hub:{place}" if _is_hub_name(place) else transformers_dino.digest(Path(place).expanduser())
    if backend == "groundingdino":
        from models.grounding import groundingdino_py

        return groundingdino_py.digest(Path(place))
    from models.grounding import yolox_onnx

    return yolox_onnx.digest(Path(place))


def open_detector(
    spec: str, device: str = "auto", dtype: str = "auto", per_phrase: int = 16, batch_size: int = 16
) -> "Detector":
    """Load a grounding model.

    Args:
        spec: BACKEND:PLACE, see the module.
        device: "auto" (a GPU when there is one, shared out by worker number), "cpu", "cuda", "cuda:1".
        dtype: "auto" (bfloat16 on a GPU that has it, else float16; float32 on a CPU) or one of DTYPES. Matrix
            products only: weights stay float32.
        per_phrase: boxes kept for each phrase, a rank cut; no threshold is applied.
        batch_size: images in one forward pass at most; halved when memory runs out.

    Raises:
        FileNotFoundError, ValueError: in one line with the remedy.
    """
    backend, place = split_spec(spec)
    if per_phrase < 1:
        raise ValueError(f"per_phrase is {per_phrase}: give at least 1")
    if backend == "onnx":
        from models.grounding.yolox_onnx import YoloxOnnx

        return YoloxOnnx(Path(place), per_phrase=per_phrase)
    where = _device(device)
    autocast = _autocast(dtype, where)
    if backend == "groundingdino":
        from models.grounding.groundingdino_py import GroundingDinoPy as Dino

        folder = Path(place)
    else:
        from models.grounding.transformers_dino import TransformersDino as Dino

        folder = _model_folder(place)
    return Dino(folder, device=where, autocast=autocast, per_phrase=per_phrase, batch_size=batch_size)


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        worker = int(os.environ.get("HYCO_WORKER_NUMBER", "0"))  # set by pipeline.runtime.executor
        return torch.device("cuda", worker % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise ValueError(f"device {name!r} is not here ({torch.cuda.device_count()} GPUs): use auto or cpu")
    return device


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
    """A local directory as it is; a hub name as its downloaded snapshot."""
    if not _is_hub_name(place):
        return Path(place).expanduser()
    import huggingface_hub

    try:  # what was fetched once is used as it is: no silent change of weights, no need of a network
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
    ) as error:  # offline, unknown or gated: the hub's classes are all of these two
        raise FileNotFoundError(
            f"grounder {place!r} is not a directory here and could not be fetched from the hub "
            f"({type(error).__name__}): give a local directory, or run `hf download {place}` with a network"
        ) from None
