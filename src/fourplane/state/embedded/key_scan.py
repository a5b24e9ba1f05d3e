"""What a table of records may hold: filters of its keys, kept beside the runs or filled from the table.

A store that was closed in order, or merged since it was made, has its filters in a file (`levels`) and knows at once. Where there
is none, or a damaged one, the table is read 1,000 rows every few milliseconds while the store already works, a few seconds of
CPU time a million keys; until that is through the answer is `maybe` to everything. Keys that are written
meanwhile are added as they come, so nothing is missed whichever side of the scan they are on.

Filters of a growing table are added to (`KeyFilters`). At `keys_max` the table is read once more, which forgets keys that were
removed; when it really is as large as that there is no filter and every look-up reads.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from fourplane.foundation.errors import FourplaneError
from fourplane.state.embedded.database import Database
from fourplane.state.embedded.key_filter import Codes, Key, KeyFilter, KeyFilters, codes_of

ROWS_AT_ONCE = 1_000
PAUSE_S = 0.005
CAPACITY_MIN = 1 << 14
FULL = 0.75  # of `keys_max`, right after a scan
_ROW_COST_BYTES = 12
_NEXT = (
    "SELECT partition, sort, length(value) FROM record WHERE (partition, sort) > (?1, ?2)"
    " ORDER BY partition, sort LIMIT ?3"
)


class KeyScan:
    """`may_hold` is True for everything until the filters are whole."""

    def __init__(self, database: Database, keys_max: int) -> None:
        self._database = database
        self._keys_max = keys_max
        self.whole: KeyFilters | None = None
        self.may_hold: Callable[[int], bool] = _perhaps  # False: the table has no key with this code
        self._filling: KeyFilters | None = None
        self._last: Key = (b"", b"")
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.begun: Callable[[], None] = lambda: None
        self.fills = 0  # how often one was begun: what is neither in the table nor added since is unknown to it

    @property
    def count(self) -> int:
        """Keys in the whole filters, 0 while there are none."""
        return self.whole.count if self.whole is not None else 0

    def add(self, codes: Codes) -> None:
        """These keys are about to be in the table."""
        for known in (self.whole, self._filling):
            if known is not None:
                known.add(codes)
        if self.whole is not None and self._filling is None:
            if not self.whole.grow(self._keys_max):
                self._fill()
            self._chosen()

    def start(self, known: KeyFilters | None) -> None:
        """Go on with filters that were kept, or begin to fill some."""
        self.whole = known
        if known is None:
            self._fill()
        else:
            self._chosen()

    def stop(self) -> None:
        """Read nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _fill(self) -> None:
        self._filling, self._last = KeyFilters([]), (b"", b"")
        self.fills += 1
        self.begun()
        self._step()

    def _step(self) -> None:
        """Add the next keys of the table."""
        self._timer = None
        filling = self._filling
        if self._stopped or filling is None:
            return
        try:
            rows = cast("list[tuple[bytes, bytes, int]]", self._database.read(_NEXT, (*self._last, ROWS_AT_ONCE)))
        except FourplaneError:  # told to whoever reads that page; without a filter everything is looked up
            self._filling = None
            return
        if not filling.parts:
            filling.parts.append(KeyFilter(min(self._keys_max, self._estimate(rows))))
        filling.add(codes_of([row[:2] for row in rows]))
        most = self._keys_max if self.fills == 1 else self._keys_max * FULL
        if not filling.grow(self._keys_max) or filling.count > most:
            self.whole = self._filling = None
        elif len(rows) == ROWS_AT_ONCE:
            self._last = rows[-1][:2]
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._step)
        else:
            self.whole, self._filling = filling, None
        self._chosen()

    def _estimate(self, rows: list[tuple[bytes, bytes, int]]) -> int:
        """About how many keys the table may come to: half as many again as its file would hold of such rows."""
        if len(rows) < ROWS_AT_ONCE:
            return CAPACITY_MIN
        size = sum(len(partition) + len(sort) + value + _ROW_COST_BYTES for partition, sort, value in rows)
        file_bytes = self._database.statistics().file_bytes
        return max(CAPACITY_MIN, 3 * file_bytes * len(rows) // (2 * size))

    def _chosen(self) -> None:
        whole = self.whole
        if whole is None:
            self.may_hold = _perhaps
        else:
            self.may_hold = whole.parts[0].may_hold if len(whole.parts) == 1 else whole.may_hold


def _perhaps(_code: int) -> bool:
    """What is known while there is no filter."""
    return True
