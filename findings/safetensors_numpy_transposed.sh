#!/usr/bin/env bash
# Package: safetensors 0.8.0 (with numpy 2.4.6)
#
# safetensors.numpy writes the memory of an array as it lies and the shape as numpy states it. An array that is
# not laid out row by row (a transpose, a strided slice, Fortran order) therefore comes back with the right
# shape and dtype and with its values in other places, without an error. The torch writer of the same package
# refuses such a tensor instead.
#
# Who it hurts: anyone who converts weights in numpy (a linear layer's weight is `kernel.T` between frameworks)
# or stores embeddings that came out of an einsum or a transpose.
# Remedy: np.ascontiguousarray before every save.
#
# Seen:
#   transpose      wrote [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]  read [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   strided slice  wrote [[0.0, 2.0], [3.0, 5.0]]  read [[0.0, 1.0], [2.0, 3.0]]
#   fortran order  wrote [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]  read [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
#   contiguous     wrote [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]  read [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import load, save

rows = np.arange(6, dtype=np.float32).reshape(2, 3)
views = {
    "transpose": rows.T,
    "strided slice": rows[:, ::2],
    "fortran order": np.asfortranarray(rows),
    "contiguous": np.ascontiguousarray(rows.T),
}
for name, array in views.items():
    back = load(save({"w": array}))["w"]
    print(f"{name:14} wrote {array.tolist()}  read {back.tolist()}")
    assert back.shape == array.shape and back.dtype == array.dtype
    assert np.array_equal(back, array) == (name == "contiguous"), name
PY
