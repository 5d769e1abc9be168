#!/usr/bin/env bash
# Package: hypll 0.1.1 (with torch 2.13.0)
#
# HBatchNorm and HBatchNorm2d keep no running statistics: eval() changes nothing, and in evaluation each batch is
# normalised with its own mean and variance. What a sample is mapped to depends on its neighbours in the batch,
# and a sample by itself is moved to the layer's bias, whatever it was. The state dict shows it: bias, weight and
# the curvature, no buffer.
#
# Who it hurts: serving with batch size 1 (every input gets one embedding), evaluation whose figures change with
# the batch size, and a last short batch.
# Remedy: a batch norm with running statistics for evaluation, or a fixed reference batch.
#
# Seen (eval(), 4 features; the same sample):
#   among 64       [-0.255, -0.281, -0.104, -0.119]
#   among 4        [-0.311, -0.279, -0.12, 0.057]
#   alone          [0.0, 0.0, 0.0, 0.0]
#   another alone  [0.0, 0.0, 0.0, 0.0]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile hypll==0.1.1 torch==2.13.0

"$work/venv/bin/python" - <<'PY'
import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.nn import HBatchNorm
from hypll.tensors import TangentTensor

torch.manual_seed(0)
ball = PoincareBall(Curvature(1.0))
layer = HBatchNorm(features=4, manifold=ball)
vectors = torch.randn(64, 4) * 0.3


def mapped(rows):
    points = ball.expmap(TangentTensor(vectors[rows], man_dim=1, manifold=ball))
    with torch.no_grad():
        return layer(points).tensor


for _ in range(20):
    mapped(slice(None))  # training passes that a running mean would learn from
layer.eval()
print("buffers and parameters:", sorted(layer.state_dict()))
whole, few = mapped(slice(None))[0], mapped(slice(0, 4))[0]
alone, another = mapped(slice(0, 1))[0], mapped(slice(1, 2))[0]
for name, point in (("among 64", whole), ("among 4", few), ("alone", alone), ("another alone", another)):
    print(f"{name:14}", [round(value, 3) for value in point.tolist()])
assert not list(layer.buffers())
assert (whole - few).norm() > 0.05
assert alone.norm() < 1e-3 and another.norm() < 1e-3 < vectors[0].norm()
PY
