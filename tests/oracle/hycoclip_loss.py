"""The losses of the HyCoCLIP family written pair by pair from the equations, in float64, with no safe forms.

Textbook formulas (acosh, acos, asin); at coincident points, where these have no derivative, the values 0 are
constants. Independent of models/: nothing is imported from there.
"""

import math

import torch
from torch import Tensor


def lift(v: Tensor, c: Tensor) -> Tensor:
    u = c.sqrt() * v.norm()
    return torch.sinh(u) * v / u


def minkowski(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y - (1 / c + x @ x).sqrt() * (1 / c + y @ y).sqrt()


def distance(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    if torch.equal(x, y):
        return x.new_zeros(())
    return torch.acosh(-c * minkowski(x, y, c)) / c.sqrt()


def cosine(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm())


def half_aperture(x: Tensor, c: Tensor, k: float) -> Tensor:
    sine = 2 * k / (c.sqrt() * x.norm())
    return torch.asin(sine) if sine < 1 else x.new_tensor(math.pi / 2)


def exterior_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    if torch.equal(x, y):
        return x.new_zeros(())
    p = c * minkowski(x, y, c)
    x_t, y_t = (1 / c + x @ x).sqrt(), (1 / c + y @ y).sqrt()
    return torch.acos((y_t + x_t * p) / (x.norm() * (p**2 - 1).sqrt()))


def cross_entropy(query: list[Tensor], key: list[Tensor], target: list[int], score, scale, c) -> Tensor:
    each = []
    for x, right in zip(query, target, strict=True):
        logits = torch.stack([scale * score(x, y, c) for y in key])
        each.append(torch.logsumexp(logits, 0) - logits[right])
    return torch.stack(each).mean()


def entailment(general: list[Tensor], specific: list[Tensor], eta: float, k: float, c: Tensor) -> Tensor:
    each = [
        torch.relu(exterior_angle(x, y, c) - eta * half_aperture(x, c, k))
        for x, y in zip(general, specific, strict=True)
    ]
    return torch.stack(each).mean()


def rows(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor, apart, held) -> Tensor:
    """HyCoCLIP's loss, hCC + 0.1 hCE, with eta 0.7 between and 1.2 within modalities and K = 0.1.

    `apart` gives the distances of the space, `held` its entailment.
    """

    def negative(x, y, c):
        return -apart(x, y, c)

    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))
    own = list(range(len(i)))
    contrast = (
        cross_entropy(i, t, own, negative, scale, c)
        + cross_entropy(t, i, own, negative, scale, c)
        + cross_entropy(ib, t, owner, negative, scale, c)
        + cross_entropy(tb, i, owner, negative, scale, c)
    ) / 4
    contained = (
        held(t, i, 0.7, 0.1, c)
        + held(tb, ib, 0.7, 0.1, c)
        + held(ib, [i[o] for o in owner], 1.2, 0.1, c)
        + held(tb, [t[o] for o in owner], 1.2, 0.1, c)
    )
    return contrast + 0.1 * contained


def hycoclip(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    return rows(image, text, image_box, text_box, owner, scale, c, distance, entailment)


def meru(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    i, t, own = list(image), list(text), list(range(len(image)))

    def negative(x, y, c):
        return -distance(x, y, c)

    contrast = cross_entropy(i, t, own, negative, scale, c) + cross_entropy(t, i, own, negative, scale, c)
    return contrast / 2 + 0.2 * entailment(t, i, 1.0, 0.1, c)


def clip(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    i, t, own = list(image), list(text), list(range(len(image)))
    both = cross_entropy(i, t, own, cosine, scale, c) + cross_entropy(t, i, own, cosine, scale, c)
    return both / 2


def clip_boxes(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))
    boxes = cross_entropy(ib, t, owner, cosine, scale, c) + cross_entropy(tb, i, owner, cosine, scale, c)
    return clip(image, text, image_box, text_box, owner, scale, c) / 2 + boxes / 4


def factors(x: Tensor, c: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The piece of a point in each factor of a product, with the factor's curvature."""
    return list(zip(x.split(len(x) // len(c)), c, strict=True))


def mean_distance(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    pairs = zip(factors(x, c), factors(y, c), strict=True)
    return torch.stack([distance(a, b, own) for (a, own), (b, _) in pairs]).mean()


def product_entailment(
    general: list[Tensor], specific: list[Tensor], eta: float, k: float, c: Tensor
) -> Tensor:
    """Every factor has its own cone; the mean of their hinges."""
    each = [
        entailment([a], [b], eta, k, own)
        for x, y in zip(general, specific, strict=True)
        for (a, own), (b, _) in zip(factors(x, c), factors(y, c), strict=True)
    ]
    return torch.stack(each).mean()


def phyclip(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    """HyCoCLIP's rows in a product of hyperboloids with curvatures c [k]."""
    return rows(image, text, image_box, text_box, owner, scale, c, mean_distance, product_entailment)
