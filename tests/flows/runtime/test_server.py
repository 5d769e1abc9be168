"""A wrong address, a wrong password: said in one line before any work; other sites may not read a local server."""

import base64
import http.server
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hyco.flows.runtime.server import environment, reach
from hyco.flows.runtime.settings import spare_loopback


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


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine behind a proxy that does not answer, with no exceptions set."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def test_a_server_on_loopback_is_asked_without_the_proxy(
    address: str, proxied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hyco:secret")
    reach(address)
    reach(address.replace("127.0.0.1", "localhost"))
    with httpx.Client(auth=("hyco", "secret")) as client:  # as Prefect asks: what it finds in the environment
        assert client.get(address).status_code == 200
    assert urllib.request.proxy_bypass("127.0.0.1:4200")  # what websockets asks
    with pytest.raises(RuntimeError, match="nothing answers"):
        reach("http://hyco.example.org/api")  # elsewhere the proxy is right


@pytest.mark.parametrize(
    ("known", "kept"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("example.org, localhost", "example.org,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_the_exceptions_of_others_are_kept(known: str, kept: str, proxied: None, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", known)
    spare_loopback()
    spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == kept


def test_a_server_of_our_own_starts_behind_a_proxy(tmp_path: Path, proxied: None) -> None:
    """A process of its own, because Prefect must not be imported yet."""
    script = (
        "import sys; from hyco.flows.runtime.server import ensure_server, reach\n"
        "reach(ensure_server(sys.argv[1]))\n"
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client: print(client.hello().status_code)\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=own, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "200", done.stderr[-2000:]
