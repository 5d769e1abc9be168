#!/usr/bin/env bash
# Package: hypll 0.1.1 (with torch 2.13.0)
#
# HAvgPool2d of a picture whose points are all one point is another point, nearer to the origin. The layer takes
# its windows with the manifold's unfold, which is made for convolutions: it scales the tangent vectors for the
# longer dimension that a window laid end to end would have, so the pool averages scaled points. The larger the
# window, the nearer to the origin; global pooling (a window as large as the picture) is the worst, while
# manifold.midpoint and manifold.frechet_mean of the same points are right.
#
# Who it hurts: the usual head of a hyperbolic ResNet. Norms, which are read as how general a concept is, depend
# on the picture's size, and a classifier trained behind the pool meets other norms at another resolution.
# Remedy: manifold.midpoint over the two spatial dimensions.
#
# Seen (16 channels, 8 x 8 equal points):
#   every point: norm 0.4516
#   manifold.midpoint: norm 0.4516
#   manifold.frechet_mean: norm 0.4516
#   HAvgPool2d(use_midpoint=False) of 1, 2, 4, 8 square: 0.4516, 0.2237, 0.1116, 0.0558
#   HAvgPool2d(use_midpoint=True) of 1, 2, 4, 8 square: 0.4516, 0.2237, 0.1116, 0.0558
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile hypll==0.1.1 torch==2.13.0

"$work/venv/bin/python" - <<'PY'
import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.nn import HAvgPool2d
from hypll.tensors import TangentTensor

ball = PoincareBall(Curvature(1.0))
points = ball.expmap(TangentTensor(torch.full((1, 16, 8, 8), 0.125), man_dim=1, manifold=ball))
true = points.tensor[0, :, 0, 0]
print(f"every point: norm {true.norm():.4f}")

for mean in (ball.midpoint, ball.frechet_mean):
    there = mean(points, batch_dim=[2, 3]).tensor[0]
    print(f"manifold.{mean.__name__}: norm {there.norm():.4f}")
    assert torch.allclose(there, true, atol=1e-4)

for midpoint in (False, True):
    norms = []
    for size in (1, 2, 4, 8):
        pool = HAvgPool2d(kernel_size=size, manifold=ball, use_midpoint=midpoint)
        norms.append(pool(points).tensor[0, :, 0, 0].norm().item())
    print(f"HAvgPool2d(use_midpoint={midpoint}) of 1, 2, 4, 8 square:", ", ".join(f"{norm:.4f}" for norm in norms))
    assert abs(norms[0] - true.norm()) < 1e-3
    assert norms[0] > norms[1] > norms[2] > norms[3] and norms[3] < 0.5 * norms[0]
PY
