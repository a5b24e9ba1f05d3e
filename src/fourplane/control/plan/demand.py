"""What users do to a system at its busiest, component by component.

Every habit is an assumption with a name, so that `--assume messages_a_day=80` changes it. Needs are peaks per second, bytes
kept and bytes moved a month; a need that costs computing names the figure of `figures.py` that says how much one core does.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from fourplane.control.nodes import Plane
from fourplane.foundation.errors import Rejected

DAY_S = 86_400.0
MONTH_S = 30 * DAY_S
MONTH_H = 30 * 24.0
GB = 1e9
USERS_MAX = 20_000_000_000

System = Literal["streaming", "dispatch", "commerce", "messaging"]


class Assumption(msgspec.Struct, frozen=True):
    """One habit of users: its default, and what speaks for it."""

    name: str
    value: float
    what: str


class Need(msgspec.Struct, frozen=True):
    """What one component must carry."""

    component: str
    plane: Plane
    study_row: str  # the row of the case study's own cost table
    peak: float  # per second
    unit: str
    figure: str = ""  # what one core does of it; "": it needs no computing of its own
    memory_gib: float = 0.0
    disk_gb: float = 0.0
    object_gb: float = 0.0
    egress_gb: float = 0.0  # a month, to the users over transit
    delivered_gb: float = 0.0  # a month, from caches of one's own


def _assumed(*rows: tuple[str, float, str]) -> tuple[Assumption, ...]:
    return tuple(Assumption(*row) for row in rows)


ASSUMPTIONS: dict[System, tuple[Assumption, ...]] = {
    "streaming": _assumed(
        ("watching_at_peak", 0.08, "share of subscribers who watch in the busiest minute"),
        ("hours_a_day", 1.5, "hours watched per subscriber and day"),
        ("mbit_s", 5.0, "mean bit rate of a play"),
        ("requests_a_minute", 4.0, "API requests of one viewer: pages, progress, beacons"),
        ("catalogue_hours", 40_000.0, "hours of film at most; a small service has 50 and one more per 500 subscribers"),
        ("gb_per_hour", 25.0, "stored per hour of film, all rungs and codecs"),
        ("profile_bytes", 20_000.0, "stored per subscriber"),
    ),
    "dispatch": _assumed(
        ("trips_a_month", 2.0, "trips per rider and month"),
        ("peak_to_mean", 3.0, "busiest hour against the mean one"),
        ("trips_per_driver_hour", 2.0, "trips a driver completes in an hour"),
        ("looking_share", 0.5, "share of online drivers who are on the map beyond those on a trip"),
        ("positions_hz", 4.0, "positions a driver sends a second"),
        ("looks_per_trip", 3.0, "estimates asked for before one trip is ordered"),
        ("bytes_per_trip", 25_000.0, "stored per trip: events, route, receipt"),
        ("months_kept", 36.0, "months that trips are kept"),
        ("page_mb_per_trip", 2.0, "MB of pages and map data per trip"),
    ),
    "commerce": _assumed(
        ("visits_a_month", 4.0, "visits per shopper and month"),
        ("pages_per_visit", 12.0, "pages of one visit"),
        ("orders_per_visit", 0.03, "share of visits that end in an order"),
        ("peak_to_mean", 12.0, "busiest hour of the peak day against the mean hour"),
        ("carts_per_page", 0.25, "cart and search requests per page"),
        ("page_mb", 0.4, "MB of pictures and text per page, after the browser's own cache"),
        ("items", 1_000_000.0, "products in the catalogue"),
        ("mb_per_item", 2.0, "MB of media per product"),
        ("rows_per_order", 30.0, "rows written per order"),
        ("bytes_per_order", 10_000.0, "stored per order"),
        ("months_kept", 60.0, "months that orders are kept"),
        ("bytes_per_click", 200.0, "kept per page view for analysis"),
    ),
    "messaging": _assumed(
        ("connected", 1.0, "share of users whose phone keeps its connection (the study: 2B of 2B)"),
        ("messages_a_day", 50.0, "messages per user and day (the study: 100B a day by 2B users)"),
        ("peak_to_mean", 2.5, "busiest minute against the mean one"),
        ("to_groups", 0.3, "share of messages that go to a group"),
        ("group_size", 10.0, "members of such a group"),
        ("reconnects_a_day", 6.0, "times a phone comes back with a token, a day"),
        ("message_bytes", 600.0, "stored per message"),
        ("days_kept", 15.0, "days a message is kept for those who are away and for the archive"),
        ("kernel_bytes", 4_500.0, "kernel memory of one idle TCP connection"),
        ("media_share", 0.04, "share of messages with media"),
        ("media_kb", 150.0, "kB of one picture, film or voice"),
        ("media_days", 30.0, "days that media are kept"),
    ),
}


def assumed(system: System, changed: Mapping[str, float] | None = None) -> dict[str, float]:
    """The habits of a system's users with some changed. Raises Rejected for a name there is none of."""
    values = {one.name: one.value for one in ASSUMPTIONS[system]}
    for name, value in (changed or {}).items():
        if name not in values:
            raise Rejected(f"{system} assumes no {name!r}; there are {', '.join(values)}", code="unknown_assumption")
        if not 0 <= value < 1e15:
            raise Rejected(f"{name} cannot be {value:g}", code="bad_assumption")
        values[name] = value
    return values


