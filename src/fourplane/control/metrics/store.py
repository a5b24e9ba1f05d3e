"""The metrics store as a part of a deployment: it looks, scrapes, keeps, and answers queries.

Once a second it reads the registry of this process (and of the other workers), closes the step, and once in `scrape_s`
it scrapes the targets it was given. Closed steps of the stored tiers go to the blobs, one small object a step; what falls out
of a tier's time is deleted there. At the start they are read back. So what arrived is durable within the step of the
first stored tier (10 s), and a restart continues the curves.

Doors: `GET /control/api/metrics/query`, `GET /control/api/metrics/names`, `POST /v1/metrics` (OTLP, JSON).
"""

import itertools
import zlib
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
import numpy as np

from fourplane.control.metrics import query
from fourplane.control.metrics.exposition import TextReader
from fourplane.control.metrics.otlp import OtlpReader
from fourplane.control.metrics.readings import RegistryReader
from fourplane.control.metrics.series import Ids, SeriesEntry, SeriesTable
from fourplane.control.metrics.windows import TIERS, Step, Tier, TierSettings, Values, Windows
from fourplane.control.metrics.wire import PointsPort
from fourplane.edge.http_client import HttpClient
from fourplane.edge.routes import Call, Door, Priority, Route
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Corrupt, FourplaneError, Misconfigured, NotFound, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.state.contracts import Blobs

