"""The import name of the whole project: `from hyco import Embedder`, `from hyco.models.hyperbolic import nn`.

The five packages lie beside this folder in a checkout and are symbolic links in it; a wheel holds their files here. No
module of the project imports another by its bare folder name, so a script beside a `models.py` or `pipeline.py` of its
own works.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyco.pipeline.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    """Import `Embedder` when it is asked for: `import hyco` alone does not load torch."""
    if name == "Embedder":
        from hyco.pipeline.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'hyco' has no attribute {name!r}")
