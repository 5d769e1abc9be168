"""The exponential moving average of a model's weights (Polyak and Juditsky 1992), the copy that is evaluated."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hyco.pipeline.training.sharding import divided

WARM_UP = 10
"""After t steps the decay is at most (1 + t) / (WARM_UP + t): a short run is not averaged with its random start."""


class WeightAverage:
    """Average of the trained parameters, in float32; other entries of the state dict are the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.weights = {name: value.detach().float().clone() for name, value in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (WARM_UP + step))
        own = [_here(value.detach()).float() for value in self._own.values()]
        torch._foreach_lerp_([_here(value) for value in self.weights.values()], own, 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continue from the average that a checkpoint holds."""
        for name, value in self.weights.items():
            value.copy_(divided(weights[name], value))

    @torch.no_grad()
    def move_into(self, model: nn.Module) -> None:
        """Replace the model's trained parameters by their averages."""
        for name, value in model.named_parameters():
            if name in self.weights:
                value.copy_(self.weights[name])


def _here(value: Tensor) -> Tensor:
    """This process's part of a divided tensor, sharing its memory; a whole one as it is."""
    return value.to_local() if isinstance(value, DTensor) else value
