"""What a home holds, as values and in lines for a person."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from hyco.pipeline.curation.describe import brief
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.shelf import Shelved
from hyco.storage.summary import total
from hyco.storage.version_heads import erased_keys, latest, quarantined, readable


def holdings(home: Home) -> dict[str, list[dict[str, Any]]]:
    """What a home holds: mined, shelved, versions, runs, fits; a dict for each entry.

    Records that cannot be read are "damaged", with the reason; what they stand for is missing elsewhere.

    Raises:
        FileNotFoundError: there is no such home.
    """
    home.require()
    mined, lost = [], list[Exception]()
    for one in home.all_detections():
        records, damaged = one.readable_summary()
        lost += damaged
        images, failed = (total(records, name) for name in ("images", "failed"))
        name = one.folder.rpartition("/")[2]
        mined.append({"name": name, "units": records.num_rows, "images": images, "failed": failed})
    shelved, damaged = home.shelf.readable()
    known, unreadable = versions(home)
    lost += [*damaged, *unreadable]
    return {
        "damaged": [{"reason": str(error)} for error in lost],
        "mined": mined,
        "shelved": [asdict(entry) for entry in shelved],
        "versions": known,
        "runs": [{"name": folder.name, "state": run_state(folder)} for folder in home.run_folders()],
        "fits": [{"name": folder.name, "state": _fit_state(folder)} for folder in home.fit_folders()],
    }


def versions(home: Home) -> tuple[list[dict[str, Any]], list[ValueError]]:
    """The dataset versions of a home, oldest first, and the error of every one that cannot be read.

    Keys: name, labels (names that were given to it), created, counts, configuration (in a line), latest, experiment,
    superseded (images were deleted from it since), quarantined.
    """
    (known, damaged), erased = readable(home.versions), erased_keys(home.deletions)
    newest, held_back = latest(home.versions, known), quarantined(home.versions)
    labels, experiments = home.versions.labels(), home.versions.experiments()
    found = [
        {
            "name": head.name,
            "labels": [label for label, name in labels.items() if name == head.name],
            "created": head.version.created,
            "counts": head.version.counts,
            "configuration": brief(head.version),
            "latest": head.name == newest,
            "experiment": head.name in experiments,
            "superseded": head.superseded(erased),
            "quarantined": head.name in held_back,
        }
        for head in known
    ]
    return found, list(damaged.values())


def version_line(version: dict[str, Any]) -> str:
    """A dataset version of `versions` in a line for a person."""
    counts = version["counts"]
    marks = [
        *version["labels"],
        *(name for name in ("latest", "experiment", "superseded", "quarantined") if version[name]),
    ]
    mark = f" ({', '.join(marks)})".replace("quarantined", "in quarantine") if marks else ""
    size = f"{counts.get('images', 0):,} images, {counts.get('parts', 0):,} parts"
    return f"{version['name']}  {size}, {version['created']}{mark}: {version['configuration']}"


def report(home: Home) -> Iterator[str]:
    """Yield one line for each damaged record, mining, shelved shard, version, run and fit.

    Raises:
        FileNotFoundError: there is no such home.
    """
    found = holdings(home)
    for one in found["damaged"]:
        yield f"damaged  {one['reason']}"
    for one in found["mined"]:
        yield (
            f"mined    {one['name']}  {one['units']} units, {one['images']:,} images, {one['failed']:,} failed"
        )
    for entry in found["shelved"]:
        yield f"shelved  {Shelved(**entry)}"
    for version in found["versions"]:
        yield f"version  {version_line(version)}"
    for kind in ("run", "fit"):
        for one in found[f"{kind}s"]:
            yield f"{kind:7}  {one['name']}  {one['state']}"
    if not any(found.values()):
        yield f"{home} is empty: start with `hyco mine` or `hyco journey`"


def run_state(folder: Folder) -> str:
    """The state of a run, in words."""
    if folder.exists("metrics.json"):
        return f"assessed, report in {folder}/report.html"
    try:
        if (found := folder.json("train.json")) is not None:
            return f"trained, loss {found['loss_first']:.3f} to {found['loss_last']:.3f}, not assessed"
    except (ValueError, KeyError, TypeError) as error:
        return f"unreadable train.json ({error!r}): train the run again"
    return "training not finished"


def _fit_state(folder: Folder) -> str:
    if folder.exists("metrics.json"):
        from hyco.pipeline.evaluation.metrics.document import read_metrics  # torch: for homes with fits only

        try:
            found = read_metrics(folder.fetch("metrics.json") / "metrics.json")
            accuracy = found["metrics"]["classification.accuracy"]["value"]
            return f"trained, accuracy {accuracy:.1%} on {found['classification']['images']:,} test images"
        except (ValueError, KeyError, TypeError) as error:
            return f"unreadable metrics.json ({error!r}): evaluate it again"
    return "trained, not evaluated" if folder.exists("train.json") else "training not finished"
