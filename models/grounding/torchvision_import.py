"""Import of torchvision beside a torch that it was not built for."""

import importlib
import sys

import torch

_LIBRARY: list[torch.library.Library] = []  # declarations last as long as their library object


def import_torchvision() -> None:
    """Import torchvision; ImportError when it is not installed.

    A torchvision built for another torch (CUDA or not) has no compiled operators and fails at import. The models here
    call none of them, so two empty ones are declared and the import is tried again.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.append(library)
        importlib.import_module("torchvision")
