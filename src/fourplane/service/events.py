"""The envelope every event travels in: schema number, stable id, time, payload.

The id is given when the event is written beside the state it tells of, and never changes; relays and retries may bring it
twice, consumers drop what they have seen.
"""

import msgspec

from fourplane.foundation.errors import Corrupt

SCHEMA = 1


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One fact. `payload` begins with the schema number of the system that wrote it."""

    schema: int
    id: int
    at_us: int
    payload: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    return _encoder.encode(event)


def decode(content: bytes) -> Event:
    """The event in these bytes; raises Corrupt for anything else."""
    try:
        event = _decoder.decode(content)
    except msgspec.DecodeError as error:
        raise Corrupt(f"not an event: {error}", place=0) from None
    if event.schema != SCHEMA:
        raise Corrupt(f"an event of schema {event.schema}, newer than {SCHEMA}", place=0)
    return event
