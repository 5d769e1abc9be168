"""Backgrounds of the embedded world: pale enough that black outlines stand out on every one of them."""

from __future__ import annotations

import numpy as np

# Pale tints, by the colour word a person would use for them.
TINTS = {
    "red": (243, 190, 184),
    "orange": (250, 212, 170),
    "yellow": (253, 244, 184),
    "green": (206, 231, 190),
    "blue": (190, 221, 243),
    "purple": (219, 205, 236),
    "pink": (250, 213, 224),
    "brown": (222, 201, 176),
    "white": (250, 250, 248),
    "gray": (216, 219, 221),
}
# Phrases for each kind in captions; {} takes the tint's word. An empty tuple would mean "never mentioned".
WORDS = {
    "plain": ("on a {} background", "against a {} wall", "on a plain {} background"),
    "gradient": ("on a {} background", "on a soft {} background"),
    "grass": ("in the grass", "on the grass", "on a green lawn", "in a meadow"),
    "sand": ("on the sand", "on the beach", "on a sandy beach"),
    "snow": ("in the snow", "on the snow"),
    "sea": ("on the water", "on the blue sea"),
    "wood": ("on a wooden table", "on a wooden floor", "on the table"),
    "stripes": ("on a striped background", "against a striped wall"),
    "dots": ("on a dotted background", "on a dotted blanket"),
    "checks": ("on a checkered tablecloth", "on a checkered blanket"),
}
KINDS = tuple(WORDS)


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    return y, x


def _landscape(side: int, rng: np.random.Generator, sky: tuple, ground: tuple, grain: float) -> np.ndarray:
    """A pale sky above a textured ground with a gently rolling horizon."""
    y, x = _grid(side)
    horizon = rng.uniform(0.25, 0.5) + 0.04 * np.sin(x * rng.uniform(3, 8) + rng.uniform(0, 6))
    above = np.array(sky, np.float32) + (y[..., None] / 0.5) * 18
    noise = rng.normal(0, grain, (side, side, 1)).astype(np.float32)
    noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 2, 0)) / 1.7
    below = np.array(ground, np.float32) - (y[..., None] - 0.5) * 20 + noise
    return np.where((y < horizon)[..., None], above, below)


def paint(kind: str, tint: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """Background pixels, uint8 [side, side, 3]."""
    y, x = _grid(side)
    base = np.array(TINTS[tint], np.float32)
    if kind == "plain":
        image = np.broadcast_to(base, (side, side, 3)) + rng.normal(0, rng.uniform(0, 2.5), (side, side, 1))
    elif kind == "gradient":
        turn = rng.uniform(0, 2 * np.pi)
        ramp = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
        image = base + ramp[..., None] * rng.uniform(24, 44)
    elif kind == "grass":
        image = _landscape(side, rng, (186, 221, 243), (158, 205, 112), 9)
    elif kind == "sand":
        image = _landscape(side, rng, (176, 219, 240), (240, 221, 170), 5)
    elif kind == "snow":
        image = _landscape(side, rng, (183, 205, 226), (246, 249, 252), 2)
    elif kind == "sea":
        waves = np.sin(y * rng.uniform(45, 70) + 1.6 * np.sin(x * rng.uniform(9, 16) + rng.uniform(0, 6)))
        image = np.array((150, 203, 232), np.float32) + 11 * waves[..., None]
    elif kind == "wood":
        planks = int(rng.integers(4, 8))
        row = np.floor(y * planks)
        shade = rng.normal(0, 7, planks + 1)[row.astype(int)]
        grain = 4 * np.sin(y * 150 + 3 * np.sin(x * rng.uniform(3, 7) + 2 * row))
        seam = np.where((y * planks) % 1 < 0.05, -34, 0)
        image = np.array((219, 186, 142), np.float32) + (shade + grain + seam)[..., None]
    else:
        other = base + (14 if base.mean() < 225 else -26)
        n = rng.uniform(4, 8)
        turn = rng.uniform(-0.6, 0.6)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        if kind == "stripes":
            mask = (u * n) % 1 < 0.5
        elif kind == "dots":
            mask = ((u * n) % 1 - 0.5) ** 2 + ((v * n) % 1 - 0.5) ** 2 < rng.uniform(0.05, 0.1)
        elif kind == "checks":
            mask = ((u * n) % 1 < 0.5) ^ ((v * n) % 1 < 0.5)
        else:
            raise ValueError(f"unknown backdrop {kind!r}; use one of {', '.join(KINDS)}")
        image = np.where(mask[..., None], base, other)
    return np.clip(image, 0, 255).astype(np.uint8)
