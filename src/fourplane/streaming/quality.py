"""Quality as viewers feel it: start time, rebuffering, picture height, errors, and what the delivery costs.

Players send beacons with totals of their session so far; only what grew since the last one is added, so a beacon that is sent
twice or out of order counts once. Sessions are bounded; the oldest idle ones are forgotten. Goals are the study's: start p99
below 100 ms, rebuffer below 0.5 %, a quarter of the bytes in 4K, 0.02 a gigabyte.
"""

from collections import Counter, OrderedDict

import msgspec

from fourplane.foundation.telemetry import Histogram

START_GOAL_S = 0.1
REBUFFER_GOAL = 0.005
TALL_GOAL = 0.25
OVER_MAX = 1_000
HEIGHTS = (240, 360, 480, 540, 720, 1080, 1440, 2160)


class Beacon(msgspec.Struct, frozen=True):
    """Totals of one playback session, as its player measured them."""

    session: str
    played_s: float = 0.0
    stalled_s: float = 0.0
    stalls: int = 0
    start_ms: float | None = None
    height: int = 0
    bytes: int = 0
    errors: int = 0
    region: str = ""
    node: str = ""
    error: str = ""
    at_s: float | None = None  # where in the film the viewer is
    ended: bool = False  # the player was closed: the session is over


class PlaybackSession:
    """What is known of one session."""

    __slots__ = ("account", "isp", "last", "node", "region", "seen_s", "session", "title")

    def __init__(self, session: str, title: str, region: str, account: str, now_s: float, *, isp: str = "") -> None:
        self.session = session
        self.title = title
        self.region = region
        self.account = account
        self.isp = isp
        self.node = ""
        self.seen_s = now_s
        self.last = Beacon(session)


class QualityStatistics(msgspec.Struct, frozen=True):
    """Totals of all sessions; ratios are of seconds watched."""

    sessions: int
    plays: int
    starts: int
    start_p50_ms: float
    start_p99_ms: float
    rebuffer_ratio: float
    stalls: int
    played_s: float
    heights: dict[str, float]  # share of seconds watched
    errors: int
    bytes: int
    tall_share: float
    by_region: dict[str, int]
    by_title: dict[str, int]
    by_isp: dict[str, int]


class Quality:
    """Sessions and their totals."""

    def __init__(self, *, sessions_max: int, idle_s: float) -> None:
        self._sessions_max = sessions_max
        self._idle_s = idle_s
        self._sessions: OrderedDict[str, PlaybackSession] = OrderedDict()
        self.starts = Histogram()
        self.plays = 0
        self.played_s = 0.0
        self.stalled_s = 0.0
        self.stalls = 0
        self.errors = 0
        self.bytes = 0
        self._heights: dict[int, float] = {}
        self._over: OrderedDict[str, PlaybackSession] = OrderedDict()  # their last beacons may still be under way

    def open(self, session: str, title: str, region: str, account: str, now_s: float, *, isp: str = "") -> None:
        """A viewer pressed play."""
        self.plays += 1
        self._forget(now_s)
        self._sessions[session] = PlaybackSession(session, title, region, account, now_s, isp=isp)
        if len(self._sessions) > self._sessions_max:
            self._sessions.popitem(last=False)

    def find(self, session: str) -> PlaybackSession | None:
        """The session, while it is watched."""
        return self._sessions.get(session)

    def watching(self, account: str, now_s: float) -> int:
        """How many sessions of an account are alive."""
        self._forget(now_s)
        return sum(1 for one in self._sessions.values() if one.account == account) if account else 0

    def hear(self, beacon: Beacon, now_s: float) -> bool:
        """Take a beacon; False for a session that is not known (or forgotten)."""
        over = self._over.get(beacon.session)
        if over is not None and beacon.played_s <= over.last.played_s:
            return True  # a beacon that was overtaken by the last one
        found = self._sessions.get(beacon.session) or self._over.pop(beacon.session, None)
        if found is None:
            return False
        found.seen_s = now_s
        self._sessions[beacon.session] = found  # who goes on after an end is watching again
        self._sessions.move_to_end(beacon.session)
        last = found.last
        if beacon.start_ms is not None and last.start_ms is None and 0 <= beacon.start_ms < 600_000:
            self.starts.record(beacon.start_ms / 1e3)
        played = min(max(0.0, beacon.played_s - last.played_s), self._idle_s)
        self.played_s += played
        self.stalled_s += min(max(0.0, beacon.stalled_s - last.stalled_s), self._idle_s)
        self.stalls += max(0, beacon.stalls - last.stalls)
        self.errors += max(0, beacon.errors - last.errors)
        self.bytes += max(0, beacon.bytes - last.bytes)
        if played and beacon.height:
            step = next((step for step in HEIGHTS if step >= beacon.height), HEIGHTS[-1])
            self._heights[step] = self._heights.get(step, 0.0) + played
        found.node = beacon.node[:20] or found.node
        if beacon.played_s >= last.played_s:
            start = beacon.start_ms if beacon.start_ms is not None else last.start_ms
            found.last = msgspec.structs.replace(beacon, start_ms=start)
        if beacon.ended:  # so that another screen may begin at once
            self._over[beacon.session] = self._sessions.pop(beacon.session)
            if len(self._over) > OVER_MAX:
                self._over.popitem(last=False)
        return True

    def statistics(self, now_s: float) -> QualityStatistics:
        self._forget(now_s)
        watched = self.played_s + self.stalled_s
        shown = sum(self._heights.values())
        regions, titles, isps = (
            dict(Counter(getattr(one, field) for one in self._sessions.values() if getattr(one, field)).most_common(20))
            for field in ("region", "title", "isp")
        )
        return QualityStatistics(
            len(self._sessions),
            self.plays,
            self.starts.count,
            self.starts.quantile(0.5) * 1e3,
            self.starts.quantile(0.99) * 1e3,
            self.stalled_s / watched if watched else 0.0,
            self.stalls,
            self.played_s,
            {f"{step}p": seconds / shown for step, seconds in sorted(self._heights.items())} if shown else {},
            self.errors,
            self.bytes,
            self._heights.get(2160, 0.0) / shown if shown else 0.0,
            regions,
            titles,
            isps,
        )

    def _forget(self, now_s: float) -> None:
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if now_s - oldest.seen_s < self._idle_s:
                return
            self._sessions.popitem(last=False)
