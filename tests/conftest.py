"""What holds for every test: no network, no telemetry, and the same examples on every machine."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from hypothesis import settings

import tests.typed  # noqa: F401  # the checker that pyproject's --jaxtyping-packages names

# The same examples on every machine, so that a change is judged by itself; `--hypothesis-profile=default` explores.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
