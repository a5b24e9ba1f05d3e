"""Probes: one user of each system who never sleeps, asks through the public doors, and says whether he was served.

What a system says about itself ends where it ends: a process that is gone reports nothing, and a fault in front of the counters
is not counted. So a probe a system connects as anybody does (HTTP, XMPP over TLS) every `every_s`, does the shortest thing that
is worth something to a user, and is served only if all of it worked within `deadline_s`:

    streaming   the list of titles, and of the first one: play, master playlist, a track's playlist, first segment
    dispatch    the city, and how soon a driver could be in its middle
    commerce    a search, and the first product it found
    messaging   login by TLS and SCRAM, and a message to oneself that comes back

Each is a counter of attempts, of failures and a histogram of times. FAILED_IN_A_ROW failures make a condition of their own,
which pages long before an error budget is spent. Bounded: one attempt of a system at a time, its deadline, BODY_MAX bytes.
"""

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urljoin, urlsplit

import msgspec

from fourplane.control.alerts.book import Condition
from fourplane.control.objectives import xmpp_probe
from fourplane.edge.http_client import HttpClient, HttpClientSettings, HttpResponse
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Misconfigured, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

BODY_MAX = 32 << 20
RECENT_MAX = 120
FAILED_IN_A_ROW = 2
HTTP_OK, HTTP_MORE = 200, 300
READY_LOOK_S = 0.5
_VARIANT = re.compile(r"#EXT-X-STREAM-INF:[^\n]*\n(\S+)")
_SEGMENT = re.compile(r"#EXTINF:[^\n]*\n(\S+)")


class ProbeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a probe asks, and how long it waits. `host`: what it connects to and calls itself a guest of."""

    enabled: bool = True
    every_s: float = 5.0
    deadline_s: float = 3.0
    first_after_s: float = 5.0  # after the deployment is ready
    host: str = ""  # the Host field; empty: the address

    def __post_init__(self) -> None:
        if not (0.2 <= self.every_s <= 3_600 and 0.1 <= self.deadline_s <= 60 and self.first_after_s >= 0):
            raise Misconfigured("every_s is 0.2 to 3,600 and deadline_s 0.1 to 60", setting="probes.every_s")


class Doors(msgspec.Struct, frozen=True):
    """Where the deployment listens."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    xmpp_tls_port: int = 5223
    domain: str = "localhost"


class Guest(msgspec.Struct, frozen=True):
    """The account probes use where one is needed."""

    name: str
    password: str
    token: str = ""  # of a session, so that a probe has a rate limit of its own


class Attempt(msgspec.Struct, frozen=True):
    """One probe that was sent."""

    at_s: float
    took_ms: float
    error: str = ""


class ProbeView(msgspec.Struct, frozen=True):
    """A system's probe as people see it."""

    system: str
    served: int
    failed: int
    recent: list[Attempt]


class ProbeStatistics(msgspec.Struct, frozen=True):
    """Probes of all systems."""

    sent: int
    failed: int
    failing: int


class _Named(msgspec.Struct):
    id: str
    version: object = 1


class _Products(msgspec.Struct):
    products: list[_Named]


class _Titles(msgspec.Struct):
    titles: list[_Named]


class _Play(msgspec.Struct):
    base: str
    session: str


class _City(msgspec.Struct):
    center: tuple[float, float]


class _Probe:
    """The probe of one system."""

    def __init__(self, system: str, registry: Registry) -> None:
        self.system = system
        self.sent = registry.counter("fourplane_control_probes_total", "probes sent", system=system)
        self.failed = registry.counter("fourplane_control_probes_failed_total", "probes not served", system=system)
        self.seconds = registry.histogram("fourplane_control_probe_seconds", "time of a served probe", system=system)
        self.recent: deque[Attempt] = deque(maxlen=RECENT_MAX)
        self.failing_s = 0.0  # since when, on the wall clock; 0: it is served
        self.in_a_row = 0

    def done(self, attempt: Attempt) -> None:
        """Count one attempt. As many failures as successes in a row change what it is."""
        self.recent.append(attempt)
        self.sent.add()
        bad = bool(attempt.error)
        if bad:
            self.failed.add()
        else:
            self.seconds.record(attempt.took_ms / 1e3)
        self.in_a_row = self.in_a_row + 1 if bad != (self.failing_s > 0) else 0
        if self.in_a_row >= FAILED_IN_A_ROW:
            self.failing_s = attempt.at_s if bad else 0.0
            self.in_a_row = 0


