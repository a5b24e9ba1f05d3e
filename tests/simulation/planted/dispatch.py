"""Bugs of a ride service, planted one at a time."""

from fourplane.dispatch import trips
from fourplane.dispatch.drivers import Block, Drivers
from fourplane.dispatch.rides import Rides
from fourplane.state.embedded.vfs import Disk


def trips_are_not_stored(patch):
    """Nothing of a trip reaches the disk."""

    async def append(self, ride, events):
        return bool(events)

    patch.setattr(Rides, "_append", append)


def offers_never_lapse(patch):
    """A driver who does not answer holds the ride for ever."""

    async def nothing(self):
        return 0

    patch.setattr(Rides, "expire_offers", nothing)


def anybody_may_accept(patch):
    """A driver whose offer has lapsed may still take the trip."""

    def accept(trip, driver, *, now_us):
        return [trips.Accepted(now_us, driver, trip.eta_s)]

    patch.setattr(trips, "accept", accept)


def offers_are_written_late(patch):
    """A driver is asked without being put aside, so that two riders may get the same one."""

    def reserve(self, number, trip):
        self.trips[number] = trip

    patch.setattr(Drivers, "reserve", reserve)
    patch.setattr(Drivers, "available", lambda self, number: True)


def drivers_are_not_put_aside(patch):
    """An offer does not bind its driver."""
    patch.setattr(Drivers, "reserve", lambda self, number, trip: None)


def drivers_are_never_free_again(patch):
    """After a trip its driver stays bound to it."""
    patch.setattr(Drivers, "release", lambda self, number, trip, now_us: None)


def a_restart_forgets_who_drives(patch):
    """Trips come back after a crash, their drivers seem free."""
    restore, reserve = Rides.restore, Drivers.reserve

    async def forgetful(self):
        Drivers.reserve = lambda self, number, trip: None
        try:
            return await restore(self)
        finally:
            Drivers.reserve = reserve

    patch.setattr(Drivers, "reserve", reserve)
    patch.setattr(Rides, "restore", forgetful)


def fares_are_not_captured(patch):
    """Trips end and their money stays on hold."""

    async def nothing(self):
        return 0

    patch.setattr(Rides, "settle_some", nothing)


def drivers_are_known_in_memory(patch):
    """A new driver is not written down."""

    async def register(self, owner, count, *, name="", vehicle=-1):
        block = Block(self._next, count, owner, name, vehicle)
        self._take(block)
        return block

    patch.setattr(Drivers, "register", register)


def a_lapsed_offer_ends_the_search(patch):
    """When an offer was declined or lapsed, nobody looks for another driver."""

    def search_again(self, ride):
        self.searching[ride.trip.id] = ride
        ride.trip.refused_by = list(range(500))
        self._tell(ride)

    async def never(self, ride):
        return None

    patch.setattr(Rides, "_search_again", search_again)
    patch.setattr(Rides, "give_up", never)


def sync_lies(patch):
    """The disk says yes and makes nothing durable."""

    def sync(self, path):
        self.syncs += 1

    patch.setattr(Disk, "sync", sync)


PLANTS = {
    trips_are_not_stored: "dispatch-instance-loss",
    offers_never_lapse: "dispatch-partition",
    anybody_may_accept: "dispatch-latency",
    offers_are_written_late: "dispatch-retry-storm",
    drivers_are_not_put_aside: "dispatch-latency",
    drivers_are_never_free_again: "dispatch-latency",
    a_restart_forgets_who_drives: "dispatch-instance-loss",
    fares_are_not_captured: "dispatch-latency",
    drivers_are_known_in_memory: "dispatch-instance-loss",
    a_lapsed_offer_ends_the_search: "dispatch-latency",
    sync_lies: "dispatch-instance-loss",
}
