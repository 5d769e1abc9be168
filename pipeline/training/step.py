"""One step's gradient: towers, loss and backward pass, at once or in pieces whose activations fit into memory.

In pieces (GradCache, Gao et al. 2021): all pieces are encoded without a graph; the loss of the whole batch is
differentiated by the embeddings; each piece is encoded again and pulled back from its part of that gradient. The
gradient is that of the whole batch, since a tower treats every row for itself. Both passes of a piece draw the same
random numbers.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from hyco.models.clip import DualEncoder

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""images [B, S, S, 3], tokens [B, N], image_boxes [P, S, S, 3], token_boxes [P, M]; parts in the order of samples."""


@dataclass(frozen=True)
class Scalars:
    """The learned scalars of the loss: inverse temperatures, curvature and bias."""

    scale: Tensor
    curvature: Tensor
    scales: dict[str, Tensor]
    bias: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Those that there are, in a fixed order."""
        return [
            self.scale,
            self.curvature,
            *self.scales.values(),
            *([] if self.bias is None else [self.bias]),
        ]

    def leaves(self) -> "Scalars":
        """The same values, cut off from the parameters, each with a gradient of its own."""

        def leaf(value: Tensor) -> Tensor:
            return value.detach().requires_grad_()

        scales = {name: leaf(value) for name, value in self.scales.items()}
        bias = None if self.bias is None else leaf(self.bias)
        return Scalars(leaf(self.scale), leaf(self.curvature), scales, bias)


@dataclass(frozen=True)
class Gradient:
    """What a step computed besides the parameters' gradients: the loss, its terms, the embeddings, the scalars."""

    loss: Tensor
    terms: dict[str, Tensor]
    nodes: dict[str, Tensor]
    scalars: Scalars


Loss = Callable[[dict[str, Tensor], Scalars], tuple[Tensor, dict[str, Tensor]]]
"""(nodes, scalars) -> the loss and its terms, see models.losses.objective.loss."""


def gradient(
    net: nn.Module,
    model: DualEncoder,
    inputs: Inputs,
    counts: Sequence[int],
    loss: Loss,
    *,
    micro_batch: int = 0,
    half: torch.dtype | None = None,
) -> Gradient:
    """Add the gradient of a batch's loss to the parameters, and return what was computed on the way.

    Args:
        net: the model, divided or not, or its DistributedDataParallel.
        model: the model itself.
        inputs: the batch of this process.
        counts: number of parts of each sample, on the host.
        loss: the objective.
        micro_batch: maximum number of samples of a piece; 0 takes the whole batch at once.
        half: type of the towers' matrix products under autocast; None computes in float32.
    """
    if not micro_batch or micro_batch >= len(inputs[0]):
        nodes, scale, curvature = _encode(net, inputs, half)
        scalars = Scalars(scale, curvature, model.scales, model.bias)
        total, terms = loss(nodes, scalars)
        total.backward()
        return Gradient(total.detach(), terms, nodes, scalars)

    pieces = list(_pieces(inputs, counts, micro_batch))
    states, encoded = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state(inputs[0].device))
            encoded.append(_encode(model, piece, half)[0])
    nodes = {name: torch.cat([part[name] for part in encoded]).requires_grad_() for name in encoded[0]}
    sizes = {name: [len(part[name]) for part in encoded] for name in nodes}
    leaves = Scalars(model.scale, model.curvature, model.scales, model.bias).leaves()
    total, terms = loss(nodes, leaves)
    total.backward()
    slopes = {
        name: (torch.zeros_like(value) if value.grad is None else value.grad).split(sizes[name])
        for name, value in nodes.items()
    }
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with _random_numbers_of(states[number], inputs[0].device), _reduced(net, last):
            again, scale, curvature = _encode(net, piece, half)
            ends = [(again[name], slopes[name][number]) for name in again]
            if last:
                # The scalars belong to no piece; in the last one, so that processes average their gradients too.
                own = Scalars(scale, curvature, model.scales, model.bias).tensors()
                ends += [
                    (value, leaf.grad)
                    for value, leaf in zip(own, leaves.tensors(), strict=True)
                    if leaf.grad is not None
                ]
            ends = [(value, slope) for value, slope in ends if value.requires_grad]
            torch.autograd.backward([value for value, _ in ends], [slope for _, slope in ends])
    return Gradient(total.detach(), terms, nodes, leaves)


def _encode(
    net: nn.Module, inputs: Inputs, half: torch.dtype | None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    # A context of its own for each pass: within one, autocast would reuse casts of weights that were made without a
    # graph.
    with torch.autocast(inputs[0].device.type, half, enabled=half is not None):
        return net(*inputs)


def _pieces(inputs: Inputs, counts: Sequence[int], size: int) -> Iterator[Inputs]:
    """The batch in pieces of `size` samples with their parts."""
    images, tokens, image_boxes, token_boxes = inputs
    edges = [0, *itertools.accumulate(counts)]
    for start in range(0, len(images), size):
        own = slice(start, start + size)
        parts = slice(edges[start], edges[min(start + size, len(images))])
        yield images[own], tokens[own], image_boxes[parts], token_boxes[parts]


def _reduced(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Whether the backward pass of a piece averages the gradients of all processes: that of the last piece does."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last)
    if isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return contextlib.nullcontext()


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


@contextlib.contextmanager
def _random_numbers_of(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw the numbers that follow a state; afterwards those that follow the present one."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
