#!/usr/bin/env bash
# Package: geoopt 0.5.1 (with torch 2.13.0)
#
# In float32, which is its default, Lorentz.dist(x, x) is not zero, and for a good part of all points it is
# negative: the arcosh is taken of -<x, x>, which rounding leaves on either side of 1, and its argument is not
# clamped from below. The size of the error grows with the distance from the origin.
#
# Who it hurts: a sqrt or log of such distances is NaN, a "nearest neighbour" at a negative distance beats an
# exact hit, and near duplicates cannot be told from neighbours.
# Remedy: 2 arsinh(|x - y| / 2) with the Lorentz norm of the difference, or float64.
#
# Seen (2,000 points, 16 dimensions, curvature -1):
#   spread  0.1: 752 of 2000 negative, from -2.1e-07 to 6.9e-04
#   spread  1.0: 565 of 2000 negative, from -3.8e-06 to 3.9e-03
#   spread 10.0: 614 of 2000 negative, from -4.9e-04 to 3.1e-02
#   the chord instead: 0.0 for all of them
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile geoopt==0.5.1 torch==2.13.0

"$work/venv/bin/python" - <<'PY'
import geoopt
import torch

torch.manual_seed(0)
manifold = geoopt.Lorentz()
for spread in (0.1, 1.0, 10.0):
    space = torch.randn(2000, 16) * spread
    points = manifold.projx(torch.cat([torch.zeros(2000, 1), space], 1))
    own = manifold.dist(points, points)
    negative = int((own < 0).sum())
    print(f"spread {spread:4}: {negative} of 2000 negative, from {own.min():.1e} to {own.max():.1e}")
    assert own.dtype == torch.float32 and negative > 100
    assert own.abs().max() > 1e-4

    gap = points - points
    norm = (gap[:, 1:].square().sum(1) - gap[:, 0].square()).clamp(min=0).sqrt()
    chord = 2 * torch.asinh(norm / 2)
    assert chord.abs().max() == 0
print("the chord instead: 0.0 for all of them")
PY
