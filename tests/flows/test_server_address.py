"""A wrong address, a wrong password: said in one line before any work; other sites may not read a local server."""

import base64
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from flows.server import environment, reach


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers 200 to hyco:secret and 401 to everybody else."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"hyco:secret").decode()
        self.send_response(200 if self.headers.get("Authorization") == wanted else 401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


def test_the_password_is_sent_and_a_wrong_one_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hyco:secret")
    reach(address)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hyco:wrong")
    with pytest.raises(RuntimeError, match="answers 401: set PREFECT_API_AUTH_STRING"):
        reach(address)


def test_an_address_where_nothing_listens_is_said() -> None:
    with pytest.raises(
        RuntimeError, match=r"nothing answers at http://127.0.0.1:9/api .*is `hyco ui` running"
    ):
        reach("http://127.0.0.1:9/api")


def test_an_address_of_something_that_is_not_http_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            one, _ = listener.accept()
            with one:
                one.recv(4096)
                one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RuntimeError, match=r"nothing answers at http://127.0.0.1.*SSH-2.0"):
            reach(f"http://127.0.0.1:{listener.getsockname()[1]}/api")


def test_only_the_own_pages_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    monkeypatch.delenv(name, raising=False)
    assert environment(4300)[name] == "http://127.0.0.1:4300,http://localhost:4300"
    monkeypatch.setenv(name, "https://hyco.example.org")
    assert environment(4300)[name] == "https://hyco.example.org"
