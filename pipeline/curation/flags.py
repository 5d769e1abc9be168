"""Models that were trained on images deleted since, themselves or through the model they started from."""

import contextlib
from pathlib import Path

from hyco.pipeline.training.run_dir import read_config
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision, Registry

_GENERATIONS = 100


def flags(home: Home, rows: list[Decision]) -> dict[int, str]:
    """Return, by the number of a row of the registry, why its model is flagged; rows without a reason are left out.

    Args:
        home: with the deletions.
        rows: of the registry.
    """
    erased = home.deletions.hashes()
    if not erased:
        return {}
    bad: dict[str, bool] = {}

    def superseded(name: str) -> bool:
        if name not in bad:
            bad[name] = False
            with contextlib.suppress(ValueError):  # a version that is gone, or cannot be read
                bad[name] = home.versions.superseded(home.versions.load(name), erased)
        return bad[name]

    found = {}
    for row in rows:
        names = [name for name in _trained_on(home.registry, rows, row) if superseded(name)]
        if names:
            found[row.number] = f"trained on {', '.join(names)}, from which images were deleted since"
    return found


def _trained_on(registry: Registry, rows: list[Decision], row: Decision) -> list[str]:
    """The dataset versions that a model saw: its own, and those of the promoted models that it started from."""
    models = {known.model: known for known in rows if known.version}
    names: dict[str, None] = {}
    for _ in range(_GENERATIONS):
        if row.version:
            names[row.version] = None
        start = _start(registry, row)
        if start not in models or models[start].model == row.model:
            break
        row = models[start]
    return list(names)


def _start(registry: Registry, row: Decision) -> str:
    """The digest of the promoted model that a model was trained from; "" for none."""
    for folder in (registry.run(row.model), *([Folder(row.run)] if row.run else [])):
        with contextlib.suppress(OSError, ValueError):
            return Path(read_config(folder).recipe.start.checkpoint or "").name
    return ""
