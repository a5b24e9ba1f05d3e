"""The people who drive: who they are, what they drive, how they are rated, and which trip or offer holds them.

Drivers have dense numbers, so that everything the matcher asks of twenty candidates is a look into a column. A driver
is offline, available, reserved (an offer or a pick-up), on a trip, or paused; the index's state word says the same
plus the kind of vehicle, and only this module writes it. One driver holds at most one trip or offer: `reserve` fails
for a driver who has one, and `check` compares both directions.

Stored: one record per block of numbers given out (a fleet of thousands is one record), one per driver whose rating
has moved. What a driver is doing now follows from trips and connections and is not stored.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.dispatch.driver_index import DriverIndex
from fourplane.dispatch.index_layout import AVAILABLE, ON_TRIP, PAUSED, RESERVED, STATUS_MASK, VEHICLE_SHIFT
from fourplane.foundation.errors import Conflict, Corrupt, NotFound, Rejected
from fourplane.state.contracts import Put, Records

SCHEMA = 1
PARTITION = b"dispatch/drivers"
BLOCK, RATING = b"b", b"r"
FIRST_NAMES = ("Ana", "Bruno", "Carla", "Diogo", "Eva", "Filipe", "Gabi", "Hugo", "Ines", "Jorge", "Lena", "Marco", "Nina",
               "Oscar", "Paula", "Rui", "Sara", "Tomas", "Vera", "Yara")  # fmt: skip
CARS = (
    ("Corsa", "Clio", "Fabia", "Polo"),
    ("Model 3", "Octavia", "i4", "Ioniq 6"),
    ("Vito", "Transporter", "e-Rifter", "Zafira"),
)
COLORS = ("white", "silver", "black", "blue", "red", "green")


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Numbers first..first + count - 1, given out together; a single driver has a block of one and a name."""

    first: int
    count: int
    owner: str
    name: str = ""
    vehicle: int = -1  # -1: mixed, by number


class Profile(msgspec.Struct, frozen=True):
    """What a rider sees of a driver."""

    number: int
    name: str
    rating: float
    vehicle: str
    color: str
    plate: str
    kind: int


