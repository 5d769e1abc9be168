"""The geometry report: radii of the nodes, and whether the entailment cones contain their specifics.

r = sqrt(c)|x| is the radius in units of the curvature; a cone is saturated (it contains a half-space, hence separates
little) where r <= 2K. A pair is satisfied when the exterior angle f(general, specific) is at most eta * w(general), the
condition that training optimises (mathematics.md, section 1, geometry report).

In a product of k hyperboloids every factor has its own radius and its own cone: the radius of a point is then
the mean over its factors, and the fractions of saturated cones and of satisfied pairs count all factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.models.hyperbolic import lorentz, product

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NODES = ("text_box", "image_box", "text", "image")
ORDERS = (("text_box", "text"), ("image_box", "image"), ("text", "image"), ("text_box", "image_box"))


@dataclass(frozen=True, slots=True)
class Cone:
    """One entailment condition: exterior angle at `general` of `specific` at most eta times the aperture.

    `k` is the constant K of its aperture, None for the report's.
    """

    general: str
    specific: str
    eta: float
    k: float | None = None


HYCOCLIP_CONES = (
    Cone("text", "image", 0.7),
    Cone("text_box", "image_box", 0.7),
    Cone("image_box", "image", 1.2),
    Cone("text_box", "text", 1.2),
)


@dataclass(frozen=True, slots=True)
class Points:
    """Distinct points of one node type and their frequency: index holds one entry per occurrence."""

    points: Float[Tensor, "N D"]
    occurrences: Int[np.ndarray, " M"]


def factor_radii(points: Float[Tensor, "N D"], c: float | Float[Tensor, " k"]) -> Float[np.ndarray, "N k"]:
    """sqrt(c)|x| of each point in each factor."""
    return product.radii(points.double(), _vector(c, points)).cpu().numpy()


def radii(points: Float[Tensor, "N D"], c: float | Float[Tensor, " k"]) -> Float[np.ndarray, " N"]:
    """sqrt(c)|x| of each point, the mean over the factors of a product."""
    return factor_radii(points, c).mean(1)


def _vector(c: float | Float[Tensor, " k"], like: Tensor) -> Float[Tensor, " k"]:
    return torch.as_tensor(c, dtype=torch.float64, device=like.device).reshape(-1)


def shuffle(pairs: Int[np.ndarray, "N 2"], seed: int) -> Int[np.ndarray, "M 2"]:
    """The same generals with specifics of other pairs, without true pairs; M <= N."""
    random = np.random.default_rng(seed)
    width = int(pairs[:, 1].max()) + 1
    true = np.unique(pairs[:, 0] * width + pairs[:, 1])
    specific = random.permutation(pairs[:, 1])
    for _ in range(10):
        wrong = np.isin(pairs[:, 0] * width + specific, true)
        if not wrong.any():
            break
        specific[wrong] = random.choice(pairs[:, 1], int(wrong.sum()))
    keep = ~np.isin(pairs[:, 0] * width + specific, true)
    return np.stack([pairs[keep, 0], specific[keep]], axis=1)


def cone_report(
    cone: Cone,
    general: Float[Tensor, "N D"],
    specific: Float[Tensor, "N D"],
    c: float | Float[Tensor, " k"],
    k: float,
) -> dict[str, float]:
    """Fraction satisfied, and the mean exterior angle and half-aperture (degrees) of N aligned pairs."""
    return _cone_figures(cone, general, exterior_angles(general, specific, c), c, k)


def _cone_figures(
    cone: Cone,
    general: Float[Tensor, "N D"],
    angle: Float[Tensor, "N k"],
    c: float | Float[Tensor, " k"],
    k: float,
) -> dict[str, float]:
    c = _vector(c, general)
    general = product.split(general.double(), len(c))
    aperture = lorentz.half_aperture(general, c, k if cone.k is None else cone.k)
    return {
        "satisfied": float((angle <= cone.eta * aperture).double().mean()),
        "angle": float(torch.rad2deg(angle).mean()),
        "aperture": float(torch.rad2deg(aperture).mean()),
    }


def exterior_angles(
    general: Float[Tensor, "N D"], specific: Float[Tensor, "N D"], c: float | Float[Tensor, " k"]
) -> Float[Tensor, "N k"]:
    """Exterior angle of aligned pairs in each factor, in radians, in float64."""
    c = _vector(c, general)
    general, specific = (product.split(x.double(), len(c)) for x in (general, specific))
    return lorentz.exterior_angle(general, specific, c)


def radius_summary(values: Float[np.ndarray, " M"]) -> dict[str, float]:
    """Mean, quantiles and extremes under the keys q05 ... q95, mean, min, max."""
    summary = {f"q{round(100 * q):02d}": float(np.quantile(values, q)) for q in QUANTILES}
    return summary | {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "count": len(values),
    }


def geometry_report(
    nodes: Mapping[str, Points],
    pairs: Mapping[tuple[str, str], Int[np.ndarray, "N 2"]],
    c: float | Float[Tensor, " k"],
    k: float = 0.1,
    cones: Sequence[Cone] = HYCOCLIP_CONES,
    seed: int = 0,
) -> dict:
    """Radius, curvature, saturated and satisfied cones and order of the node types: see the module.

    The curvature of a product is the mean of its factors'; all of them are listed as "curvatures". Node types without
    points are left out. A node type is saturated by the widest of its cones, at radii up to its "edge".

    `pairs` maps (general, specific) to indices of true pairs. "order" holds for each ordered pair of node types whether
    the mean radius of the first is smaller, and in which fraction of true pairs it is. "constant" is the fraction of
    true pairs that a constant threshold on the angle keeps if it lets as many shuffled ones pass as the cones do: where
    it is not below "true", the norm adds nothing to the angle.
    """
    each = {n: factor_radii(points.points, c) for n, points in nodes.items() if len(points.occurrences)}
    edge = {
        name: 2 * max((cone.k or k for cone in cones if cone.general == name), default=k) for name in each
    }
    saturated = {
        name: (values <= edge[name]).mean(1)[nodes[name].occurrences] for name, values in each.items()
    }
    radius = {name: values.mean(1) for name, values in each.items()}
    spread = {name: values[nodes[name].occurrences] for name, values in radius.items()}
    satisfied = {}
    for cone in cones:
        true = pairs.get((cone.general, cone.specific))
        if true is None or not len(true):
            continue
        entry: dict = {"eta": cone.eta, "pairs": len(true)}
        angle: dict[str, Tensor] = {}
        for kind, index in (("true", true), ("shuffled", shuffle(true, seed))):
            if len(index):
                general = nodes[cone.general].points[torch.from_numpy(index[:, 0])]
                specific = nodes[cone.specific].points[torch.from_numpy(index[:, 1])]
                angle[kind] = exterior_angles(general, specific, c)
                report = _cone_figures(cone, general, angle[kind], c, k)
                entry |= {kind: report["satisfied"], f"{kind}_angle": report["angle"]}
                entry.setdefault("aperture", report["aperture"])
        if len(angle) == 2:
            limit = np.quantile(angle["shuffled"].cpu().numpy(), entry["shuffled"])
            entry["constant"] = float((angle["true"] <= limit).double().mean())
        satisfied[f"{cone.general}>{cone.specific}"] = entry
    order = {}
    for first, second in ORDERS:
        if first in spread and second in spread:
            entry = {"holds": bool(spread[first].mean() < spread[second].mean())}
            true = pairs.get((first, second))
            if true is not None and len(true):
                entry["pairs"] = float((radius[first][true[:, 0]] < radius[second][true[:, 1]]).mean())
            order[f"{first}<{second}"] = entry
    curvatures = np.ravel(torch.as_tensor(c).cpu().numpy()).tolist()
    return {
        "curvature": float(np.mean(curvatures)),
        **({"curvatures": curvatures} if len(curvatures) > 1 else {}),
        "k": k,
        "radius": {name: radius_summary(spread[name]) for name in NODES if name in spread},
        "edge": {name: edge[name] for name in NODES if name in edge},
        "saturated": {name: float(saturated[name].mean()) for name in NODES if name in saturated},
        "satisfied": satisfied,
        "order": order,
    }
