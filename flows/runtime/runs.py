"""Names of flow runs that say what they do, messages of what they did, and failures told in one line.

The messages and names are those of the Prefect UI. A name that a person or `watch` gave to a run is kept.
"""

import logging
import os
import re
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed

# Names that Prefect ("brave-otter") and the forms of its UI ("iota6-uesugi") make up.
_MADE_UP = re.compile(r"[a-z0-9]+-[a-z0-9]+")
NOTHING = "NothingToDo"  # name of the state of a run that found nothing to do; automations.py knows it
MISTAKES = (ValueError, OSError)  # of a user: the text says what to do


def named(what: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a `flow_run_name` for @flow: the name that the run was given, else what `what` makes of its parameters."""

    def name() -> str:
        given = flow_run.get_name() or ""
        return what(flow_run.get_parameters()) if _MADE_UP.fullmatch(given) else given

    return name


def inside(value: Any, *path: str) -> str:
    """Return a value inside a parameter (a configuration or its JSON); of a path the last two steps."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return "/".join(str(value).rstrip("/").split("/")[-2:])


def done(message: str, result: Any, name: str | None = None) -> Any:
    """Return the state that ends a flow run: completed with a message (and a name in place of "Completed")."""
    return Completed(message=message, data=result, name=name)


def rename(name: str) -> None:
    """Rename this flow run; where the server does not answer, the old name stays."""
    if run := flow_run.get_id():
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_name(run, name)  # type: ignore[arg-type]
        except Exception as error:
            logging.getLogger(__name__).warning("the run keeps its name: %s", error)


def in_one_line(record: logging.LogRecord) -> bool:
    """Take the traceback from the log record of a user's mistake, as the command line does; HYCO_DEBUG=1 keeps it."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, MISTAKES) and not os.environ.get("HYCO_DEBUG"):
        record.msg, record.args = "%s: %s (HYCO_DEBUG=1 logs the traceback)", (type(error).__name__, error)
        record.exc_info = record.exc_text = None
        record.mistake = True
    return True


# The loggers of Prefect's engines. Prefect configures them when the first run begins, and keeps their filters.
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(in_one_line)
