"""Heads on frozen towers: what the rows of an objective do to the cones, in less than a minute per arm.

    python -m hyco.pipeline.experiments.cone_probe RUN --home var/demo

The towers are those of a finished run. Every arm trains a residual layer and a projection for each modality on the
features of 2,000 training images, and is measured on the search's held-out scenes, never on the table's. A probe finds
what an objective prefers; it does not replace a training.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz
from hyco.models.losses import objective as objectives
from hyco.models.losses.rows import (
    BOX_BOX,
    BOX_PAIRS,
    NODES,
    ContrastRow,
    NormRow,
    ObjectiveConfig,
    clip_objective,
    cones_objective,
    hycoclip_objective,
)
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.embedded import Embedded, embed
from hyco.pipeline.evaluation.held_out import of_source, training_samples
from hyco.pipeline.evaluation.metrics.attribution import separation
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.geometry import Cone, geometry_report
from hyco.pipeline.evaluation.metrics.retrieval import both_ways
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.experiments.comparison import NODES as NAMES
from hyco.pipeline.experiments.cone_goal import CONES, PHASES
from hyco.pipeline.experiments.grid import command, write_section
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.training.run_dir import finished
from hyco.storage.home import Home

IMAGES, BATCH, STEPS, RATE, DECAY, RAMP = 2000, 128, 200, 2e-3, 0.1, 50
SIX = tuple(ContrastRow(query=query, key=key, weight=1 / 6) for query, key in (*BOX_PAIRS, *BOX_BOX))


@dataclass(frozen=True)
class Arm:
    """An objective and the start of the scalars.

    Attributes:
        geometry: "euclid" for cosines, "lorentz".
        image_radius, text_radius: radius at the start.
        temperature: of the contrast, at the start.
        polar: direction and radius have heads of their own, and the contrast is on cosines.
    """

    objective: ObjectiveConfig
    geometry: objectives.Geometry = "lorentz"
    image_radius: float = 1.0
    text_radius: float = 1.0
    temperature: float = 0.07
    polar: bool = False


def membership(
    weight: float,
    k: float = 0.1,
    apertures: dict[str, float] | None = None,
    floors: dict[str, float] | None = None,
) -> ObjectiveConfig:
    """`cones_objective` with apertures by general node, and with floors of the radii, of weight 10."""
    base, given = cones_objective(weight, k), apertures or {}
    rows = tuple(replace(row, aperture=given.get(row.general, 0.0)) for row in base.entailment)
    norms = (
        tuple(NormRow(node=n, weight=10.0, radius=floors[n]) for n in NODES if n in floors) if floors else ()
    )
    return replace(base, entailment=rows, norm=norms)


SMALL, WIDE = (
    {"text_box": 0.03, "text": 0.1, "image_box": 0.1},
    {"text_box": 0.05, "text": 0.1, "image_box": 0.1},
)
ARMS = {
    "CLIP + part queries": Arm(clip_objective(boxes=True), "euclid"),
    "the same, boxes against boxes": Arm(ObjectiveConfig(contrast=SIX), "euclid"),
    "HyCoCLIP": Arm(hycoclip_objective()),
    "membership 0.25": Arm(membership(0.25)),
    "membership 0.25, texts start at .25": Arm(membership(0.25), image_radius=1.5, text_radius=0.25),
    "membership 1, K .05, texts start at .15": Arm(membership(1.0, 0.05), image_radius=1.5, text_radius=0.15),
    "membership 0.25, floors .205": Arm(membership(0.25, floors=dict.fromkeys(WIDE, 0.205)), text_radius=0.3),
    "membership 0.5, K .05 of phrases, floors .104 and .207": Arm(
        membership(0.5, apertures=WIDE, floors={"text_box": 0.104, "text": 0.207, "image_box": 0.207}),
        text_radius=0.3,
        temperature=0.04,
    ),
    "membership 1, K .03 of phrases, floors .07 and .23": Arm(
        membership(1.0, apertures=SMALL, floors={"text_box": 0.07, "text": 0.23, "image_box": 0.23}),
        image_radius=0.8,
        text_radius=0.3,
        temperature=0.02,
    ),
    "polar, membership 1": Arm(membership(1.0), image_radius=0.8, text_radius=0.3, polar=True),
    "polar, membership 1, K .03 of phrases, floors .08 and .26": Arm(
        membership(1.0, apertures=SMALL, floors={"text_box": 0.08, "text": 0.26, "image_box": 0.26}),
        image_radius=0.8,
        text_radius=0.2,
        polar=True,
    ),
}


class Heads(nn.Module):
    """Features of frozen towers [N, F] -> points [N, dim] of the arm's space."""

    def __init__(self, arm: Arm, width: int, dim: int) -> None:
        super().__init__()
        self.arm = arm
        sides = ("image", "text")
        self.residual = nn.ModuleDict({side: _small(width, 2 * width, width) for side in sides})
        self.projection = nn.ModuleDict({side: nn.Linear(width, dim, bias=False) for side in sides})
        self.radius = nn.ModuleDict({side: _small(width, width // 2, 1) for side in sides})
        starts = {"image": arm.image_radius, "text": arm.text_radius}
        unit = 1.0 if arm.polar else dim**-0.5
        self.alpha = nn.ParameterDict(
            {s: nn.Parameter(torch.tensor(math.log(starts[s] * unit))) for s in sides}
        )
        self.log_c = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(arm.temperature)))
        self.log_cone = nn.Parameter(torch.tensor(-math.log(0.07)))
        for side in sides:
            nn.init.normal_(self.projection[side].weight, std=width**-0.5)  # pyright: ignore[reportArgumentType]
            last = self.radius[side][-1]  # pyright: ignore[reportIndexIssue]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, side: str) -> Tensor:
        """Points of one side, "image" or "text"."""
        v = self.projection[side](features + self.residual[side](features))
        if self.arm.geometry == "euclid":
            return F.normalize(v, dim=-1)
        if self.arm.polar:
            v = F.normalize(v, dim=-1) * (1.5 * torch.tanh(self.radius[side](features) / 1.5)).exp()
        return lorentz.exp0(self.alpha[side].exp() * v, self.log_c.exp())

    def loss(self, nodes: dict[str, Tensor], owner: Tensor, share: float) -> Tensor:
        """Loss of a batch of points; the contrast of a polar arm is that of their directions."""
        config, cone = self.arm.objective, self.log_cone.exp()
        scales = dict.fromkeys(config.temperatures, cone)
        c, geometry, polar = self.log_c.exp(), self.arm.geometry, self.arm.polar
        return objectives.loss(
            nodes,
            owner,
            self.log_scale.exp(),
            c,
            config,
            geometry,
            entailment_share=share,
            scales=scales,
            polar=polar,
        )[0]

    def place(self, features: Embedded) -> Embedded:
        """The points of all nodes, given their features."""
        return replace(
            features,
            images=self(features.images, "image"),
            crops=self(features.crops, "image"),
            texts=self(features.texts, "text"),
            phrase_points=self(features.phrase_points, "text"),
        )


def _small(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def features_of(embedder: Embedder, scenes: list[Scene]) -> Embedded:
    """The scenes with the features of the towers in place of points."""
    model = embedder.model
    held = model.visual_projection, model.textual_projection, model.lift
    model.visual_projection = model.textual_projection = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    model.lift = lambda projected, log_alpha: projected.float()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch.inference_mode():
            return embed(embedder, scenes)
    finally:
        model.visual_projection, model.textual_projection, model.lift = held


def draw(features: Embedded, heads: Heads, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """A batch: images, a caption of each, and of those with parts a part and a phrase."""
    size = min(BATCH, len(features.images))
    chosen = rng.choice(len(features.images), size, replace=False)
    caption = _one_each(features.captions.image, chosen, rng)
    part = _one_each(features.scene_of_crop, chosen, rng)
    owner = np.flatnonzero(part >= 0)
    phrase = features.phrases.text[_one_each(features.phrases.image, part[owner], rng)]
    nodes = {
        "image": heads(features.images[chosen], "image"),
        "text": heads(features.texts[features.captions.text[caption]], "text"),
        "image_box": heads(features.crops[part[owner]], "image"),
        "text_box": heads(features.phrase_points[phrase], "text"),
    }
    return nodes, torch.from_numpy(owner)


def _one_each(group: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random index with each chosen value of `group`; -1 where there is none."""
    order = rng.permutation(len(group))
    found = np.full(int(max(group.max(initial=0), chosen.max(initial=0))) + 1, -1)
    found[group[order]] = order
    return found[chosen]


def train(arm: Arm, features: Embedded, steps: int = STEPS, seed: int = 0) -> Heads:
    """Heads after `steps` of AdamW with a half-cosine; the entailment rises over the first RAMP steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads = Heads(arm, features.images.shape[1], features.images.shape[1])
    weights = [p for p in heads.parameters() if p.dim() > 1]
    others = [p for p in heads.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.98),
    )
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        nodes, owner = draw(features, heads, rng)
        optimiser.zero_grad()
        heads.loss(nodes, owner, min(1.0, step / RAMP)).backward()
        optimiser.step()
        with torch.no_grad():
            for log_scale in (heads.log_scale, heads.log_cone):
                log_scale.clamp_(max=math.log(100))
    return heads


def row(name: str, heads: Heads, held: Embedded) -> list[str]:
    """The figures of an arm on held-out scenes, as a row of the table."""
    with torch.inference_mode():
        placed, c = heads.place(held), heads.log_c.exp().reshape(1)
        euclid = heads.arm.geometry == "euclid"

        def score(a: Tensor, b: Tensor) -> Tensor:
            if heads.arm.polar:
                return objectives.scores("euclid", F.normalize(a, dim=-1), F.normalize(b, dim=-1))
            return objectives.scores(heads.arm.geometry, a, b, c[0])

        found = both_ways(score, placed.images, placed.texts, placed.captions, Bootstrap(100)).numbers
        best = separation(placed.nodes(), placed.pairs(), score, None if euclid else c)
        config = heads.arm.objective
        own = {(r.general, r.specific): (r.eta, r.aperture or None) for r in config.entailment}
        cones = [Cone(*pair, *own.get(pair, (1.0, None))) for pair in placed.pairs()]
        shape = None if euclid else geometry_report(placed.nodes(), placed.pairs(), c, config.aperture, cones)
    cells = [name, *(f"{100 * found[way]['r5']:.0f}" for way in ("image_to_text", "text_to_image"))]
    for cone in CONES:
        inside = shape and shape["satisfied"][cone]
        text = f"{100 * inside['true']:.0f} / {100 * inside['shuffled']:.0f} " if inside else ""
        cells.append(f"{text}[{100 * best[cone]['score']:.0f}]")
    nodes = ("text_box", "image_box", "text")
    cells.append(" / ".join(f"{100 * shape['saturated'][n]:.0f}" for n in nodes) if shape else "-")
    cells.append(" / ".join(f"{shape['radius'][n]['q50']:.2f}" for n in (*nodes, "image")) if shape else "-")
    return cells


def probe(
    run: Path, home: Home, out: Path, arms: tuple[str, ...], say: Callable[[str], object] = print
) -> None:
    """Train and measure the arms, and write their table into `out`.

    Raises FileNotFoundError or ValueError: no finished run, no such arm, no scenes of the search.
    """
    done = finished(run)
    if done is None:
        raise FileNotFoundError(
            f"{run} is not a finished run: train one, for example with "
            "`python -m hyco.pipeline.experiments.cone_goal --phase search`"
        )
    if unknown := sorted(set(arms) - ARMS.keys()):
        raise ValueError(f"unknown arm '{unknown[0]}': use some of {'; '.join(ARMS)}")
    embedder, version = Embedder.load(str(run / "model")), home.versions.load(done["version"])
    samples = islice(training_samples(home.store, version, "train"), IMAGES)
    features = features_of(embedder, [Scene.of_training(sample) for sample in samples])
    heldout = PHASES["search"].heldout
    assert heldout, "the search has images of its own"
    held = features_of(embedder, of_source(str(home.folder / heldout), 500).scenes)
    rows = []
    for number, name in enumerate(arms, 1):
        rows.append(row(name, train(ARMS[name], features), held))
        say(f"cone probe: {number} of {len(arms)}: {', '.join(rows[-1])}")
    head = ("heads on frozen towers", "i > c R@5", "c > i R@5", *(_short(cone) for cone in CONES),
            "saturated: phrase / part / caption", "radius: phrase / part / caption / image")  # fmt: skip
    lines = table(head, rows)
    begin = "<!-- cone probe: written by pipeline.experiments.cone_probe -->"
    text = f"`python -m hyco.pipeline.experiments.cone_probe {run}`: {STEPS} steps of {BATCH}, one seed, in percent."
    write_section(
        out, (begin, "<!-- end of cone probe -->"), text + "\n\n" + "\n".join(lines), "# Cones that hold\n"
    )


def _short(cone: str) -> str:
    return " > ".join(NAMES[node] for node in cone.split(">"))


def main(arguments: list[str] | None = None) -> int:
    """Probe objectives with heads on the frozen towers of a run; writes a table into docs/ablation.md."""
    parser = argparse.ArgumentParser(prog="hyco.pipeline.experiments.cone_probe", description=main.__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--home", default="var/demo", help="home of its dataset version and of the scenes")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="path of the document")
    parser.add_argument("--arms", help=f"separated by semicolons, some of: {'; '.join(ARMS)}")
    given = parser.parse_args(arguments)
    arms = tuple(name.strip() for name in given.arms.split(";")) if given.arms else tuple(ARMS)
    return command(lambda: probe(given.run, Home(given.home), given.out, arms))


if __name__ == "__main__":
    sys.exit(main())
