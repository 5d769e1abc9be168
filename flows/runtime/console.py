"""Prefect's console handler, with one line where one of Prefect's observers lost the server.

`hyco worker` names it to Prefect, for itself and for its runs. An observer that loses its websocket, as at every
restart of the server, polls from then on, and logs the traceback twice: when that happens and when it ends.
"""

import copy
import logging

from prefect.logging.handlers import PrefectConsoleHandler


class ConsoleHandler(PrefectConsoleHandler):
    """Prints the records of Prefect's observers without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        super().emit(shortened(record) if record.name.endswith("Observer") else record)


def shortened(record: logging.LogRecord) -> logging.LogRecord:
    """The same record with its error in one line, in place of a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return record
    short = copy.copy(record)
    words = " ".join(str(error).split())
    short.msg = f"{record.getMessage().rstrip()} ({type(error).__name__}{words and f': {words}'})"
    short.args = short.exc_info = short.exc_text = None
    return short
