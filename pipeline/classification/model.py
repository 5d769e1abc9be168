"""The classifier: a residual net, its head, and the pixel statistics of its training set."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.clip import load_weights
from hyco.models.heads.balanced_prototypes import BalancedPrototypes, embed_hierarchy
from hyco.models.heads.cosine import CosineHead, nonl, ntce
from hyco.models.heads.max_separation import MaximumSeparation, equal_radius
from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet
from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.storage.store import Store

MLR_SLOPE = (
    4.0  # hyperbolic logistic regression at the origin: logits 4 <z, u> + ... (Shimizu et al. 2021, eq. 6)
)

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"cosine": F.cross_entropy, "ntce": ntce, "nonl": nonl}
"""Losses of the heads of cosines; all others have the cross-entropy."""


class Classifier(nn.Module):
    """Pixels in [0, 1], [B, 3, S, S] -> logits [B, C]. `features` gives the head's input, [B, D]."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, float32."""
        return self.net((pixels - self.pixel_mean) / self.pixel_std).float()

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features (tangent vectors of a Poincare net)."""
        return self.net.features((pixels - self.pixel_mean) / self.pixel_std)  # pyright: ignore[reportCallIssue]

    def classify(self, features: Tensor) -> Tensor:
        """Logits of pooled features."""
        return self.net.head(features).float()  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clamp a learned curvature to its bounds; called after each step."""
        if constrain := getattr(self.net, "constrain_", None):
            constrain()


def make_head(
    config: FitConfig, features: int, classes: int, prototypes: Tensor | None = None
) -> nn.Module | None:
    """The head, or None for the net's own; `prototypes` [C, D] of the head "balanced" are 0 where weights are loaded.

    A softmax layer's logits are slope * <w, u> + ..., with slope 1 in the linear layer and 4 in hyperbolic logistic
    regression. At the radius "equal", slope * sqrt((C - 1)/C), the separation head has that slope for weights of the
    same length and the same directions of descent: one temperature (models/heads/max_separation.py).
    """
    if config.head == "softmax":
        return None
    if config.head == "linear":
        return nn.Linear(features, classes)
    if config.head in LOSSES:
        return CosineHead(classes, features, config.temperature)
    if config.head == "balanced":
        empty = torch.zeros(classes, config.prototype_dim)
        return BalancedPrototypes(empty if prototypes is None else prototypes, features)
    steady = isinstance(config.radius, float)
    slope = MLR_SLOPE if config.hyperbolic else 1.0
    radius = config.radius if isinstance(config.radius, float) else slope * equal_radius(classes)
    head = MaximumSeparation(classes, features, radius, learnable=not steady and config.radius == "learned")
    if config.hyperbolic and isinstance(head.projection, nn.Linear):
        # Same initialisation as the compared head: normal of standard deviation D^-1/2, no bias.
        nn.init.normal_(head.projection.weight, std=1 / math.sqrt(features))
        nn.init.zeros_(head.projection.bias)
    return head


def class_tree(config: FitConfig, classes: Sequence[str]) -> Taxonomy | None:
    """The hierarchy of these classes for the head "balanced", None for all others.

    Raises:
        FileNotFoundError: no such hierarchy.
        ValueError: the head without a hierarchy, a hierarchy without the head, or one that lacks a class.
    """
    if (config.head == "balanced") != (config.hierarchy is not None):
        raise ValueError(
            "the head 'balanced' needs the tree of its classes: give --hierarchy taxonomy.json"
            if config.head == "balanced"
            else f"hierarchy is for the head 'balanced', not {config.head!r}: leave it out"
        )
    if config.hierarchy is None:
        return None
    tree = Taxonomy.load(config.hierarchy)
    leaves = set(tree.leaf_ids())
    if lost := [name for name in classes if name not in leaves]:
        raise ValueError(
            f"{config.hierarchy} has no leaf {lost[0]!r} ({len(lost)} of {len(classes)} classes): the ids of its "
            "leaves have to be the classes of the set"
        )
    return tree


def class_prototypes(config: FitConfig, classes: Sequence[str]) -> Tensor | None:
    """Prototypes [C, D] of these classes for the head "balanced", None for all others; seeded.

    Raises FileNotFoundError or ValueError as `class_tree`.
    """
    tree = class_tree(config, classes)
    if tree is None:
        return None
    order = tree.depths().argsort(kind="stable")
    place = {int(node): position for position, node in enumerate(order)}
    parents = [-1 if tree.parents[node] < 0 else place[tree.parents[node]] for node in order.tolist()]
    points = embed_hierarchy(parents, config.prototype_dim, seed=config.seed)
    return points[[place[tree.ids.index(name)] for name in classes]]


def make_classifier(
    config: FitConfig,
    classes: int,
    mean: list[float],
    std: list[float],
    prototypes: Tensor | None = None,
) -> Classifier:
    """A new net of the configuration; equal for equal torch seeds. `prototypes` as in `make_head`."""
    head = make_head(config, config.widths[-1], classes, prototypes)
    if not config.hyperbolic:
        return Classifier(EuclideanResNet(config.depth, config.widths, classes, head), mean, std)
    net = PoincareResNet(
        config.depth,
        config.widths,
        classes,
        config.curvature,
        head,
        config.learn_curvature,
        config.init,
    )
    return Classifier(net, mean, std)


def curvature_of(model: Classifier, config: FitConfig) -> float | None:
    """c of a Poincare net's ball, learned or fixed; None for a Euclidean net."""
    if not config.hyperbolic:
        return None
    learned = getattr(model.net, "curvature", None)
    return config.curvature if learned is None else float(learned())


def save_classifier(folder: Path, model: Classifier, config: FitConfig, facts: dict[str, Any]) -> None:
    """Write model.safetensors and config.json; `facts` (classes, known, counts) are stored with the configuration."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    held = {"kind": "classifier", "fit": json.loads(config.model_dump_json()), **facts}
    Store(folder).replace("config.json", (json.dumps(held, indent=1) + "\n").encode())


def load_classifier(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[Classifier, FitConfig, dict[str, Any]]:
    """(model in eval mode, configuration, facts) of a finished run's model/; FileNotFoundError or ValueError."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: give the model folder of a finished `hyco fit`")
    held = json.loads((folder / "config.json").read_text())
    if held.pop("kind", None) != "classifier":
        raise ValueError(f"{folder} holds no classifier of `hyco fit`")
    config = FitConfig.model_validate(held.pop("fit"))
    model = make_classifier(config, len(held["known"]), [0.0] * 3, [1.0] * 3)
    load_weights(model, load_file(folder / "model.safetensors"), str(folder))
    return model.to(device).eval(), config, held
