"""The nets of the training study are the modules' own: HypLL's and ours, forward, and after steps of AdamW."""

import hypll.nn as hypll
import pytest
import torch
from hypll.manifolds.poincare_ball.math.linalg import poincare_hyperplane_dists
from hypll.tensors import TangentTensor
from torch.nn import functional as F

from hyco.models.hyperbolic.migrate import recalibrate
from tests.oracle.hyperbolic_layers import hypll_ball
from tests.perf.training_nets import RECALIBRATED, RUNNING, TEST_BATCH, Nets, Shape, our_net
from tests.perf.training_study import cells, verdict, write

CURVATURES, RATES = (0.5, 1.5), (1e-3, 1e-2)
SHAPES = [Shape(2), Shape(1, norm=True), Shape(conv=True)]


def lane(nets, at):
    """The parameters of one net, by name."""
    parts = zip(*(group["params"] for group in nets.groups), strict=True)
    return {name: torch.cat(part)[at].detach() for name, part in zip(nets.names, parts, strict=True)}


def pixels(shape, *lead):
    return torch.rand(*lead, *((1, 8, 8) if shape.conv else (64,)))


@pytest.mark.parametrize("shape", SHAPES)
def test_hypll_s_nets_are_its_modules(shape):
    torch.manual_seed(0)
    nets = Nets(shape, "HypLL", CURVATURES, RATES, 1)
    for group in nets.groups:
        for p in group["params"]:
            torch.nn.init.normal_(p, std=0.1)
    u = 0.3 * pixels(shape, 4, 5)
    got = nets.forward(u)
    for at, (c, *_) in enumerate(nets.lanes):
        ball, p = hypll_ball(c), lane(nets, at)
        ball.c.value.data = ball.c.value.data.float()
        x, index = ball.expmap(TangentTensor(u[at], manifold=ball, man_dim=1)), 0

        def weights(layer, index, p=p):
            (layer.z if hasattr(layer, "z") else layer.weights).tensor.data = (
                p[f"{index}.weight"].flatten(1).T.contiguous()
            )
            layer.bias.data = p[f"{index}.bias"]
            return layer

        if shape.conv:
            for stride, (before, after) in ((1, (1, 8)), (2, (8, 16))):
                layer = hypll.HConvolution2d(before, after, 3, manifold=ball, padding=1, stride=stride)
                x = hypll.HReLU(ball)(weights(layer, index)(x))
                index += 2
            x, index = hypll.HFlatten()(x), 5
        for before, after in () if shape.conv else zip((64, *shape.sizes), shape.sizes, strict=False):
            x = weights(hypll.HLinear(before, after, manifold=ball), index)(x)
            if shape.norm:
                norm = hypll.HBatchNorm(after, manifold=ball, use_midpoint=True)
                norm.weight.data = F.softplus(p[f"{index + 1}.weight"])
                norm.bias.data = p[f"{index + 1}.bias"]
                x = norm(x)
            x, index = hypll.HReLU(ball)(x), index + 2 + shape.norm
        z, r = p[f"{index}.weight"].T, p[f"{index}.bias"]
        want = poincare_hyperplane_dists(x.tensor, z, r, ball.c())
        assert torch.allclose(got[at], want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def float64():
    """Biases before a batch norm have no gradient but rounding, which Adam would make a step of in float32."""
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("contender", ["ours", "Euclidean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nets_side_by_side_train_as_one_by_one(shape, contender):
    nets, labels = Nets(shape, contender, CURVATURES, RATES, 2), torch.randint(10, (3, 8, 6))
    # Not beyond the cap: layers that start as the identity map put such points on it, within rounding on either side.
    batches = 0.2 * pixels(shape, 3, 8, 6)
    together = torch.optim.AdamW(nets.groups)
    for u, target in zip(batches, labels, strict=True):
        together.zero_grad()
        losses = F.cross_entropy(nets.forward(u).flatten(0, 1), target.flatten(), reduction="none")
        losses.view(8, -1).mean(1).sum().backward()
        together.step()
    for at, (c, rate, seed) in enumerate(nets.lanes):
        torch.manual_seed(seed)
        net = our_net(shape, c, contender)
        alone = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], rate)
        for u, target in zip(batches, labels, strict=True):
            alone.zero_grad()
            F.cross_entropy(net(u[at]), target[at]).backward()
            alone.step()
        net.eval()
        with torch.no_grad():
            want, got = net(batches[0, at]), nets.forward(batches[0], training=False)[at]
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("statistics", [RUNNING, TEST_BATCH, RECALIBRATED])
def test_evaluation_uses_the_statistics_it_names_and_leaves_the_running_ones(statistics):
    torch.manual_seed(0)
    shape = Shape(1, norm=True)
    nets, u, batches = Nets(shape, "ours", (0.5,), (1e-2,), 1), 0.3 * pixels(shape, 1, 8), [pixels(shape, 6)]
    nets.forward(pixels(shape, 1, 16))
    before = {name: buffer.clone() for name, buffer in nets.buffers.items()}
    got = nets.evaluate(u, statistics, batches)
    assert all(torch.equal(before[name], buffer) for name, buffer in nets.buffers.items())
    torch.manual_seed(0)
    net = our_net(shape, 0.5, "ours")
    net.load_state_dict({name: buffer[0] for name, buffer in before.items()}, strict=False)
    if statistics == RECALIBRATED:
        recalibrate(net, batches)
    net.train(statistics == TEST_BATCH)
    assert torch.allclose(got[0], net(u[0]), atol=1e-5)


def test_the_verdict_counts_what_is_below_the_bar():
    title, worse = "convolutional net", 36 * [90.0]
    worse[:3] = 3 * [40.0]
    worse[3:6] = [60.0, 95.0, 98.0]
    rows = {f"{title}/ours": worse, f"{title}/HypLL": 36 * [91.0], f"{title}/clip at 4": 36 * [90.5]}
    said = " ".join(verdict(rows, [title]))
    assert '"ours": 12 cells.' in said
    assert 'better of "HypLL" and "clip at 4" in 2 of them, in 1 of these beyond the noise' in said
    assert 'where "HypLL" is not in 1.' in said
    assert "c 0.1, rate 0.001: 40.0 (HypLL 91.0, clip 90.5; -51.0 ± 0.0)" in said
    assert "c 1, rate 0.001: 84.3 (HypLL 91.0, clip 90.5; -6.7 ± 52.4)" in said
    assert cells(worse)[0] == 40
    like = {f"{title}/ours{TEST_BATCH}": 36 * [93.0], f"{title}/clip at 4{TEST_BATCH}": 36 * [92.0]}
    assert f'"ours{TEST_BATCH}": 12 cells' in " ".join(verdict(rows | like, [title]))


def test_a_section_without_rows_stays_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    marks = "<!-- {0} -->\nold\n<!-- /{0} -->\n"
    page.write_text(marks.format("batch norm") + marks.format("without batch norm"))
    write({"convolutional net/ours": 36 * [90.0]}, page)
    kept, new = page.read_text().split("<!-- /batch norm -->")
    assert "old" in kept and "old" not in new and "| ours | 90.0 |" in new
