"""The directory of a training run: its configuration and its results.

config.json (which alone can start the run again), tokenizer.json, log.jsonl, tensorboard/, checkpoints/, and
at the end model/ and train.json, whose presence says that the run is finished. A run of a remote home is written in
this machine's working copy (storage.folder) and uploaded from there.
"""

import contextlib
import fcntl
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.lora import merge_
from hyco.pipeline.config import Config, ConfigError, digest, essence
from hyco.pipeline.embedder import save_model
from hyco.pipeline.runtime.device import machine_of
from hyco.pipeline.training.init_from import resolved
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.run_protocol import speed, summary
from hyco.pipeline.training.step_log import read_log
from hyco.storage.files import atomic_directory
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.lease import Lease
from hyco.storage.local_cache import cache_identity

RunDir = str | Path | Folder
LOGS = ("log.jsonl", "tensorboard")


class RunConfig(Config):
    """config.json of a run: location of the data, version, recipe, and software versions."""

    incidental: ClassVar[frozenset[str]] = frozenset({"home", "environment"})

    home: str
    """Home directory or fsspec URL that holds the dataset version."""
    version: str
    """Full name of the dataset version."""
    recipe: Recipe
    """What is trained."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Python, torch and commit of Hyco that started the run."""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Runs started before image towers had kinds have a ViT."""
        with contextlib.suppress(TypeError, KeyError, AttributeError):  # validation reports errors
            values["recipe"]["model"]["vision"].setdefault("kind", "vit")
        return values


def prepare(run_dir: RunDir, home: Home, version: str, recipe: Recipe) -> RunConfig:
    """Write config.json of a new run, or check that an existing one is the same.

    `version` may be "latest" or the start of a name; the full name is written. ConfigError says what differs, or why
    the version is in quarantine.
    """
    folder, versions, recipe = Folder.of(run_dir), home.versions, resolved(recipe)
    name = versions.load(version).name
    if reasons := versions.quarantined(name):
        why = "; ".join(check["why"] for check in reasons if not check["passed"])
        raise ConfigError(
            f"dataset version {name} is in quarantine ({why}): fix the data, or hyco release {name} --home {home}"
        )
    _refuse_superseded(home, name)
    run = RunConfig(home=home.store.url, version=name, recipe=recipe, environment=environment())
    if not write_config(folder, run):
        known = read_config(folder)
        require_same(folder, known, run)
        run = run.replace(environment=known.environment)
        if run != known and finished(folder) is None:  # the place of the data, or how the work is done
            folder.write("config.json", _text(run))
    return run


def open_run(run_dir: Folder, home: Home | None, version: str, recipe: Recipe | None) -> RunConfig:
    """The configuration to train: prepared from a recipe and a home, or the existing one.

    FileNotFoundError when there is neither. `home` alone sets the present location of the data.
    """
    if recipe is not None:
        if home is None:
            raise ValueError("a recipe needs a home: the directory of the dataset version")
        return prepare(run_dir, home, version, recipe)
    if not run_dir.exists("config.json"):
        raise FileNotFoundError(f"{run_dir} has no config.json: start the run with a recipe and a home")
    run = read_config(run_dir)
    run = run if home is None else run.replace(home=home.store.url)
    _refuse_superseded(Home(run.home), run.version)
    return run


def _refuse_superseded(home: Home, name: str) -> None:
    """ConfigError for a version from which images were deleted."""
    if home.versions.superseded(home.versions.load(name)):
        latest = home.versions.latest()
        instead = (
            f"train on {latest}" if latest not in (None, name) else "pack again and train on that version"
        )
        raise ConfigError(f"images were deleted from dataset version {name} since it was made: {instead}")


@contextlib.contextmanager
def exclusive_lock(run_dir: RunDir) -> Iterator[None]:
    """Lock the run: two trainers in one directory would mix their logs. The lock ends with the process.

    A run of a remote home is locked on this machine, and by a lease against other machines.
    """
    folder = Folder.of(run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("w") as file, contextlib.ExitStack() as leased:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process: wait for it, or end it first"
            ) from None
        if not folder.local:
            lease = leased.enter_context(Lease(folder.store, cache_identity()))
            folder.guard = lease.check
            leased.callback(setattr, folder, "guard", lambda: None)
        yield


def write_config(run_dir: RunDir, run: Config) -> bool:
    """Make the directory of a new run, with its config.json; False, changing nothing, when there is one."""
    return Folder.of(run_dir).create("config.json", _text(run))


def _text(run: Config) -> bytes:
    return (run.model_dump_json(indent=1) + "\n").encode()


def require_same(run_dir: RunDir, known: Config, asked: Config) -> None:
    """ConfigError naming the first digest field in which the run's configuration differs from the requested one."""
    before, after = _leaves(essence(known)), _leaves(essence(asked))
    shown = [_leaves(config.model_dump(mode="json")) for config in (known, asked)]
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            left, right = (values.get(name) for values in shown)
            raise ConfigError(
                f"{run_dir} was started with {name} {left}, not {right}: use the same value, or name another run"
            )


def write_result(run_dir: RunDir, result: dict[str, Any]) -> None:
    """Write train.json, the last file of a run: its presence means that the run is finished."""
    Folder.of(run_dir).write("train.json", (json.dumps(result, indent=1) + "\n").encode())


def finished(run_dir: RunDir) -> dict[str, Any] | None:
    """The content of train.json, or None while the run is not finished."""
    return Folder.of(run_dir).json("train.json")


def finish(
    folder: Folder, run: RunConfig, model: DualEncoder, tokenizer: Tokenizer, ranks: int, precision: str
) -> dict[str, Any]:
    """Write model/ atomically, with adapters merged, then train.json, and return its content.

    `ranks` processes trained the towers in `precision`, as train.json says.
    """
    learned = sum(value.numel() for value in model.parameters() if value.requires_grad)
    merge_(model)
    with atomic_directory(folder.path / "model", replace=True) as draft:
        save_model(draft, model, tokenizer)
    folder.send("model", *LOGS)

    lines = read_log(folder.path)
    last = lines[-1]
    waits = [line["data_wait"] * line["seconds_here"] for line in lines]
    device = next(model.parameters()).device
    result = {
        "version": run.version,
        "recipe": run.recipe.name,
        "recipe_digest": digest(run.recipe),
        **summary(lines),
        "data_wait": sum(waits) / last["seconds"],
        **speed(lines),
        "temperature": last["temperature"],
        "curvature": last.get("curvature"),
        "radius": last.get("radius"),
        "substituted": last["substituted"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "learned_parameters": learned,
        "device": str(device),
        "machine": machine_of(device),
        "processes": ranks,
        "precision": precision,
    }
    write_result(folder, result)
    return result


def read_config(run_dir: RunDir) -> RunConfig:
    """The configuration of an existing run; FileNotFoundError without one."""
    return RunConfig.model_validate_json(Folder.of(run_dir).read("config.json"))


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"recipe.optimiser.lr": 0.001, ...} of nested dicts and lists."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    found = {}
    for name, item in value.items():
        found |= _leaves(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def environment() -> dict[str, str]:
    """Versions of what a result depends on, and this repository's commit where there is one."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": current_commit() or "unknown",
    }


def current_commit() -> str | None:
    """The commit of this code, None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
