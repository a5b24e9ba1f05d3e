"""Viewers: they press play, read the playlists, fetch segments ahead of time, and some try addresses that are not theirs."""

import asyncio
import re

import msgspec

from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.simulator.checkers.films import unearned, wrong_bytes
from fourplane.simulator.film import RUNGS, SEGMENT_S, SEGMENTS, SOUND
from fourplane.simulator.loop import World
from fourplane.simulator.people import REQUEST_S, Caller, Felt, Pace
from fourplane.simulator.sites import Sites
from fourplane.simulator.systems import CDN_PORT

EVERY_S = 1.0
TRIES = 3
SETTLE_S = 35.0  # longer than a connection to a host that vanished hangs
CURIOUS_SHARE = 0.1
PATHWAY = re.compile(r"http://([^/]+)/t/")
TRACKS = (*(name for name, *_ in RUNGS), SOUND)


class StreamingPeople:
    """Drives play and the cache nodes of a system."""

    def __init__(self, world: World, sites: Sites, hosts: list[str], count: int) -> None:
        self.felt = Felt()
        self._world = world
        self._sites = sites
        self._hosts = hosts
        self._callers = [Caller(world, sites.home, self.felt, host) for host in hosts]
        self._regions = [world.network.places()[host][0] for host in hosts]
        self._nodes: dict[tuple[int, int], HttpClient] = {}
        self._count = count
        self.pace = Pace(EVERY_S)
        self._titles: dict[str, str] = {}  # id -> name
        self._versions: dict[str, str] = {}

    async def begin(self) -> None:
        for _ in range(TRIES):
            answer = await self._callers[0].call("browse", "GET", "/streaming/api/titles")
            if answer is not None and answer.status == 200:
                listed = msgspec.json.decode(answer.body)["titles"]
                self._titles = {title["id"]: title["name"] for title in listed if title["version"]}
                self._versions = {title["id"]: title["version"] for title in listed}
                break
        assert self._titles, "there are films to watch"

    async def drive(self, duration_s: float) -> None:
        until_s = clock.monotonic_s() + duration_s
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                place = number % len(self._hosts)
                with self._world.on(self._hosts[place]):
                    group.create_task(self._view(place, until_s))

    async def settle(self) -> None:
        """Everybody plays once more: what was broken must not stay so."""
        await clock.sleep(SETTLE_S)
        before = self.felt.totals()[1]
        await self._watch(0, min(self._titles), clock.monotonic_s() + 30.0)
        if self.felt.totals()[1] > before:
            self.felt.violated("films: playing fails although everything is whole again")

    async def check(self) -> list[str]:
        return list(self.felt.violations)

    def surge(self, factor: float) -> None:
        self.pace.factor = factor

    async def _view(self, place: int, until_s: float) -> None:
        while clock.monotonic_s() < until_s:
            await self.pace.wait(until_s)
            await self._watch(place, clock.random().choice(sorted(self._titles)), until_s)

    async def _watch(self, place: int, title: str, until_s: float) -> None:
        if clock.monotonic_s() >= until_s:
            return
        asked = {"title": title, "region": self._regions[place] if self._is_spread else "eu"}
        answer = await self._callers[place].call("play", "POST", "/streaming/api/play", body=asked)
        if answer is None or answer.status >= 300:
            if answer is not None and answer.status < 500:
                self.felt.violated(f"films: play of a published title was refused with {answer.status}")
            return
        play = msgspec.json.decode(answer.body)
        bases = [str(play["hls"]).rpartition("/")[0]]
        if self._is_spread:
            bases = await self._pathways(place, play["session"], bases[0])
        track = clock.random().choice(TRACKS)
        for number in range(SEGMENTS):
            if clock.monotonic_s() >= until_s:
                return
            await self._fetch(place, bases, title, track, number)
            if clock.random().random() < CURIOUS_SHARE:
                await self._try_another(place, bases[0], title, track)
            await clock.sleep(SEGMENT_S / 2)

    @property
    def _is_spread(self) -> bool:
        return len(self._sites.all) > 1

    async def _pathways(self, place: int, session: str, base: str) -> list[str]:
        """The play's base on every node, in the order that the session's playlist says; the given one where none comes."""
        path = f"/streaming/api/sessions/{session}/master.m3u8"
        answer = await self._callers[place].call("playlist", "GET", path)
        if answer is None or answer.status != 200:
            return [base]
        right = base.partition("/t/")[2]
        found = PATHWAY.findall(answer.body.decode())
        return [f"http://{node}/t/{right}" for node in dict.fromkeys(found)] or [base]

    async def _fetch(self, place: int, bases: list[str], title: str, track: str, number: int) -> None:
        """One segment; a player that is not served goes on with the next node of its playlist, and stays there."""
        for _ in range(TRIES):
            began = clock.monotonic_s()
            found = await self._get(place, f"{bases[0]}/{track}/{number}.m4s")
            if found is not None and found[0] == 200:
                self.felt.served("segment", clock.monotonic_s() - began)
                for text in wrong_bytes(found[1], self._titles[title], track, number):
                    self.felt.violated(text)
                return
            self.felt.failed("no answer" if found is None else f"http_{found[0]}")
            bases.append(bases.pop(0))
            await clock.sleep(0.5)

    async def _try_another(self, place: int, base: str, title: str, track: str) -> None:
        """The own right with another title's path, and no right at all."""
        other = next(one for one in self._titles if one != title)
        own, wanted = (f"/v/{one}/{self._versions[one]}" for one in (title, other))
        for address, what in (
            (f"{base.replace(own, wanted)}/{track}/0.m4s", "another title with this one's right"),
            (f"{_without_token(base)}/{track}/0.m4s", "a segment without any right"),
        ):
            found = await self._get(place, address)
            if found is not None:
                for text in unearned(found[0], what):
                    self.felt.violated(text)

    async def _get(self, place: int, url: str) -> tuple[int, bytes] | None:
        host, _, path = url.removeprefix("http://").partition("/")
        port = int(host.rpartition(":")[2])
        client = self._nodes.get((place, port))
        if client is None:
            slot = port - CDN_PORT  # of a node alone at a site; all others are at home
            site = self._sites.all[slot] if 0 < slot < len(self._sites.all) else self._sites.home
            client = self._nodes[place, port] = HttpClient(site.address, port)
        try:
            answer = await client.request("GET", f"/{path}", timeout_s=REQUEST_S)
        except (FourplaneError, OSError):
            return None
        return answer.status, answer.body


def _without_token(base: str) -> str:
    """The same address without `/t/TOKEN`."""
    head, found, rest = base.partition("/t/")
    return f"{head}/{rest.partition('/')[2]}" if found else base
