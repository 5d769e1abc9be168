"""Lets models/ be imported on a machine with torch and little else: without jaxtyping its shapes are only names."""

import sys
import types
from typing import Any


class _Shape:
    """Stands in for Float, Int and the like: Float[Tensor, "B D"] is the Tensor."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item[0]


def stand_in() -> None:
    """Register a stand-in for jaxtyping where it is not installed; call it before the first import of models."""
    try:
        import jaxtyping  # noqa: F401
    except ImportError:
        module = types.ModuleType("jaxtyping")
        for name in ("Bool", "Float", "Float32", "Int", "Shaped", "UInt8"):
            setattr(module, name, _Shape)
        sys.modules["jaxtyping"] = module
