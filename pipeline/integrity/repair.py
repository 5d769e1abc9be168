"""Move the damaged files of a home away, so that the commands that made them make them again.

Nothing is deleted: damaged files are moved to HOME/damaged. A unit whose record or objects are absent is not done, so
the same hyco mine and hyco pack redo only that unit.
"""

from collections.abc import Iterable
from pathlib import Path

from hyco.pipeline.integrity.verify import Damage, verify
from hyco.storage.home import Home
from hyco.storage.layout import DAMAGED
from hyco.storage.store import Store


def repair(home: Home) -> list[Damage]:
    """Move everything damaged in a home to damaged/, so that it can be made again; return the faults.

    A damaged row of the registry cannot be made again: a row without a decision replaces it. A damaged record of a
    deletion stays where it is: without it, deleted images could come back.
    """
    damages = verify(home, None)
    for damage in damages:
        path = damage.path
        if damage.kind == "record of a deletion":
            continue
        if damage.kind == "model":  # a model is always copied completely
            path = "/".join(path.split("/")[:3])
        elif damage.kind == "assessment":
            path = path.rpartition("/")[0]
        _set_aside(home.store, path)
        if damage.kind == "registry row":
            number = int(Path(path).stem)
            home.registry.stand_in(number, f"this row was damaged; it was moved to {DAMAGED}")
        if damage.kind == "quarantine record":
            why = "the record of its quarantine was damaged: pack again to judge it again"
            check = {"name": "quarantine record", "value": "damaged", "previous": None, "limit": "intact"}
            home.versions.quarantine(Path(path).stem, [{**check, "passed": False, "why": why}])
    return damages


def remedy(damages: Iterable[Damage]) -> list[str]:
    """The next steps after `repair`, one line per kind of damage."""
    kinds = dict.fromkeys(damage.kind for damage in damages)
    return [f"{kind}: {_REMEDIES[kind]}" for kind in kinds]


_MINE = "give the hyco mine and hyco pack commands that made it again (or hyco journey): only these units are redone"
_PACK = (
    "give the hyco pack command that made it again (or hyco journey, or hyco adopt of its shards): only the missing "
    "units are redone"
)
_PROMOTE = "hyco promote with its run copies it again"
_REMEDIES = {
    "mining configuration": "the next hyco mine writes it again",
    "mining record": _MINE,
    "detections": _MINE,
    "mining failures": _MINE,
    "pack record": _PACK,
    "packing failures": _PACK,
    "shard": _PACK,
    "version": _PACK,
    "latest": _PACK,
    "name of a version": "hyco pack --name gives it again",
    "quarantine record": "the version stays in quarantine; hyco pack judges it again, hyco release releases it",
    "record of a deletion": "restore it from a backup; nothing is mined, packed or collected before",
    "shelf record": "the shard is no longer set aside: hyco shelve sets it aside again",
    "registry row": "its decision is lost, unless you have a backup; check hyco champion, and promote or roll back",
    "model": _PROMOTE,
    "run of a model": _PROMOTE,
    "report": _PROMOTE,
    "cached table": "the next command that needs it makes it again",
    "assessment": "the next comparison with this champion evaluates it again",
}


def _set_aside(store: Store, path: str) -> None:
    """Move a file or folder of the home to `damaged/`; a file of the same name there is not replaced."""
    if not store.exists(path):
        return
    target, number = f"{DAMAGED}/{path}", 1
    while store.exists(target):
        target, number = f"{DAMAGED}/{path}.{number}", number + 1
    if store.local:
        moved = Path(store.path(target))
        moved.parent.mkdir(parents=True, exist_ok=True)
        Path(store.path(path)).rename(moved)
        return
    for file in store.list(path) or [path]:
        store.replace(target + file.removeprefix(path), store.read_bytes(file))
        store.delete(file)
