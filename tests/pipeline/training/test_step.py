"""A step in pieces, with recomputed or compiled blocks, clipped or averaged: the same gradient, and no waiting."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyco.models.clip import DualEncoder
from hyco.models.losses import contrastive, spaces
from hyco.models.losses import objective as objectives
from hyco.models.losses.objective import (
    ObjectiveConfig,
    clip_objective,
    cones_objective,
    hycoclip_objective,
    siglip_objective,
    uncha_objective,
)
from hyco.pipeline.training import strategy
from hyco.pipeline.training.ema import WeightAverage
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.setup import make_optimiser
from hyco.pipeline.training.step import Gradient, Inputs, gradient
from tests.factories.training import tiny_recipe
from tests.perf.runner import saved_megabytes

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = (1, 0, 2, 1, 0, 0, 3, 1, 0, 0)  # parts of ten samples, none in the last piece of four
OWNER = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))


def model_of(recipe: Recipe) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(recipe.model)


def batch(seed: int = 0, parts: bool = True, length: int = 9, counts: tuple[int, ...] = COUNTS) -> Inputs:
    drawn = torch.Generator().manual_seed(seed)

    def pixels(count: int) -> Tensor:
        return torch.randint(0, 256, (count, 16, 16, 3), generator=drawn, dtype=torch.uint8)

    def texts(count: int) -> Tensor:
        tokens = torch.randint(1, 500, (count, length), generator=drawn)
        tokens[:, -1] = 0
        return tokens

    boxes = sum(counts) if parts else 0
    return pixels(len(counts)), texts(len(counts)), pixels(boxes), texts(boxes)


def step(model: DualEncoder, recipe: Recipe, inputs: Inputs, owner: Tensor = OWNER, **options) -> Gradient:
    counts = torch.bincount(owner, minlength=len(inputs[0])).tolist()

    def loss(nodes, scalars):
        return objectives.loss(
            nodes,
            owner[: len(inputs[2])],
            scalars.scale,
            scalars.curvature,
            recipe.objective,
            recipe.model.geometry,
            scales=scalars.scales,
            bias=scalars.bias,
        )

    model.zero_grad(set_to_none=True)
    return gradient(model, model, inputs, counts if len(inputs[2]) else [0] * len(counts), loss, **options)


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def require_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        off = (value - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-12)
        assert off <= most, (name, off)


def recipe_of(objective: ObjectiveConfig | None, geometry: str = "lorentz") -> Recipe:
    recipe = tiny_recipe()
    objective = objective or recipe.objective
    bias = 10.0 if objective.uses_bias else None
    model = dataclasses.replace(
        recipe.model, geometry=geometry, temperatures=objective.temperatures, sigmoid_bias=bias
    )
    return recipe.replace(model=model, objective=objective)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 9])
def test_pieces_give_the_gradient_of_the_whole_batch(micro_batch):
    recipe = recipe_of(None)
    model = model_of(recipe)
    whole = step(model, recipe, batch())
    expected = grads(model)
    made = step(model, recipe, batch(), micro_batch=micro_batch)
    require_close(grads(model), expected)
    assert made.loss == pytest.approx(whole.loss.item(), rel=1e-6) and made.terms.keys() == whole.terms.keys()
    assert all(torch.allclose(made.nodes[n], whole.nodes[n], atol=1e-6) for n in whole.nodes)
    assert made.scalars.curvature == whole.scalars.curvature


@pytest.mark.parametrize(
    ("objective", "geometry", "parts"),
    [
        (clip_objective(), "euclid", False),
        (clip_objective(boxes=True), "euclid", True),
        (uncha_objective(), "lorentz", True),
        (siglip_objective(), "lorentz", True),
    ],
    ids=["clip", "clip boxes", "uncha", "siglip"],
)
def test_pieces_give_the_gradient_of_every_kind_of_scalar(objective, geometry, parts):
    recipe = recipe_of(objective, geometry)
    model = model_of(recipe)
    step(model, recipe, batch(parts=parts))
    expected = grads(model)
    step(model, recipe, batch(parts=parts), micro_batch=4)
    require_close(grads(model), expected)
    assert "log_scale" in expected and ("sigmoid_bias" in expected) == objective.uses_bias


def test_both_passes_of_a_piece_draw_the_same_random_numbers():
    """With dropout the embeddings of the first pass are those of the second, and the generator goes on behind it."""
    recipe = recipe_of(None)
    model = model_of(recipe)

    class Noted(nn.Module):
        def __init__(self, tower: nn.Module) -> None:
            super().__init__()
            self.tower, self.dropout, self.seen = tower, nn.Dropout(0.5), []

        def forward(self, x: Tensor) -> Tensor:
            out = self.dropout(self.tower(x))
            self.seen.append(out.detach().clone())
            return out

    model.textual = Noted(model.textual)  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(3)
    step(model, recipe, batch(), micro_batch=5)
    passes = len(model.textual.seen) // 2
    first, second = model.textual.seen[:passes], model.textual.seen[passes:]
    assert passes >= 2 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][:4] == 0, first[-1][:4] == 0)  # two pieces: other masks
    after = torch.get_rng_state()
    torch.manual_seed(3)
    images, tokens, image_boxes, token_boxes = batch()
    with torch.no_grad():
        for own, parts in ((slice(5), slice(4)), (slice(5, 10), slice(4, 8))):
            model(images[own], tokens[own], image_boxes[parts], token_boxes[parts])
    assert torch.equal(torch.get_rng_state(), after)


def test_half_precision_pieces_reuse_no_cast_of_the_first_pass():
    recipe = recipe_of(None)
    model = model_of(recipe)
    step(model, recipe, batch(), half=torch.bfloat16)
    expected = grads(model)
    step(model, recipe, batch(), half=torch.bfloat16, micro_batch=4)
    require_close(grads(model), expected, most=0.05)


def test_recomputed_activations_give_the_same_gradient_and_keep_less():
    recipe = recipe_of(None)
    recipe = recipe.replace(
        model=dataclasses.replace(
            recipe.model,
            vision=dataclasses.replace(recipe.model.vision, depth=4),
            text=dataclasses.replace(recipe.model.text, depth=4),
        )
    )
    model = model_of(recipe)
    names = list(model.state_dict())
    sizes = []
    for again in (False, True):
        if again:
            strategy.apply(model, checkpoint_activations=True)
        sizes.append(saved_megabytes(lambda: model(*batch())))
        step(model, recipe, batch())
        if not again:
            expected = grads(model)
    assert all(torch.equal(value, expected[name]) for name, value in grads(model).items())
    assert sizes[1] < 0.5 * sizes[0] and list(model.state_dict()) == names


def test_a_long_gradient_is_clipped_before_the_update():
    from hyco.pipeline.training.setup import Setup, update

    recipe = recipe_of(None)
    recipe = recipe.replace(optimiser=recipe.optimiser.replace(clip_norm=1e-3, ema=0.9))
    model = model_of(recipe)
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in average.weights.items()}
    setup = Setup(None, None, model, make_optimiser(model, recipe.optimiser), average, None, None)  # pyright: ignore[reportArgumentType]
    seen = {}
    setup.optimiser.register_step_pre_hook(lambda *_: seen.update(grads(model)))
    step(model, recipe, batch())
    assert torch.stack([g.norm() for g in grads(model).values()]).norm() > 0.1
    update(setup, recipe, 1)
    assert torch.stack([g.norm() for g in seen.values()]).norm() == pytest.approx(1e-3, rel=1e-3)
    # After the first step the decay is at most 2 / 11.
    for name, value in model.named_parameters():
        expected = before[name] * 2 / 11 + value.detach() * 9 / 11
        assert torch.allclose(average.weights[name], expected, atol=1e-7)


def test_the_average_leaves_out_what_is_not_learned():
    model = model_of(recipe_of(None))
    model.visual.requires_grad_(False)
    average = WeightAverage(model, 0.99)
    assert not any(name.startswith("visual.") for name in average.weights) and "log_scale" in average.weights
    other = copy.deepcopy(model)
    average.move_into(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


class Calls(TorchDispatchMode):
    """Counts the operations by which a host reads a device, or copies to it from memory that is not page-locked."""

    WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "masked_select", "_to_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING or (name == "index" and args[1] and args[1][0].dtype == torch.bool):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("pairs_at_once", [1 << 20, 50])
@pytest.mark.parametrize("deferred", [True, False])
def test_a_step_asks_a_gpu_one_question(micro_batch, pairs_at_once, deferred):
    """Whether pairs are so near that float32 has lost their distance; without such pairs nothing else is read.

    A CPU, where asking costs nothing, is asked for every block of scores.
    """
    recipe = recipe_of(None)
    objective = dataclasses.replace(recipe.objective, pairs_at_once=pairs_at_once)
    recipe = recipe.replace(objective=objective)
    model = model_of(recipe)
    model.textual.layout = "padded"  # texts are packed on the host, and copied from page-locked memory
    blocks = Counter[str]()

    block = spaces.Hyperboloids.block

    def counted(self, *args):
        blocks["blocks"] += 1
        return block(self, *args)

    inputs = batch()
    with pytest.MonkeyPatch.context() as patch, Calls() as calls:
        patch.setattr(spaces.Hyperboloids, "block", counted)
        patch.setattr(contrastive, "DEFERRED", {"cpu"} if deferred else set())
        step(model, recipe, inputs, micro_batch=micro_batch)
    assert blocks["blocks"] >= 3
    assert calls.counts == {"_local_scalar_dense": 1 if deferred else blocks["blocks"]}


@pytest.mark.parametrize("objective", [hycoclip_objective(), cones_objective()])
@pytest.mark.parametrize("near", [0, 2, 10])
def test_a_deferred_question_changes_no_result(objective, near):
    """With no, some and only near pairs: losses, terms and gradients are those of asking for every block."""
    drawn = torch.Generator().manual_seed(0)
    names = ("image", "text", "image_box", "text_box")
    points = {name: torch.randn(10, 8, generator=drawn) for name in names}
    points["text"][:near] = points["image"][:near] * (1 + 1e-6)
    points["text_box"][:near] = points["image"][:near]
    results = []
    for asked in ({"cpu"}, set()):
        leaves = {name: value.clone().requires_grad_() for name, value in points.items()}
        c = torch.tensor(0.7, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contrastive, "DEFERRED", asked)
            named = {name: torch.tensor(9.0) for name in objective.temperatures}
            total, terms = objectives.loss(
                leaves,
                torch.arange(10),
                torch.tensor(12.0),
                c,
                objective,
                scales=named,
                bias=torch.tensor(0.0),
            )
            total.backward()
        results.append([total, *terms.values(), c.grad, *(leaf.grad for leaf in leaves.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


COMPILED = """
import copy, json, torch
from torch._dynamo.utils import counters
from hyco.pipeline.training import strategy
from tests.pipeline.training.test_step import batch, grads, model_of, recipe_of, require_close, step

