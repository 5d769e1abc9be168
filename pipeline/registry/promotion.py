"""Champion and challengers: promotion, refusal with its reason, and rollback.

Challenger and champion are compared on one evaluation. A decision is one row of storage.model_registry; a promoted
model's weights are in the registry before that row, so a killed promotion has not happened.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from hyco.pipeline.evaluation.config import EvaluationSpec
from hyco.pipeline.evaluation.evaluate import evaluate
from hyco.pipeline.evaluation.metrics.document import read_metrics, upgrade
from hyco.pipeline.registry.model_gate import GateConfig, counts_of, judge
from hyco.pipeline.runtime.progress import Listener
from hyco.pipeline.training.run_dir import RunDir, current_commit, read_config
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.model_registry import (
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    Decision,
    MovedError,
    Registry,
    champion_of,
    digest_of,
    file_entry,
    fingerprint,
    folder_damage,
    prove_folder,
)

_TRIES = 5
_RUN_FILES = (
    "config.json",
    "train.json",
    "log.jsonl",
)  # files of a run that a later evaluation of its model reads


def challenge(
    run_dir: RunDir,
    home: Home,
    spec: EvaluationSpec,
    gate: GateConfig,
    metrics: dict[str, Any],
    *,
    key: str = "",
    anyway: bool = False,
    listener: Listener | None = None,
) -> Decision:
    """Compare a newly assessed run with the champion; promote or refuse it, and return the row of the decision.

    Called again with the same key and the same weights, it returns the existing row and decides nothing.

    Args:
        run_dir: the challenger, a finished run.
        home: the home with the registry.
        spec: the challenger's evaluation; the champion's is the same.
        gate: the metrics that decide.
        metrics: the challenger's metrics.json.
        key: identifies the training (version and configuration).
        anyway: promote whatever the gate decides; the row records that too.
        listener: gets the progress of assessing the champion.
    """
    run, registry = Folder.of(run_dir), home.registry
    here = run.fetch("model", "report.html", *_RUN_FILES)
    files = fingerprint(here / "model")
    model, exam = digest_of(files), spec.digest(home)
    for _ in range(_TRIES):
        rows = registry.rows()
        if key and (decided := [row for row in rows if (row.key, row.model) == (key, model)]):
            return decided[-1]
        holder = champion_of(rows)
        if holder is not None and holder.model == model:
            restore(here, registry, holder)
            return holder
        beside = examine(holder, home, spec, listener, metrics) if holder else None
        verdict = judge(metrics, beside, gate)
        passed = verdict.passed or anyway
        kept = None
        if passed:
            registry.keep(here / "model")
            kept = _keep_run(here, registry.run(model))
        row = Decision(
            kind=PROMOTED if passed else REFUSED,
            model=model,
            files=files,
            before=holder.model if holder else None,
            reason=verdict.reason if verdict.passed or not anyway else f"by hand, although {verdict.reason}",
            key=key,
            run=run.url,
            report=_keep_report(here, registry),
            metrics=json.dumps(metrics),
            verdict=json.dumps({**dataclasses.asdict(verdict), "exam": exam}),
            commit=current_commit(),
            kept=kept,
            **_lineage(run, home),
        )
        try:
            return registry.append(row, len(rows))
        except MovedError:
            continue
    raise RuntimeError(
        f"the registry of {home} changed {_TRIES} times while {run.name} was judged: try again"
    )


def restore(run_dir: Path, registry: Registry, row: Decision) -> None:
    """Copy missing files of a promoted model again: its own, its run's, its report; `run_dir` is on this machine."""
    registry.keep(run_dir / "model")
    kept = registry.run(row.model)
    if not all(kept.exists(file["name"]) for file in row.kept or ()):
        _keep_run(run_dir, kept)
    if row.report is not None and not registry.store.exists(row.report):
        _keep_report(run_dir, registry)


def refuse(run_dir: RunDir, home: Home, reason: str) -> Decision:
    """Refuse a run, whatever its metrics."""
    run, registry = Folder.of(run_dir), home.registry
    here = run.fetch("model", "report.html", "metrics.json")
    files = fingerprint(here / "model")
    rows = registry.rows()
    holder = champion_of(rows)
    if holder is not None and holder.model == digest_of(files):
        raise ValueError(f"{run.name} is the champion: roll back instead")
    path = here / "metrics.json"
    row = Decision(
        REFUSED,
        digest_of(files),
        files,
        f"by hand: {reason}",
        before=holder.model if holder else None,
        run=run.url,
        report=_keep_report(here, registry),
        metrics=path.read_text() if path.is_file() else "{}",
        commit=current_commit(),
        **_lineage(run, home),
    )
    return registry.append(row, len(rows))


