"""A listening socket that a server is given, so that an address is announced only when it is ours."""

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0 takes a free one.

    Raises:
        ValueError: the port is taken or needs other rights, or the address is not this machine's; with the remedy.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is taken: give --port") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} needs the rights of root: give --port 1024 or above") from None
        raise ValueError(f"cannot listen at host {host}: {error.strerror or error}") from None
