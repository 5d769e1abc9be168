"""Prefect's console handler, with one line where one of Prefect's observers lost the server.

`hyco worker` names it to Prefect, for itself and for its runs. An observer that loses its websocket, as at every
restart of the server, polls from then on. It logs the traceback twice, when that happens and when it ends, and then
that its polling was cancelled, as by every end.
"""

import asyncio
import copy
import logging

from prefect.logging.handlers import PrefectConsoleHandler

_OBSERVER = "Observer"  # ends the names of their loggers and classes


class ConsoleHandler(PrefectConsoleHandler):
    """Prints the records of Prefect's observers without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.name.endswith(_OBSERVER):
            record = shortened(record, error)
        elif isinstance(error, asyncio.CancelledError) and f"{_OBSERVER}._handle_" in record.getMessage():
            return
        super().emit(record)


def shortened(record: logging.LogRecord, error: BaseException) -> logging.LogRecord:
    """The same record with its error in one line, in place of a traceback."""
    short = copy.copy(record)
    words = " ".join(str(error).split())
    short.msg = f"{record.getMessage().rstrip()} ({type(error).__name__}{words and f': {words}'})"
    short.args = short.exc_info = short.exc_text = None
    return short
