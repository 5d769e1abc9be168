"""HyCoCLIP's loss, forward and backward from embeddings to their gradients, beside two forms in plain torch.

"four matrices": the same loss written as published code computes it, a distance matrix for every cross-entropy
(acosh of the clamped inner product) and the cones by acos and asin. "CLIP + part queries": the four cross-entropies
over cosines, a matrix of logits each, without entailment. "HyCoCLIP's loss": ours, beside the other rows. Time is
processor time; memory is the peak of what is allocated above the inputs, as torch.profiler counts it.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.objective import (
    NODES,
    ObjectiveConfig,
    angle_objective,
    argent_objective,
    clip_objective,
    cones_objective,
    hycoclip_objective,
    loss,
    polar_cones_objective,
    siglip_objective,
    uncha_objective,
)
from tests.perf.plain_model import four_matrices, sum_of
from tests.perf.runner import Case

DIM, SCALE = 512, 14.3
HYCOCLIP, CLIP = hycoclip_objective(), clip_objective(boxes=True)
# UNCHA-lite has four matrices of scores, HyCoCLIP and the others three: its floor is lower than 1 / 1.3.
ROWS = {
    "ARGENT": (argent_objective(), 1.3),
    "angle": (angle_objective(), 1.3),
    "SigLIP": (siglip_objective(), 1.3),
    "UNCHA-lite": (uncha_objective(), 1.45),
    "membership": (cones_objective(), 3.0),
    "polar membership": (polar_cones_objective(), 2.4),
}
FACTORS = 64  # PHyCLIP's, of 8 dimensions


def cases() -> Iterator[Case]:
    """A batch of the paper, and one that is streamed."""
    batch = Batch(768)
    yield Case("loss 768 x 512", "four matrices", "ms", batch.ours, batch.four_matrices, batch.agreement, 1.5)
    yield Case(
        "loss 768 x 512",
        "CLIP + part queries",
        "ms",
        batch.ours,
        batch.cosines,
        lambda: "n/a",
        round(1 / 1.1, 3),
    )
    yield Case(
        "Euclidean loss 768 x 512",
        "CLIP + part queries",
        "ms",
        batch.our_cosines,
        batch.cosines,
        batch.same_cosines,
    )

    for family, (objective, most) in ROWS.items():
        name, step = f"{family} loss 768 x 512", partial(batch.rows, objective)
        yield Case(name, "HyCoCLIP's loss", "ms", step, batch.ours, lambda: "n/a", round(1 / most, 3))

    step, floor = batch.own_alphas, round(1 / 40, 3)
    name = "PHyCLIP, own alphas loss 768 x 512"
    yield Case(name, "HyCoCLIP's loss", "ms", step, batch.ours, lambda: "n/a", floor)

    @cache
    def ours() -> tuple[float, float, float]:
        return peak_and_seconds(Batch(8192).ours)

    @cache
    def theirs() -> tuple[float, float, float]:
        return peak_and_seconds(Batch(8192).four_matrices)

    def agree() -> str:
        off = abs(ours()[2] - theirs()[2]) / theirs()[2]
        assert off < 1e-4, f"losses differ by {off:.1e}"
        return f"{off:.0e}"

    name, peer = "loss 8192 x 512, streamed", "four matrices"
    yield Case(name, peer, "MB", lambda: ours()[0], lambda: theirs()[0], agree, 20.0)
    yield Case(name, peer, "s", lambda: ours()[1], lambda: theirs()[1], agree, round(1 / 1.2, 3))


class Batch:
    """Points about 1 from the origin and unit vectors, one box for each of B samples."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def vectors() -> Tensor:
            return torch.randn(size, DIM, generator=generator) * DIM**-0.5

        self.points = {name: lorentz.exp0(vectors(), 1.0).requires_grad_() for name in NODES}
        self.units = {name: F.normalize(vectors(), dim=-1).requires_grad_() for name in NODES}
        self.tangents = {name: vectors().requires_grad_() for name in NODES}
        # At the start a point is about 1 from the origin in every factor.
        self.alphas = {
            "image": torch.full((FACTORS,), math.log(8.0), requires_grad=True),
            "text": torch.full((FACTORS,), math.log(8.0), requires_grad=True),
            "c": torch.zeros(FACTORS, requires_grad=True),
        }
        self.own = torch.arange(size)
        self.scale, self.c = (torch.tensor(value, requires_grad=True) for value in (SCALE, 1.0))

    def ours(self) -> float:
        return self._step(loss(self.points, self.own, self.scale, self.c, HYCOCLIP)[0])

    def rows(self, objective: ObjectiveConfig) -> float:
        """Another objective on the same points; its named temperature is the scale, its bias 10."""
        scales = dict.fromkeys(objective.temperatures, self.scale)
        bias = self.scale.new_tensor(10.0)
        polar = objective == ROWS["polar membership"][0]
        total, _ = loss(
            self.points, self.own, self.scale, self.c, objective, scales=scales, bias=bias, polar=polar
        )
        return self._step(total)

    def own_alphas(self) -> float:
        """HyCoCLIP's rows in PHyCLIP's product, from before the lift with an alpha per factor and modality."""
        curvature = self.alphas["c"].exp()
        lifted = {}
        for name, tangents in self.tangents.items():
            alphas = self.alphas["text" if name.startswith("text") else "image"].exp()
            scaled = alphas.repeat_interleave(DIM // FACTORS) * tangents
            lifted[name] = product.exp0(scaled, curvature, FACTORS)
        for leaf in (*self.alphas.values(), *self.tangents.values()):
            leaf.grad = None
        return self._step(loss(lifted, self.own, self.scale, curvature, HYCOCLIP, "product")[0])

    def our_cosines(self) -> float:
        return self._step(loss(self.units, self.own, self.scale, self.c, CLIP, "euclid")[0])

    def cosines(self) -> float:
        """CLIP's logits, four times."""

        def entropy(query: str, key: str) -> Tensor:
            return F.cross_entropy(self.scale * self.units[query] @ self.units[key].T, self.own)

        return self._step(sum_of(row.weight * entropy(row.query, row.key) for row in CLIP.contrast))

    def four_matrices(self) -> float:
        """Every matrix of distances for itself."""
        return self._step(four_matrices(self.points, self.own, self.scale, self.c, HYCOCLIP))

    def agreement(self) -> str:
        """Equal losses and gradients of ours and the four matrices."""
        return self._compare(self.ours, self.four_matrices, self.points)

    def same_cosines(self) -> str:
        return self._compare(self.our_cosines, self.cosines, self.units)

    def _compare(
        self, ours: Callable[[], float], theirs: Callable[[], float], nodes: dict[str, Tensor]
    ) -> str:
        found = [(step(), [self._grad(points) for points in nodes.values()]) for step in (ours, theirs)]
        (value, grads), (other, others) = found
        off = [abs(value - other) / abs(other)]
        off += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads, others, strict=True)]
        assert max(off) < 1e-3, f"losses or gradients differ by {max(off):.1e}"
        return f"{max(off):.0e}"

    def _grad(self, points: Tensor) -> Tensor:
        assert points.grad is not None
        return points.grad.clone()

    def _step(self, total: Tensor) -> float:
        for leaf in (*self.points.values(), *self.units.values(), self.scale, self.c):
            leaf.grad = None
        total.backward()
        return float(total.detach())


def peak_and_seconds(step: Callable[[], float]) -> tuple[float, float, float]:
    """Megabytes at the peak of one call, its processor seconds, and what it returned."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        began = time.process_time()
        value = step()
        seconds = time.process_time() - began
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, held)
    return peak / 1e6, seconds, value
