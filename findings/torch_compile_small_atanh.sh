#!/usr/bin/env bash
# Package: torch 2.13.0, Inductor on a CPU with AVX2 or AVX-512 (needs g++)
#
# torch.compile loses small numbers: in vectorised float32 code, atanh(x) becomes log((1 + x) / (1 - x)) / 2 and
# expm1(x) becomes exp(x) - 1. Both are 0 below 6e-8 and have two correct digits at 1e-6, where eager torch has seven.
# log1p, asinh, sinh and tanh keep their digits, and so do tensors too short to be vectorised.
#
# Who it hurts: hyperbolic nets. The logarithm at the origin is atanh(u) / u times the point, with u the point's
# distance: compiled, points near the origin (where layers start) are all mapped to the origin itself, and gradients
# vanish. ELU and SELU, which are made of expm1, lose their small negative values as well.
# Instead: log1p(2 u / (1 - u)) / 2, and 2 t / (1 - t) with t = tanh(x / 2).
#
# Seen (x, then eager and compiled):
#   atanh 1e-08: 1.00000e-08 0.00000e+00
#   atanh 1e-06: 1.00000e-06 1.01328e-06
#   expm1 1e-08: 1.00000e-08 0.00000e+00
#   expm1 1e-06: 1.00000e-06 9.53674e-07
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile torch==2.13.0 numpy==2.4.6

TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" - <<'PY'
import torch


def both(x):
    return torch.atanh(x), torch.expm1(x)


x = torch.tensor([1e-8, 1e-6] * 32)
for name, eager, compiled in zip(("atanh", "expm1"), both(x), torch.compile(both)(x)):
    for value, one, other in zip(x[:2].tolist(), eager.tolist(), compiled.tolist()):
        print(f"{name} {value:.0e}: {one:.5e} {other:.5e}")
    assert torch.allclose(eager, x, rtol=1e-6, atol=0)
    assert compiled[0] == 0 and 0.01 < (compiled[1] / x[1] - 1).abs() < 0.1
PY