torch.set_num_threads(1)
recipe = recipe_of(None)
model = model_of(recipe)
plain = copy.deepcopy(model)
strategy.apply(model, checkpoint_activations=CHECKPOINTED, compiled=True)
few, many = (1, 0, 2, 1, 0, 0, 3, 1, 0, 2), (2, 1, 2, 1, 0, 1, 3, 1, 1, 1)
graphs = []
for number, (parts, length) in enumerate([(few, 9), (many, 11), ((1,) * 10, 7), ((0,) * 9 + (3,), 15)]):
    owner = torch.repeat_interleave(torch.arange(10), torch.tensor(parts))
    for micro_batch in (0, 4):
        inputs = batch(number, length=length, counts=parts)
        step(plain, recipe, inputs, owner, micro_batch=micro_batch)
        step(model, recipe, inputs, owner, micro_batch=micro_batch)
        require_close(grads(model), grads(plain), most=1e-4)
    graphs.append(counters["stats"]["unique_graphs"])
assert list(model.state_dict()) == list(plain.state_dict())
print(json.dumps(graphs))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_blocks_give_the_same_gradient_and_compile_no_more_after_warm_up(checkpointed):
    """Steps with another number of parts and other lengths of texts, at once and in pieces.

    In a process of its own: the shape checks of the tests are no code for the compiler.
    """
    code = COMPILED.replace("CHECKPOINTED", str(checkpointed))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    graphs = json.loads(done.stdout.splitlines()[-1])
    assert graphs[0] > 0 and graphs[1:] == [graphs[1]] * (len(graphs) - 1), graphs


def test_without_a_compiler_the_remedy_is_named(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def absent(*_):
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(
        ValueError, match=r"needs a C\+\+ compiler: install g\+\+, or set execution.compile=false"
    ):
        strategy.apply(model_of(recipe_of(None)), compiled=True)
