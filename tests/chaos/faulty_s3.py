"""moto's S3 server behind a front that misbehaves as real ones do: 409, 500 before or after the effect, cut lines."""

import logging
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

FAULTS = ("conflict", "before", "after", "cut before", "cut after", "cut body")
_ANSWERS = {
    "conflict": ("409 Conflict", "ConditionalRequestConflict"),
    "before": ("500 Internal Server Error", "InternalError"),
    "after": ("500 Internal Server Error", "InternalError"),
    "refused": ("400 Bad Request", "InvalidRequest"),  # no fault that passes: by `script` only
}


class FaultyS3:
    """An S3 server on this machine; `url` is its endpoint, `steady_url` the same server without faults.

    Args:
        rate: fraction of the requests that meet a fault; five times as many of the conditional puts, which are few.
        seed: of the choice of faults.
        conditional: keep If-None-Match; without, every writer wins.
    """

    def __init__(self, rate: float = 0.0, seed: int = 0, conditional: bool = True) -> None:
        self.rate, self.conditional = rate, conditional
        self.met: Counter[str] = Counter()
        self.script: list[
            str | None
        ] = []  # faults of the next requests, None for none, before chance decides
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._moto, self._one = DomainDispatcherApplication(create_backend_app), threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
        self._servers = [make_server("127.0.0.1", 0, app, threaded=True) for app in (self._answer, self._app)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url, self.steady_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._one:  # moto looks for the name and takes it in two steps
            return self._moto(environ, start_response)

    def _fault(self, environ: dict[str, Any]) -> str | None:
        conditional = "HTTP_IF_NONE_MATCH" in environ
        with self._lock:
            if self.script:
                if (fault := self.script.pop(0)) is None:
                    return None
            elif self._random.random() < self.rate * (5 if conditional else 1):
                fault = self._random.choice(FAULTS)
            else:
                return None
            if fault == "conflict" and not conditional:  # S3 has it for conditional requests only
                fault = "before"
            self.met[fault] += 1
            return fault

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not self.conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        fault = self._fault(environ)
        if fault is None:
            return self._app(environ, start_response)
        if fault in ("conflict", "before", "refused", "cut before"):
            _swallow(environ)
        elif fault in ("after", "cut after"):
            b"".join(self._app(environ, lambda *args: None))
        else:
            return self._cut_body(environ, start_response)
        if fault.startswith("cut"):
            _cut(environ)
        status, code = _ANSWERS[fault]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by chance</Message></Error>"
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text.encode()]

    def _cut_body(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        body = b"".join(self._app(environ, start_response))
        yield body[: len(body) // 2]
        _cut(environ)


def _swallow(environ: dict[str, Any]) -> None:
    """Read the request's body, so that the client hears the answer and not a broken pipe."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _cut(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError("cut on purpose")  # the server passes over it in silence
