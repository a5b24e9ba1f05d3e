"""Other programs hear of rides, in the shape of Uber's webhooks: signed, in order, at least once.

An operator registers an address and is shown its secret once. Every endpoint is a group of `trip.state.changed` with an
offset of its own: what it has not answered with a 2xx is sent again, later each time, and nothing behind it overtakes;
what fails `attempts_max` times is counted as given up and left behind. A receiver drops an `event_id` it has seen.

    X-Fourplane-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" under the secret>
"""

import hmac
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec

from fourplane.dispatch import trips
from fourplane.dispatch.trip_store import TOPIC, TripNotice
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Corrupt, FourplaneError, NotFound, Rejected, Unauthenticated
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Delete, EventLog, Put, Records

PARTITION = b"dispatch/webhooks"
SCHEMA = 1
URL_MAX = 500
TOLERANCE_S = 300

Find = Callable[[int], Awaitable[trips.Trip | None]]


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of deliveries."""

    endpoints_max: int = 20
    batch: int = 100
    poll_s: float = 0.5
    timeout_s: float = 5.0
    retry_s: float = 1.0
    retry_s_max: float = 600.0
    attempts_max: int = 12


class Webhook(msgspec.Struct, frozen=True):
    """An endpoint; the secret is shown once."""

    id: str
    url: str
    secret: str = ""


class Meta(msgspec.Struct, frozen=True):
    resource_id: str
    status: str
    user_id: str
    resource_type: str = "request"


class Notice(msgspec.Struct, frozen=True):
    """The body of a delivery."""

    event_id: str
    event_time: int
    event_type: str
    meta: Meta
    resource_href: str


class WebhookStatistics(msgspec.Struct, frozen=True):
    endpoints: int
    delivered: int
    failed: int
    given_up: int


class _Endpoint:
    """One endpoint and where it stands."""

    def __init__(self, number: int, hook: Webhook) -> None:
        self.number, self.hook = number, hook
        self.attempts, self.next_s = 0, 0.0

    @property
    def group(self) -> str:
        return f"dispatch-webhook-{self.number}"


def sign(secret: str, body: bytes, now_s: int) -> str:
    """The signature header of a body sent now."""
    return f"t={now_s},v1={hmac.new(secret.encode(), b'%d.' % now_s + body, 'sha256').hexdigest()}"


def verify(secret: str, header: str, body: bytes, now_s: int) -> None:
    """What a receiver does: raises Unauthenticated unless this body was signed within the last five minutes."""
    parts = dict(part.partition("=")[::2] for part in header.split(",")[:10])
    stamp = parts.get("t", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12):
        raise Unauthenticated("the signature has no time", code="bad_signature")
    if not hmac.compare_digest(sign(secret, body, int(stamp)), f"t={stamp},v1={parts.get('v1', '')}"):
        raise Unauthenticated("the signature does not fit", code="bad_signature")
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        raise Unauthenticated("the delivery is too old", code="stale_signature")


def status_after(event: trips.Event) -> str:
    """What a rider's app would call the ride after this event; empty where nothing changed for it."""
    match event:
        case trips.Requested() | trips.Released():
            return "processing"
        case trips.Accepted():
            return "accepted"
        case trips.Arrived():
            return "arriving"
        case trips.Started():
            return "in_progress"
        case trips.Completed():
            return "completed"
        case trips.Ended():
            return event.status
        case trips.Settled():
            return "receipt_ready"
        case _:
            return ""


