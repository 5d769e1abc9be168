"""Training of a classifier, top to bottom: one process, one device; resumes automatically after any stop.

Every random choice is a function of the seed and the epoch (images.Epoch) and a step itself draws none, so a
checkpoint needs no generator state. A run is a directory: config.json, log.jsonl, tensorboard/, checkpoints/, and at
the end model/ and train.json, whose presence says that it is finished.
"""

import contextlib
import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.classification.in_memory import Epoch, Images, load_images, statistics
from hyco.pipeline.classification.long_tail import long_tail
from hyco.pipeline.classification.model import (
    LOSSES,
    Classifier,
    class_prototypes,
    class_tree,
    make_classifier,
    save_classifier,
)
from hyco.pipeline.config import Config, digest
from hyco.pipeline.datasets import LabelledSet, open_labelled
from hyco.pipeline.datasets.layouts import Labelled
from hyco.pipeline.runtime.device import autocasts, precision_of, resolve_device
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.stop import StopRequest, stop_request
from hyco.pipeline.training.run_dir import (
    environment,
    exclusive_lock,
    finished,
    require_same,
    write_config,
    write_result,
)
from hyco.pipeline.training.run_protocol import (
    decay_groups,
    learning_rate,
    load_checkpoint,
    require_finite,
    save_checkpoint,
    set_rate,
    summary,
)
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.files import atomic_directory

SCALARS = ("log_radius", "log_c")  # temperature and curvature carry no weight decay


class FitRun(Config):
    """config.json of a run of `hyco fit`."""

    incidental: ClassVar[frozenset[str]] = frozenset({"environment"})

    fit: FitConfig
    """The configuration of the training."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Python, torch and commit of Hyco that started the run."""


