#!/usr/bin/env bash
# Package: jaxtyping 0.3.11 (with beartype 0.23.1, numpy 2.4.6, pytest 9.2.0)
#
# The import hook of jaxtyping decorates each method by itself, and beartype knows typing.Self only where it
# decorates the whole class. One "-> Self" anywhere in a hooked package therefore raises while the module is
# imported, whether or not that method has an array in its signature.
#
# Who it hurts: projects that switch shape checking on for a whole package (--jaxtyping-packages=mypackage,...):
# a builder or a "from file" constructor that returns Self stops all tests of the package at collection.
# Remedy: name only the modules that work on arrays, write the class's name in quotes instead of Self, or turn the
# checker off for the method.
#
# Seen:
#   --jaxtyping-packages=withself,beartype.beartype: 1 error, BeartypeDecorHintPep673Exception
#   --jaxtyping-packages=withname,beartype.beartype: 1 passed
#   no option: 2 passed
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check jaxtyping==0.3.11 beartype==0.23.1 numpy==2.4.6 pytest==9.2.0

mkdir "$work/code"
cd "$work/code"
cat > withself.py <<'PY'
from typing import Self


class Box:
    def grown(self) -> Self:
        return self
PY
sed -e '/^from typing/d' -e 's/-> Self/-> "Box"/' withself.py > withname.py
for name in withself withname; do
    cat > "test_$name.py" <<PY
from $name import Box


def test_grown():
    box = Box()
    assert box.grown() is box
PY
done

run() {
    "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$@" > out.txt 2>&1 && status=0 || status=$?
    echo "${*}: exit $status, $(tail -n 1 out.txt)"
}
run test_withself.py test_withname.py
test "$status" = 0
run --jaxtyping-packages=withname,beartype.beartype test_withname.py
test "$status" = 0
run --jaxtyping-packages=withself,beartype.beartype test_withself.py
test "$status" != 0
grep -o -m 1 BeartypeDecorHintPep673Exception out.txt
