"""The location feed's wire: frames of 8 bytes of header and a payload, little endian.

    magic 0xF4 | type | reserved 2 bytes | payload length 4 bytes

    up    1 hello      a signed token that says for which drivers this connection speaks
          2 positions  records of 16 bytes: driver u4, lat i4, lng i4 (1e-7 degrees), sequence u4 (grows, wraps)
          3 verbs      JSON: one driver verb or a list of them
    down 16 welcome    JSON: the drivers' numbers, the period a driver should report in; their offers and trips follow as news
         17 news       JSON: an offer, a change of a trip
         18 error      JSON: code and message; after a protocol error the connection ends

A gateway joins the positions of many drivers in one frame. Where many phones send one record a frame through one
connection, `FrameBuffer` joins runs of equal headers again, so that they cost little more.
"""

import struct
from collections.abc import Iterator

import msgspec
import numpy as np

from fourplane.dispatch.driver_index import Updates
from fourplane.dispatch.index_layout import UPDATE
from fourplane.foundation.errors import Rejected, TooLarge

MAGIC = 0xF4
HELLO, POSITIONS, VERBS, WELCOME, NEWS, ERROR = 1, 2, 3, 16, 17, 18
HEADER = struct.Struct("<BBHI")
PAYLOAD_MAX = 256 * 1024
BUFFER_FIRST, BUFFER_MAX = 4 * 1024, 512 * 1024
RUN_MIN = 8  # frames with equal headers worth joining
RUN_PAYLOAD_MAX, RUN_RECORDS_MAX = 1_024, 4_096


class FeedError(msgspec.Struct, frozen=True):
    """What was wrong with something sent."""

    code: str
    message: str
    kind: str = "error"


def frame(kind: int, payload: bytes) -> bytes:
    """One frame; raises TooLarge past the bound."""
    if len(payload) > PAYLOAD_MAX:
        raise TooLarge(f"a frame holds {PAYLOAD_MAX} bytes, not {len(payload)}")
    return HEADER.pack(MAGIC, kind, 0, len(payload)) + payload


def positions_frame(updates: Updates) -> bytes:
    """Positions (dtype UPDATE) as one frame."""
    return frame(POSITIONS, updates.tobytes())


def read_positions(payload: bytes | memoryview) -> Updates:
    """The records of a payload, read where they lie; raises Rejected for a broken length."""
    if len(payload) % UPDATE.itemsize:
        raise Rejected(f"positions come in records of {UPDATE.itemsize} bytes", code="bad_frame")
    return np.frombuffer(payload, UPDATE)


class FrameBuffer:
    """The same for a connection that reads into memory of ours: nothing is copied on the way to the index.

    It begins small and grows with what a read brings, up to `most`; memory is spent on who sends much.
    """

    __slots__ = ("_at", "_bytes", "_filled", "_hungry", "_view", "most")

    def __init__(self) -> None:
        self.most = BUFFER_FIRST
        self._at = self._filled = 0
        self._hungry = False
        self._bytes = bytearray(BUFFER_FIRST)
        self._view = memoryview(self._bytes)

    def free(self) -> memoryview:
        """Where the next bytes may be written; payloads given out before are no longer valid."""
        rest, size = self._filled - self._at, len(self._bytes)
        if (self._hungry and size < self.most) or rest == size:
            self._resize(4 * size)
        elif self._at and (rest == 0 or self._filled > size // 2):
            self._view[:rest] = self._view[self._at : self._filled]
            self._at, self._filled = 0, rest
        return self._view[self._filled :]

    def filled(self, count: int) -> None:
        """So many bytes were written there."""
        self._filled += count
        self._hungry = self._filled == len(self._bytes)

    def take(self) -> tuple[int, memoryview] | None:
        """The next complete frame (or run of small frames of positions), None when more bytes must come."""
        at, end = self._at, self._filled
        if end - at < HEADER.size:
            return None
        magic, kind, _, length = HEADER.unpack_from(self._bytes, at)
        if magic != MAGIC or length > PAYLOAD_MAX:
            raise Rejected("these are not frames of the location feed", code="bad_frame")
        first, last = at + HEADER.size, at + HEADER.size + length
        if last > end:
            if last - at > self.most:
                raise Rejected("a frame of this length may not come before the hello", code="bad_frame")
            if last - at > len(self._bytes):
                self._resize(last - at)
            return None
        if kind == POSITIONS and 0 < length <= RUN_PAYLOAD_MAX and end - at >= RUN_MIN * (last - at):
            return self._run(last - at)
        self._at = last
        return kind, self._view[first:last]

    def _run(self, stride: int) -> tuple[int, memoryview]:
        at, most = self._at, max(1, RUN_RECORDS_MAX * UPDATE.itemsize // stride)
        count = min((self._filled - at) // stride, most)
        same = np.ndarray((count,), "<u8", self._bytes, at, (stride,)) == int.from_bytes(
            self._bytes[at : at + 8], "little"
        )
        run = count if same.all() else int(same.argmin())
        self._at = at + run * stride
        payloads = np.ndarray((run, stride - HEADER.size), np.uint8, self._bytes, at + HEADER.size, (stride, 1))
        return POSITIONS, memoryview(payloads.tobytes())

    def _resize(self, size: int) -> None:
        kept, rest = self._bytes, self._filled - self._at
        self._bytes = bytearray(size)
        self._view = memoryview(self._bytes)
        self._view[:rest] = memoryview(kept)[self._at : self._filled]
        self._at, self._filled = 0, rest


class FrameReader:
    """Cuts a stream of bytes into frames; a broken header raises Rejected, after which the stream is worthless."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """The frames that are complete now: type and payload (valid until the next call)."""
        if self._rest:
            data = self._rest + data
        view, at, end = memoryview(data), 0, len(data)
        while end - at >= HEADER.size:
            magic, kind, _, length = HEADER.unpack_from(data, at)
            if magic != MAGIC or length > PAYLOAD_MAX:
                raise Rejected("these are not frames of the location feed", code="bad_frame")
            if end - at - HEADER.size < length:
                break
            yield kind, view[at + HEADER.size : at + HEADER.size + length]
            at += HEADER.size + length
        self._rest = data[at:]
