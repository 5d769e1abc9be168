"""The bare names `models`, `pipeline`, `flows`, `storage` and `demo`, which scripts and deployments used before `hyco`.

Each answers with the very modules of `hyco.*`: one class, one registry, whichever name it was imported by.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

PACKAGES = frozenset({"flows", "pipeline", "models", "storage", "demo"})


class _SameModule:
    """Loads `models.clip` as the module `hyco.models.clip`."""

    def __init__(self, name: str) -> None:
        self.name = f"hyco.{name}"

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self._own_spec = module.__spec__  # the import system is about to replace it by the old name's
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module: `python -m pipeline.training.train` asks for it."""
        spec = importlib.util.find_spec(self.name)
        return spec.loader.get_code(self.name) if spec and spec.loader else None  # type: ignore[attr-defined]


class _OldNames(MetaPathFinder):
    """Finds the modules of a package that was imported by its bare name; another package of that name is left alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, _, inside = fullname.partition(".")
        if not inside or top not in PACKAGES or sys.modules.get(top) is not sys.modules.get(f"hyco.{top}"):
            return None
        spec = importlib.util.find_spec(f"hyco.{fullname}")
        if spec is None:
            return None
        found = ModuleSpec(fullname, _SameModule(fullname), origin=spec.origin)  # type: ignore[arg-type]
        found.submodule_search_locations = spec.submodule_search_locations
        return found


def answer(name: str) -> None:
    """Make the bare package `name` the package `hyco.NAME`, with all modules below it; warn that the name is old."""
    warnings.warn(f"import hyco.{name}: the bare name `{name}` goes away", DeprecationWarning, stacklevel=3)
    sys.modules[name] = importlib.import_module(f"hyco.{name}")
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldNames())
