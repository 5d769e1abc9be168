"""Progress of a stage as a Prefect artifact, and what of Prefect's log a terminal shows."""

import logging
import threading
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler

from hyco.pipeline.runtime.stop import stopping

ARTIFACT_EVERY_S = 5.0


def for_the_terminal(record: logging.LogRecord) -> bool:
    """Whether a log record is shown: not one of an error, which follows in a line, nor any after Ctrl-C.

    Prefect reports every run that Ctrl-C or SIGTERM ends as an error, and what it still has to send to the server as a
    warning. `hyco` says in one line that it stopped.
    """
    told_later = record.exc_info or getattr(record, "mistake", False)
    return not (told_later or stopping() or record.getMessage().startswith("Still processing items"))


def quiet_terminal(level: int = logging.NOTSET) -> None:
    """Keep tracebacks and the reports of interrupted runs out of the terminal; the Prefect UI shows them.

    Args:
        level: the lowest level that is shown, such as logging.ERROR for `--quiet`.
    """
    setup_logging()  # Prefect does this at the first flow run; the second time it keeps the handlers
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(for_the_terminal)
            handler.setLevel(max(handler.level, level))


class ProgressArtifact:
    """A listener for `hyco.pipeline.runtime.progress.Progress` that updates one Prefect progress artifact.

    May be called from any thread. It writes at most once every ARTIFACT_EVERY_S seconds, and always at the end. When
    the server does not answer, the work continues.
    """

    def __init__(self, key: str, label: str) -> None:
        created = create_progress_artifact(0.0, key=key, description=label)
        assert isinstance(created, UUID)
        self._id, self._label = created, label
        self._lock = threading.Lock()
        self._last = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Write the state of a Progress."""
        with self._lock:
            # A training in another process reports no `stopped`.
            ended = state["finished"] or state.get("stopped")
            if not ended and time.monotonic() - self._last < ARTIFACT_EVERY_S:
                return
            self._last = time.monotonic()
            fraction = state["done"] / max(state["total"] or 0, state["done"], 1)
            percent = 100.0 if state["finished"] else 100.0 * fraction
            text = f"{self._label}: {state['text']}"
            try:
                update_progress_artifact(self._id, progress=percent, description=text)
            except Exception as error:
                logging.getLogger(__name__).warning(
                    "%s (the progress artifact cannot be written: %s)", text, error
                )
