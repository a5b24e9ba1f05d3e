"""Viewers: they browse, press play, fetch playlists and segments at the pace of the film, and report what they felt.

A viewer is a player without a picture: it reads the HLS playlists, fetches picture and sound ahead of its play head, climbs
the ladder with the throughput it measures, waits when its buffer is empty (a stall), and sends beacons as pages do. Titles
are drawn by Zipf's law. Where there is nothing to watch, a crowd with an operator's token asks for the test picture first.
"""

import asyncio
import contextlib
import re

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Unavailable
from fourplane.simulator.crowds import Plan, Progress, Tally, Target

# Region and ISP of viewers, as they come round: every edge and every ISP's cache of the usual tree has some.
HOMES = (
    ("us", "ISP1"),
    ("eu", ""),
    ("us", "ISP2"),
    ("asia", ""),
    ("us", ""),
    ("eu", "ISP3"),
    ("us", "ISP1"),
    ("eu", ""),
)
STEERED_S = 10.0
TAKE_TRIES = 6
AHEAD_S = 12.0
BEACON_S = 5.0
WATCH_S = (8.0, 60.0)
ZIPF = 1.1
CONNECTIONS_MAX = 64
TITLE_TRIES = 180
_VARIANT = re.compile(r"#EXT-X-STREAM-INF:BANDWIDTH=(\d+).*?RESOLUTION=\d+x(\d+).*\n(\S+)")
_SOUND = re.compile(r'#EXT-X-MEDIA:TYPE=AUDIO.*URI="([^"]+)"')
_SEGMENT = re.compile(r"#EXTINF:([\d.]+),\n(\S+)")
_PATHWAY = re.compile(r'PATHWAY-ID="([^"]+)".*\n(http\S+/)[^/\n]+\.m3u8')
_MAP = re.compile(r'#EXT-X-MAP:URI="([^"]+)"')


class _Track:
    """A media playlist as the viewer keeps it."""

    def __init__(self, text: str) -> None:
        self.init = _MAP.findall(text)[0]
        self.segments = [(float(seconds), uri) for seconds, uri in _SEGMENT.findall(text)]


