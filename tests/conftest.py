"""Shapes and types of `models` are checked while the tests run, and cost nothing outside them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from hypothesis import settings
from jaxtyping import install_import_hook

# The same examples on every machine, so that a change is judged by itself; `--hypothesis-profile=default` explores.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# models.hyperbolic is left out: it imports torch and math alone, so it carries no annotations to check.
install_import_hook(["models.clip", "models.losses.objective", "models.encoders"], "beartype.beartype")
