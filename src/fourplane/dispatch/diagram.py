"""The boxes of the study's diagrams as they stand here: what each one is, its figures, and what can be stopped."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fourplane.control.nodes import Figures, Node, Plane, Switch, hollow
from fourplane.foundation.telemetry import Histogram

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

JOURNEY = "journeys/dispatch.md"


def make_nodes(d: "Dispatch") -> list[Node]:
    """All boxes of the architecture and the matching diagram, and those of the other two that have a counterpart."""
    return [*_architecture(d), *_matching(d), *_other()]


def _architecture(d: "Dispatch") -> list[Node]:
    switches = d.switches
    return [
        _node("RIDER_APP", "edge", "the rider's page: ask, watch, pay, rate", "static/map.js", _rider(d), page="/dispatch/"),
        _node("DRIVER_APP", "edge", "the driver's page and the feed of drivers' phones", "static/drive.js", _feed(d),
              page="/dispatch/drive"),
        _node("WEB_APP", "edge", "the live map of the whole city", "live.py", _live(d), page="/dispatch/"),
        hollow("LOAD_BAL", "edge", "one process needs no balancer; the edge listener stands here"),
        _node("API_GATEWAY", "edge", "the gateway's routes under /dispatch/api", "rider_api.py", _api(d)),
        _node("MATCHING_SVC", "service", "gives waiting riders their drivers, every window", "matcher.py", _matcher(d),
              switches.matching),
        _node("LOCATION_SVC", "service", "takes positions on port 8300 into the index", "location_feed.py", _feed(d),
              switches.location),
        _node("TRIP_SVC", "service", "trips as durable events: offer, accept, arrive, start, finish", "rides.py", _trips(d),
              switches.trips),
        _node("PAYMENT_SVC", "service", "holds a fare, captures it at the end, releases the rest", "rides.py", _money(d),
              switches.payments),
        _node("PRICING_SVC", "service", "upfront fares and surge per S2 cell", "pricing.py", _pricing(d), switches.pricing),
        _node("REDIS", "state", "where every driver is: the index, in memory", "driver_index.py", _index(d)),
        _node("CASSANDRA", "state", "trip events, one record each, by hour and bucket", "trip_store.py", _trips(d)),
        hollow("MYSQL", "state", "accounts stand in the sql store shared by all systems"),
        hollow("S3", "state", "trips as Parquet for analysis: not built yet"),
        _node("KAFKA", "state", "trip.state.changed and driver.location.updated", "trip_store.py", _stream(d), switches.events),
        hollow("JAEGER", "control", "spans of a trip across services: not built yet"),
        _node("PROMETHEUS", "control", "cells of this system, read at /metrics", "app.py", _cells(d)),
        hollow("CONSUL", "control", "one process: nothing to discover yet"),
        hollow("RINGPOP", "control", "one owner of all cells: sharding by S2 prefix is not built yet"),
    ]  # fmt: skip


def _matching(d: "Dispatch") -> list[Node]:
    switches = d.switches
    return [
        _node("S2_CELL", "service", "cell ids equal to s2geometry bit for bit, computed in columns", "cells.py", _index(d)),
        _node("DRIVER_INDEX", "service", "drivers by cell in packed records", "packed_index.py", _index(d)),
        _node("LOCATION_UPDATE", "service", "frames of 16-byte positions", "feed_frames.py", _feed(d)),
        _node("REQUEST", "service", "a rider's request with its fare", "rider_api.py", _rider(d)),
        _node("RADIUS_SEARCH", "service", "nearest free drivers within 2 km, exact", "driver_index.py", _search(d)),
        _node("FILTER", "service", "free, right vehicle, rated well enough, has not refused", "matcher.py", _search(d)),
        _node("RANK", "service", "road ETA of all candidates by one search, rating, idle time", "eta.py", _eta(d)),
        _node("DISPATCH", "service", "cheapest pairs first, offers that expire", "matching.py", _matcher(d), switches.matching),
        _node("KAFKA_TOPIC", "state", "driver.location.updated as columns, once a second", "location_feed.py", _stream(d)),
        _node("LOCATION_PROCESSOR", "service", "applies frames to the index as they arrive", "location_feed.py", _feed(d),
              switches.location),
        _node("TRIP_PROCESSOR", "service", "reads trip events, keeps histories and earnings", "trip_processor.py",
              _processor(d), switches.processor),
        _node("NOTIFICATION", "service", "offers and trip news to open connections", "push.py", _push(d)),
    ]  # fmt: skip


def _other() -> list[Node]:
    reason = "hot cells: detection and splitting are not built yet"
    hot = ("AIRPORT", "STADIUM", "MONITOR", "THRESHOLD", "SPLIT", "REDISTRIBUTE", "SHED", "CIRCUIT")
    later = ("SCALE_OUT", "CACHE_WARM", "TRAFFIC_SHAPE", "DEGRADE")
    phases = ("MONO", "MONO_DB", "PROB1", "PROB2", "USER_SVC", "PAY_SVC", "MATCH_SVC", "HTTP", "MESH", "PLATFORM",
              "OBSERVABILITY", "ASYNC")  # fmt: skip
    return [
        *(hollow(name, "control", reason) for name in hot),
        *(hollow(name, "control", "recovery steps are not built yet") for name in later),
        *(hollow(name, "service", "a phase of the evolution; phase files come later") for name in phases),
    ]


def _node(  # noqa: PLR0917 - a table's columns
    name: str,
    plane: Plane,
    what: str,
    source: str,
    figures: Callable[[], Figures],
    switch: Switch | None = None,
    *,
    page: str = "",
) -> Node:
    return Node(name, plane, what, f"dispatch/{source}", figures, switch, JOURNEY, page)


def _figures(
    read: Callable[[], tuple[int, int, float, dict[str, float | int | str]]],
    latency: Callable[[], Histogram] | None = None,
) -> Callable[[], Figures]:
    def figures() -> Figures:
        requests, errors, saturation, facts = read()
        return Figures(requests, errors, saturation, latency() if latency is not None else None, facts)

    return figures


def _rider(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        rides = d.rides.statistics()
        waiting = rides.searching / d.settings.matching.waiting_max
        return rides.requested, rides.unserved, waiting, {"searching": rides.searching, "under way": rides.active}

    return _figures(read, lambda: d.rides.match_seconds)


def _feed(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        feed = d.feed.statistics()
        waiting = feed.verbs_waiting / d.settings.feed.verbs_waiting_max
        return (
            feed.positions,
            feed.refused + feed.foreign,
            waiting,
            {"frames": feed.frames, "gateways": feed.connections},
        )

    return _figures(read, lambda: d.feed.apply_seconds)


def _live(d: "Dispatch") -> Callable[[], Figures]:
    return _figures(lambda: (d.live.frames, 0, d.live.viewers / d.settings.viewers_max, {"viewers": d.live.viewers}))


def _api(d: "Dispatch") -> Callable[[], Figures]:
    return _figures(lambda: (d.estimates + d.rides.statistics().requested, 0, 0.0, {"estimates": d.estimates}))


def _matcher(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        matcher = d.matcher.statistics()
        facts: dict[str, float | int | str] = {"rounds": matcher.rounds, "window s": d.settings.matching.window_s}
        return matcher.offered, matcher.unmatched, 0.0, facts

    return _figures(read, lambda: d.matcher.round_seconds)


def _trips(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        rides = d.rides.statistics()
        return d.rides.write_seconds.count, 0, 0.0, {"under way": rides.active, "completed": rides.completed}

    return _figures(read, lambda: d.rides.write_seconds)


def _money(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        rides = d.rides.statistics()
        earned = f"{rides.earned / 100:.2f} {d.settings.pricing.currency}"
        return rides.settled, rides.payment_failures, 0.0, {"captured": earned}

    return _figures(read, lambda: d.rides.settle_seconds)


def _pricing(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        highest = max((surge.factor for surge in d.surge.cells.values()), default=1.0)
        return d.estimates, 0, 0.0, {"surging cells": len(d.surge.cells), "highest": highest}

    return _figures(read)


def _index(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        index = d.index.statistics()
        facts: dict[str, float | int | str] = {"drivers": index.live, "cells": index.cells, "engine": index.engine}
        return index.updates + index.searches, index.wrong, index.live / d.settings.index.drivers_max, facts

    return _figures(read)


def _search(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        matcher = d.matcher.statistics()
        return matcher.considered, 0, 0.0, {"candidates": matcher.candidates}

    return _figures(read, lambda: d.matcher.search_seconds)


def _eta(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        eta = d.eta.statistics()
        return eta.searches, 0, 0.0, {"candidates": eta.candidates, "routes": eta.routes, "pace": eta.pace}

    return _figures(read)


def _stream(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        return d.feed.statistics().events, 0, 0.0, {"waiting": d.store.waiting}

    return _figures(read)


def _processor(d: "Dispatch") -> Callable[[], Figures]:
    def read() -> tuple[int, int, float, dict[str, float | int | str]]:
        done = d.processor.statistics()
        return done.events, 0, 0.0, {"behind": done.behind, "rows": done.rows}

    return _figures(read)


def _push(d: "Dispatch") -> Callable[[], Figures]:
    return _figures(lambda: (d.push.sent, d.push.failed, 0.0, {"watchers": d.push.watchers}))


def _cells(d: "Dispatch") -> Callable[[], Figures]:
    return _figures(lambda: (0, 0, 0.0, {"series": len(d.registry.cells)}))
