"""Identifiers that sort by time and never repeat.

63 bits: 41 bits of milliseconds since 2025, 10 bits of worker slot, 12 bits of sequence. When the sequence of one
millisecond is used up, or the wall clock went back, the generator goes on behind its last id instead of repeating itself, as a
hybrid logical clock does (Kulkarni and others, 2014): such an id says a later time than it was. A clock that was an hour ahead
and is set right again stops nothing. Outside the process an id is a prefixed base-32 string such as `trip_0c2t9...`
(Crockford's alphabet, sorts like the number), never a JSON number, because JavaScript loses bits past 53.
Cost: 0.3 us a number.
"""

from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected

EPOCH_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
SLOT_MAX = 1 << 10
SEQUENCE_BITS = 12
SLOT_BITS = 10
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {letter: value for value, letter in enumerate(ALPHABET)}
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_DIGITS = 13


class IdGenerator:
    """Ids of one worker slot; make it after the fork, so that no two processes share a slot."""

    __slots__ = ("_last", "_slot")

    def __init__(self, slot: int = 0) -> None:
        if not 0 <= slot < SLOT_MAX:
            raise Rejected(f"worker slot {slot} is outside 0..{SLOT_MAX - 1}")
        self._slot = slot << SEQUENCE_BITS
        self._last = 0

    def next(self) -> int:
        """The next id of this slot, larger than every one before."""
        candidate = (clock.now_us() // 1_000 - EPOCH_MS) << SEQUENCE_BITS
        if candidate <= self._last:
            candidate = self._last + 1
        self._last = candidate
        tick, sequence = candidate >> SEQUENCE_BITS, candidate & ((1 << SEQUENCE_BITS) - 1)
        return (tick << (SLOT_BITS + SEQUENCE_BITS)) | self._slot | sequence

    def text(self, prefix: str) -> str:
        """The next id as people and clients see it."""
        return encode(prefix, self.next())


def encode(prefix: str, number: int) -> str:
    """`trip` and a number as `trip_` and 13 letters that sort like the number."""
    pairs = _PAIRS
    return (
        f"{prefix}_{ALPHABET[(number >> 60) & 31]}{pairs[(number >> 50) & 1023]}{pairs[(number >> 40) & 1023]}"
        f"{pairs[(number >> 30) & 1023]}{pairs[(number >> 20) & 1023]}{pairs[(number >> 10) & 1023]}{pairs[number & 1023]}"
    )


def decode(prefix: str, text: str) -> int:
    """The number inside a prefixed id; raises Rejected when it is not one of `prefix`."""
    head, _, letters = text.partition("_")
    if head != prefix or len(letters) != _DIGITS:
        raise Rejected(f"not a {prefix} id: {text[:40]!r}", code="bad_id")
    number = 0
    for letter in letters:
        value = _VALUES.get(letter)
        if value is None:
            raise Rejected(f"not a {prefix} id: {text[:40]!r}", code="bad_id")
        number = number << 5 | value
    return number


def created_us(number: int) -> int:
    """When an id was made, in UTC microseconds, to the millisecond."""
    return ((number >> (SLOT_BITS + SEQUENCE_BITS)) + EPOCH_MS) * 1_000


def capability(length: int = 16) -> str:
    """A random 128-bit word that grants something to whoever knows it."""
    return clock.token_bytes(length).hex()
