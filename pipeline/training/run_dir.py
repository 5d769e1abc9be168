"""The directory of a training run: its configuration and its results.

config.json (which alone can start the run again), tokenizer.json, log.jsonl, tensorboard/, checkpoints/, and
at the end model/ and train.json, whose presence says that the run is finished.
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

from models.clip import DualEncoder
from models.encoders.tokenizer import Tokenizer
from models.lora import merge_
from pipeline.config import Config, ConfigError, digest, essence
from pipeline.embedder import save_model
from pipeline.runtime.device import autocasts, machine_of
from pipeline.training.init_from import resolved
from pipeline.training.recipes import Recipe
from pipeline.training.run_protocol import summary
from pipeline.training.step_log import read_log
from storage.files import atomic_directory
from storage.home import Home
from storage.store import Store


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


def prepare(run_dir: str | Path, home: Home, version: str, recipe: Recipe) -> RunConfig:
    """Write config.json of a new run, or check that an existing one is the same.

    `version` may be "latest" or the start of a name; the full name is written. ConfigError says what differs, or why
    the version is in quarantine.
    """
    run_dir, versions, recipe = Path(run_dir), home.versions, resolved(recipe)
    name = versions.load(version).name
    if reasons := versions.quarantined(name):
        why = "; ".join(check["why"] for check in reasons if not check["passed"])
        raise ConfigError(
            f"dataset version {name} is in quarantine ({why}): fix the data, or hyco release {name}"
        )
    _refuse_superseded(home, name)
    run = RunConfig(home=home.store.url, version=name, recipe=recipe, environment=environment())
    if not (run_dir / "config.json").exists():
        write_config(run_dir, run)
    else:
        require_same(run_dir, _read(run_dir), run)
    return run


def open_run(run_dir: Path, home: Home | None, version: str, recipe: Recipe | None) -> RunConfig:
    """The configuration to train: prepared from a recipe and a home, or the existing one.

    FileNotFoundError when there is neither. `home` alone sets the present location of the data.
    """
    if recipe is not None:
        if home is None:
            raise ValueError("a recipe needs a home: the directory of the dataset version")
        return prepare(run_dir, home, version, recipe)
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(f"{run_dir} has no config.json: start the run with a recipe and a home")
    run = _read(run_dir)
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
def exclusive_lock(run_dir: Path) -> Iterator[None]:
    """Lock the run: two trainers in one directory would mix their logs. The lock ends with the process."""
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{run_dir} is being trained by another process: wait for it, or end it first"
            ) from None
        yield


def write_config(run_dir: Path, run: Config) -> None:
    """Make the directory of a new run, with its config.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    Store(run_dir).replace("config.json", (run.model_dump_json(indent=1) + "\n").encode())


def require_same(run_dir: Path, known: Config, asked: Config) -> None:
    """ConfigError naming the first digest field in which the run's configuration differs from the requested one."""
    before, after = _leaves(essence(known)), _leaves(essence(asked))
    shown = [_leaves(config.model_dump(mode="json")) for config in (known, asked)]
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            left, right = (values.get(name) for values in shown)
            raise ConfigError(
                f"{run_dir} was started with {name} {left}, not {right}: use the same value, or name another run"
            )


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write train.json, the last file of a run: its presence means that the run is finished."""
    Store(run_dir).replace("train.json", (json.dumps(result, indent=1) + "\n").encode())


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The content of train.json, or None while the run is not finished."""
    path = run_dir / "train.json"
    return json.loads(path.read_text()) if path.is_file() else None


def finish(
    run_dir: Path, run: RunConfig, model: DualEncoder, tokenizer: Tokenizer, ranks: int
) -> dict[str, Any]:
    """Write model/ atomically, with adapters merged, then train.json, and return its content."""
    learned = sum(value.numel() for value in model.parameters() if value.requires_grad)
    merge_(model)
    with atomic_directory(run_dir / "model", replace=True) as draft:
        save_model(draft, model, tokenizer)

    lines = read_log(run_dir)
    last = lines[-1]
    waits = [line["data_wait"] * line["seconds_here"] for line in lines]
    device = next(model.parameters()).device
    result = {
        "version": run.version,
        "recipe": run.recipe.name,
        "recipe_digest": digest(run.recipe),
        **summary(lines),
        "data_wait": sum(waits) / last["seconds"],
        "temperature": last["temperature"],
        "curvature": last.get("curvature"),
        "radius": last.get("radius"),
        "substituted": last["substituted"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "learned_parameters": learned,
        "device": str(device),
        "machine": machine_of(device),
        "processes": ranks,
        "precision": "bfloat16" if autocasts(run.recipe.precision, device) else "float32",
    }
    write_result(run_dir, result)
    return result


def _read(run_dir: Path) -> RunConfig:
    return RunConfig.model_validate_json((run_dir / "config.json").read_bytes())


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
