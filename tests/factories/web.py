"""A web server with listings and byte ranges, and the few pages of the Hugging Face hub that HfFileSystem asks for."""

import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

REPO = "datasets/owner/name"


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()


class _Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        root = Path(self.directory)
        if found := re.match(rf"/api/{REPO}(?:/(tree)/main)?/?([^?]*)", self.path):
            rows = [
                {"path": path.relative_to(root).as_posix(), "size": path.stat().st_size, "oid": _oid(path)}
                | {"type": "file" if path.is_file() else "directory"}
                for path in sorted(
                    (root / unquote(found[2])).glob("**/*" if "recursive=true" in self.path.lower() else "*")
                )
            ]
            self._answer(rows if found[1] else {"id": "owner/name", "sha": "0" * 40, "siblings": []})
            return
        self.path = self.path.replace(f"/{REPO}/resolve/main", "")
        place = root / self.path.partition("?")[0].lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if not asked or not place.is_file():
            super().do_GET()
            return
        whole = place.read_bytes()
        start, end = int(asked[1]), min(int(asked[2]), len(whole) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(whole)}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        self.wfile.write(whole[start : end + 1])

    def do_HEAD(self) -> None:
        self.path = self.path.replace(f"/{REPO}/resolve/main", "")
        super().do_HEAD()

    def _answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def web(root: Path) -> Iterator[str]:
    """Serve a folder, and the same folder as the repository REPO of a hub; yields the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Pages, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
