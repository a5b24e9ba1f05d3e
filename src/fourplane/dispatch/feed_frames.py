"""The location feed's wire: frames of 8 bytes of header and a payload, little endian.

    magic 0xF4 | type | reserved 2 bytes | payload length 4 bytes

    up    1 hello      a signed token that says for which drivers this connection speaks
          2 positions  records of 16 bytes: driver u4, lat i4, lng i4 (1e-7 degrees), sequence u4 (grows, wraps)
          3 verbs      JSON: one driver verb or a list of them
    down 16 welcome    JSON: the drivers' numbers, the period a driver should report in
         17 news       JSON: an offer, a change of a trip
         18 error      JSON: code and message; after a protocol error the connection ends

A gateway joins the positions of many drivers in one frame: at one record a frame the network costs fifty times the index.
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
