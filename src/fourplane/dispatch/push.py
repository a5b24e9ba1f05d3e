"""Who wants to hear of a trip or of an offer: names of subjects and the open connections behind them.

A notice is one JSON text; a connection that cannot take it (full, gone) is dropped by its own session. Subjects are
`trip:<number>` and `driver:<number>`; a fleet's gateway listens to all its drivers at once by range.
"""

from collections.abc import Callable

import msgspec

from fourplane.foundation.errors import FourplaneError

Send = Callable[[str], None]


class Push:
    """Subscriptions of this process."""

    def __init__(self) -> None:
        self._trips: dict[int, list[Send]] = {}
        self._drivers: dict[int, list[Send]] = {}
        self._fleets: list[tuple[int, int, Send]] = []
        self.sent = 0
        self.failed = 0

    def watch_trip(self, trip: int, send: Send) -> Callable[[], None]:
        """Hear of a trip until the returned function is called."""
        return _add(self._trips, trip, send)

    def watch_driver(self, driver: int, send: Send) -> Callable[[], None]:
        """Hear of a driver's offers and trips until the returned function is called."""
        return _add(self._drivers, driver, send)

    def watch_fleet(self, first: int, end: int, send: Send) -> Callable[[], None]:
        """The same for drivers first..end - 1."""
        entry = (first, end, send)
        self._fleets.append(entry)
        return lambda: self._fleets.remove(entry) if entry in self._fleets else None

    def trip(self, trip: int, notice: msgspec.Struct) -> None:
        """Tell those who watch a trip."""
        self._tell(self._trips.get(trip, ()), notice)

    def driver(self, driver: int, notice: msgspec.Struct) -> None:
        """Tell a driver's app, or the gateway of its fleet."""
        fleets = [send for first, end, send in self._fleets if first <= driver < end]
        self._tell([*self._drivers.get(driver, ()), *fleets], notice)

    def hears(self, driver: int) -> bool:
        """Whether anybody would hear an offer to this driver."""
        return driver in self._drivers or any(first <= driver < end for first, end, _ in self._fleets)

    @property
    def watchers(self) -> int:
        return sum(map(len, self._trips.values())) + sum(map(len, self._drivers.values())) + len(self._fleets)

    def _tell(self, sends: "list[Send] | tuple[()]", notice: msgspec.Struct) -> None:
        if not sends:
            return
        text = msgspec.json.encode(notice).decode()
        for send in list(sends):
            try:
                send(text)
                self.sent += 1
            except FourplaneError:
                self.failed += 1


def _add(table: dict[int, list[Send]], key: int, send: Send) -> Callable[[], None]:
    table.setdefault(key, []).append(send)

    def stop() -> None:
        sends = table.get(key, [])
        if send in sends:
            sends.remove(send)
        if not sends:
            table.pop(key, None)

    return stop
