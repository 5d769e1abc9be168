"""docker/Caddyfile in a real Caddy before two small servers: who has no password sees no page."""

import base64
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


class Host(http.server.BaseHTTPRequestHandler):
    """Answers with the Host that it was asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers['Host']}".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Ports of the UI and of the pages behind a Caddy with the file of docker/."""
    if not shutil.which("caddy"):
        pytest.skip("needs Debian's package caddy")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ui, pages, admin = free_port(), free_port(), free_port()
    text = (ROOT / "docker/Caddyfile").read_text()
    for name in ("server:4200", "pages:8300"):
        assert name in text
        text = text.replace(name, f"127.0.0.1:{server.server_port}")
    (tmp_path / "Caddyfile").write_text(f"{{\n\tadmin 127.0.0.1:{admin}\n}}\n{text}")
    hashed = subprocess.run(
        ["caddy", "hash-password", "--plaintext", "secret"], capture_output=True, text=True, check=True
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "HYCO_UI_HOST": f"http://127.0.0.1:{ui}",
        "HYCO_PAGES_HOST": f"http://127.0.0.1:{pages}",
        "HYCO_PAGES_USER": "team",
        "HYCO_PAGES_HASH": hashed.stdout.strip(),
    }
    command = ["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{ui}/", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield ui, pages
    finally:
        running.terminate()
        running.wait(20)
        server.shutdown()


def test_the_pages_ask_for_a_password_and_the_host_is_passed_on(proxy: tuple[int, int]) -> None:
    ui, pages = proxy
    assert urllib.request.urlopen(f"http://127.0.0.1:{ui}/", timeout=30).read() == f"127.0.0.1:{ui}".encode()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{pages}/", timeout=30)
    for password, right in (("wrong", False), ("secret", True)):
        asked = urllib.request.Request(f"http://127.0.0.1:{pages}/")
        asked.add_header("Authorization", "Basic " + base64.b64encode(f"team:{password}".encode()).decode())
        if right:
            assert urllib.request.urlopen(asked, timeout=30).read() == f"127.0.0.1:{pages}".encode()
        else:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(asked, timeout=30)