def rollback(home: Home, to: str | None = None, reason: str = "by hand") -> Decision:
    """Make an earlier champion the champion again, with exactly the files it was promoted with.

    Args:
        home: the home with the registry.
        to: start of a promoted model's digest; by default the champion before the present one.
        reason: for the log.

    Raises:
        ValueError: there is no earlier champion, `to` names none, or its files have changed (sha256).
    """
    registry = home.registry
    rows = registry.rows()
    now = champion_of(rows)
    if now is None:
        raise ValueError(f"{home} has no champion: promote a run first")
    reigns = _reigns(rows)
    if to is None:
        if len(reigns) < 2:
            raise ValueError(f"{now.model} is the first champion: there is no earlier one")
        target = reigns[-2]
    else:
        found = {row.model: row for row in rows if row.kind != REFUSED and row.model.startswith(to)}
        if len(found) != 1:
            known = ", ".join(dict.fromkeys(row.model for row in rows if row.kind != REFUSED))
            raise ValueError(f"'{to}' names {len(found)} promoted models; there are: {known}")
        (target,) = found.values()
        if target.model == now.model:
            raise ValueError(f"{now.model} is the champion already")
    if problem := registry.problem(target.model, target.files):
        raise ValueError(problem)
    back = dataclasses.replace(
        target, kind=ROLLED_BACK, before=now.model, reason=reason, key="", verdict="{}"
    )
    return registry.append(back, len(rows))


def examine(
    row: Decision,
    home: Home,
    spec: EvaluationSpec,
    listener: Listener | None = None,
    beside: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a promoted model, once per evaluation, and return its metrics.

    A model that was judged on the same evaluation has its metrics in the row of that decision. It is evaluated where
    these cannot be read or have other counts than the metrics `beside` which they are to stand.
    """
    registry, exam = home.registry, spec.digest(home)
    for judged in reversed(registry.rows()):
        if judged.model == row.model and json.loads(judged.verdict).get("exam") == exam:
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
                known = upgrade(json.loads(judged.metrics))
                if beside is None or counts_of(known) == counts_of(beside):
                    return known
    folder = registry.assessment(f"{exam}-{row.model}")
    if not (folder.exists("metrics.json") and folder.exists("report.html")) or folder_damage(folder):
        if problem := registry.problem(row.model, row.files):
            raise ValueError(problem)
        folder.path.mkdir(parents=True, exist_ok=True)
        kept, run = registry.path(row.model), registry.run(row.model)
        for name in _RUN_FILES:
            if run.exists(name):
                shutil.copyfile(run.fetch(name) / name, folder.path / name)
        if not (folder.path / "model").exists():
            (folder.path / "model").unlink(missing_ok=True)  # of a model that was moved since
            (folder.path / "model").symlink_to(kept, target_is_directory=True)
        folder.send(*_RUN_FILES)
        evaluate(folder, home, spec, listener=listener)
        prove_folder(folder)
    return read_metrics(folder.fetch("metrics.json") / "metrics.json")


def _reigns(rows: list[Decision]) -> list[Decision]:
    """The champions that were not rolled back, in order."""
    reigns: list[Decision] = []
    for row in rows:
        if row.kind == ROLLED_BACK and row.model in [one.model for one in reigns]:
            while reigns[-1].model != row.model:
                reigns.pop()
        elif row.kind != REFUSED:
            reigns.append(row)
    return reigns


def _lineage(run: Folder, home: Home) -> dict[str, Any]:
    """Source, detections and version of a run, from the version's record."""
    version = home.versions.load(read_config(run).version)
    return {
        "source": version.source,
        "detections": home.detections(version.digests.get("mine", "")).folder,
        "detectors": version.detectors,
        "version": version.name,
    }


def _keep_run(run_dir: Path, folder: Folder) -> list[dict[str, Any]]:
    """Store the small files of a promoted run, so that its directory may be deleted; return name, sha256 and size."""
    there = [name for name in _RUN_FILES if (run_dir / name).is_file()]
    for name in there:
        folder.write(name, (run_dir / name).read_bytes())
    return [file_entry(folder.path / name) for name in there]


def _keep_report(run_dir: Path, registry: Registry) -> str | None:
    """Store the report under its content's name; None when the run has none."""
    report = run_dir / "report.html"
    return registry.keep_report(report) if report.is_file() else None
