"""Compression where it was allowed (XEP-0138), and how many connections one network address may have."""

import zlib

import pytest
from tests.journeys.messaging.house import PASSWORD
from tests.protocol.messaging.test_client_streams import HEADER, bodies, client, in_virtual_time, settled, wire

from fourplane.foundation import clock
from fourplane.messaging import client_stream
from fourplane.messaging.stream_compression import INFLATED_MAX, StreamCompression
from fourplane.messaging.xml_stream import StreamError
from fourplane.simulator.crowds.messaging_client import XmppClient

COMPRESS = b"<compress xmlns='http://jabber.org/protocol/compress'><method>%s</method></compress>"


class Deflating(XmppClient):
    """A client that asks for compression behind its login."""

    inflater = deflater = None
    seen = 0
    features = b""

    def data_received(self, data):
        self.seen += len(data)
        self.features += b"" if self.inflater else data
        super().data_received(self.inflater.decompress(data) if self.inflater else data)

    def send(self, data):
        if self.deflater:
            data = self.deflater.compress(data) + self.deflater.flush(zlib.Z_SYNC_FLUSH)
        super().send(data)

    async def compress(self, method=b"zlib"):
        self.send(COMPRESS % method)
        answer = await self._expect("")
        if answer.name.endswith(" compressed"):
            self.inflater, self.deflater = zlib.decompressobj(), zlib.compressobj()
            await self._open()
        return answer


async def compressed(here, name):
    one = Deflating(name, PASSWORD)
    await one.connect("127.0.0.1", here.messaging.port)
    await one.authenticate()
    await one.compress()
    one.authenticate = clock.sleep.__get__(0)
    await one.login()
    return one


def test_a_compressed_stream_carries_the_same_in_fewer_bytes():
    async def work(here):
        alice, bob = await client(here, "alice"), await compressed(here, "bob")
        before = bob.seen
        for number in range(50):
            alice.message("bob@localhost", f"the same words as before, {number}")
        bob.message("alice@localhost", "understood")
        await settled(alice, bob, alice)
        assert b"features/compress" in bob.features
        return len(bodies(bob)), bodies(alice), bob.seen - before < 4_000

    assert in_virtual_time(work, compression=6) == (50, ["understood"], True)


def test_compression_is_off_and_other_methods_are_unknown():
    async def asked(here, method):
        one = Deflating("alice", PASSWORD)
        await one.connect("127.0.0.1", here.messaging.port)
        await one.authenticate()
        return (await one.compress(method)).raw, b"features/compress" in one.features

    off = in_virtual_time(lambda here: asked(here, b"zlib"))
    other = in_virtual_time(lambda here: asked(here, b"lzw"), compression=6)
    assert (b"setup-failed" in off[0], off[1]) == (True, False)
    assert (b"unsupported-method" in other[0], other[1]) == (True, True)


def test_a_packet_that_becomes_too_large_or_is_no_zlib_ends_the_stream():
    bomb = zlib.compress(b" " * (INFLATED_MAX * 2))
    with pytest.raises(StreamError, match="becomes too large"):
        list(StreamCompression(6).inflate(bomb))
    with pytest.raises(StreamError, match="is broken"):
        list(StreamCompression(6).inflate(b"<message/>"))
    whole = b"".join(StreamCompression(6).inflate(zlib.compress(b"x" * 200_000)))
    assert len(whole) == 200_000


def test_an_address_has_so_many_connections_until_some_end(monkeypatch):
    monkeypatch.setattr(client_stream, "LOOPBACK", ("::1",))

    async def work(here):
        first, second = [await wire(here, HEADER) for _ in range(2)]
        third = await wire(here, HEADER)
        await clock.sleep(1)
        assert b"policy-violation" in third.got
        assert b"error" not in first.got + second.got
        first.transport.close()
        await clock.sleep(1)
        fourth = await wire(here, HEADER)
        await clock.sleep(1)
        return b"error" in fourth.got, sorted(here.messaging.streams.from_address.values())

    assert in_virtual_time(work, address_connections_max=2) == (False, [2])
