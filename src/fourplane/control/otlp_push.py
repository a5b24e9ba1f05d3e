"""Telemetry pushed to an OpenTelemetry collector: all metrics and the traces that were kept, every few seconds.

`POST {url}/v1/metrics` with the cells of all workers, cumulative, so that a push that is lost loses nothing; `POST
{url}/v1/traces` with what came since the last push that was taken. A collector that is away costs one request in `every_s`;
people hear of it once, and once when it is back. Bounded: TRACES_AT_ONCE traces a push, the ring of traces behind it.

A collector that asks who pushes gets one header field with what lies in the file `data/secrets/<secret_file>`, such as
`Bearer abc...` or an API key. It is read before each push, so that a new secret needs no restart, and is told to nobody
else: no log line, event or statistic has it.
"""

import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
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
SECRET_MAX = 4_096
RESERVED = frozenset({"content-type", "content-length", "host", "transfer-encoding", "connection", "traceparent"})
_TOKEN = re.compile(r"[A-Za-z0-9-]{1,64}")


class OtlpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where telemetry goes; nowhere without `url`, such as http://127.0.0.1:4318."""

    url: str = ""
    every_s: float = 10.0
    service: str = "fourplane"
    header: str = "authorization"  # what the secret is sent as
    secret_file: str = ""  # its name in data/secrets; empty: none is sent

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not _TOKEN.fullmatch(self.header) or self.header.lower() in RESERVED:
            raise Misconfigured(f"{self.header[:40]!r} cannot be a header of a push", setting="otlp.header")
        if "/" in self.secret_file or self.secret_file in {".", ".."}:
            raise Misconfigured("secret_file is the name of a file in data/secrets", setting="otlp.secret_file")
        if parts.password is not None or parts.username is not None:
            raise Misconfigured("a secret does not belong into url; see otlp.secret_file", setting="otlp.url")
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
        secrets: Path | None = None,
    ) -> None:
        """`secrets`: the folder in which the settings' `secret_file` lies."""
        self.settings = settings
        self._secret = secrets / settings.secret_file if secrets is not None and settings.secret_file else None
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
        headers = {"content-type": "application/json"}
        if self._secret is not None:
            headers[self.settings.header] = _secret(self._secret)
        answer = await self._client.request(
            "POST", self._base + path, body=body, headers=headers, timeout_s=TIMEOUT_S, body_max=ANSWER_MAX
        )
        if not HTTP_OK <= answer.status < HTTP_MORE:
            raise Unavailable(f"{path} answers {answer.status}", code="otlp_refused")


def _secret(file: Path) -> str:
    """One line of visible characters; raises Unavailable, which names the file and not what is in it."""
    try:
        with file.open("rb") as opened:
            found = opened.read(SECRET_MAX + 1).strip()
    except OSError as error:
        raise Unavailable(f"data/secrets/{file.name}: {error.strerror}", code="otlp_secret") from None
    if not found or len(found) > SECRET_MAX or not found.isascii() or not found.decode("ascii").isprintable():
        raise Unavailable(f"data/secrets/{file.name} is not one line of visible characters", code="otlp_secret")
    return found.decode("ascii")
