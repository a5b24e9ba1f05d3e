"""The network seam: free ports, busy ports, sockets for this user alone, files handed to the kernel."""

import asyncio
import os
import socket
import stat

import pytest

from fourplane.foundation import network


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Once(asyncio.Protocol):
    """Resolves with the first bytes that arrive."""

    def __init__(self):
        self.answer = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        if not self.answer.done():
            self.answer.set_result(data)


def test_a_connection_to_a_free_port_echoes():
    async def main():
        server = await network.listen(Echo, "127.0.0.1", 0)
        transport, protocol = await network.connect(Once, "127.0.0.1", network.port_of(server))
        transport.write(b"hello")
        answer = await protocol.answer
        transport.close()
        server.close()
        return answer

    assert asyncio.run(main()) == b"hello"


def test_a_busy_port_is_an_error_and_leaves_no_socket():
    taken = network.bind("127.0.0.1", 0)
    taken.listen()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="in use"):
        network.bind("127.0.0.1", taken.getsockname()[1])
    assert len(os.listdir("/proc/self/fd")) == before
    taken.close()


def test_two_sockets_share_a_port_only_when_both_say_so():
    first = network.bind("127.0.0.1", 0, reuse_port=True)
    port = first.getsockname()[1]
    second = network.bind("127.0.0.1", port, reuse_port=True)
    assert second.getsockname()[1] == port
    first.listen()
    with pytest.raises(OSError):
        network.bind("127.0.0.1", port)
    first.close()
    second.close()


def test_an_inherited_socket_serves():
    async def main():
        inherited = network.bind("127.0.0.1", 0)
        server = await network.listen(Echo, "127.0.0.1", 0, inherited=inherited)
        assert network.port_of(server) == inherited.getsockname()[1]
        server.close()

    asyncio.run(main())


def test_a_unix_socket_is_for_its_owner_alone(tmp_path):
    async def main():
        path = str(tmp_path / "control.sock")
        server = await network.listen_unix(Echo, path)
        mode = stat.S_IMODE(os.stat(path).st_mode)
        server.close()
        return mode

    assert asyncio.run(main()) == 0o600


def test_nobody_there_is_an_error():
    async def main():
        closed = network.bind("127.0.0.1", 0)
        port = closed.getsockname()[1]
        closed.close()
        with pytest.raises(OSError):
            await network.connect(Once, "127.0.0.1", port)

    asyncio.run(main())


def test_a_file_goes_through_the_kernel_from_its_offset(tmp_path):
    (tmp_path / "film").write_bytes(b"0123456789")
    sender, receiver = socket.socketpair()
    with open(tmp_path / "film", "rb") as film, sender, receiver:
        assert network.send_file(sender.fileno(), film.fileno(), 4, 3) == 3
        assert receiver.recv(10) == b"456"
