"""Classes as directions: logits are cosines over a temperature, and three losses of them.

With unit features u_j, unit class vectors w_k and logits l_jk = <u_j, w_k> / tau of a batch of B images with labels y:

    cross-entropy   mean_i [log sum_k exp l_ik - l_i,y_i]                    (NormFace, Wang et al. 2017)
    NTCE            mean_i [log sum_j exp l_j,y_i - l_i,y_i]                 the class finds its image among the batch
    NONL            mean_i [log sum_{j: y_j != y_i} exp l_j,y_i - l_i,y_i]   only images of other classes repel

NTCE and NONL: Koromilas et al., Neural Collapse by Design (ICML 2026). Of the paper only the abstract was at hand; the
formulas are those that its published code documents (the symmetric NONL, which it requires).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CosineHead(nn.Module):
    """Features [..., in_features] -> logits [..., C], cosines with learned class vectors over the temperature.

    Args:
        classes: C.
        in_features: length of the features.
        temperature: tau > 0 (ValueError); logits lie within [-1 / tau, 1 / tau].
    """

    def __init__(self, classes: int, in_features: int, temperature: float = 0.1) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature {temperature} must be positive")
        self.temperature = temperature
        self.weight = nn.Parameter(torch.randn(classes, in_features))

    def forward(self, features: Tensor) -> Tensor:
        """Logits, never in half precision; a feature of length 0 has logits of 0."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
            return F.linear(unit, F.normalize(self.weight, dim=-1).to(unit.dtype)) / self.temperature

    def extra_repr(self) -> str:
        """Sizes and temperature."""
        classes, width = self.weight.shape
        return f"classes={classes}, in_features={width}, temperature={self.temperature}"


def ntce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of the cross-entropy of each image among all images, for its class: [B, C], [B] -> []."""
    of_class = logits.T[labels]  # [i, j]: image j for the class of i
    return (of_class.logsumexp(1) - of_class.diagonal()).mean()


def nonl(logits: Tensor, labels: Tensor) -> Tensor:
    """As `ntce`, with the images of other classes alone in the sum: [B, C], [B] -> [].

    Images of a class that fills the batch have nothing to be separated from, and are only drawn to it.
    """
    of_class = logits.T[labels]
    others = of_class.masked_fill(labels[:, None] == labels, -torch.inf)
    apart = (labels[:, None] != labels).any(1)
    repelled = torch.where(apart[:, None], others, 0.0).logsumexp(1) * apart
    return (repelled - of_class.diagonal()).mean()
