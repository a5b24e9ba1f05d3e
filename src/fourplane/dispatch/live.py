"""The live map: roads once, then moving drivers as small binary frames for what a viewer looks at.

A viewer sends its window as JSON; twice a second it gets a frame of 32 bytes of header (version u4, count u4, time ms f8,
south, west, north, east i4 in 1e-7 degrees) and 8 bytes a driver: x and y as parts of the window in 65,536ths, and a
word of 24 bits number, 4 bits status, 4 bits vehicle. Ten thousand drivers are 80 kB. All viewers share one look at the
index per interval. A viewer may also watch one ride: its news and its driver's place and time to go come as JSON.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourplane.dispatch.cells import corners, parents, token
from fourplane.dispatch.driver_index import Snapshot, check_point
from fourplane.dispatch.index_layout import STATUS_MASK
from fourplane.dispatch.near import point
from fourplane.dispatch.pricing import SURGE_LEVEL
from fourplane.dispatch.rider_api import RIDER, thin
from fourplane.edge.routes import Call, Reply, Route, SocketRoute, SocketSession
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError, Overloaded, Rejected

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

API = "/dispatch/api"
HEADER = struct.Struct("<IId4i")
VERSION = 1
BUFFER_MAX = 1 << 20


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a viewer looks at, and the ride it follows."""

    south: float = 0.0
    west: float = 0.0
    north: float = 0.0
    east: float = 0.0
    request_id: str = ""
    rider_token: str = ""


class MapInfo(msgspec.Struct, frozen=True):
    """The city in use."""

    name: str
    attribution: str
    south: float
    west: float
    north: float
    east: float
    center: tuple[float, float]
    junctions: int
    edges: int
    classes: tuple[str, ...]
    currency: str


class RidePlace(msgspec.Struct, frozen=True):
    """Where the driver of a watched ride is, and how long to the next stop."""

    request_id: str
    status: str
    lat: float | None
    lng: float | None
    eta_s: float | None
    kind: str = "place"


class Live:
    """Frames for viewers."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch
        self._snapshot: Snapshot | None = None
        self._snapshot_s = -1.0
        self._lines: bytes = b""
        self.viewers = 0
        self.frames = 0

    def doors(self) -> list[Route | SocketRoute]:
        """The map's doors."""
        return [
            Route("GET", f"{API}/map", self.info, "The city in use", answer=MapInfo),
            Route("GET", f"{API}/map/lines", self.lines, "Its roads for drawing, binary"),
            Route("GET", f"{API}/map/network", self.network, "Its road network as a file (npz)"),
            Route("GET", f"{API}/map/route", self.route, "The quickest way between two places"),
            Route("GET", f"{API}/heat", self.heat, "Supply, demand and surge per S2 cell"),
            SocketRoute(f"{API}/live", self.serve, "Moving drivers of a window, and one ride", message_max=4_096),
        ]

    async def info(self, _call: Call[None]) -> MapInfo:
        from fourplane.dispatch.roads import CLASSES  # noqa: PLC0415 - only names

        roads = self._d.eta.roads
        return MapInfo(
            roads.name, roads.attribution, roads.south, roads.west, roads.north, roads.east, roads.center,
            len(roads.lat), len(roads.heads), tuple(name for name, _, _ in CLASSES), self._d.settings.pricing.currency,
        )  # fmt: skip

    async def lines(self, _call: Call[None]) -> Reply:
        if not self._lines:
            self._lines = await self._d.run_heavy(lambda: draw_lines(self._d.eta.roads.columns))
        return Reply(
            self._lines, media_type="application/octet-stream", headers={"cache-control": "public, max-age=600"}
        )

    async def network(self, _call: Call[None]) -> Reply:
        content = await self._d.run_heavy(self._d.eta.roads.to_bytes)
        return Reply(content, media_type="application/octet-stream")

    async def route(self, call: Call[None]) -> dict[str, Any]:
        way = self._d.eta.route(*point(call, "start"), *point(call, "end"))
        return {"line": thin(way.line, 2_000), "seconds": round(way.seconds), "metres": round(way.metres)}

    async def heat(self, _call: Call[None]) -> dict[str, Any]:
        return {"cells": [
            {"cell": token(cell), "corners": corners(cell), "free": free, "surge": surge.factor, "asks": surge.asks,
             "reason": surge.reason()}
            for cell, free, surge in self._d.heat()
        ]}  # fmt: skip

    async def serve(self, socket: SocketSession) -> None:
        """Send frames until the viewer leaves."""
        if self.viewers >= self._d.settings.viewers_max:
            await socket.close(1013, "too many viewers")
            return
        self.viewers += 1
        viewer = _Viewer(self._d, socket)
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(viewer))
                await viewer.listen()
                sender.cancel()
        finally:
            self.viewers -= 1
            viewer.close()

    async def _send(self, viewer: "_Viewer") -> None:
        try:
            while True:
                await clock.sleep(1 / self._d.settings.live_hz)
                if viewer.socket.buffered() > BUFFER_MAX:
                    continue  # a slow viewer gets fewer frames, never old ones
                if viewer.window is not None:
                    viewer.socket.send(pack(self._look(), viewer.window, self._d.settings.live_drivers_max))
                    self.frames += 1
                viewer.tell_place()
        except FourplaneError:
            await viewer.socket.close()

    def _look(self) -> Snapshot:
        now = clock.monotonic_s()
        if self._snapshot is None or now - self._snapshot_s > 0.9 / self._d.settings.live_hz:
            self._snapshot, self._snapshot_s = self._d.index.snapshot(), now
        return self._snapshot


