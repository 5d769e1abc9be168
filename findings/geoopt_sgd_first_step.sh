#!/usr/bin/env bash
# Package: geoopt 0.5.1 (with torch 2.13.0)
#
# RiemannianSGD with momentum multiplies the first gradient as well: its buffer starts as a copy of the gradient
# and is then multiplied by the momentum and given the gradient again, so that the first step is
# (1 + momentum - dampening) times as long as torch.optim.SGD's, and every later step is longer too. On a plain
# Euclidean parameter, where the two should be one rule, momentum 0.9 makes the first step 1.9 times as long.
#
# Who it hurts: comparisons of "hyperbolic against Euclidean" with one learning rate, and ports of a recipe from
# torch to geoopt; the first step is where large gradients push points towards the border of the ball.
#
# Seen (parameter 1.0, gradient 1.0 each step, lr 0.1, momentum 0.9):
#   step 1: geoopt 0.8100, torch 0.9000
#   step 2: geoopt 0.5390, torch 0.7100
#   step 3: geoopt 0.1951, torch 0.4390
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile geoopt==0.5.1 torch==2.13.0

"$work/venv/bin/python" - <<'PY'
import geoopt
import torch


def walk(optimizer, steps=3):
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    rule = optimizer([parameter], lr=0.1, momentum=0.9)
    seen = []
    for _ in range(steps):
        parameter.grad = torch.ones(1)
        rule.step()
        seen.append(parameter.item())
    return seen


riemannian = walk(geoopt.optim.RiemannianSGD)
euclidean = walk(torch.optim.SGD)
for step, (one, other) in enumerate(zip(riemannian, euclidean), 1):
    print(f"step {step}: geoopt {one:.4f}, torch {other:.4f}")
assert abs((1 - euclidean[0]) - 0.10) < 1e-6
assert abs((1 - riemannian[0]) - 0.19) < 1e-6
assert all(one < other for one, other in zip(riemannian, euclidean))
PY
