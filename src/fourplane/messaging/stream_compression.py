"""A whole stream through zlib (XEP-0138), for clients on links that are paid by the byte; off unless the settings say so.

Both directions keep a dictionary for the life of the stream, which is where the gain comes from (stanzas repeat each other)
and why it is off: whoever can make a client send chosen text beside a secret, and sees the sizes, learns the secret (CRIME).
Windows of 4 KiB keep most of the gain at a tenth of zlib's usual memory. What one packet may become is bounded, so that a
small one cannot fill the memory of the server.
"""

import zlib
from collections.abc import Iterator

from fourplane.messaging.xml_stream import StreamError

PROTOCOL = "http://jabber.org/protocol/compress"
FEATURE = "<compression xmlns='http://jabber.org/features/compress'><method>zlib</method></compression>"
COMPRESS = f"{PROTOCOL} compress"
WINDOW_BITS = 12
MEMORY_LEVEL = 5
PIECE = 64 * 1024
INFLATED_MAX = 4 << 20  # of one packet


class StreamCompression:
    """Both directions of one connection."""

    __slots__ = ("_deflater", "_inflater")

    def __init__(self, level: int) -> None:
        self._deflater = zlib.compressobj(min(level, 9), zlib.DEFLATED, WINDOW_BITS, MEMORY_LEVEL)
        self._inflater = zlib.decompressobj()

    def deflate(self, data: bytes) -> bytes:
        """What leaves, complete up to here."""
        return self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """What came, in pieces; raises StreamError when it is no zlib or becomes too much."""
        inflater, total, more = self._inflater, 0, True
        while data or more:
            try:
                piece = inflater.decompress(data, PIECE)
            except zlib.error as error:
                raise StreamError("undefined-condition", "the compressed stream is broken") from error
            data = inflater.unconsumed_tail
            more = len(piece) == PIECE  # zlib may still hold some of it
            total += len(piece)
            if total > INFLATED_MAX:
                raise StreamError("policy-violation", "a packet becomes too large")
            if not piece:
                return
            yield piece


def wanted_method(raw: bytes) -> bool:
    """Whether `<compress/>` asks for what is offered."""
    return b"<method>zlib</method>" in b"".join(raw.split())
