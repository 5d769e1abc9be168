"""Reading files of a model directory; errors name the damaged file and the remedy."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

REMEDY = "write or fetch it again"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError naming a file without one."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {REMEDY}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}, not an object: {REMEDY}")
    return said


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; ValueError naming an incomplete file."""
    from safetensors import SafetensorError  # models need it for files only
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): {REMEDY}") from None
