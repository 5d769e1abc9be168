"""Maximum separation against its recursion, and the two heads against float64 references."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group is made: see pipeline/training/train.py
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hyco.models.heads import max_separation as separation
from hyco.models.heads.max_separation import (
    HyperbolicPrototypes,
    MaximumSeparation,
    equal_radius,
    separation_logits,
    separation_matrix,
)
from hyco.models.hyperbolic import lorentz
from tests.oracle import separation as twin

LARGE = separation.RUNNING_SUM_FROM + 3


@pytest.mark.parametrize("classes", [2, 3, 10, 101, 1000, 2000])
def test_columns_are_unit_and_equally_far_apart(classes: int) -> None:
    matrix = separation_matrix(classes, torch.float64)
    want = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    assert matrix.shape == (classes - 1, classes)
    assert (matrix.T @ matrix - want).abs().max() < 1e-12
    assert matrix.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("classes", [2, 3, 7, 64, 301])
def test_closed_form_is_the_recursion(classes: int) -> None:
    want = twin.looped_matrix(classes)
    assert (separation_matrix(classes, torch.float64) - want).abs().max() < 1e-13
    if classes < 100:
        assert torch.equal(want, twin.recursive_matrix(classes))


@pytest.mark.parametrize("classes", [2, 3, 10, 500])
def test_running_sum_is_the_matrix_product(classes: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, classes - 1, dtype=torch.float64)
    want = features @ separation_matrix(classes, torch.float64)
    assert (separation_logits(features, classes) - want).abs().max() < 1e-12 * want.abs().max()


@pytest.mark.parametrize("classes", [2, 10, LARGE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_head_and_its_gradients_against_the_twin(classes: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    head = MaximumSeparation(classes, classes + 5, radius=1.7, learnable=True).to(dtype)
    assert head.summed == (classes == LARGE)
    x = torch.randn(6, classes + 5, dtype=dtype, requires_grad=True)
    labels = torch.randint(classes, (6,))
    logits = head(x)
    F.cross_entropy(logits, labels).backward()

    assert isinstance(head.projection, nn.Linear)
    plain = [t.detach().double().requires_grad_() for t in (x, head.projection.weight, head.projection.bias)]
    log_radius = head.log_radius.detach().double().requires_grad_()
    want = twin.logits(*plain, radius=log_radius.exp())  # type: ignore[arg-type]
    F.cross_entropy(want, labels).backward()
    assert (logits - want).abs().max() < tolerance * want.abs().max()
    ours = [x, head.projection.weight, head.projection.bias, head.log_radius]
    for got, plain_twin in zip(ours, [*plain, log_radius], strict=True):
        assert got.grad is not None and plain_twin.grad is not None
        assert (got.grad - plain_twin.grad).abs().max() < tolerance * max(1, plain_twin.grad.abs().max())


@pytest.mark.parametrize("classes", [10, LARGE])
def test_constants_keep_their_digits_in_double(classes: int) -> None:
    head = MaximumSeparation(classes, classes - 1, project=False).double()
    x = torch.randn(3, classes - 1, dtype=torch.float64)
    want = head.radius * (x @ separation_matrix(classes, torch.float64))
    assert (head(x) - want).abs().max() < 1e-12


def test_state_dict_holds_no_matrix_and_travels_through_safetensors() -> None:
    head = MaximumSeparation(4, 6, radius=0.5)
    assert set(head.state_dict()) == {"projection.weight", "projection.bias", "log_radius"}
    other = MaximumSeparation(4, 6, radius=2.0)
    other.load_state_dict(from_safetensors(to_safetensors(head.state_dict())))
    x = torch.randn(5, 6)
    assert torch.equal(head(x), other(x)) and torch.equal(head(x), copy.deepcopy(head)(x))
    with torch.device("meta"):
        empty = MaximumSeparation(4, 6)
    empty.to_empty(device="cpu").load_state_dict(head.state_dict())
    assert torch.equal(empty(x), head(x))


@pytest.mark.parametrize("classes", [10, LARGE])
def test_autocast_rounds_the_projection_only(classes: int) -> None:
    torch.manual_seed(0)
    head, x = MaximumSeparation(classes, classes), torch.randn(8, classes)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
        projected = head.projection(x)
    want = head.radius * (projected.float() @ separation_matrix(classes))
    assert projected.dtype == torch.bfloat16 and logits.dtype == torch.float32
    torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-5)


def test_compiles_whole() -> None:
    head, x = MaximumSeparation(10, 16, learnable=True), torch.randn(4, 16)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), head(x))
    compiled(x).logsumexp(-1).sum().backward()
    assert head.log_radius.grad is not None


def test_runs_under_ddp(tmp_path) -> None:
    assert "RANK" not in os.environ
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        head = MaximumSeparation(10, 16, learnable=True)
        DistributedDataParallel(head)(torch.randn(4, 16)).logsumexp(-1).sum().backward()
        assert all(p.grad is not None for p in head.parameters())
    finally:
        dist.destroy_process_group()


def test_too_few_classes_or_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="1 class cannot be separated"):
        MaximumSeparation(1, 4)
    with pytest.raises(ValueError, match=r"in_features 8 is too few.*widen the net to 9"):
        MaximumSeparation(10, 8)
    with pytest.raises(ValueError, match="project them first"):
        MaximumSeparation(10, 12, project=False)
    with pytest.raises(ValueError, match="10 classes lie in 9 dimensions"):
        separation_logits(torch.zeros(2, 8), 10)
    with pytest.raises(ValueError, match="radius -1"):
        MaximumSeparation(3, 4, radius=-1.0)
    with pytest.raises(ValueError, match="dim 8 is too few"):
        HyperbolicPrototypes(10, 8)


def test_at_equal_radius_sgd_moves_both_heads_alike() -> None:
    """From V = radius P^T W on, the softmax layer V and the separation head W stay the same classifier."""
    torch.manual_seed(0)
    classes, width = 5, 7
    body = nn.Sequential(nn.Linear(3, width), nn.Tanh()).double()
    head = MaximumSeparation(classes, width).double()
    softmax = nn.Linear(width, classes).double()
    assert head.radius.item() == pytest.approx(equal_radius(classes), abs=1e-7)
    head.log_radius.fill_(torch.tensor(equal_radius(classes), dtype=torch.float64).log())
    assert isinstance(head.projection, nn.Linear)
    with torch.no_grad():
        lift = head.radius * separation_matrix(classes, torch.float64).T
        softmax.weight.copy_(lift @ head.projection.weight)
        softmax.bias.copy_(lift @ head.projection.bias)
    nets = [nn.Sequential(body, head), nn.Sequential(copy.deepcopy(body), softmax)]
    optimisers = [torch.optim.SGD(n.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01) for n in nets]
    first = None
    for _ in range(50):
        x, labels = torch.randn(16, 3, dtype=torch.float64), torch.randint(classes, (16,))
        logits = [net(x) for net in nets]
        first = logits[0].detach() if first is None else first
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-9, atol=1e-9)
        for out, optimiser in zip(logits, optimisers, strict=True):
            optimiser.zero_grad()
            F.cross_entropy(out, labels).backward()
            optimiser.step()
    with torch.no_grad():
        assert (nets[0](x) - first).abs().max() > 0.1, "nothing was learned, so nothing was compared"


def test_a_regularised_probe_has_one_optimum_under_either_head() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(60, 6, dtype=torch.float64), torch.randint(4, (60,))
    found = []
    for head in (nn.Linear(6, 4).double(), MaximumSeparation(4, 6).double()):
        weights = [value for value in head.parameters() if value.ndim > 1]
        optimiser = torch.optim.LBFGS(
            head.parameters(), max_iter=300, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure(head=head, weights=weights, optimiser=optimiser) -> float:
            optimiser.zero_grad()
            loss = F.cross_entropy(head(x), labels) + 0.01 * weights[0].square().sum()
            loss.backward()
            return loss.item()

        optimiser.step(closure)
        found.append(head(x).log_softmax(-1).detach())
    assert found[0].std() > 0.3
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("c", [0.3, 1.0, 4.0])
def test_prototypes_against_the_twin(c: float) -> None:
    torch.manual_seed(0)
    head = HyperbolicPrototypes(5, 8, c, radius=1.3, scale=3.0, adapt=False).double()
    x = lorentz.exp0(torch.randn(6, 8, dtype=torch.float64), c)
    head.curvature.fill_(c)
    head.corners /= head.corners.norm(dim=-1, keepdim=True)  # were unit to float32's digits
    radius, scale = head.log_radius.exp().item(), head.log_scale.exp().item()
    want = twin.prototype_logits(x, head.corners, radius, scale, c)
    torch.testing.assert_close(head(x), want, rtol=1e-9, atol=1e-9)
    gram = head.corners @ head.corners.T
    off = gram[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full_like(off, -0.25), rtol=0, atol=1e-6)
    points = head.prototypes()
    reach = lorentz.distance(points, torch.zeros_like(points), c)
    torch.testing.assert_close(reach, torch.full_like(reach, radius), rtol=1e-6, atol=1e-6)


def test_prototypes_learn_a_frozen_encoders_classes() -> None:
    torch.manual_seed(0)
    centres = torch.randn(4, 12)
    labels = torch.arange(400) % 4
    points = lorentz.exp0(centres[labels] + 0.4 * torch.randn(400, 12), 1.0)
    head = HyperbolicPrototypes(4, 12)
    before = (head(points[200:]).argmax(-1) == labels[200:]).float().mean()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        F.cross_entropy(head(points[:200]), labels[:200]).backward()
        optimiser.step()
    after = (head(points[200:]).argmax(-1) == labels[200:]).float().mean()
    assert before < 0.7 and after > 0.95
    assert head.log_radius.item() != 0


@pytest.mark.parametrize("project", [True, False])
def test_slopes_have_the_norm_of_the_logits_matrix(project: bool) -> None:
    torch.manual_seed(0)
    head = MaximumSeparation(5, 7 if project else 4, radius=2.3, learnable=True, project=project).double()
    jacobian = torch.autograd.functional.jacobian(head, torch.zeros(head.in_features, dtype=torch.float64))
    torch.testing.assert_close(head.slopes().norm(), jacobian.norm())


@pytest.mark.parametrize("adapt", [True, False])
def test_slopes_of_prototypes_have_the_norm_of_their_derivative_at_the_origin(adapt: bool) -> None:
    head = HyperbolicPrototypes(5, 4, 0.7, scale=3.0, adapt=adapt).double()
    jacobian = torch.autograd.functional.jacobian(head, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(head.slopes().norm(), jacobian.norm(), rtol=1e-6, atol=0)
