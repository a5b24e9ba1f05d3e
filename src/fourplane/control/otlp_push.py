"""Telemetry pushed to an OpenTelemetry collector: all metrics and the traces that were kept, every few seconds.

`POST {url}/v1/metrics` with the cells of all workers, cumulative, so that a push that is lost loses nothing; `POST
{url}/v1/traces` with what came since the last push that was taken. A collector that is away costs one request in `every_s`;
people hear of it once, and once when it is back. Bounded: TRACES_AT_ONCE traces a push, the ring of traces behind it.
"""

import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec

from fourplane.control.metrics import otlp as metrics_otlp
from fourplane.control.traces import otlp as traces_otlp
from fourplane.control.traces.columns import TraceColumns
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Misconfigured, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

TRACES_AT_ONCE = 500
TIMEOUT_S = 5.0
ANSWER_MAX = 256 << 10
HTTP_OK, HTTP_MORE = 200, 300


class OtlpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where telemetry goes; nowhere without `url`, such as http://127.0.0.1:4318."""

    url: str = ""
    every_s: float = 10.0
    service: str = "fourplane"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if self.url and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise Misconfigured(f"{self.url!r} is no http:// or https:// address", setting="otlp.url")
        if not 0.5 <= self.every_s <= 3_600:
            raise Misconfigured("every_s is 0.5 to 3,600", setting="otlp.every_s")


class OtlpStatistics(msgspec.Struct, frozen=True):
    """What was pushed."""

    pushes: int
    failed: int
    traces: int


class OtlpPush:
    """A lifecycle part of the worker with the console."""

    def __init__(
        self,
        settings: OtlpSettings,
        *,
        registry: Registry,
        collect: Callable[[], Awaitable[Registry]],
        traces: TraceColumns | None,
    ) -> None:
        self.settings = settings
        self._registry = registry
        self._collect = collect
        self._traces = traces
        self._started_us = clock.now_us()
        parts = urlsplit(settings.url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (80 if tls is None else 443)
        self._client = HttpClient(str(parts.hostname), port, tls, settings=HttpClientSettings(connections_max=2))
        self._base = parts.path.rstrip("/")
        self._sent_traces = 0
        self._pushes = self._failed = 0
        self._away = False

    async def start(self, tasks: Tasks) -> None:
        tasks.start(self._run(), "push")

    async def drain(self) -> None:
        """The last figures are not waited for."""

    async def stop(self) -> None:
        self._client.close()

    async def push(self) -> None:
        """Send both now. Raises what the client raises, and Unavailable where the collector refuses."""
        cells = await self._collect()
        resource = {"service.name": self.settings.service}
        body = metrics_otlp.export(cells, now_us=clock.now_us(), started_us=self._started_us, resource=resource)
        await self._post("/v1/metrics", body)
        if self._traces is None:
            return
        total = self._traces.traces_total
        fresh = self._traces.since(max(self._sent_traces, total - TRACES_AT_ONCE))
        if fresh:
            await self._post("/v1/traces", traces_otlp.export(fresh, service=self.settings.service))
        self._sent_traces = total

    def statistics(self) -> OtlpStatistics:
        return OtlpStatistics(self._pushes, self._failed, self._sent_traces)

    async def _run(self) -> None:
        while True:
            await clock.sleep(self.settings.every_s)
            try:
                await self.push()
            except FourplaneError as error:
                self._failed += 1
                if not self._away:
                    self._registry.event("warning", "otlp", f"the collector is away: {error.message}")
                self._away = True
                continue
            self._pushes += 1
            if self._away:
                self._registry.event("info", "otlp", "the collector takes telemetry again")
            self._away = False

    async def _post(self, path: str, body: bytes) -> None:
        answer = await self._client.request(
            "POST", self._base + path, body=body, headers={"content-type": "application/json"}, timeout_s=TIMEOUT_S,
            body_max=ANSWER_MAX,
        )  # fmt: skip
        if not HTTP_OK <= answer.status < HTTP_MORE:
            raise Unavailable(f"{path} answers {answer.status}", code="otlp_refused")
