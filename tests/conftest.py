"""What holds for every test: no network, no telemetry, an empty cache, and the same examples on every machine."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ["HYCO_CACHE"] = tempfile.mkdtemp(prefix="hyco-cache-")

from hypothesis import settings

import tests.typed  # noqa: F401  # the checker that pyproject's --jaxtyping-packages names

atexit.register(shutil.rmtree, os.environ["HYCO_CACHE"], ignore_errors=True)

# The same examples on every machine, so that a change is judged by itself; `--hypothesis-profile=default` explores.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