def fit(
    run_dir: str | Path,
    config: FitConfig | None = None,
    *,
    device: str = "auto",
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train, or resume training, and return the content of train.json.

    Args:
        run_dir: directory of the run; without `config` its config.json is used.
        config: the training.
        device: "auto" (a GPU where there is one), "cpu", "cuda".
        listener: gets the state of pipeline.runtime.progress.Progress every few seconds.

    Raises:
        FileNotFoundError: no config.json and no configuration, absent data, or no such hierarchy.
        ValueError: another configuration than the run was started with, data that fill no batch, a hierarchy that is
            missing or lacks a class, a loss that is not finite.
        TerminatedError, KeyboardInterrupt: SIGTERM or Ctrl-C (of the main thread) stopped it; the running step was
            finished and a checkpoint saved, from which the next call resumes.
    """
    run_dir = Path(run_dir)
    config = prepare(run_dir, config)
    done = finished(run_dir)
    if done is not None:
        return done
    with stop_request() as stop, exclusive_lock(run_dir):
        return _fit(run_dir, config, resolve_device(device), listener, stop)


def prepare(run_dir: Path, config: FitConfig | None) -> FitConfig:
    """Write config.json of a new run, or check that the existing one is the same; locations of files may change.

    Data or a hierarchy that the training would refuse are refused before there is a directory.
    """
    path = run_dir / "config.json"
    known = FitRun.model_validate_json(path.read_bytes()).fit if path.is_file() else None
    if config is None:
        if known is None:
            raise FileNotFoundError(f"{run_dir} has no config.json: give the run a model and data")
        return known
    if config.hierarchy:
        config = config.replace(hierarchy=str(Path(config.hierarchy).expanduser().resolve()))
    if known is None:
        chosen = training_set(config)
        class_tree(config, [chosen.found.classes[index] for index in chosen.known])
        write_config(run_dir, FitRun(fit=config, environment=environment()))
    else:
        require_same(run_dir, *map(without_places, (known, config)))
    return config


def without_places(config: FitConfig) -> FitConfig:
    """The configuration with the name of its set for its location, and for its hierarchy the digest of the file."""
    content = None
    if config.hierarchy:
        tree = Path(config.hierarchy).expanduser().resolve()
        content = hashlib.sha256(tree.read_bytes()).hexdigest() if tree.is_file() else str(tree)
    return config.replace(data=config.data_name, hierarchy=content)


def run_name(config: FitConfig, folder: Path) -> str:
    """The name of a run in `folder`: it depends on what is trained, not on where the data and the hierarchy are."""
    stem = f"{config.data_name}-{config.model}-{config.head}-"
    # Runs of earlier versions were named by the path of the hierarchy as it was given.
    earlier = stem + digest(config.replace(data=config.data_name))[:8]
    return earlier if (folder / earlier).is_dir() else stem + digest(without_places(config))[:8]


@dataclass(frozen=True)
class TrainingSet:
    """The images of a training: of `known` classes (in label order), those at `index` of a set, with new labels."""

    found: LabelledSet
    known: np.ndarray
    index: np.ndarray
    labels: np.ndarray


def training_set(config: FitConfig) -> TrainingSet:
    """What a training takes of its set, without reading an image.

    Raises FileNotFoundError or ValueError: absent data, a draw that the set does not have, images that fill no batch.
    """
    found = open_labelled(config.data, "train")
    classes = len(found.classes)
    known = known_classes(classes, config)
    new_label = np.full(classes, -1)
    new_label[known] = np.arange(len(known))
    labels = new_label[found.labels]
    index = np.flatnonzero(labels >= 0)
    if config.imbalance < 1 and config.imbalance_draw == "published":
        _require_published_order(found, config)
    index = index[
        long_tail(
            labels[index],
            len(known),
            config.imbalance,
            config.seed,
            config.imbalance_profile,
            config.imbalance_draw,
        )
    ]
    if len(index) < config.batch_size:
        raise ValueError(
            f"{len(index)} training images do not fill a batch of {config.batch_size}: lower batch_size, or get more"
        )
    return TrainingSet(found, known, index, labels[index].astype(np.int64))


def training_images(config: FitConfig) -> tuple[Images, dict[str, Any]]:
    """The training images with labels renumbered over the known classes, and facts about them.

    Facts: classes (all of the set), known (indices of those trained on, in label order), counts (images of each).
    """
    chosen = training_set(config)
    images = load_images(chosen.found, config.image_size, chosen.index)
    images = Images(images.pixels, torch.from_numpy(chosen.labels))
    counts = np.bincount(chosen.labels, minlength=len(chosen.known))
    facts = {
        "classes": list(chosen.found.classes),
        "known": chosen.known.tolist(),
        "counts": counts.tolist(),
    }
    return images, facts


def _require_published_order(found: LabelledSet, config: FitConfig) -> None:
    """The published draw is made of positions; folders of images are in the order of their names."""
    if config.known is not None:
        raise ValueError(
            f'imbalance_draw "published" is made of all classes: leave out known={config.known}, or take "nested"'
        )
    binary = isinstance(found, Labelled) and ".bin[" in found.keys[0]
    if config.data_name not in ("cifar10", "cifar100") or not binary:
        raise ValueError(
            f'imbalance_draw "published" needs the binary version of CIFAR, whose order is the published one; '
            f'{config.data} is not that: fetch it, or take "nested"'
        )


def known_classes(classes: int, config: FitConfig) -> np.ndarray:
    """Sorted indices of the trained classes: all, or `config.known` of them drawn by the seed."""
    if config.known is None:
        return np.arange(classes)
    if config.known >= classes:
        raise ValueError(
            f"known {config.known} leaves none of {classes} classes unknown: give at most {classes - 1}"
        )
    drawn = np.random.default_rng([config.seed, classes]).permutation(classes)
    return np.sort(drawn[: config.known])


def _fit(
    run_dir: Path, config: FitConfig, device: torch.device, listener: Listener | None, stop: StopRequest
) -> dict[str, Any]:
    images, facts = training_images(config)
    mean, std = statistics(images.pixels)
    images = images.to(device)
    per_epoch = len(images) // config.batch_size
    steps = config.steps or config.epochs * per_epoch

    names = [facts["classes"][index] for index in facts["known"]]
    prototypes = class_prototypes(config, names)
    torch.manual_seed(config.seed)
    model = make_classifier(config, len(names), mean, std, prototypes).to(device)
    loss_of = LOSSES.get(config.head, F.cross_entropy)
    optimiser = make_optimiser(model, config)

    checkpoints = Checkpoints(run_dir / "checkpoints")
    step = 0
    state: dict[str, Any] = {"seconds": 0.0}
    found = checkpoints.latest()
    if found:
        step, folder = found
        state = load_checkpoint(folder, model, optimiser)
    seconds = state["seconds"]
    log = StepLog(run_dir, step)
    # Older checkpoints do not record the precision.
    half = autocasts(config.precision, device, state.get("precision"))
    remedy = f"lower lr (now {config.lr})"
    total = steps * config.batch_size
    progress = Progress(total, "fit", "samples", listener, done=step * config.batch_size)
    window, window_steps, saved_at = time.perf_counter(), 0, time.perf_counter()
    epoch_number, epoch = -1, None
    model.train()
    complete, stopping = step == steps, False
    try:
        while step < steps and not stopping:
            if epoch is None or step // per_epoch != epoch_number:
                epoch_number = step // per_epoch
                epoch = Epoch.draw(
                    images,
                    config.seed,
                    epoch_number,
                    batch_size=config.batch_size,
                    crop=config.crop,
                    flip=config.flip,
                )
            pixels, labels = epoch.batch(step % per_epoch)
            rate = learning_rate(step, steps, config.lr, config.warmup_steps, config.schedule)
            set_rate(optimiser, rate)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(pixels)
            loss = loss_of(logits, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            model.constrain_()
            step, window_steps = step + 1, window_steps + 1

            if step % config.log_every == 0 or step in (1, steps):
                value = loss.item()
                now = time.perf_counter()
                spent, window = now - window, now
                seconds += spent
                require_finite(value, step, remedy)
                line = {
                    "samples": step * config.batch_size,
                    "epoch": step / per_epoch,
                    "loss": value,
                    "accuracy": (logits.argmax(-1) == labels).float().mean().item(),
                    "lr": rate,
                    "samples_per_second": window_steps * config.batch_size / spent,
                    "seconds": seconds,
                }
                line |= {name: scalar.exp().item() for name, scalar in _scalars(model)}
                log.write(step, line)
                progress.label = f"fit, loss {value:.3f}"
                window_steps = 0
            progress.advance(config.batch_size)

            stopping = bool(stop)
            due = step % config.checkpoint_steps == 0 or step == steps or stopping
            if due or time.perf_counter() - saved_at > 60 * config.checkpoint_minutes:
                require_finite(loss.item(), step, remedy)  # no checkpoint of a run that has diverged
                weights, learned = model.state_dict(), optimiser.state_dict()
                state = {"seconds": seconds, "precision": precision_of(half)}
                save_checkpoint(checkpoints, step, weights, learned, state, config.keep)
                saved_at = time.perf_counter()
        complete = step == steps
    finally:
        log.close()
        progress.close(complete)
    if not complete:
        stop.end(f"at step {step} of {steps}")
    return _finish(run_dir, config, model, facts, half)


def _finish(
    run_dir: Path, config: FitConfig, model: Classifier, facts: dict[str, Any], half: bool
) -> dict[str, Any]:
    """Write model/ atomically, then train.json."""
    with atomic_directory(run_dir / "model", replace=True) as draft:
        save_classifier(draft, model, config, facts)
    result = {
        "model": config.model,
        "data": config.data_name,
        "head": config.head,
        **summary(read_log(run_dir)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(next(model.parameters()).device),
        "precision": precision_of(half),
        "images": sum(facts["counts"]),
        "counts": facts["counts"],
        **{name: scalar.exp().item() for name, scalar in _scalars(model)},
    }
    write_result(run_dir, result)
    with contextlib.suppress(OSError):
        shutil.rmtree(run_dir / "checkpoints")  # model/ holds the last one
    return result


def _scalars(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(radius or curvature, its logarithm) where they are learned."""
    names = {"log_radius": "radius", "log_c": "curvature"}
    learned = ((name.rpartition(".")[2], value) for name, value in model.named_parameters())
    return [(names[name], value.detach()) for name, value in learned if name in names]


def make_optimiser(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Adam or SGD whose decay is the gradient of a penalty, as published; none for a learned radius and curvature."""
    groups = decay_groups(model, config.weight_decay, lambda name, p: name.rpartition(".")[2] in SCALARS)
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
