"""Other programs hear of rides, in the shape of Uber's webhooks: signed, in order, at least once.

An operator registers an address and is shown its secret once. Every endpoint is a group of `trip.state.changed` with an
offset of its own: what it has not answered with a 2xx is sent again, later each time, and nothing behind it overtakes;
what fails `attempts_max` times is counted as given up and left behind. A receiver drops an `event_id` it has seen. Signature,
post and pauses are `edge.webhooks`'.
"""

from collections.abc import Awaitable, Callable

import msgspec

from fourplane.dispatch import trips
from fourplane.dispatch.trip_store import TOPIC, TripNotice
from fourplane.edge.webhooks import Endpoint, Line, Sender, WebhookSettings, target_of
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Corrupt, FourplaneError, NotFound, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Delete, EventLog, Put, Records

PARTITION = b"dispatch/webhooks"
SCHEMA = 1

Find = Callable[[int], Awaitable[trips.Trip | None]]


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


class _Listener:
    """One endpoint and where it stands."""

    def __init__(self, number: int, endpoint: Endpoint) -> None:
        self.number, self.endpoint = number, endpoint
        self.attempts, self.next_s = 0, 0.0

    @property
    def group(self) -> str:
        return f"dispatch-webhook-{self.number}"


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
        self._listeners: dict[int, _Listener] = {}
        self._sender = Sender(settings)
        self._delivered = self._failed = self._given_up = 0

    async def load(self) -> None:
        """Read the endpoints."""
        for row in await self._records.scan(PARTITION, limit=1_000):
            if row.value[:1] != bytes((SCHEMA,)):
                raise Corrupt("a webhook of another schema", file="dispatch/webhooks", place=row.sort.hex())
            number = int.from_bytes(row.sort, "big")
            self._listeners[number] = _Listener(number, msgspec.msgpack.decode(row.value[1:], type=Endpoint))

    async def register(self, url: str) -> Endpoint:
        """Add an endpoint that hears of everything from now on; raises Rejected for anything but http and https."""
        target_of(url)
        if len(self._listeners) >= self._settings.endpoints_max:
            raise Rejected(f"at most {self._settings.endpoints_max} webhooks", code="too_many_webhooks")
        number = self._ids.next()
        listener = _Listener(number, Endpoint(ids.encode("hook", number), url, ids.capability(24)))
        await self._log.commit_offset(listener.group, TOPIC, 0, await self._log.end_offset(TOPIC, 0))
        value = bytes((SCHEMA,)) + msgspec.msgpack.encode(listener.endpoint)
        await self._records.write(PARTITION, [Put(number.to_bytes(8, "big"), value)])
        self._listeners[number] = listener
        return listener.endpoint

    async def remove(self, hook_id: str) -> None:
        """Forget an endpoint; raises NotFound."""
        number = ids.decode("hook", hook_id)
        if self._listeners.pop(number, None) is None:
            raise NotFound("no such webhook", code="no_webhook")
        await self._records.write(PARTITION, [Delete(number.to_bytes(8, "big"))])

    def listed(self) -> list[Endpoint]:
        """All endpoints, without their secrets."""
        return [one.endpoint.without_secret() for one in self._listeners.values()]

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await clock.sleep(self._settings.poll_s)
            for listener in list(self._listeners.values()):
                if clock.monotonic_s() >= listener.next_s:
                    try:
                        await self._deliver(listener)
                    except FourplaneError:
                        self._wait(listener)  # the log is away; nothing is lost

    def statistics(self) -> WebhookStatistics:
        return WebhookStatistics(len(self._listeners), self._delivered, self._failed, self._given_up)

    async def _deliver(self, listener: _Listener) -> None:
        """What waits for one endpoint, in order, until one fails."""
        offset = await self._log.committed_offset(listener.group, TOPIC, 0)
        entries = await self._log.read(TOPIC, 0, offset, limit=self._settings.batch)
        if not entries:
            return
        line, done = self._sender.line(listener.endpoint), offset
        try:
            for entry in entries:
                body = await self._body(msgspec.msgpack.decode(entry.value, type=TripNotice))
                if body and not await self._post(listener, line, body):
                    return
                done = entry.offset + 1
        finally:
            line.close()
            if done > offset:
                await self._log.commit_offset(listener.group, TOPIC, 0, done)

    async def _post(self, listener: _Listener, line: Line, body: bytes) -> bool:
        """True when the endpoint took it, or never will."""
        if await line.post(body):
            listener.attempts = 0
            self._delivered += 1
            return True
        self._failed += 1
        listener.attempts += 1
        if listener.attempts >= self._settings.attempts_max:
            listener.attempts = 0
            self._given_up += 1
            return True
        self._wait(listener)
        return False

    def _wait(self, listener: _Listener) -> None:
        listener.next_s = clock.monotonic_s() + self._settings.pause_s(listener.attempts)

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
