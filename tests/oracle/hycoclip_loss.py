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


def pair_mean(general: list[Tensor], specific: list[Tensor], each) -> Tensor:
    return torch.stack([each(x, y) for x, y in zip(general, specific, strict=True)]).mean()


def huber(t: Tensor) -> Tensor:
    return t**2 / 2 if t <= 1 else t - 0.5


def hycoclip_contrast(i, t, ib, tb, owner, scale, c) -> Tensor:
    own = list(range(len(i)))
    entropies = [(i, t, own), (t, i, own), (ib, t, owner), (tb, i, owner)]
    return sum(cross_entropy(q, k, right, negative_distance, scale, c) for q, k, right in entropies) / 4


def negative_distance(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return -distance(x, y, c)


def negative_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return -exterior_angle(x, y, c)


def hinges(i, t, ib, tb, owner, c) -> Tensor:
    return (
        entailment(t, i, 0.7, 0.1, c)
        + entailment(tb, ib, 0.7, 0.1, c)
        + entailment(ib, [i[o] for o in owner], 1.2, 0.1, c)
        + entailment(tb, [t[o] for o in owner], 1.2, 0.1, c)
    )


def argent(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """ARGENT: half of Huber(phi) between modalities, of Huber((1 - exp(-d)) phi) within, and a tenth of the norms."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))

    def plain(x, y):
        return huber(exterior_angle(x, y, c))

    def adaptive(x, y):
        return huber((1 - torch.exp(-distance(x, y, c))) * exterior_angle(x, y, c))

    angles = pair_mean(t, i, plain) + pair_mean(tb, ib, plain)
    angles = angles + pair_mean(ib, [i[o] for o in owner], adaptive)
    angles = angles + pair_mean(tb, [t[o] for o in owner], adaptive)
    norms = [torch.stack([x @ x - torch.log(x.norm()) for x in points]).mean() for points in (i, t, ib, tb)]
    return hycoclip_contrast(i, t, ib, tb, owner, scale, c) + 0.5 * angles + 0.1 * sum(norms) / 4


def uncha(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """UNCHA-lite: six cross-entropies, parts weighted by exp(-u) over its mean (a constant), boxes with scale `box`."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))
    own, same = list(range(len(i))), list(range(len(ib)))

    def weighted(part, key):
        u = torch.stack([torch.log(1 + torch.exp(-x.norm())) for x in part]).detach()
        weight = torch.exp(-u) / torch.exp(-u).mean()
        each = [
            cross_entropy([x], key, [right], negative_distance, scale, c)
            for x, right in zip(part, owner, strict=True)
        ]
        return (weight * torch.stack(each)).mean()

    wholes = cross_entropy(i, t, own, negative_distance, scale, c)
    wholes = wholes + cross_entropy(t, i, own, negative_distance, scale, c)
    boxes = cross_entropy(ib, tb, same, negative_distance, box, c)
    boxes = boxes + cross_entropy(tb, ib, same, negative_distance, box, c)
    parts = weighted(ib, t) + weighted(tb, i)
    return (wholes + boxes + parts) / 6 + 0.1 * hinges(i, t, ib, tb, owner, c)


def angle(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """Cones against the batch: each general over all specifics and each specific over all generals, scale `box`."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))

    def rejection(general, specific):
        own = list(range(len(general)))

        def turned(y, x, c):
            return negative_angle(x, y, c)

        inside = cross_entropy(general, specific, own, negative_angle, box, c)
        return (inside + cross_entropy(specific, general, own, turned, box, c)) / 2

    own = list(range(len(i)))
    wholes = cross_entropy(i, t, own, negative_distance, scale, c)
    wholes = (wholes + cross_entropy(t, i, own, negative_distance, scale, c)) / 2
    rejections = (rejection(t, i) + rejection(tb, ib)) / 4
    return wholes + rejections + 0.1 * hinges(i, t, ib, tb, owner, c)


def siglip(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """Mean over queries of the binary cross-entropies of all keys, logit bias - scale * distance; three rows."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))

    def sigmoids(query, key, target):
        each = []
        for x, right in zip(query, target, strict=True):
            for place, y in enumerate(key):
                sign = 1 if place == right else -1
                logit = bias - scale * distance(x, y, c)
                each.append(torch.log(1 + torch.exp(-sign * logit)))
        return torch.stack(each).sum() / len(query)

    rows = sigmoids(i, t, list(range(len(i)))) + sigmoids(ib, t, owner) + sigmoids(tb, i, owner)
    return rows / 3 + 0.1 * hinges(i, t, ib, tb, owner, c)


def part_rejection(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """Each box's cone over all whole images, and CLIP's rows with their cosines replaced by distances."""
    i, t, ib = list(image), list(text), list(image_box)
    own = list(range(len(i)))
    wholes = cross_entropy(i, t, own, negative_distance, scale, c)
    wholes = (wholes + cross_entropy(t, i, own, negative_distance, scale, c)) / 2
    return wholes + 0.5 * cross_entropy(ib, i, owner, negative_angle, scale, c)


def member(general, specific, target: list[int], scale, c, eta: float = 1.0, k: float = 0.1) -> Tensor:
    """Half the entropy of the own one inside the cone, and half the mean of those of the others outside it."""
    each = []
    for x, own in zip(general, target, strict=True):
        logits = [scale * (eta * half_aperture(x, c, k) - exterior_angle(x, y, c)) for y in specific]
        outside = [torch.log(1 + torch.exp(z)) for place, z in enumerate(logits) if place != own]
        inside = torch.log(1 + torch.exp(-logits[own]))
        each.append((inside + sum(outside) / max(1, len(outside))) / 2)
    return torch.stack(each).mean()


def cones(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """Six cross-entropies of distances, and membership of all specifics of the batch in the four cones."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))
    own, same = list(range(len(i))), list(range(len(ib)))
    rows = [(i, t, own), (t, i, own), (ib, t, owner), (tb, i, owner), (ib, tb, same), (tb, ib, same)]
    entropies = sum(cross_entropy(q, k, right, negative_distance, scale, c) for q, k, right in rows) / 6
    inside = member(t, i, own, box, c) + member(tb, ib, same, box, c)
    inside = inside + member(ib, i, owner, box, c) + member(tb, t, owner, box, c)
    return entropies + 0.25 * inside


def floor(points: list[Tensor], radius: float, c: Tensor) -> Tensor:
    """Mean of the squared logarithm of what a radius lacks."""
    return torch.stack([torch.relu(torch.log(radius / (c.sqrt() * x.norm()))) ** 2 for x in points]).mean()


def ceiling(points: list[Tensor], radius: float, c: Tensor) -> Tensor:
    """Mean of the squared logarithm of what a radius exceeds."""
    return torch.stack([torch.relu(torch.log(c.sqrt() * x.norm() / radius)) ** 2 for x in points]).mean()


def polar_cones(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    """Eight cross-entropies of cosines, membership with K by general, and the bands of the four radii."""
    i, t, ib, tb = (list(points) for points in (image, text, image_box, text_box))
    own, same = list(range(len(i))), list(range(len(ib)))
    twice = [(i, t, own), (t, i, own), (tb, i, owner)]
    rows = [(ib, t, owner), (ib, tb, same), (tb, ib, same), (ib, i, owner), (tb, t, owner)]
    entropies = (
        sum(cross_entropy(q, k, right, cosine, scale, c) for q, k, right in (*twice, *twice, *rows)) / 6
    )
    inside = member(t, i, own, box, c, k=0.05) + member(tb, ib, same, box, c, k=0.005)
    inside = inside + member(ib, i, owner, box, c, k=0.05) + member(tb, t, owner, box, c, k=0.005)
    bands = 2 * ceiling(tb, 0.012, c) + floor(t, 0.116, c) + ceiling(ib, 0.12, c) + floor(i, 1.5, c)
    return entropies + inside / 2 + 10 * bands


def pairs(image, text, image_box, text_box, score, scale, c) -> Tensor:
    """CLIP's two cross-entropies, with the parts and phrases as further pairs."""
    left, right = [*image, *image_box], [*text, *text_box]
    own = list(range(len(left)))
    both = cross_entropy(left, right, own, score, scale, c) + cross_entropy(right, left, own, score, scale, c)
    return both / 2


def clip_box_pairs(image, text, image_box, text_box, owner: list[int], scale: Tensor, c: Tensor) -> Tensor:
    return pairs(image, text, image_box, text_box, cosine, scale, c)


def distance_pairs(image, text, image_box, text_box, owner, scale, c, box, bias) -> Tensor:
    return pairs(image, text, image_box, text_box, negative_distance, scale, c)
