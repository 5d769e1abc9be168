"""What equality in float64 does not show: that nets of the layers train, beside HypLL's, at usual rates in float32."""

import math

import hypll.nn as hypll
import pytest
import torch
from hypll.tensors import ManifoldParameter, TangentTensor
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from models.hyperbolic import nn as hnn
from models.hyperbolic.nn.functional import MAX_ANGLE
from models.hyperbolic.nn.hyperplane_ops import FEATURE_ANGLE
from tests.oracle.hyperbolic_layers import hypll_ball

EPOCHS, HELD_OUT, BATCH, RATE = 6, 497, 64, 1e-2


class PeerNet(nn.Module):
    """HypLL's 64-64-32-10, from tangent vectors to tangent vectors."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.ball = hypll_ball(c)
        self.ball.c.value.data = self.ball.c.value.data.float()
        sizes = ((64, 64), (64, 32), (32, 10))
        self.layers = nn.ModuleList(hypll.HLinear(*size, manifold=self.ball) for size in sizes)
        self.relu = hypll.HReLU(self.ball)

    def forward(self, u: Tensor) -> Tensor:
        x = self.ball.expmap(TangentTensor(u, manifold=self.ball, man_dim=-1))
        for layer in self.layers[:-1]:
            x = self.relu(layer(x))
        return self.ball.logmap(None, self.layers[-1](x)).tensor


def our_net(c: float, **options) -> nn.Module:
    make = lambda i, o: hnn.Linear(i, o, c=c, **options)  # noqa: E731
    return nn.Sequential(make(64, 64), nn.ReLU(), make(64, 32), nn.ReLU(), make(32, 10))


def accuracy(make) -> float:
    """Held-out accuracy after a short training on scikit-learn's digits; the same batches for every net."""
    torch.manual_seed(0)
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(images))
    images, labels = images[order].float() / 16, labels[order]
    net = make()
    # HypLL's parameters of the tangent kind are wrappers that AdamW does not take.
    parameters = [
        getattr(p, "tensor", p) if isinstance(p, ManifoldParameter) else p for p in net.parameters()
    ]
    optimiser = torch.optim.AdamW([p for p in parameters if p.requires_grad], RATE)
    for _ in range(EPOCHS):
        for batch in (HELD_OUT + torch.randperm(len(images) - HELD_OUT)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        return (net(images[:HELD_OUT]).argmax(1) == labels[:HELD_OUT]).float().mean().item()


@pytest.fixture
def one_thread():
    """Products of 64 x 64 are slower on two threads, many times so where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("c", [1.0, 3.0])
def test_a_net_trains_where_hypll_s_does(c):
    """Without the cap, ours is 60 points lower or at chance level."""
    ours, peer = accuracy(lambda: our_net(c)), accuracy(lambda: PeerNet(c))
    uncapped = accuracy(lambda: our_net(c, max_angle=MAX_ANGLE))
    print(f"c = {c}: ours {ours:.3f}, HypLL {peer:.3f}, without the cap {uncapped:.3f}")
    assert ours > 0.88 and ours > peer - 0.01
    assert uncapped < 0.8


LAYERS = [
    lambda **options: hnn.Linear(3, 4, c=0.8, **options),
    lambda **options: hnn.MLR(3, 4, c=0.8, **options),
    lambda **options: hnn.Conv2d(3, 4, 1, c=0.8, model="lorentz", **options),
    lambda **options: hnn.ConvTranspose2d(3, 4, 1, c=0.8, **options),
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("make", LAYERS)
def test_max_angle_is_a_clip_of_the_features(make, fused):
    """Values and gradients beyond the cap are those of points drawn back to it; below nothing changes."""
    torch.manual_seed(0)
    free, options = make(max_angle=MAX_ANGLE).double(), {} if make is LAYERS[1] else {"fused": fused}
    for p in free.parameters():
        nn.init.normal_(p, std=0.5)
    capped = make(max_angle=2.0, **options).double()
    capped.load_state_dict(free.state_dict())
    rate = free.rate()
    directions = F.normalize(torch.randn(6, 3, dtype=torch.double), dim=-1)
    radii = torch.tensor([0.0, 0.5, 1.9, 2.1, 5.0, 100.0], dtype=torch.double)[:, None] / rate
    u = (radii * directions).requires_grad_()
    clipped = u * (2.0 / rate / u.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
    shape = (6, 3) if isinstance(free, hnn.Linear | hnn.MLR) else (6, 3, 1, 1)
    got, want = capped(u.view(shape)), free(clipped.view(shape))
    weights = torch.randn_like(got)
    slopes = torch.autograd.grad((got * weights).sum(), [u, *capped.parameters()])
    wanted = torch.autograd.grad((want * weights).sum(), [u, *free.parameters()])
    for a, b in zip((got, *slopes), (want, *wanted), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("value", [0.0, -1.0, 12.5, math.nan])
def test_a_cap_out_of_range_is_refused_with_a_remedy(value):
    for make in LAYERS:
        with pytest.raises(ValueError, match=f"got {value}: {FEATURE_ANGLE:g} is the default"):
            make(max_angle=value)
        make(max_angle=FEATURE_ANGLE)