class Webhooks:
    """Endpoints and their deliveries."""

    def __init__(
        self, settings: WebhookSettings, *, records: Records, log: EventLog, ids: IdGenerator, find: Find
    ) -> None:
        self._settings, self._records, self._log, self._ids, self._find = settings, records, log, ids, find
        self._endpoints: dict[int, _Endpoint] = {}
        self._tls: ssl.SSLContext | None = None
        self._delivered = self._failed = self._given_up = 0

    async def load(self) -> None:
        """Read the endpoints."""
        for row in await self._records.scan(PARTITION, limit=1_000):
            if row.value[:1] != bytes((SCHEMA,)):
                raise Corrupt("a webhook of another schema", file="dispatch/webhooks", place=row.sort.hex())
            number = int.from_bytes(row.sort, "big")
            self._endpoints[number] = _Endpoint(number, msgspec.msgpack.decode(row.value[1:], type=Webhook))

    async def register(self, url: str) -> Webhook:
        """Add an endpoint that hears of everything from now on; raises Rejected for anything but http and https."""
        _target(url)
        if len(self._endpoints) >= self._settings.endpoints_max:
            raise Rejected(f"at most {self._settings.endpoints_max} webhooks", code="too_many_webhooks")
        number = self._ids.next()
        endpoint = _Endpoint(number, Webhook(ids.encode("hook", number), url, ids.capability(24)))
        await self._log.commit_offset(endpoint.group, TOPIC, 0, await self._log.end_offset(TOPIC, 0))
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode(endpoint.hook)
        await self._records.write(PARTITION, [Put(number.to_bytes(8, "big"), value)])
        self._endpoints[number] = endpoint
        return endpoint.hook

    async def remove(self, hook_id: str) -> None:
        """Forget an endpoint; raises NotFound."""
        number = ids.decode("hook", hook_id)
        if self._endpoints.pop(number, None) is None:
            raise NotFound("no such webhook", code="no_webhook")
        await self._records.write(PARTITION, [Delete(number.to_bytes(8, "big"))])

    def listed(self) -> list[Webhook]:
        """All endpoints, without their secrets."""
        return [msgspec.structs.replace(one.hook, secret="") for one in self._endpoints.values()]

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await clock.sleep(self._settings.poll_s)
            for endpoint in list(self._endpoints.values()):
                if clock.monotonic_s() >= endpoint.next_s:
                    try:
                        await self._deliver(endpoint)
                    except FourplaneError:
                        self._wait(endpoint)  # the log is away; nothing is lost

    def statistics(self) -> WebhookStatistics:
        return WebhookStatistics(len(self._endpoints), self._delivered, self._failed, self._given_up)

    async def _deliver(self, endpoint: _Endpoint) -> None:
        """What waits for one endpoint, in order, until one fails."""
        offset = await self._log.committed_offset(endpoint.group, TOPIC, 0)
        entries = await self._log.read(TOPIC, 0, offset, limit=self._settings.batch)
        if not entries:
            return
        host, port, secure, path = _target(endpoint.hook.url)
        if secure and self._tls is None:
            from fourplane.edge.certificate import client_context  # noqa: PLC0415 - heavy, and seldom needed

            self._tls = client_context()
        client = HttpClient(
            host,
            port,
            self._tls if secure else None,
            settings=HttpClientSettings(connections_max=1, body_bytes_max=65_536),
        )
        done = offset
        try:
            for entry in entries:
                body = await self._body(msgspec.msgpack.decode(entry.value, type=TripNotice))
                if body and not await self._post(endpoint, client, path, body):
                    return
                done = entry.offset + 1
        finally:
            client.close()
            if done > offset:
                await self._log.commit_offset(endpoint.group, TOPIC, 0, done)

    async def _post(self, endpoint: _Endpoint, client: HttpClient, path: str, body: bytes) -> bool:
        """True when the endpoint took it, or never will."""
        headers = {
            "content-type": "application/json",
            "x-fourplane-signature": sign(endpoint.hook.secret, body, clock.now_us() // 1_000_000),
        }
        try:
            answer = await client.request("POST", path, body=body, headers=headers, timeout_s=self._settings.timeout_s)
            taken = 200 <= answer.status < 300
        except (FourplaneError, OSError):
            taken = False
        if taken:
            endpoint.attempts = 0
            self._delivered += 1
            return True
        self._failed += 1
        endpoint.attempts += 1
        if endpoint.attempts >= self._settings.attempts_max:
            endpoint.attempts = 0
            self._given_up += 1
            return True
        self._wait(endpoint)
        return False

    def _wait(self, endpoint: _Endpoint) -> None:
        pause = min(self._settings.retry_s_max, self._settings.retry_s * 2 ** max(0, endpoint.attempts - 1))
        endpoint.next_s = clock.monotonic_s() + pause * (0.75 + 0.5 * clock.random().random())

    async def _body(self, notice: TripNotice) -> bytes:
        event = trips.decode(notice.event)
        status = status_after(event)
        if not status:
            return b""
        trip = await self._find(notice.trip)
        kind = "requests.receipt_ready" if status == "receipt_ready" else "requests.status_changed"
        request = ids.encode("trip", notice.trip)
        meta = Meta(request, status, trip.rider if trip is not None else "")
        return msgspec.json.encode(
            Notice(notice.id, event.at_us // 1_000_000, kind, meta, f"/dispatch/api/requests/{request}")
        )


def _target(url: str) -> tuple[str, int, bool, str]:
    """Host, port, whether by TLS, path; raises Rejected."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Rejected("that is no address", code="bad_url") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or len(url) > URL_MAX:
        raise Rejected("a webhook is an http or https address without a password", code="bad_url")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, port or (443 if secure else 80), secure, path
