"""Garbage collection: objects of killed workers and deleted versions, and unfinished files."""

from hyco.storage.deletions import Deletions
from hyco.storage.layout import KEPT, RECORDED
from hyco.storage.local_cache import forget
from hyco.storage.objects import OBJECT, DamagedError, name_sha256, objects_in
from hyco.storage.sealed import unseal
from hyco.storage.store import Store

LEASE_S = 24 * 3600.0
"""Default minimum age, in seconds, of an unreferenced file that is deleted: far longer than any unit of work."""


def referenced(store: Store) -> set[str]:
    """Return the paths of all objects that a record or a version names, anywhere in its JSON.

    Raises DamagedError for a damaged record: the objects that it named would look like garbage.
    """
    found: set[str] = set()
    for folder in RECORDED:
        for path in store.list(folder):
            if path.endswith(".json"):
                found.add(path)
                try:
                    found |= objects_in(unseal(store.read_bytes(path)))
                except ValueError as error:
                    raise DamagedError(path, str(error), store.url) from None
            elif not OBJECT.fullmatch(path):
                found.add(path)  # the pointer `latest`
    return found


def collect(store: Store, older_than_s: float = LEASE_S) -> list[str]:
    """Delete unreferenced objects and temporaries older than the lease; return their paths.

    Objects that held deleted images (storage.deletions) go whatever their age and whatever names them; call
    pipeline.curation.delete.settle before. This machine's cache forgets them too. In the registry, the quarantine and
    the runs only temporary files and folders (`.tmp-...`) are deleted.
    Safe while workers run, as long as none takes longer than the lease from committing an object to creating the record
    that names it.
    """
    deletions = Deletions(store)
    erased = {found.path: found.by for found in deletions.every()}
    gone = [path for path in sorted(erased) if store.delete(path)]  # at once: nobody may read them any more
    forget(name_sha256(path) for path in erased if OBJECT.fullmatch(path))
    heirs = {str(by["path"]) for by in erased.values() if by}  # a killed deletion may not have named them yet
    keep = (referenced(store) | heirs) - erased.keys()
    removed = [path for folder in RECORDED for path in store.collect(folder, keep, older_than_s)]
    half = [path for folder in KEPT for path in store.collect_temporaries(folder, older_than_s)]
    return gone + removed + half
