"""A classifier on a hyperbolic encoder from labels without text: fixed prototypes on its hyperboloid.

The prototypes stand in the directions of maximum separation (models/heads/max_separation.py), all at one
learned distance from the root; the frozen image points pass one linear map of the tangent space at the origin
and are scored by distance, like all other metrics here. Fitted like the linear probe: the penalty is swept on a
fifth of the training part.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.models.heads.max_separation import HyperbolicPrototypes
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.linear_probe import fit, sweep
from hyco.pipeline.evaluation.metrics.zero_shot import rank_of_truth, set_accuracy


def prototype_probe(
    train: tuple[Float[Tensor, "N D"], Int[np.ndarray, " N"]],
    test: tuple[Float[Tensor, "M D"], Int[np.ndarray, " M"]],
    classes: int,
    curvature: float | None,
    bootstrap: Bootstrap,
) -> MetricResult:
    """top1, top5 and mean_per_class of prototypes fitted on the training part; and their radius times sqrt(c).

    Args:
        train: space parts of image points on the hyperboloid of curvature -c, with their labels.
        test: the same of the test images.
        classes: C, at most D + 1.
        curvature: c; None (a Euclidean or product space) is refused.
        bootstrap: resampling for the intervals; its seed is that of the fit.

    Raises:
        ValueError: no hyperboloid, fewer than ten training rows, more classes than D + 1.
    """
    points, labels = train
    if curvature is None:
        raise ValueError("prototypes stand on one hyperboloid (geometry lorentz): use the softmax probe")
    if len(labels) < 10:
        raise ValueError(f"{len(labels)} training images are too few for prototypes")

    def make(count: int, width: int) -> HyperbolicPrototypes:
        return HyperbolicPrototypes(count, width, curvature, seed=bootstrap.seed)

    with torch.inference_mode(False), torch.enable_grad():  # out of inference mode: the fit needs gradients
        points = points.clone().float()
        known = torch.from_numpy(labels).to(points.device)
        penalty = sweep(make, points, known, classes, bootstrap.seed)
        fitted = make(classes, points.shape[1]).to(points.device)
        fit(fitted, points, known, penalty)
        with torch.no_grad():
            scores = fitted(test[0].clone().float()).cpu().numpy()
            radius = fitted.log_radius.exp().item() * curvature**0.5
    found = set_accuracy(rank_of_truth(scores, test[1]), test[1], classes, bootstrap)
    found.numbers.update(penalty=penalty, training_images=len(labels), radius=radius)
    return found