def needs(system: System, users: int, habits: Mapping[str, float], session_bytes: float) -> list[Need]:
    """What `users` with these habits ask of each component at the busiest time."""
    if not 1 <= users <= USERS_MAX:
        raise Rejected(f"users are 1 to {USERS_MAX:,}", code="bad_users")
    return _MODELS[system](float(users), habits, session_bytes)


def _streaming(users: float, habit: Mapping[str, float], _: float) -> list[Need]:
    viewers = users * habit["watching_at_peak"]
    delivered = users * habit["hours_a_day"] * 30 * 3_600 * habit["mbit_s"] / 8_000
    film_hours = min(habit["catalogue_hours"], 50 + users / 500)
    return [
        Need("CDN", "edge", "CDN", viewers * habit["mbit_s"] / 8_000, "GB/s", "delivered_gb", delivered_gb=delivered),
        Need("API and playback", "service", "Compute", viewers * habit["requests_a_minute"] / 60, "requests/s", "requests"),
        Need("Titles", "state", "Storage", 0.0, "", object_gb=film_hours * habit["gb_per_hour"]),
        Need(
            "Viewers' data", "state", "Database", viewers / 30, "rows/s", "writes",
            disk_gb=users * habit["profile_bytes"] / GB,
        ),
    ]  # fmt: skip


def _dispatch(users: float, habit: Mapping[str, float], _: float) -> list[Need]:
    trips_month = users * habit["trips_a_month"]
    trips = trips_month / MONTH_S * habit["peak_to_mean"]
    drivers = trips * 3_600 / habit["trips_per_driver_hour"] * (1 + habit["looking_share"])
    return [
        Need(
            "Location index", "service", "Location", drivers * habit["positions_hz"], "positions/s", "positions",
            memory_gib=drivers * 200 / 2**30,
        ),
        Need("Matching and trips", "service", "Matching", trips, "trips/s", "matches"),
        Need("Search and road ETA", "service", "Matching", trips * habit["looks_per_trip"], "searches/s", "searches"),
        Need(
            "Trips kept", "state", "Database", trips * 12, "rows/s", "writes",
            disk_gb=trips_month * habit["months_kept"] * habit["bytes_per_trip"] / GB,
        ),
        Need("Riders' and drivers' pages", "edge", "CDN", trips * 20, "requests/s", "requests",
             egress_gb=trips_month * habit["page_mb_per_trip"] / 1_000),
    ]  # fmt: skip


def _commerce(users: float, habit: Mapping[str, float], _: float) -> list[Need]:
    visits = users * habit["visits_a_month"]
    per_s = habit["peak_to_mean"] / MONTH_S
    pages = visits * habit["pages_per_visit"]
    orders = visits * habit["orders_per_visit"]
    return [
        Need(
            "Pages from the cache", "edge", "CDN", pages * per_s, "pages/s", "pages",
            egress_gb=pages * habit["page_mb"] / 1_000,
        ),
        Need("Carts and search", "service", "Compute", pages * habit["carts_per_page"] * per_s, "requests/s", "requests"),
        Need("Checkout", "service", "Compute", orders * per_s, "orders/s", "checkouts"),
        Need(
            "Orders and stock", "state", "Database", orders * habit["rows_per_order"] * per_s, "rows/s", "writes",
            disk_gb=(orders * habit["months_kept"] * habit["bytes_per_order"] + habit["items"] * 5_000) / GB,
        ),
        Need("Pictures", "state", "Storage", 0.0, "", object_gb=habit["items"] * habit["mb_per_item"] / 1_000),
        Need("Clicks for analysis", "state", "Analytics", 0.0, "", object_gb=pages * 24 * habit["bytes_per_click"] / GB),
    ]  # fmt: skip


def _messaging(users: float, habit: Mapping[str, float], session_bytes: float) -> list[Need]:
    day = users * habit["messages_a_day"]
    messages = day / DAY_S * habit["peak_to_mean"]
    sessions = users * habit["connected"]
    reconnects = sessions * habit["reconnects_a_day"] / DAY_S * habit["peak_to_mean"]
    fan_out = messages * habit["to_groups"] * habit["group_size"]
    sent_gb = day * 30 * (1 + habit["to_groups"] * habit["group_size"]) * habit["message_bytes"] / GB
    media_gb = day * habit["media_share"] * habit["media_kb"] / 1e6
    return [
        Need(
            "Connections", "edge", "Connections", reconnects, "reconnects/s", "logins",
            memory_gib=sessions * (session_bytes + habit["kernel_bytes"]) / 2**30,
        ),
        Need("One-to-one messages", "service", "Servers", messages * (1 - habit["to_groups"]), "messages/s", "messages"),
        Need("Group deliveries", "service", "Servers", fan_out, "deliveries/s", "group_deliveries"),
        Need(
            "Messages kept", "state", "Storage", messages, "durable messages/s", "stored_messages",
            disk_gb=day * habit["days_kept"] * habit["message_bytes"] / GB,
        ),
        Need("Media kept", "state", "Storage", 0.0, "", object_gb=media_gb * habit["media_days"]),
        Need("Traffic to phones", "edge", "Bandwidth", 0.0, "", egress_gb=sent_gb + media_gb * 30),
    ]  # fmt: skip


_MODELS: dict[System, Callable[[float, Mapping[str, float], float], list[Need]]] = {
    "streaming": _streaming,
    "dispatch": _dispatch,
    "commerce": _commerce,
    "messaging": _messaging,
}
