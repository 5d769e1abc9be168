#!/usr/bin/env bash
# Package: prefect 3.8.8 (3.9.1 does the same), on Python 3.11
#
# Prefect configures logging again whenever one of its modules is first imported that does so (prefect.main, the
# server's application). It means to keep the handlers that are there ("incremental"), and does so until any other
# library configures logging in between: logging.config.dictConfig forgets the names of all handlers, the incremental
# configuration fails with "No handler found with name 'console'", and Prefect silently configures everything anew.
# uvicorn.Config() is such a library.
#
# Who it hurts: whoever added a filter, a formatter or a level to Prefect's handlers, such as one that leaves out
# secrets or counts repeated messages: it is gone some seconds after the server has begun, without a word.
# Remedy: uvicorn.Config(..., log_config=None); or a filter on the loggers, or a handler of one's own.
#
# Seen:
#   configured again:                     the handler has 1 filter
#   configured again after uvicorn:       the handler has 0 filters
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile prefect==3.8.8 fastapi==0.150.0

PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 "$work/venv/bin/python" - <<'PY'
import logging

import prefect  # noqa: F401
import uvicorn
from prefect.logging.configuration import setup_logging


def filters():
    (handler,) = logging.getLogger().handlers
    return handler.filters


setup_logging()
filters().append(lambda record: "password" not in record.getMessage())
setup_logging()
kept = len(filters())
uvicorn.Config(app=None)
import prefect.main  # noqa: E402, F401  calls setup_logging, if nothing has imported it before

setup_logging()
left = len(filters())
print(f"configured again:                     the handler has {kept} filter")
print(f"configured again after uvicorn:       the handler has {left} filters")
assert (kept, left) == (1, 0)
PY
