"""Rides: never two drivers on a trip nor two trips on a driver, and no ride that was promised disappears."""


class RideBook:
    """Who was told what: a driver has a trip from the accepted offer until it ends."""

    def __init__(self) -> None:
        self._driver_of: dict[str, str] = {}
        self._trip_of: dict[str, str] = {}
        self._requested: set[str] = set()
        self._ended: set[str] = set()
        self._broken: list[str] = []

    def requested(self, trip: str) -> None:
        """A rider was told that this trip is being arranged."""
        self._requested.add(trip)

    def accepted(self, trip: str, driver: str) -> None:
        """A driver was told that the trip is theirs."""
        holder, other = self._driver_of.get(trip), self._trip_of.get(driver)
        if holder is not None and holder != driver:
            self._broken.append(f"rides: {trip} was given to {holder} and to {driver}")
        if other is not None and other != trip and other not in self._ended:
            self._broken.append(f"rides: {driver} was given {trip} while on {other}")
        self._driver_of[trip], self._trip_of[driver] = driver, trip

    def released(self, trip: str) -> None:
        """The trip looks for another driver, or ended without one."""
        driver = self._driver_of.pop(trip, None)
        if driver is not None and self._trip_of.get(driver) == trip:
            del self._trip_of[driver]

    def ended(self, trip: str) -> None:
        """The trip is over."""
        self._ended.add(trip)
        self.released(trip)

    def unknown(self, trip: str) -> None:
        """The system does not know a trip it has promised."""
        if trip in self._requested:
            self._broken.append(f"rides: {trip} was promised and is gone")

    def check(self) -> list[str]:
        return sorted(set(self._broken))

    @property
    def counts(self) -> dict[str, int]:
        return {"requested": len(self._requested), "ended": len(self._ended)}