class Probes:
    """A lifecycle part. `doors`, `ready` and `guest` are asked when they are needed."""

    def __init__(
        self,
        settings: ProbeSettings,
        systems: tuple[str, ...],
        *,
        registry: Registry,
        doors: Callable[[], Doors],
        ready: Callable[[], bool],
        guest: Callable[[], Awaitable[Guest]],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self.settings = settings
        self._registry = registry
        self._doors = doors
        self._ready = ready
        self._make_guest = guest
        self._tls = tls
        self._guest: Guest | None = None
        self._clients: dict[tuple[str, int], HttpClient] = {}
        kinds = {"streaming": self._stream, "dispatch": self._ride, "commerce": self._shop, "messaging": self._chat}
        self._work: dict[str, Callable[[], Awaitable[None]]] = {name: kinds[name] for name in systems if name in kinds}
        self._probes = {name: _Probe(name, registry) for name in self._work}

    async def start(self, tasks: Tasks) -> None:
        for number, name in enumerate(self._work):
            tasks.start(self._run(name, number / max(1, len(self._work))), name)

    async def drain(self) -> None:
        """A deployment that stops is not to be probed: what fails from now on is no failure."""
        self._ready = lambda: False

    async def stop(self) -> None:
        for client in self._clients.values():
            client.close()

    def conditions(self, _: float) -> Iterator[Condition]:
        """Systems whose users are not served."""
        for probe in self._probes.values():
            if probe.failing_s:
                error = next((one.error for one in reversed(probe.recent) if one.error), "")
                summary = f"a user of {probe.system} is not served: {error}"
                yield Condition("ProbeFailing", probe.system, "page", summary, {"probe": probe.system}, keep_s=0.0)

    def views(self) -> list[ProbeView]:
        """All probes with their latest attempts."""
        return [
            ProbeView(one.system, one.sent.value - one.failed.value, one.failed.value, list(one.recent))
            for one in self._probes.values()
        ]

    def statistics(self) -> ProbeStatistics:
        """Probes of all systems."""
        known = self._probes.values()
        return ProbeStatistics(
            sum(one.sent.value for one in known),
            sum(one.failed.value for one in known),
            sum(one.failing_s > 0 for one in known),
        )

    def count_outage(self, seconds: float) -> int:
        """Book the probes nobody could send while this process was dead, as failed: what they would have been."""
        missed = int(seconds / self.settings.every_s)
        for probe in self._probes.values():
            probe.sent.add(missed)
            probe.failed.add(missed)
        return missed

    async def once(self, system: str) -> Attempt:
        """Ask once, now; never raises for a system that does not serve."""
        at_s, began_s, error = clock.now_us() / 1e6, clock.monotonic_s(), ""
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                await self._work[system]()
        except TimeoutError:
            error = f"nothing within {self.settings.deadline_s:g} s"
        except FourplaneError as failed:
            error = f"{failed.reason}: {failed.message}"[:200]
        except (
            OSError,
            ValueError,
            IndexError,
            msgspec.MsgspecError,
        ) as failed:  # no connection, or an answer nobody understands
            error = f"{type(failed).__name__}: {failed}"[:200]
        return Attempt(at_s, round((clock.monotonic_s() - began_s) * 1e3, 2), error)

    async def _run(self, system: str, phase: float) -> None:
        while not self._ready():
            await clock.sleep(READY_LOOK_S)
        await clock.sleep(self.settings.first_after_s + phase * self.settings.every_s)
        due_s = clock.monotonic_s()
        while True:
            attempt = await self.once(system)
            if self._ready():
                self._probes[system].done(attempt)
            due_s = max(due_s + self.settings.every_s, clock.monotonic_s())
            await clock.sleep(due_s - clock.monotonic_s())

    # -- what each does

    async def _shop(self) -> None:
        found = msgspec.json.decode(
            await self._ask("GET", "/commerce/api/products?limit=1&facets=none"), type=_Products
        )
        if found.products:
            await self._ask("GET", f"/commerce/api/products/{found.products[0].id}")

    async def _ride(self) -> None:
        lat, lng = msgspec.json.decode(await self._ask("GET", "/dispatch/api/map"), type=_City).center
        await self._ask("GET", f"/dispatch/api/estimates/time?start_latitude={lat}&start_longitude={lng}")

    async def _stream(self) -> None:
        listed = msgspec.json.decode(await self._ask("GET", "/streaming/api/titles"), type=_Titles).titles
        titles = [one for one in listed if one.version]
        if not titles:
            return
        asked = msgspec.json.encode({"title": titles[0].id})
        play = msgspec.json.decode(await self._ask("POST", "/streaming/api/play", asked), type=_Play)
        try:
            track_url = urljoin(play.base, _VARIANT.findall((await self._fetch(play.base + "master.m3u8")).decode())[0])
            track = (await self._fetch(track_url)).decode()
            await self._fetch(urljoin(track_url, _SEGMENT.findall(track)[0]))
        finally:  # an account may watch a few streams at one time: a probe closes its player
            ended = msgspec.json.encode({"session": play.session, "ended": True})
            with contextlib.suppress(FourplaneError):
                await self._ask("POST", "/streaming/api/beacons", ended)

    async def _chat(self) -> None:
        doors, guest = self._doors(), await self._account()
        await xmpp_probe.talk(
            doors.host, doors.xmpp_tls_port, self._tls(), name=guest.name, password=guest.password, domain=doors.domain
        )

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        doors = self._doors()
        return _served(path, await self._request(doors.host, doors.http_port, method, path, body))

    async def _fetch(self, url: str) -> bytes:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        return _served(path, await self._request(str(parts.hostname), parts.port or 80, "GET", path, b""))

    async def _request(self, host: str, port: int, method: str, path: str, body: bytes) -> HttpResponse:
        client = self._clients.get((host, port))
        if client is None:
            client = self._clients[host, port] = HttpClient(host, port, settings=HttpClientSettings(connections_max=8))
        headers = {"user-agent": "fourplane-probe"}
        if body:
            headers["content-type"] = "application/json"
        if port == self._doors().http_port:
            headers["authorization"] = f"Bearer {(await self._account()).token}"
            if self.settings.host:
                headers["host"] = self.settings.host
        return await client.request(
            method, path, body=body, headers=headers, timeout_s=self.settings.deadline_s, body_max=BODY_MAX
        )

    async def _account(self) -> Guest:
        if self._guest is None:
            self._guest = await self._make_guest()
        return self._guest


def _served(path: str, answer: HttpResponse) -> bytes:
    if not HTTP_OK <= answer.status < HTTP_MORE:
        raise Unavailable(f"{path.partition('?')[0]} answers {answer.status}", code=f"http_{answer.status}")
    return answer.body
