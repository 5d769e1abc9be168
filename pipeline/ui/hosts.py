"""Host names that the server answers to; it refuses others, against DNS rebinding.

Without this check any web page could read a home through the reader's browser (DNS rebinding): its own name resolves to
127.0.0.1 after it was loaded, and the browser treats the answers as the page's own.
"""

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::", "")


def own_hosts(host: str = "127.0.0.1", serve_url: str = "", allowed: Iterable[str] = ()) -> frozenset[str]:
    """The names of this server: loopback, the machine's, those of `host` and `serve_url`, and the allowed ones.

    Args:
        host: the address to listen on.
        serve_url: address of the pages for browsers (HYCO_SERVE_URL), for a server behind a proxy.
        allowed: further names, with or without a port.

    Raises:
        ValueError: an invalid allowed name or serve_url.
    """
    machine = socket.gethostname().lower()
    names = {*LOOPBACK, machine, machine.partition(".")[0]} | ({host_of(host)} - {*ANY_ADDRESS, None})
    if serve_url:
        names.add(_named(urlsplit(serve_url).netloc or serve_url, "HYCO_SERVE_URL", serve_url))
    names |= {_named(name, "--allow-host", name) for name in allowed}
    return frozenset(name for name in names if name)


def host_of(netloc: str) -> str | None:
    """The name in "name", "name:port", "[address]:port" or a bare IPv6 address, in lower case; None for another."""
    text = netloc.strip()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        parts = urlsplit(f"//{text}")
        _ = parts.port  # refuses a port that is no number
    except ValueError:
        return None
    plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
    return parts.hostname.rstrip(".") if plain and parts.hostname else None


def _named(netloc: str, option: str, given: str) -> str:
    name = host_of(netloc)
    if name is None:
        raise ValueError(
            f"{option} {given!r} is not a host name: give a name or address, such as pages.example.org"
        )
    return name


class OwnHostsOnly:
    """Answers requests whose Host is one of the names; 421 with the remedy for others."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(given) == 1 and host_of(given[0]) in self.hosts:
            await self.app(scope, receive, send)
            return
        asked = ", ".join(given)[:100] or "no host"
        text = (
            f"This server does not answer to {asked!r}. If that is its name, start it with: "
            "hyco serve --allow-host NAME, or set HYCO_SERVE_URL to its address.\n"
        )
        await PlainTextResponse(text, status_code=421)(scope, receive, send)
