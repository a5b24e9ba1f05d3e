"""Fill before the evening: what will be watched is put on the nodes at night, inside a window and a budget of bytes.

Prediction is what was watched since the last fill (Netflix: tomorrow's popularity is very nearly yesterday's). A segment is
worth its title's plays times the share of viewers who reach it; per byte, the most valuable come first until the node's room
or the night's budget is spent. Parents fill before their children, so a child's fill costs the origin nothing. The pace is
bounded, so that viewers awake at night feel nothing; what is stored already costs nothing.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.telemetry import Registry
from fourplane.service.tokens import Signer
from fourplane.streaming.delivery import Delivery
from fourplane.streaming.origin import Origin
from fourplane.streaming.packaging import TitleIndex
from fourplane.streaming.playback import AUDIENCE
from fourplane.streaming.settings import StreamingSettings
from fourplane.streaming.titles import Titles

STAYS = 0.995  # of viewers, from one segment to the next
LOOK_EVERY_S = 60.0
TOKEN_S = 3_600.0
DAY_US = 86_400 * 1_000_000


class FillItem(msgspec.Struct, frozen=True):
    """One object to fill."""

    path: str
    bytes: int


class FillStatistics(msgspec.Struct, frozen=True):
    """What proactive fill did since the start, and how far it is with the node it fills now."""

    running: bool
    nights: int
    objects: int
    bytes: int
    failed: int
    node: str = ""
    node_done: int = 0  # objects looked at, those that were there already among them
    node_planned: int = 0


def plan(plays: Mapping[str, float], indexes: Sequence[TitleIndex], *, bytes_max: int) -> list[FillItem]:
    """The objects worth most per byte, as many as fit; pure. A title nobody watched is not filled."""
    valued: list[tuple[float, int, FillItem]] = []
    for index in indexes:
        weight = plays.get(index.title, 0.0)
        if weight <= 0:
            continue
        base = f"/v/{index.title}/{index.version}/"
        for track in [*index.video, *index.audio]:
            for number, segment in enumerate(track.segments):
                item = FillItem(f"{base}{track.name}/{number}.m4s", segment.size)
                valued.append((-weight * STAYS**number / max(1, segment.size), len(valued), item))
            valued.append((-weight, len(valued), FillItem(f"{base}{track.name}/init.mp4", track.init_size)))
    chosen, left = [], bytes_max
    for _, _, item in sorted(valued):
        if item.bytes <= left:
            left -= item.bytes
            chosen.append(item)
    return chosen


class ProactiveFill:
    """The nightly fill of a deployment."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        titles: Titles,
        origin: Origin,
        delivery: Delivery,
        signer: Signer,
        registry: Registry,
    ) -> None:
        self._settings = settings
        self._titles = titles
        self._origin = origin
        self._delivery = delivery
        self._signer = signer
        self._registry = registry
        self._known: dict[str, int] = {}  # plays of a title at the last fill
        self._asked = asyncio.Event()
        self._night = -1
        self._running = False
        self._nights = self._objects = self._bytes = self._failed = 0
        self._node, self._node_done, self._node_planned = "", 0, 0

    def ask(self) -> None:
        """Fill as soon as possible, whatever the hour."""
        self._asked.set()

    def statistics(self) -> FillStatistics:
        done = self._nights, self._objects, self._bytes, self._failed
        return FillStatistics(self._running, *done, self._node, self._node_done, self._node_planned)

    async def run(self) -> None:
        """Fill once in every night's window until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            day, hour = divmod(clock.now_us(), DAY_US)
            due = day != self._night and self._is_night(hour * 24 // DAY_US)
            if due:  # also where somebody asked: once is enough for a night
                self._night = day
            if due or asked:
                await self.fill()

    async def fill(self) -> FillStatistics:
        """Fill every node now, parents first."""
        assert not self._running
        self._running = True
        before = self._objects, self._bytes
        try:
            titles = [title for title in await self._titles.all() if title.version]
            plays = {title.id: float(title.plays - self._known.get(title.id, 0)) for title in titles}
            watched = [title for title in titles if plays[title.id] > 0]
            indexes = [await self._origin.index(title.id, title.version) for title in watched]
            budget = self._settings.fill.bytes_max
            for node in self._delivery.ordered():
                budget -= await self._fill_node(node.id, plan(plays, indexes, bytes_max=min(budget, node.bytes_max)))
            self._known = {title.id: title.plays for title in titles}
            self._nights += 1
        finally:
            self._running = False
            self._node = ""
        objects, filled = self._objects - before[0], self._bytes - before[1]
        self._registry.event("info", "streaming", f"Nodes were filled ahead: {objects} objects, {filled / 1e6:.0f} MB")
        return self.statistics()

    def _is_night(self, hour: int) -> bool:
        begin, end = self._settings.fill.from_hour, self._settings.fill.to_hour
        return begin <= hour < end if begin <= end else hour >= begin or hour < end

    async def _fill_node(self, name: str, items: Sequence[FillItem]) -> int:
        """Fill one node at the bounded pace; the bytes that were really fetched."""
        node, spent = self._delivery.nodes[name], 0
        tokens: dict[str, str] = {}
        self._node, self._node_done, self._node_planned = name, 0, len(items)
        for item in reversed(items):  # the most valuable comes last, so it would be the last to go
            self._node_done += 1
            title = item.path[: item.path.index("/", item.path.index("/", 3) + 1) + 1]
            if title not in tokens:
                tokens[title] = self._signer.sign(AUDIENCE, {"path": title, "session": "fill"}, TOKEN_S)
            try:
                under_way = node.prefetch(f"/t/{tokens[title]}{item.path}".encode())
                while under_way is not None and not under_way.done:
                    await under_way.changed()
            except FourplaneError:
                self._failed += 1
                continue
            if under_way is None:
                continue
            if under_way.error is not None or under_way.status != 200:
                self._failed += 1
                continue
            if under_way.entry is not None:
                under_way.entry.visited = True  # the prediction counts as one visit
            spent += item.bytes
            self._objects += 1
            self._bytes += item.bytes
            await clock.sleep(item.bytes / self._settings.fill.bytes_per_s)
        return spent
