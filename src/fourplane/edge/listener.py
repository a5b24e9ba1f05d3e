"""The door itself: listening sockets, TLS, and bounds on who may come in.

Owns the sockets of one server, counts connections in total and per address, and stops accepting at 90 % of the
process's descriptors, so that files and stores still open. A connection past a bound is closed at once: a peer that is
told nothing costs nothing. Drain closes the sockets and leaves the connections to the server.
"""

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable

import msgspec

from fourplane.foundation import network

DESCRIPTOR_SHARE = 0.9
UNPACED = "reno"  # every kernel has it, and everybody may choose it


class ListenerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen and how many may come."""

    host: str = "127.0.0.1"
    port: int = 8000
    connections_max: int = 50_000
    per_address_max: int = 2_000
    loopback_unbounded: bool = True  # load drivers and proxies on this machine share one address


def is_loopback(host: str) -> bool:
    """Whether an address leads nowhere but to this machine."""
    return host.startswith("127.") or host in ("::1", "localhost")


class Bounds:
    """How many connections are open, in all and per address."""

    __slots__ = ("_limit", "_per_address", "_settings", "open", "refused")

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        descriptors = int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * DESCRIPTOR_SHARE)
        self._limit = min(settings.connections_max, max(16, descriptors))
        self._per_address: dict[str, int] = {}
        self.open = 0
        self.refused = 0

    @property
    def limit(self) -> int:
        """The most connections at one time."""
        return self._limit

    def try_enter(self, address: str) -> bool:
        """Count one connection in; False when a bound is reached."""
        held = self._per_address.get(address, 0)
        free = self._settings.loopback_unbounded and (address.startswith("127.") or address in ("::1", "local"))
        if self.open >= self._limit or (held >= self._settings.per_address_max and not free):
            self.refused += 1
            return False
        self.open += 1
        self._per_address[address] = held + 1
        return True

    def leave(self, address: str) -> None:
        """Count one connection out."""
        self.open -= 1
        held = self._per_address.get(address, 0)
        if held <= 1:
            self._per_address.pop(address, None)
        else:
            self._per_address[address] = held - 1


class Listener:
    """The sockets of one server."""

    def __init__(
        self,
        settings: ListenerSettings,
        *,
        tls: ssl.SSLContext | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        self.settings = settings
        self.tls = tls
        self.bounds = Bounds(settings)
        self._inherited = inherited
        self._server: asyncio.Server | None = None
        self.port = settings.port

    async def open(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accept connections; raises OSError when the port is busy."""
        settings = self.settings
        if self._inherited is not None and self._inherited.family == socket.AF_UNIX:
            self._server = await network.listen_unix(factory, "", inherited=self._inherited)
            return
        self._server = await network.listen(
            factory, settings.host, settings.port, tls=self.tls, inherited=self._inherited
        )
        self.port = network.port_of(self._server)

    def choose_congestion(self, name: str) -> bool:
        """Use a congestion control by name, "" being the system's; False where the kernel refuses.

        "auto" is the system's too, but on an address of this machine one that does not pace: no wire is there to be gentle
        with, and BBR's timers are a third of what sending costs. Not over TLS: the cipher is the cost there, pacing did better.
        """
        if name == "auto":
            name = UNPACED if self.tls is None and is_loopback(self.settings.host) else ""
        return not name or (self._server is not None and network.choose_congestion(self._server, name))

    def close(self) -> None:
        """Accept no more; what is open stays open."""
        if self._server is not None:
            self._server.close()
            self._server = None
