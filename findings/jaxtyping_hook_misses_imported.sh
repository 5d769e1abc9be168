#!/usr/bin/env bash
# Package: jaxtyping 0.3.11 (with beartype 0.23.1, numpy 2.4.6)
#
# install_import_hook checks modules that are imported under it for the first time. A module that something else
# has imported already is taken from sys.modules as it is: its shapes are not checked, and neither the hook nor a
# second import says so. Within one package some modules are then checked and others not.
#
# Who it hurts: a test run or a debug switch that installs the hook after a logging set-up, a conftest or a command
# line module has pulled in part of the package: a [n, 7] array passes where [n, 3] is annotated, all is green.
# Remedy: install the hook first of all (the pytest option does), and test that one wrong shape is refused.
#
# Seen:
#   imported before the hook: a 2 x 7 array passes as Float "n 3", warnings 0
#   imported under the hook:  TypeCheckError
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check jaxtyping==0.3.11 beartype==0.23.1 numpy==2.4.6

mkdir "$work/code" "$work/code/shapes"
touch "$work/code/shapes/__init__.py"
for name in early late; do
    cat > "$work/code/shapes/$name.py" <<'PY'
import numpy as np
from jaxtyping import Float


def rows(points: Float[np.ndarray, "n 3"]) -> int:
    return len(points)
PY
done

cat > "$work/code/main.py" <<'PY'
import warnings

import numpy as np
from jaxtyping import TypeCheckError, install_import_hook

import shapes.early

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with install_import_hook("shapes", "beartype.beartype"):
        import shapes.early
        import shapes.late

wrong = np.zeros((2, 7))
assert shapes.early.rows(wrong) == 2 and not caught
print(f'imported before the hook: a 2 x 7 array passes as Float "n 3", warnings {len(caught)}')
try:
    shapes.late.rows(wrong)
except TypeCheckError:
    print("imported under the hook:  TypeCheckError")
else:
    raise AssertionError("nothing is checked")
PY
"$work/venv/bin/python" "$work/code/main.py"
