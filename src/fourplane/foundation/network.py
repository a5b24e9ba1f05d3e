"""Sockets: one of the four seams to the outside world.

Listening and connecting go through the running event loop, so the simulator's loop answers with its in-memory
network and the same Protocol classes run unchanged. Addresses are explicit: nothing here listens on all interfaces
unless the caller says so.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

BACKLOG = 4_096
PASSED_BYTES_MAX = 128 << 10
PASSED_AT_ONCE = 64
PASSED_SOCKETS_MAX = 253  # the kernel's bound for one message

InheritedSocket = socket.socket
ProtocolFactory = Callable[[], asyncio.BaseProtocol]
P = TypeVar("P", bound=asyncio.BaseProtocol)


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A bound, non-blocking TCP socket that is not listening yet; port 0 takes any free one. Raises OSError when busy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


async def listen(
    factory: ProtocolFactory,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    inherited: socket.socket | None = None,
) -> asyncio.Server:
    """Serve `factory()` per connection on host and port, or on a socket inherited from the parent process."""
    loop = asyncio.get_running_loop()
    if inherited is not None:
        return await loop.create_server(factory, sock=inherited, ssl=tls, backlog=BACKLOG)
    return await loop.create_server(factory, host, port, ssl=tls, backlog=BACKLOG)


def bind_unix(path: str) -> socket.socket:
    """A listening Unix socket that only this user may open; what lay at `path` is replaced.

    It listens at once, so that whoever comes before its server (or while that restarts) waits in its queue.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - a socket's name
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(path)
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def bind_passing(path: str) -> socket.socket:
    """A Unix socket through which other processes of this user pass connections; what lay at `path` is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - a socket's name
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    before = os.umask(0o177)
    try:
        bound.bind(path)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def try_pass(path: str, message: bytes, connection: socket.socket) -> bool:
    """Pass an open connection (SCM_RIGHTS) with up to PASSED_BYTES_MAX bytes to whoever holds `path`; False while it is full.

    Raises OSError where nobody is. The caller's own copy stays open until it is closed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.connect(path)
            socket.send_fds(sender, [message], [connection.fileno()])
        except BlockingIOError:
            return False
    return True


def take_passed(receiver: socket.socket, taken: Callable[[bytes, socket.socket], None]) -> Callable[[], None]:
    """Call `taken(message, connection)` for everything passed to `receiver`; call what is returned to stop."""
    loop = asyncio.get_running_loop()

    def ready() -> None:
        for _ in range(PASSED_AT_ONCE):
            try:
                message, descriptors, _, _ = socket.recv_fds(receiver, PASSED_BYTES_MAX, 1)
            except BlockingIOError:
                return
            if descriptors:
                connection = socket.socket(fileno=descriptors[0])
                connection.setblocking(False)
                taken(message, connection)

    def stop() -> None:
        loop.remove_reader(receiver.fileno())

    loop.add_reader(receiver.fileno(), ready)
    return stop


def pass_sockets(path: str, message: bytes, sockets: Sequence[socket.socket], *, timeout_s: float) -> None:
    """Pass open sockets to the process that waits at `path`; blocks at most `timeout_s`, raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way:
        way.settimeout(timeout_s)
        way.connect(path)
        socket.send_fds(way, [message], [one.fileno() for one in sockets])


def take_sockets(path: str, ask: Callable[[], None], *, timeout_s: float) -> tuple[bytes, list[socket.socket]]:
    """Wait at `path`, ask, and take the sockets that come; blocks at most `timeout_s`, raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - a socket's name
    before = os.umask(0o177)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(path)
            door.listen(1)
            door.settimeout(timeout_s)
            ask()
            way, _ = door.accept()
            with way:
                way.settimeout(timeout_s)
                message, descriptors, _, _ = socket.recv_fds(way, PASSED_BYTES_MAX, PASSED_SOCKETS_MAX)
    finally:
        os.umask(before)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - a socket's name
    return message, [socket.socket(fileno=one) for one in descriptors]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection inside this machine."""
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def duplicate(transport: asyncio.Transport) -> socket.socket:
    """The connection of a transport once more, to be passed on; it stays open when the transport is aborted."""
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


async def adopt(factory: Callable[[], P], connection: socket.socket) -> tuple[asyncio.Transport, P]:
    """Serve a connection that was accepted elsewhere."""
    transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
    return transport, protocol


async def listen_unix(factory: ProtocolFactory, path: str, *, inherited: socket.socket | None = None) -> asyncio.Server:
    """Serve `factory()` on a Unix socket that only this user may open, or on one inherited from the parent process."""
    loop = asyncio.get_running_loop()
    if inherited is not None:
        return await loop.create_unix_server(factory, sock=inherited, backlog=BACKLOG)
    before = os.umask(0o177)
    try:
        return await loop.create_unix_server(factory, path)
    finally:
        os.umask(before)


async def connect(
    factory: Callable[[], P],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> tuple[asyncio.Transport, P]:
    """Open one connection; raises OSError where nobody answers. The caller bounds the time."""
    loop = asyncio.get_running_loop()
    name = (server_name or host) if tls is not None else None
    transport, protocol = await loop.create_connection(factory, host, port, ssl=tls, server_hostname=name)
    return transport, protocol


async def connect_unix(factory: Callable[[], P], path: str) -> tuple[asyncio.Transport, P]:
    """Open one connection to a Unix socket; raises OSError where nobody answers. The caller bounds the time."""
    transport, protocol = await asyncio.get_running_loop().create_unix_connection(factory, path)
    return transport, protocol


def send_file(descriptor: int, file: int, offset: int, count: int) -> int:
    """Hand up to `count` bytes of an open file to a socket in the kernel; returns how many went, raises BlockingIOError."""
    return os.sendfile(descriptor, file, offset, count)


def choose_congestion(server: asyncio.Server, name: str) -> bool:
    """Let connections accepted from now on use a congestion control by name; False where the kernel refuses or has none."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return False
    try:
        for listening in server.sockets:
            listening.setsockopt(socket.IPPROTO_TCP, option, name.encode())
    except OSError:
        return False
    return True


class Cork:
    """Holds back what does not fill a packet, so that a head and a body of many pieces leave in whole packets.

    A socket that sends at once pushes the odd bytes behind every 64 KiB of a file as a packet of their own: a quarter of
    all packets. Does nothing where the kernel cannot; the descriptor stays the transport's, `forget` it before that closes.
    """

    __slots__ = ("_socket",)

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor) if hasattr(socket, "TCP_CORK") else None

    def hold(self) -> None:
        """Send whole packets only. Raises OSError when the connection is gone."""
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def release(self) -> None:
        """Send the rest now. Raises OSError when the connection is gone."""
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def forget(self) -> None:
        """Let go of the descriptor without closing it."""
        if self._socket is not None:
            self._socket.detach()


def port_of(server: asyncio.Server) -> int:
    """The port a server really listens on, for configurations that say 0."""
    return int(server.sockets[0].getsockname()[1])
