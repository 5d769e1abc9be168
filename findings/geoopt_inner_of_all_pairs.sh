#!/usr/bin/env bash
# Package: geoopt 0.5.1 (with torch 2.13.0)
#
# PoincareBall.inner(x, u, v) of N points and 2 N tangent vectors returns a matrix [N, N] instead of N numbers: the
# squared conformal factors [N, 1] are broadcast against the products [N]. Its diagonal holds the inner products;
# entry (i, j) has the metric at point i and the vectors of point j. With keepdim=True the result is right, [N, 1].
#
# Who it hurts: a mean, a sum or a norm penalty of inner products in a loss: inner(...).mean() runs, has a gradient
# and is another number. Nothing fails, since both shapes reduce to a scalar.
# Remedy: keepdim=True and squeeze(-1).
#
# Seen (4 points, seed 0):
#   inner(x, u, v)               shape [4, 4], mean 5.11
#   inner(..., keepdim=True)     shape [4, 1], mean 8.65
#   diagonal equals keepdim:     True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile geoopt==0.5.1 torch==2.13.0

"$work/venv/bin/python" - <<'PY'
import geoopt
import torch

torch.manual_seed(0)
ball = geoopt.PoincareBall(c=1.0)
x = ball.expmap0(0.3 * torch.randn(4, 3))
u, v = torch.randn(4, 3), torch.randn(4, 3)
found, right = ball.inner(x, u, v), ball.inner(x, u, v, keepdim=True)
print(f"inner(x, u, v)               shape {list(found.shape)}, mean {found.mean():.2f}")
print(f"inner(..., keepdim=True)     shape {list(right.shape)}, mean {right.mean():.2f}")
equal = torch.allclose(found.diagonal(), right[:, 0])
print(f"diagonal equals keepdim:     {equal}")
assert found.shape == (4, 4) and right.shape == (4, 1) and equal
assert not torch.isclose(found.mean(), right.mean())
PY
