"""Linear probe: L2-regularised logistic regression on the frozen features of the image tower.

The features are those before the projection, as in CLIP's probe (Radford et al. 2021, section 3.2), brought to
mean 0 and variance 1 by the statistics of the training part. The strength of the penalty is swept on a fifth
of the training part; the head is then fitted on all of it, and only then the test part is used.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.heads.max_separation import MaximumSeparation
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.zero_shot import rank_of_truth, set_accuracy

Head = Callable[[int, int], nn.Module]
"""(classes, width) -> a module from features [N, width] to logits [N, classes]; a row of HEADS."""

HEADS: dict[str, Head] = {
    "softmax": lambda classes, width: nn.Linear(width, classes),
    "maximum_separation": lambda classes, width: MaximumSeparation(classes, width),
}
PENALTIES = tuple(
    10.0**power for power in range(1, -7, -1)
)  # from strong to weak: each fit starts from the previous one
HELD_OUT = 0.2
ITERATIONS = 100


def fit(head: nn.Module, features: Float[Tensor, "N W"], labels: Int[Tensor, " N"], penalty: float) -> None:
    """Minimise mean cross-entropy + penalty / 2 * |weights|^2 by L-BFGS over all rows; biases are not penalised.

    The weights are the matrices of the head, or what its `slopes` returns: a head with a learned scale has a minimum
    only if the penalty counts the scale too. scikit-learn's C is 1 / (N * penalty).

    Raises:
        ValueError: a feature is not finite.
    """
    rows = int((~features.isfinite()).any(1).sum())
    if rows:
        raise ValueError(f"{rows} of the {len(features)} rows of features are not finite: leave them out")
    slopes: Callable[[], Tensor] | None = getattr(head, "slopes", None)
    matrices = [value for value in head.parameters() if value.ndim > 1]
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        weights = [slopes()] if slopes else matrices
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        loss = F.cross_entropy(head(features), labels) + penalty / 2 * squares
        loss.backward()
        return loss

    optimiser.step(closure)


def sweep(
    make: Head, features: Float[Tensor, "N W"], labels: Int[Tensor, " N"], classes: int, seed: int
) -> float:
    """The penalty with the most right answers on a held-out fifth of the rows; the stronger one of equals."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))).to(labels.device)
    aside = max(1, round(HELD_OUT * len(labels)))
    train, held = order[aside:], order[:aside]
    torch.manual_seed(seed)
    head = make(classes, features.shape[1]).to(features.device)
    best, penalty = -1, PENALTIES[0]
    for trial in PENALTIES:
        fit(head, features[train], labels[train], trial)
        with torch.no_grad():
            right = int((head(features[held]).argmax(1) == labels[held]).sum())
        if right > best:
            best, penalty = right, trial
    return penalty


def probe(
    train: tuple[Float[Tensor, "N W"], Int[np.ndarray, " N"]],
    test: tuple[Float[Tensor, "M W"], Int[np.ndarray, " M"]],
    classes: int,
    bootstrap: Bootstrap,
    head: str = "softmax",
) -> MetricResult:
    """top1, top5 and mean_per_class of a head fitted on the training part, with the selected penalty.

    ValueError for fewer than ten training rows, or a head that cannot have so many classes.
    """
    features, labels = train
    if len(labels) < 10:
        raise ValueError(f"{len(labels)} training images are too few for a probe")
    # Out of inference mode: the fit needs gradients.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.enable_grad():
        features = features.clone().float()
        mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
        features = (features - mean) / spread
        known = torch.from_numpy(labels).to(features.device)
        penalty = sweep(HEADS[head], features, known, classes, bootstrap.seed)
        torch.manual_seed(bootstrap.seed)
        fitted = HEADS[head](classes, features.shape[1]).to(features.device)
        fit(fitted, features, known, penalty)
        with torch.no_grad():
            scores = fitted((test[0].clone().float() - mean) / spread).cpu().numpy()
    found = set_accuracy(rank_of_truth(scores, test[1]), test[1], classes, bootstrap)
    found.numbers.update(penalty=penalty, training_images=len(labels))
    return found
