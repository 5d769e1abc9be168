#!/usr/bin/env bash
# Package: torch 2.13.0
#
# The first call of any function under torch.compile switches argument validation of torch.distributions off, for the
# whole process and for good: Distribution.set_default_validate_args(False) is set, also for distributions that are
# never compiled. A Normal with a negative scale then raises nothing; its samples are plausible numbers and its
# log_prob is NaN.
#
# Who it hurts: a training or a test run that relies on these errors. Whether a bad parameter is refused depends on
# whether anything was compiled earlier in the process, so a test passes alone and fails in the whole run.
# Remedy: pass validate_args=True, or check parameters yourself.
#
# Seen:
#   before: ValueError
#   after one compiled function: accepted, log_prob nan
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile torch==2.13.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import torch
from torch.distributions import Normal


def attempt() -> str:
    try:
        law = Normal(0.0, -1.0)
    except ValueError:
        return "ValueError"
    return f"accepted, log_prob {law.log_prob(torch.tensor(0.5)).item()}"


before = attempt()
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
after = attempt()
print("before:", before)
print("after one compiled function:", after)
assert before == "ValueError" and after == "accepted, log_prob nan"
PY
