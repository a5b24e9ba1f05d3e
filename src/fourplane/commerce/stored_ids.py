"""Ids that go on behind what is stored, so that lists sorted by id stay in the order in which things happened.

Ids carry the wall clock, which may be set back while the process is down: a later order would stand behind an earlier one and a
later webhook would leave first. The persisted half of a hybrid logical clock (Kulkarni and others, 2014) is the stored ids
themselves: a start reads the largest (`go_on_behind`), and while the clock is behind it every id is one tick later than the
last, in this worker's slot, so they stay unique among workers. Such an id says a later time than it was; rows have the true one.
"""

from fourplane.foundation.errors import Unavailable
from fourplane.foundation.ids import SEQUENCE_BITS, SLOT_BITS, SLOT_MAX, IdGenerator
from fourplane.state.contracts import Sql

SEQUENCE_MAX = (1 << SEQUENCE_BITS) - 1


class StoredIds(IdGenerator):
    """The ids of `ids`, each larger than all before and than what is stored."""

    __slots__ = ("_behind", "_ids")

    def __init__(self, ids: IdGenerator) -> None:
        super().__init__((ids.next() >> SEQUENCE_BITS) & (SLOT_MAX - 1))
        self._ids = ids
        self._behind = 0

    async def go_on_behind(self, sql: Sql, *columns: tuple[str, str]) -> None:
        """Look for the largest id in these tables' columns, each the beginning of an index."""
        for table, column in columns:
            [[largest]] = await sql.read(f"SELECT MAX({column}) FROM {table}")  # noqa: S608 - names of our own
            assert largest is None or isinstance(largest, int), "an id is a number"
            self._behind = max(self._behind, largest or 0)

    def next(self) -> int:
        """The next id."""
        try:
            found = self._ids.next()
        except Unavailable:
            if not self._behind:
                raise
            found = 0
        if found <= self._behind:
            found = self._one_later()
        self._behind = found
        return found

    def _one_later(self) -> int:
        tick, sequence = self._behind >> (SLOT_BITS + SEQUENCE_BITS), self._behind & SEQUENCE_MAX
        last = tick << (SLOT_BITS + SEQUENCE_BITS) | self._slot | sequence
        if last > self._behind:
            return last
        if sequence < SEQUENCE_MAX:
            sequence += 1
            later = tick << (SLOT_BITS + SEQUENCE_BITS) | self._slot | sequence
            if later > self._behind:
                return later
        return (tick + 1) << (SLOT_BITS + SEQUENCE_BITS) | self._slot
