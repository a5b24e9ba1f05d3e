"""What was found out lately and need not be found out again: a table with a bound and an end to each entry.

Checking a signature costs 35 us between other work; a rider's app says the same token again and again, and asks for the ride
whose fare it was told a moment ago. The oldest entries go first, and an entry that is gone is just found out anew.
"""

from typing import Generic, TypeVar

V = TypeVar("V")


class Remembered(Generic[V]):
    """Values by key, each for a while; `now_s` is given, so this is pure."""

    __slots__ = ("_count_max", "_entries")

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._entries: dict[str, tuple[float, V]] = {}

    def put(self, key: str, value: V, until_s: float) -> None:
        """Remember a value until then."""
        if len(self._entries) >= self._count_max:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (until_s, value)

    def find(self, key: str, now_s: float) -> V | None:
        """The value, None when it was never known or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] < now_s:
            del self._entries[key]
            return None
        return entry[1]

    def __len__(self) -> int:
        return len(self._entries)