TICK_S = 1.0
SERIES_AT_ONCE = 5_000
STORED_PREFIX = "control/metrics"
HTTP_OK = 200
OTLP_BODY_MAX = 16 << 20


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds and sources of the metrics store."""

    enabled: bool = True
    series_max: int = 200_000
    tiers: tuple[TierSettings, ...] = TIERS
    targets: tuple[str, ...] = ()  # Prometheus endpoints to scrape: "http://127.0.0.1:9100/metrics"
    scrape_s: float = 10.0
    points_port: int = -1  # binary points over TCP; -1: no door, 0: any free port

    def __post_init__(self) -> None:
        widths = [tier.step_s for tier in self.tiers]
        if not widths or any(wide % fine or wide <= fine for fine, wide in itertools.pairwise(widths)):
            raise Misconfigured("each tier's step is a multiple of the one before", setting="metrics.tiers")
        for target in self.targets:
            if urlsplit(target).scheme != "http" or not urlsplit(target).hostname:
                raise Misconfigured(f"{target!r} is no http:// address", setting="metrics.targets")


class MetricsStatistics(msgspec.Struct, frozen=True):
    """What the store holds and did."""

    series: int
    points: int
    refused: int
    stored_steps: int
    targets_up: int
    targets_down: int


class SeriesAnswer(msgspec.Struct, frozen=True):
    """One line of an answer; None where nothing is known."""

    labels: dict[str, str]
    values: list[float | None]


class QueryAnswer(msgspec.Struct, frozen=True):
    """What `GET /control/api/metrics/query` answers."""

    times: list[int]
    series: list[SeriesAnswer]


class _Target:
    """One endpoint to scrape."""

    def __init__(self, address: str, table: SeriesTable) -> None:
        parts = urlsplit(address)
        self.client = HttpClient(str(parts.hostname), parts.port or 80)
        self.path = parts.path or "/metrics"
        labels = (("instance", parts.netloc),)
        self.reader = TextReader(table, labels)
        self.up_id = table.id_of("up", labels, "gauge")
        self.address = address
        self.up: bool | None = None


class MetricsStore:
    """A lifecycle part. `collect` gives the cells of all workers."""

    def __init__(
        self,
        settings: MetricsSettings,
        *,
        registry: Registry,
        blobs: Blobs | None = None,
        collect: Callable[[], Awaitable[Registry]] | None = None,
    ) -> None:
        self.settings = settings
        self.table = SeriesTable(settings.series_max)
        self.windows = Windows(self.table, settings.tiers, closed=self._closed)
        self.port = 0
        self._registry = registry
        self._collect = collect
        self._blobs = blobs
        self._reader = RegistryReader(self.table)
        self._otlp = OtlpReader(self.table)
        self._targets: list[_Target] = []
        self._unsaved: list[tuple[Tier, Step]] = []
        self._series_saved = 0
        self._stored_steps = 0
        self._server: object = None

    async def start(self, tasks: Tasks) -> None:
        """Read back what was stored, then look once a second."""
        await self._restore()
        self._targets = [_Target(address, self.table) for address in self.settings.targets]
        if self.settings.points_port >= 0:
            server = await network.listen(lambda: PointsPort(self.windows), "127.0.0.1", self.settings.points_port)
            self._server, self.port = server, network.port_of(server)
        tasks.start(self._watch(), "metrics")
        if self._targets:
            tasks.start(self._scrape(), "scrapes")

    async def drain(self) -> None:
        """Points may come until the end."""

    async def stop(self) -> None:
        """Keep the steps that are closed."""
        await self._save()
        for target in self._targets:
            target.client.close()

    def doors(self) -> list[Door]:
        """The query door and OTLP's."""
        return [
            Route(
                "GET", "/control/api/metrics/query", self._query, "Query metrics: q, seconds, step", answer=QueryAnswer,
                priority=Priority.DEGRADED,
            ),
            Route("GET", "/control/api/metrics/names", self._names, "The names of all metrics", answer=list),
            Route(
                "POST", "/v1/metrics", self._otlp_in, "OTLP metrics in JSON", body=bytes, body_max=OTLP_BODY_MAX,
                access="operator", priority=Priority.BULK,
            ),
        ]  # fmt: skip

    def run(self, text: str, *, seconds: float, step_s: int = 1) -> query.Frame:
        """The answer to a query over the last `seconds`."""
        now_s = clock.now_us() / 1e6
        return query.run(self.windows, text, query.Span(now_s - seconds, now_s, step_s))

    def take(self, points: tuple[Ids, Values, Ids, Values]) -> None:
        """Counters' ids and increments, gauges' ids and values."""
        counters, grown, gauges, now = points
        if len(counters):
            self.windows.add(counters, grown)
        if len(gauges):
            self.windows.set(gauges, now)

    def statistics(self) -> MetricsStatistics:
        """What the store holds and did."""
        up = sum(target.up is True for target in self._targets)
        return MetricsStatistics(
            len(self.table), self.windows.points, self.table.refused, self._stored_steps, up, len(self._targets) - up
        )

    async def _watch(self) -> None:
        due_s = clock.monotonic_s()
        while True:
            cells = self._registry if self._collect is None else await self._collect()
            for points in self._reader.slices(cells):
                if points is not None:
                    self.take(points)
                await clock.sleep(0)
            self.windows.advance(clock.now_us() / 1e6)
            if self._unsaved:
                await self._save()
            due_s = max(due_s + TICK_S, clock.monotonic_s())
            await clock.sleep(due_s - clock.monotonic_s())

    async def _scrape(self) -> None:
        while True:
            for target in self._targets:
                await self._scrape_one(target)
            await clock.sleep(self.settings.scrape_s)

    async def _scrape_one(self, target: _Target) -> None:
        try:
            answer = await target.client.request("GET", target.path, timeout_s=min(self.settings.scrape_s, 10.0))
            if answer.status != HTTP_OK:
                raise Rejected(f"it answers {answer.status}", code="bad_exposition")
            self.take(target.reader.read(answer.body))
            up = True
        except FourplaneError as error:
            up = False
            if target.up is not False:
                self._registry.event("warning", "metrics", f"{target.address} cannot be scraped: {error.message}")
        target.up = up
        self.windows.set(np.array([target.up_id], dtype=np.uint32), np.array([float(up)]))

    # -- what is kept

    def _closed(self, tier: Tier, step: Step) -> None:
        if self._blobs is not None:
            self._unsaved.append((tier, step))

    async def _save(self) -> None:
        if self._blobs is None:
            return
        while self._series_saved < len(self.table):
            first = self._series_saved
            entries = self.table.entries[first : first + SERIES_AT_ONCE]
            content = zlib.compress(msgspec.msgpack.encode(entries), 1)
            await self._blobs.put(f"{STORED_PREFIX}/series/{first:012d}", content)
            self._series_saved = first + len(entries)
        unsaved, self._unsaved = self._unsaved, []
        for tier, step in unsaved:
            await self._blobs.put(_key(tier.step_s, step.at), zlib.compress(step.values.tobytes(), 1))
            self._stored_steps += 1
            steps_max = tier.steps.maxlen or 0
            await self._blobs.delete(_key(tier.step_s, step.at - steps_max * tier.step_s))

    async def _restore(self) -> None:
        if self._blobs is None:
            return
        for key in await self._all_keys(f"{STORED_PREFIX}/series/"):
            for entry in msgspec.msgpack.decode(zlib.decompress(await self._blobs.get(key)), type=list[SeriesEntry]):
                self.table.id_of(entry.name, entry.labels, entry.kind)
        self._series_saved = len(self.table)
        for tier in self.settings.tiers:
            if not tier.stored:
                continue
            oldest = int(clock.now_us() / 1e6) - tier.step_s * tier.steps
            for key in await self._all_keys(f"{STORED_PREFIX}/{tier.step_s}/"):
                at = int(key.rpartition("/")[2])
                if at < oldest:
                    await self._blobs.delete(key)
                    continue
                try:
                    content = zlib.decompress(await self._blobs.get(key))
                except (zlib.error, Corrupt, NotFound) as error:
                    self._registry.event("warning", "metrics", f"the step {key} is lost: {error}")
                    continue
                self.windows.restore(tier.step_s, Step(at, np.frombuffer(content, dtype=np.float32)))

    async def _all_keys(self, prefix: str) -> list[str]:
        assert self._blobs is not None
        keys: list[str] = []
        while more := await self._blobs.keys(prefix, after=keys[-1] if keys else ""):
            keys += more
        return keys

    # -- doors

    async def _query(self, call: Call[None]) -> QueryAnswer:
        text = call.query.get("q", "")
        seconds, step_s = _asked(call, "seconds", 300.0), int(_asked(call, "step", 1.0))
        frame = self.run(text, seconds=seconds, step_s=step_s)
        return QueryAnswer(
            frame.times,
            [
                SeriesAnswer(dict(labels), [None if value != value else value for value in values.tolist()])  # noqa: PLR0124 - NaN
                for labels, values in zip(frame.labels, frame.values, strict=True)
            ],
        )

    async def _names(self, _: Call[None]) -> list[str]:
        return self.table.names()

    async def _otlp_in(self, call: Call[bytes]) -> dict[str, object]:
        if "protobuf" in call.headers.get("content-type", ""):
            raise Rejected("send OTLP as JSON (http/json); the binary form is not read", code="bad_otlp")
        self.take(self._otlp.read(call.body))
        return {}


def _key(step_s: int, at: int) -> str:
    return f"{STORED_PREFIX}/{step_s}/{at:012d}"


def _asked(call: Call[None], name: str, default: float) -> float:
    text = call.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 1 <= value <= 90 * 86_400:
        raise Rejected(f"{name} is a number of seconds from 1 to 90 days", code="bad_query")
    return value
