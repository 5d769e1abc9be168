"""What nothing refers to any more: objects of killed workers and of deleted versions, and half-written files."""

from storage.layout import KEPT, RECORDED
from storage.objects import OBJECT, DamagedError, objects_in
from storage.sealed import unseal
from storage.store import Store

LEASE_S = 24 * 3600.0
"""Default age, in seconds, before an unreferenced file is taken: far longer than any unit of work."""


def referenced(store: Store) -> set[str]:
    """Return the paths of all objects that a record or a version names, anywhere in its JSON.

    Raises DamagedError for a record that is not what was written: what it named cannot be told from rubbish.
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

    In the registry, in quarantine and among runs only temporaries go: files and folders named `.tmp-...`.
    Safe beside running workers as long as none takes longer than the lease from committing an object to
    creating the record that names it.
    """
    keep = referenced(store)
    removed = [path for folder in RECORDED for path in store.collect(folder, keep, older_than_s)]
    half = [path for folder in KEPT for path in store.collect_temporaries(folder, older_than_s)]
    return removed + half
