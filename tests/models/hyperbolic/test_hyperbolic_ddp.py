"""Two gloo processes: gradients of DDP and the synchronised batch norm equal those of one process on all data."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group is made: see pipeline/training/train.py
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature


class Words(nn.Module):
    """The layers on sequences: a table, a convolution, a residual sum and attention; [B, N] indices -> [B, D, N]."""

    def __init__(self, c):
        super().__init__()
        self.table, self.conv = hnn.Embedding(5, 4, std=0.3, c=c), hnn.Conv1d(4, 4, 3, padding=1, c=c)
        self.add, self.attention = hnn.ResidualAdd(c=c), hnn.MultiheadAttention(4, 2, c=c)

    def forward(self, index):
        u = self.table(index).transpose(1, 2)
        return self.attention(self.add(u, self.conv(u)).transpose(1, 2)).transpose(1, 2)


class Network(nn.Module):
    """Every layer with parameters: pictures and words to one vector."""

    def __init__(self):
        super().__init__()
        c = Curvature(0.5, learnable=True)
        self.words, self.pictures, self.head = Words(c), pictures(c), hnn.MLR(6, 3, c=c)
        self.join, self.norm = hnn.ResidualAdd(c=c), hnn.BatchNorm1d(4, c=c)
        self.linear = hnn.Linear(4, 6, c=c)

    def forward(self, u):
        index = (10 * u[:, 0, 0]).long().abs() % 5
        words = self.words(index).mean(2)
        return self.head(self.linear(self.norm(self.join(self.pictures(u), words))))


def pictures(c):
    return nn.Sequential(
        hnn.Conv2d(3, 4, 3, padding=1, c=c),
        hnn.BatchNorm2d(4, c=c),
        hnn.ReLU(),
        hnn.AvgPool2d(2, c=c),
        hnn.ConvTranspose2d(4, 4, 2, c=c),
        hnn.AdaptiveAvgPool2d(1, c=c),
        hnn.Flatten(),
    )


def network():
    torch.manual_seed(0)
    return Network().double()


def batch():
    torch.manual_seed(1)
    return 0.4 * torch.randn(8, 3, 6, 6, dtype=torch.double), torch.arange(8) % 3


def results(net, u, label):
    loss = nn.functional.cross_entropy(net(u), label)
    loss.backward()
    return {
        **{f"grad {k.removeprefix('module.')}": p.grad for k, p in net.named_parameters()},
        **{k.removeprefix("module."): b for k, b in net.named_buffers()},
    }


def share(rank):
    net = DistributedDataParallel(network())
    u, label = batch()
    # Uneven shares would need weighted losses; 4 and 4 make DDP's mean of means the mean.
    return results(net, u[rank::2], label[rank::2])


def lonely(u, fused):
    """Output and statistics of a norm, and its slope in u, of a process that may have no points."""
    norm, u = hnn.BatchNorm2d(3, fused=fused).double(), u.clone().requires_grad_()
    out = norm(u)
    out.square().sum().backward()
    return {"lonely out": out.detach(), "lonely slope": u.grad, **norm.state_dict(prefix="lonely ")}


def worker(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
    found = share(rank)
    found |= {
        f"{fused} {k}": v
        for fused in (True, False)
        for k, v in lonely(batch()[0][8 - 8 * rank :], fused).items()
    }
    dist.destroy_process_group()
    if rank == 1:
        torch.save(found, f"{path}/found.pt")
    threads = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], (
        "a thread of the group lives on: it may abort the exit"
    )


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_two_processes_equal_one(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    want = results(network(), *batch())
    want |= {f"{fused} {k}": v for fused in (True, False) for k, v in lonely(batch()[0], fused).items()}
    assert found.keys() == want.keys()
    for key, value in want.items():
        assert torch.allclose(found[key], value, rtol=1e-7, atol=1e-10), key