class StreamingCrowd:
    """Drives titles, play, cache nodes and beacons over HTTP."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, int], HttpClient] = {}
        self._titles: list[str] = []

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None:
        """Let `plan.users` viewers watch until the plan is over; raises Unavailable when there is nothing to watch."""
        began_s = clock.monotonic_s()
        try:
            await self._browse(target, tally)
            if not self._titles:
                await self._ask_for_title(target, tally, progress)
            until_s = began_s + plan.duration_s if plan.duration_s > 0 else None
            async with asyncio.TaskGroup() as group:
                for number in range(plan.users):
                    group.create_task(self._viewer(number, target, plan, tally, until_s))
                group.create_task(self._tell(plan, tally, progress, began_s))
        finally:
            for client in self._clients.values():
                client.close()

    async def _tell(self, plan: Plan, tally: Tally, progress: Progress, began_s: float) -> None:
        while plan.duration_s <= 0 or clock.monotonic_s() - began_s < plan.duration_s:
            await clock.sleep(0.5)
            share = (clock.monotonic_s() - began_s) / plan.duration_s if plan.duration_s > 0 else 0.0
            facts = tally.facts
            text = f"{facts.get('plays', 0):.0f} plays, {facts.get('bytes', 0) / 1e6:.0f} MB, {facts.get('stalls', 0):.0f} stalls"
            progress(min(1.0, share), text)

    async def _browse(self, target: Target, tally: Tally) -> None:
        began_s = clock.monotonic_s()
        client = self._client(target.host, target.http_port)
        answer = await client.request("GET", "/streaming/api/titles")
        tally.done("browse", clock.monotonic_s() - began_s)
        listed = msgspec.json.decode(answer.body)
        self._titles = [title["id"] for title in listed["titles"] if title["version"]]

    async def _ask_for_title(self, target: Target, tally: Tally, progress: Progress) -> None:
        client = self._client(target.host, target.http_port)
        headers = {"authorization": f"Bearer {target.operator_token}"} if target.operator_token else {}
        answer = await client.request("POST", "/streaming/api/test-title", headers=headers, timeout_s=60.0)
        if answer.status >= 300:
            raise Unavailable("there is no title to watch: import a video first", code="no_titles")
        progress(0.0, "encoding a test picture, because there is no title yet")
        for _ in range(TITLE_TRIES):
            await clock.sleep(1.0)
            await self._browse(target, tally)
            if self._titles:
                return
        raise Unavailable("the test picture did not become a title", code="no_titles")

    async def _viewer(self, number: int, target: Target, plan: Plan, tally: Tally, until_s: float | None) -> None:
        rng = clock.random()
        await clock.sleep(rng.random() * min(5.0, max(0.1, plan.users / max(plan.rate_per_s, 0.1))))
        while until_s is None or clock.monotonic_s() < until_s:
            weights = [1 / (place + 1) ** ZIPF for place in range(len(self._titles))]
            title = rng.choices(self._titles, weights)[0]
            session = _Viewing(self, target, tally, HOMES[number % len(HOMES)])
            try:
                await session.watch(title, rng.uniform(*WATCH_S), until_s)
            except FourplaneError as error:
                tally.failed(error.reason)
                await clock.sleep(1.0 + rng.random())
            finally:
                session.leave()
            await clock.sleep(rng.uniform(0.2, 2.0))

    def _client(self, host: str, port: int) -> HttpClient:
        client = self._clients.get((host, port))
        if client is None:
            settings = HttpClientSettings(connections_max=CONNECTIONS_MAX)
            client = self._clients[host, port] = HttpClient(host, port, settings=settings)
        return client

    async def fetch(self, url: str, tally: Tally, action: str) -> bytes:
        """The body at an absolute address; raises Unavailable for anything but 200."""
        host, _, rest = url.removeprefix("http://").partition("/")
        name, _, port = host.rpartition(":")
        began_s = clock.monotonic_s()
        answer = await self._client(name, int(port)).request("GET", f"/{rest}")
        if answer.status != 200:
            raise Unavailable(f"{action} answered {answer.status}", code=f"http_{answer.status}")
        tally.done(action, clock.monotonic_s() - began_s)
        tally.facts["bytes"] = tally.facts.get("bytes", 0) + len(answer.body)
        return answer.body

    async def call(self, target: Target, path: str, body: object, tally: Tally, action: str) -> bytes:
        """POST JSON to the API; raises Unavailable for anything but success."""
        began_s = clock.monotonic_s()
        answer = await self._client(target.host, target.http_port).request(
            "POST", path, body=msgspec.json.encode(body), headers={"content-type": "application/json"}
        )
        if answer.status >= 300:
            raise Unavailable(f"{action} answered {answer.status}", code=f"http_{answer.status}")
        tally.done(action, clock.monotonic_s() - began_s)
        return answer.body


class _Viewing:
    """One session of one viewer."""

    def __init__(self, crowd: StreamingCrowd, target: Target, tally: Tally, home: tuple[str, str]) -> None:
        self._crowd = crowd
        self._target = target
        self._tally = tally
        self._region, self._isp = home
        self._session = ""
        self._base = ""
        self._bases: dict[str, str] = {}
        self._node = ""  # counted in the facts as `at NODE`
        self._steered_s = 0.0
        self._throughput = 0.0
        self._height = 0
        self._bytes = 0
        self._stalled_s = 0.0
        self._stalls = 0
        self._start_ms: float | None = None

    async def watch(self, title: str, wanted_s: float, until_s: float | None) -> None:
        """Play from the start for `wanted_s` seconds of film at most."""
        pressed_s = clock.monotonic_s()
        asked = {"title": title, "region": self._region, "isp": self._isp}
        play = msgspec.json.decode(
            await self._crowd.call(self._target, "/streaming/api/play", asked, self._tally, "play")
        )
        self._session = play["session"]
        self._go_to(play["node"], play["base"])
        self._steered_s = clock.monotonic_s()
        master = (await self._take("master.m3u8", "playlist")).decode()
        rungs = sorted((int(bps), int(height), uri) for bps, height, uri in _VARIANT.findall(master))
        sounds = _SOUND.findall(master)
        sound = await self._track(sounds[0]) if sounds else None
        tracks: dict[str, _Track] = {}
        film_s, began_s, beacon_s = 0.0, 0.0, clock.monotonic_s()
        number = 0
        while film_s < wanted_s and (until_s is None or clock.monotonic_s() < until_s):
            _, self._height, uri = self._choose(rungs)
            if uri not in tracks:
                tracks[uri] = await self._track(uri)
                await self._take(tracks[uri].init)
            if number >= len(tracks[uri].segments):
                break
            seconds, address = tracks[uri].segments[number]
            await self._take(address, measure=True)
            if sound is not None and number < len(sound.segments):
                await self._take(sound.segments[number][1])
            now_s = clock.monotonic_s()
            if self._start_ms is None:
                self._start_ms, began_s = (now_s - pressed_s) * 1e3, now_s
                self._count("plays")
                self._tally.done("start", now_s - pressed_s)
            late_s = now_s - began_s - film_s - self._stalled_s
            if number and late_s > 0.05:
                self._stalls += 1
                self._stalled_s += late_s
                self._count("stalls")
                self._count("stalled_s", late_s)
            film_s += seconds
            number += 1
            if now_s - beacon_s > BEACON_S:
                beacon_s = now_s
                await self._beacon(now_s - began_s - self._stalled_s)
            if now_s - self._steered_s > STEERED_S:
                await self._steer()
            ahead_s = film_s - (clock.monotonic_s() - began_s - self._stalled_s)
            if ahead_s > AHEAD_S:
                await clock.sleep(ahead_s - AHEAD_S)
        if self._start_ms is not None:
            await self._beacon(max(0.0, clock.monotonic_s() - began_s - self._stalled_s), ended=True)

    def leave(self) -> None:
        """The viewer is gone from every node."""
        self._go_to("", "")

    async def _track(self, uri: str) -> _Track:
        return _Track((await self._take(uri, "playlist")).decode())

    async def _steer(self) -> None:
        """Ask which node to use from now on, and use it."""
        self._steered_s = clock.monotonic_s()
        path = f"/streaming/api/sessions/{self._session}"
        here = f"http://{self._target.host}:{self._target.http_port}"
        if not self._bases:
            self._bases = dict(
                _PATHWAY.findall((await self._crowd.fetch(f"{here}{path}/master.m3u8", self._tally, "steer")).decode())
            )
        told = msgspec.json.decode(await self._crowd.fetch(f"{here}{path}/steering", self._tally, "steer"))
        best = next((node for node in told["PATHWAY-PRIORITY"] if node in self._bases), "")
        if best and best != self._node:
            self._go_to(best, self._bases[best])
            self._count("moved")

    async def _take(self, uri: str, action: str = "segment", *, measure: bool = False) -> bytes:
        """Fetch from the node in use; a node that fails is left for the one steering names, a few times over."""
        began_s = clock.monotonic_s()
        for tries in range(TAKE_TRIES):
            try:
                body = await self._crowd.fetch(self._base + uri, self._tally, action)
                break
            except (FourplaneError, OSError):
                if tries == TAKE_TRIES - 1:
                    raise
                self._count("retries")
                with contextlib.suppress(FourplaneError, OSError):
                    await self._steer()
                await clock.sleep(0.15 * 2**tries)
        self._bytes += len(body)
        if measure:
            seen = 8 * len(body) / max(1e-3, clock.monotonic_s() - began_s)
            self._throughput = seen if not self._throughput else 0.7 * self._throughput + 0.3 * seen
        return body

    def _choose(self, rungs: list[tuple[int, int, str]]) -> tuple[int, int, str]:
        fitting = [rung for rung in rungs if rung[0] < 0.7 * self._throughput]
        return fitting[-1] if fitting else rungs[0]

    async def _beacon(self, played_s: float, *, ended: bool = False) -> None:
        told = {
            "session": self._session,
            "played_s": played_s,
            "stalled_s": self._stalled_s,
            "stalls": self._stalls,
            "start_ms": self._start_ms,
            "height": self._height,
            "bytes": self._bytes,
            "region": self._region,
            "node": self._node,
            "at_s": played_s,
            "ended": ended,
        }
        await self._crowd.call(self._target, "/streaming/api/beacons", told, self._tally, "beacon")

    def _go_to(self, node: str, base: str) -> None:
        """Fetch from this node from now on; empty: from none, the viewer is gone."""
        if self._node:
            self._count(f"at {self._node}", -1)
        self._node, self._base = node, base
        if node:
            self._count(f"at {node}")

    def _count(self, name: str, amount: float = 1) -> None:
        self._tally.facts[name] = self._tally.facts.get(name, 0) + amount
