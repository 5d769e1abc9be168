"""Training on several machines: where they meet, and what torchrun has to know of it on each."""

import contextlib
import fcntl
import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass

PORT = 29500  # torchrun's
RESTARTS = 10  # of the training processes of a node, after other nodes were lost
_WAIT_S = 1800  # a job scheduler may start the nodes minutes apart
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Nodes:
    """The nodes of a training, each of which runs the same command with its own rank.

    Attributes:
        count: number of nodes.
        rank: number of this node, from 0; the others meet at node 0.
        rendezvous: HOST:PORT of node 0, as the other nodes reach it; the port may be left out.

    Raises:
        ValueError: no such rank, no rendezvous, or a port that is none.
    """

    count: int
    rank: int
    rendezvous: str

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"--nodes is {self.count}: give 2 or more, or leave it out on one machine")
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"--node-rank is {self.rank}: number the {self.count} nodes from 0 to {self.count - 1}"
            )
        if not self.rendezvous:
            raise ValueError("--nodes needs --rendezvous HOST:PORT: node 0's address, equal on all nodes")
        _ = self.endpoint

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of the rendezvous."""
        host, colon, port = self.rendezvous.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = self.rendezvous, str(PORT)
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"--rendezvous is {self.rendezvous!r}: give HOST:PORT, such as 10.0.0.1:{PORT}")
        return host.strip("[]"), int(port)

    def own_address(self) -> str:
        """Return the address of this node in the network of the rendezvous. Sends nothing, resolves no own name.

        Raises:
            ConnectionError: the host of the rendezvous has no address, or there is no way to it.
            ValueError: it is a loopback address although the host is not named as one.
        """
        host, port = self.endpoint
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)
                own = str(probe.getsockname()[0])
        except OSError as error:
            raise ConnectionError(
                f"no way to --rendezvous {self.rendezvous} ({error}): give an address of node 0 that this node reaches"
            ) from None
        if ipaddress.ip_address(own).is_loopback and not _means_loopback(host):
            raise ValueError(
                f"--rendezvous {host} is {own} on this node, which no other node reaches: give node 0's address in the "
                "network of the nodes"
            )
        return own

    def arguments(self, name: str) -> list[str]:
        """Return torchrun's arguments; `name` is that of the run, equal on all nodes."""
        host, port = self.endpoint
        settings = {"is_host": int(self.rank == 0), "join_timeout": _WAIT_S, "read_timeout": _WAIT_S}
        return [
            f"--nnodes={self.count}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={f'[{host}]' if ':' in host else host}:{port}",
            f"--rdzv-id={name}",
            "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in settings.items()),
            f"--local-addr={self.own_address()}",
            f"--max-restarts={RESTARTS}",
        ]

    def environment(self) -> dict[str, str]:
        """Return the environment of torchrun and the training processes."""
        # torch 2.13: a node 0 that stays announces its store to the first round alone, so a node that comes back waits
        # for it until the read timeout. Without sharing, each round has a store of its own.
        found = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        if interface := _interface(self.own_address()):  # Gloo would search for that of this machine's name
            found["GLOO_SOCKET_IFNAME"] = interface
        return found


def _means_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _interface(address: str) -> str | None:
    """The network interface with an IPv4 address; None where it cannot be found."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                asked = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