class _Viewer:
    """One open map."""

    def __init__(self, dispatch: "Dispatch", socket: SocketSession) -> None:
        self._d, self.socket = dispatch, socket
        self.window: tuple[float, float, float, float] | None = None
        self._trip = 0
        self._unwatch: Callable[[], None] = lambda: None

    async def listen(self) -> None:
        """Take what the viewer says until it leaves."""
        while (message := await self.socket.receive()) is not None:
            try:
                await self.look(message)
            except FourplaneError as error:
                told = {"kind": "error", "code": error.reason, "message": error.public}
                self.socket.send(msgspec.json.encode(told).decode())

    async def look(self, message: str | bytes) -> None:
        """Take a new window or ride; raises Rejected for anything else."""
        try:
            view = msgspec.json.decode(message, type=View)
        except msgspec.DecodeError as error:
            raise Rejected(f"not a view: {error}", code="bad_message") from None
        check_point(view.south, view.west)
        check_point(view.north, view.east)
        if view.north > view.south and view.east > view.west:
            self.window = (view.south, view.west, view.north, view.east)
        if view.request_id and view.rider_token:
            trip = ids.decode("trip", view.request_id)
            rider = self._d.signer.verify(RIDER, view.rider_token)["rider"]
            ride = await self._d.rides.find(trip)
            if ride.trip.rider != rider:
                raise Rejected("this is not your ride", code="not_your_ride")
            self.close()
            self._trip = trip
            self._unwatch = self._d.push.watch_trip(trip, self.socket.send)

    def tell_place(self) -> None:
        """Where the watched ride's driver is now."""
        ride = self._d.rides.active.get(self._trip)
        if ride is None or ride.trip.driver < 0:
            return
        place = self._d.place_of(ride.trip.driver)
        lat, lng = place if place is not None else (None, None)
        news = RidePlace(ids.encode("trip", self._trip), ride.trip.status, lat, lng, self._d.remaining_s(ride.trip))
        self.socket.send(msgspec.json.encode(news).decode())

    def close(self) -> None:
        self._unwatch()
        self._unwatch = lambda: None


def pack(snapshot: Snapshot, window: tuple[float, float, float, float], most: int) -> bytes:
    """One frame of the drivers inside a window; past `most` every nth driver."""
    south, west, north, east = (round(value * 1e7) for value in window)
    lat, lng = snapshot.lat, snapshot.lng
    inside = np.flatnonzero((lat >= south) & (lat <= north) & (lng >= west) & (lng <= east))
    if len(inside) > most:
        inside = inside[snapshot.drivers[inside] % (len(inside) // most + 1) == 0]
    out = np.empty(len(inside), [("x", "<u2"), ("y", "<u2"), ("word", "<u4")])
    out["x"] = (lng[inside].astype(np.int64) - west) * 65_535 // max(east - west, 1)
    out["y"] = (lat[inside].astype(np.int64) - south) * 65_535 // max(north - south, 1)
    states = snapshot.states[inside]
    out["word"] = (
        (snapshot.drivers[inside] & np.uint32(0xFFFFFF))
        | (states & np.uint32(STATUS_MASK)) << np.uint32(24)
        | (states >> np.uint32(4) & np.uint32(15)) << np.uint32(28)
    )
    header = HEADER.pack(VERSION, len(inside), clock.now_us() / 1e3, south, west, north, east)
    body: bytes = out.tobytes()
    return header + body


def draw_lines(columns: dict[str, Any]) -> bytes:
    """The roads for a map: lines u4, points u4, frame 4 x i4, then class u1, count u2 and x u2, y u2 of the frame."""
    lat, lng = columns["line_lat"].astype(np.int64), columns["line_lng"].astype(np.int64)
    south, west, north, east = int(lat.min()), int(lng.min()), int(lat.max()), int(lng.max())
    count = np.minimum(columns["line_count"], 65_535).astype("<u2")
    points = np.empty((len(lat), 2), "<u2")
    points[:, 0] = (lng - west) * 65_535 // max(east - west, 1)
    points[:, 1] = (lat - south) * 65_535 // max(north - south, 1)
    header = struct.pack("<II4i", len(count), len(lat), south, west, north, east)
    classes = columns["line_class"].astype("u1").tobytes()
    padding = b"\0" * (-len(classes) % 2)
    body: bytes = classes + padding + count.tobytes() + points.tobytes()
    return header + body


def heat_cells(dispatch: "Dispatch") -> dict[int, int]:
    """Free drivers per surge cell."""
    found, counts = dispatch.index.count_by_cell()
    if len(found) == 0:
        return {}
    up, at = np.unique(parents(found, SURGE_LEVEL), return_inverse=True)
    sums = np.bincount(at, weights=counts).astype(int)
    return dict(zip(up.tolist(), sums.tolist(), strict=True))


__all__ = ["Live", "Overloaded", "draw_lines", "heat_cells", "pack"]
