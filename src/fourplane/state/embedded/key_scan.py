"""The filter of a table's keys, filled from the table in small steps while the store already works.

Keys that are written meanwhile are added as they come (`add`), so nothing is missed whichever side of the scan they are on. A
small table is read at once; a large one 1,000 rows every few milliseconds, about a second of CPU time a million keys. When
more keys came than the filter was made for, a larger one is filled in the same way while the old one goes on. Past
`keys_max` there is none and every look-up reads.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from fourplane.foundation.errors import FourplaneError
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.key_filter import Key, KeyFilter

ROWS_AT_ONCE = 1_000
PAUSE_S = 0.005
CAPACITY_MIN = 1 << 14
_NEXT = "SELECT partition, sort FROM record WHERE (partition, sort) > (?1, ?2) ORDER BY partition, sort LIMIT ?3"


class KeyScan:
    """What a table of records may hold; `may_hold` is True for everything until the filter is whole."""

    def __init__(self, database: Database, keys_max: int) -> None:
        self._database = database
        self._keys_max = keys_max
        self._whole: KeyFilter | None = None
        self.may_hold: Callable[[Key], bool] = _perhaps  # False: the table has no such key
        self._filling: KeyFilter | None = None
        self._last: Key = (b"", b"")
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.fills = 0  # how often one was begun: what is neither in the table nor added since is unknown to it

    @property
    def count(self) -> int:
        """Keys in the whole filter, 0 while there is none."""
        return self._whole.count if self._whole is not None else 0

    def add(self, keys: list[Key]) -> None:
        """These keys are about to be in the table."""
        whole = self._whole
        if whole is not None and whole.count > whole.capacity and self._filling is None:
            self._fill(whole.capacity * 4)
        for known in (self._whole, self._filling):
            if known is not None:
                known.add(keys)

    def start(self) -> None:
        """Begin to fill the filter."""
        self._fill(CAPACITY_MIN)

    def stop(self) -> None:
        """Read nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _fill(self, capacity: int) -> None:
        if capacity > self._keys_max:
            self._whole = self._filling = None
            self.may_hold = _perhaps
            return
        self._filling, self._last = KeyFilter(capacity), (b"", b"")
        self.fills += 1
        self._step()

    def _step(self) -> None:
        """Add the next keys of the table."""
        self._timer = None
        filling = self._filling
        if self._stopped or filling is None:
            return
        try:
            rows = cast("list[Key]", self._database.read(_NEXT, (*self._last, ROWS_AT_ONCE)))
        except FourplaneError:  # told to whoever reads that page; without a filter everything is looked up
            self._filling = None
            return
        filling.add(rows)
        if filling.count > filling.capacity:
            self._fill(filling.capacity * 4)
        elif len(rows) == ROWS_AT_ONCE:
            self._last = rows[-1]
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._step)
        else:
            self._whole, self._filling = filling, None
            self.may_hold = filling.may_hold


def _perhaps(_key: Key) -> bool:
    """What is known while there is no filter."""
    return True
