"""Progress of the flows as a Prefect artifact, and a terminal without tracebacks."""

import logging
import threading
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler

ARTIFACT_EVERY_S = 5.0


def without_traceback(record: logging.LogRecord) -> bool:
    """A filter for the terminal: drops records with a traceback; a line with the error's text follows them."""
    return not record.exc_info


def quiet_terminal() -> None:
    """Keep tracebacks out of the terminal (the Prefect UI has them), so that a mistake is reported in one line."""
    setup_logging()  # Prefect does this at the first flow run; a second call keeps the handlers
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(without_traceback)


class ProgressArtifact:
    """A listener for `pipeline.runtime.progress.Progress` that keeps one Prefect progress artifact up to date.

    Called from any thread; writes at most once every ARTIFACT_EVERY_S seconds, and always at the end. Work continues
    when the server does not answer.
    """

    def __init__(self, key: str, label: str) -> None:
        created = create_progress_artifact(0.0, key=key, description=label)
        assert isinstance(created, UUID)
        self._id, self._label = created, label
        self._lock = threading.Lock()
        self._last = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Take the state of a Progress."""
        with self._lock:
            ended = state["finished"] or state.get(
                "stopped"
            )  # of a training that is another process, no `stopped`
            if not ended and time.monotonic() - self._last < ARTIFACT_EVERY_S:
                return
            self._last = time.monotonic()
            share = (
                100.0
                if state["finished"]
                else 100.0 * state["done"] / max(state["total"] or 0, state["done"], 1)
            )
            text = f"{self._label}: {state['text']}"
            try:
                update_progress_artifact(self._id, progress=share, description=text)
            except Exception as error:
                logging.getLogger(__name__).warning(
                    "%s (the progress artifact cannot be written: %s)", text, error
                )
