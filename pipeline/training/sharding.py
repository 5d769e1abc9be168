"""Parameters, gradients and optimiser state divided over the processes of a training (FSDP2), for large towers.

Every block of the towers is gathered for its own forward and backward pass, and the rest of the model, without the
blocks, for the whole step. The learned scalars stay on every process: FSDP2 divides rows, and a scalar has none.
Checkpoints are those of a training without sharding, so that a run may continue either way.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hyco.models.clip import DualEncoder
from hyco.pipeline.training.strategy import blocks


def shard(model: nn.Module, device: torch.device, ranks: int) -> None:
    """Divide a model, of which every process has the same copy, over all processes."""
    mesh = init_device_mesh(device.type, (ranks,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(_scalars(model)))


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided a model."""
    return isinstance(model, FSDPModule)


def split_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Optimiser groups without any that mixes divided and whole parameters, which a fused optimiser refuses.

    A model's own parameters, the scalars, are the first in its order, so the numbers of parameters stay.
    """
    made: list[dict[str, Any]] = []
    for group in groups:
        number = sum(not isinstance(value, DTensor) for value in group["params"])
        kinds = [group["params"][:number], group["params"][number:]]
        assert not any(isinstance(value, DTensor) for value in kinds[0]), "whole parameters come first"
        made += [{**group, "params": kind} for kind in kinds if kind]
    return made


def average_scalars(model: nn.Module) -> None:
    """Replace the gradients of the learned scalars by their means over all processes; FSDP2 does so with the others."""
    grads = [value.grad for value in _scalars(model) if value.grad is not None]
    together = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for grad, mean in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


@torch.no_grad()
def clip_(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale a gradient down whose norm over all parameters is above `most`, as `nn.utils.clip_grad_norm_` does."""
    grads = [value.grad for value in parameters if value.grad is not None]
    divided = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    square = _square(divided)
    dist.all_reduce(square)
    factor = (most / ((square + _square(whole)).sqrt() + 1e-6)).clamp(max=1)
    torch._foreach_mul_(divided + whole, factor)


def whole(value: Tensor, keep: bool = True) -> Tensor:
    """All of a divided tensor on the CPU, a whole one as it is; every process takes part, those that `keep` get it."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def divided(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has, where `like` is divided."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_weights(weights: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """A state dict, or an average of weights, that a process without sharding can load."""
    return {name: whole(value.detach(), keep) for name, value in weights.items()}


def whole_optimiser(optimiser: torch.optim.Optimizer, keep: bool = True) -> dict[str, Any]:
    """State of an optimiser as that of a process without sharding: tensors whole, groups joined that were split."""
    found = optimiser.state_dict()
    state = {
        number: {name: whole(value, keep) for name, value in values.items()}
        for number, values in found["state"].items()
    }
    groups: list[dict[str, Any]] = []
    for group in found["param_groups"]:
        if groups and groups[-1]["weight_decay"] == group["weight_decay"]:
            groups[-1]["params"] = groups[-1]["params"] + group["params"]
        else:
            groups.append(dict(group))
    return {"state": state, "param_groups": groups}


def load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of an optimiser without sharding into one whose parameters are divided, or not."""
    parameters = [value for group in optimiser.param_groups for value in group["params"]]
    state = {
        number: {
            name: divided(value, parameters[number]) if value.dim() else value
            for name, value in values.items()
        }
        for number, values in saved["state"].items()
    }
    groups, first = [], 0
    own = {number: group for group in saved["param_groups"] for number in group["params"]}
    for group in optimiser.param_groups:
        numbers = list(range(first, first + len(group["params"])))
        groups.append({**own[first], "params": numbers})
        first += len(numbers)
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def whole_model(model: DualEncoder, weights: dict[str, Tensor], device: torch.device) -> DualEncoder:
    """A model without sharding with these weights."""
    made = DualEncoder(model.config)
    made.load_state_dict(weights)
    return made.to(device)


def _scalars(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the dual encoder itself: temperatures, curvature, alphas, bias."""
    return list(model.parameters(recurse=False))


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).square().sum()
