"""One batch of events as stored: `u8 schema (1) | u32 count | u32 length of each event | the events`, little-endian."""

import struct
import sys
from array import array
from collections.abc import Sequence

from fourplane.foundation.errors import Corrupt, Rejected, TooLarge
from fourplane.state.contracts import LogEntry

EVENTS_MAX = 10_000
EVENT_BYTES_MAX = 1 << 20
BATCH_BYTES_MAX = 8 << 20
SCHEMA_NUMBER = 1


def encode(values: Sequence[bytes]) -> bytes:
    """One batch as stored; raises Rejected or TooLarge past the bounds."""
    count = len(values)
    if not 0 < count <= EVENTS_MAX:
        raise Rejected(f"a batch has 1 to {EVENTS_MAX} events, not {count}", code="bad_batch")
    lengths = array("I", map(len, values))
    if sys.byteorder == "big":
        lengths.byteswap()
    body = b"".join((struct.pack("<BI", SCHEMA_NUMBER, count), lengths.tobytes(), *values))
    total = len(body) - 5 - 4 * count
    if total > BATCH_BYTES_MAX or (total > EVENT_BYTES_MAX and max(map(len, values)) > EVENT_BYTES_MAX):
        raise TooLarge(f"an event has at most {EVENT_BYTES_MAX} bytes, a batch {BATCH_BYTES_MAX}")
    return body


def take(body: bytes, first: int, offset: int, limit: int, into: list[LogEntry], path: object) -> int:  # noqa: PLR0917 - hot path
    """Add the events of one batch from `offset` on, up to `limit` entries in all; how many bytes they have."""
    schema, count = struct.unpack_from("<BI", body)
    if schema != SCHEMA_NUMBER:
        raise Corrupt(f"{path}: batch {first} has schema {schema}", file=str(path), place=f"offset {first}")
    lengths = struct.unpack_from(f"<{count}I", body, 5)
    skip = max(0, offset - first)
    if skip >= count:
        return 0
    at = 5 + 4 * count + sum(lengths[:skip])
    began = at
    stop = min(count, skip + limit - len(into))
    for index in range(skip, stop):
        end = at + lengths[index]
        into.append(LogEntry(first + index, body[at:end]))
        at = end
    taken: int = at - began
    return taken