class Drivers:
    """All drivers of this owner."""

    def __init__(self, index: DriverIndex, records: Records, *, drivers_max: int) -> None:
        self._index, self._records = index, records
        self._max = drivers_max
        self._blocks: list[Block] = []
        self._names: dict[int, str] = {}
        self._next = 0
        self.kinds: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.ratings: NDArray[np.float32] = np.zeros(0, np.float32)
        self.rated: NDArray[np.int32] = np.zeros(0, np.int32)
        self.idle_since_us: NDArray[np.int64] = np.zeros(0, np.int64)
        self.trips: NDArray[np.int64] = np.zeros(0, np.int64)  # the trip or offer that holds the driver, 0 none

    async def load(self) -> None:
        """Read what earlier runs stored."""
        start = b""
        while rows := await self._records.scan(PARTITION, start=start, limit=1_000):
            for row in rows:
                if row.value[:1] != bytes((SCHEMA,)):
                    raise Corrupt("a driver record of another schema", file="dispatch/drivers", place=row.sort.hex())
                if row.sort[:1] == BLOCK:
                    self._take(msgspec.msgpack.decode(row.value[1:], type=Block))
                else:
                    number = int.from_bytes(row.sort[1:], "big")
                    self.ratings[number], self.rated[number] = msgspec.msgpack.decode(
                        row.value[1:], type=tuple[float, int]
                    )
            start = rows[-1].sort + b"\0"

    async def register(self, owner: str, count: int, *, name: str = "", vehicle: int = -1) -> Block:
        """Give out `count` numbers; the same owner and count get the same numbers again. Raises Rejected past the bound."""
        for known in self._blocks:
            if (known.owner, known.count) == (owner, count):
                return known
        if not 1 <= count <= self._max - self._next:
            raise Rejected(
                f"there is room for {self._max - self._next} more drivers, not {count}", code="too_many_drivers"
            )
        if not -1 <= vehicle < len(CARS):
            raise Rejected("no such kind of vehicle", code="bad_vehicle")
        block = Block(self._next, count, owner, name, vehicle)
        self._take(block)
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode(block)
        await self._records.write(PARTITION, [Put(BLOCK + block.first.to_bytes(4, "big"), value)])
        return block

    def go_online(self, numbers: NDArray[np.uint32], now_us: int) -> None:
        """Let drivers take requests; those on a trip stay with it. Their next position puts them on the map."""
        numbers = numbers[numbers < self._next]
        held = self.trips[numbers] != 0
        fresh = numbers[~held]
        offline = np.array([self._index.state_of(int(number)) == 0 for number in fresh], bool)
        self.idle_since_us[fresh[offline]] = now_us
        self._write(fresh, AVAILABLE)

    def go_offline(self, numbers: NDArray[np.uint32]) -> None:
        """Take drivers off the map; who is on a trip stays until it ends."""
        numbers = numbers[numbers < self._next]
        free = numbers[self.trips[numbers] == 0]
        self._index.set_states(free, np.zeros(len(free), np.uint32))

    def pause(self, number: int) -> None:
        """Stay on the map without getting offers."""
        self._known(number)
        if self.trips[number] == 0 and self.online(number):
            self._write(np.array([number], np.uint32), PAUSED)

    def online(self, number: int) -> bool:
        return self._index.state_of(number) != 0

    def available(self, number: int) -> bool:
        return self._index.state_of(number) & STATUS_MASK == AVAILABLE and self.trips[number] == 0

    def reserve(self, number: int, trip: int) -> None:
        """Bind a driver to an offer or trip; raises Conflict when one holds the driver already."""
        self._known(number)
        if self.trips[number] not in {0, trip}:
            raise Conflict("the driver has another trip", code="driver_taken")
        self.trips[number] = trip
        self._write(np.array([number], np.uint32), RESERVED)

    def ride(self, number: int) -> None:
        """The rider is in the car."""
        assert self.trips[number] != 0, "a ride without a trip"
        self._write(np.array([number], np.uint32), ON_TRIP)

    def release(self, number: int, trip: int, now_us: int) -> None:
        """The trip or offer is over; harmless when it was not this one that held the driver."""
        if self.trips[number] != trip:
            return
        self.trips[number] = 0
        self.idle_since_us[number] = now_us
        if self.online(number):
            self._write(np.array([number], np.uint32), AVAILABLE)

    async def rate(self, number: int, stars: int) -> None:
        """Fold one rating into the mean."""
        self._known(number)
        count = int(self.rated[number])
        weight = min(count, 500)
        self.ratings[number] = (self.ratings[number] * (weight + 20) + stars) / (weight + 21)
        self.rated[number] = count + 1
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode((float(self.ratings[number]), count + 1))
        await self._records.write(PARTITION, [Put(RATING + number.to_bytes(4, "big"), value)])

    def profile(self, number: int) -> Profile:
        """What riders see; raises NotFound."""
        self._known(number)
        kind, mixed = int(self.kinds[number]), number * 2_654_435_761 & 0xFFFFFFFF
        cars = CARS[kind]
        return Profile(
            number, self._names.get(number) or FIRST_NAMES[mixed % len(FIRST_NAMES)], round(float(self.ratings[number]), 2),
            cars[mixed // 32 % len(cars)], COLORS[mixed // 256 % len(COLORS)],
            f"{mixed % 90 + 10}-{chr(65 + mixed // 97 % 26)}{chr(65 + mixed // 31 % 26)}-{number % 100:02d}", kind,
        )  # fmt: skip

    @property
    def count(self) -> int:
        """Numbers given out."""
        return self._next

    def check(self) -> None:
        """No trip holds two drivers."""
        held = self.trips[self.trips != 0]
        assert len(np.unique(held)) == len(held), "a trip holds two drivers"

    def _take(self, block: Block) -> None:
        self._blocks.append(block)
        self._next = max(self._next, block.first + block.count)
        more = self._next - len(self.kinds)
        if more > 0:
            numbers = np.arange(len(self.kinds), self._next)
            mixed = numbers * 7 % 10
            self.kinds = np.concatenate([self.kinds, np.select([mixed < 6, mixed < 9], [0, 1], 2).astype(np.uint8)])
            spread = 4.6 + ((numbers * 2_654_435_761 >> 8) % 40) / 100
            self.ratings = np.concatenate([self.ratings, spread.astype(np.float32)])
            self.rated = np.concatenate([self.rated, np.zeros(more, np.int32)])
            self.idle_since_us = np.concatenate([self.idle_since_us, np.zeros(more, np.int64)])
            self.trips = np.concatenate([self.trips, np.zeros(more, np.int64)])
        if block.vehicle >= 0:
            self.kinds[block.first : block.first + block.count] = block.vehicle
        if block.name:
            self._names[block.first] = block.name

    def _write(self, numbers: NDArray[np.uint32], status: int) -> None:
        words = self.kinds[numbers].astype(np.uint32) << np.uint32(VEHICLE_SHIFT) | np.uint32(status)
        self._index.set_states(numbers, words)

    def _known(self, number: int) -> None:
        if not 0 <= number < self._next:
            raise NotFound(f"no driver {number}", code="no_driver")
