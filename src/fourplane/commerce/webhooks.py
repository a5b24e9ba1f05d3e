"""Other programs hear of orders: signed, at least once, in the commit that makes it true.

An endpoint is registered by an operator and gets a secret once. Every change of an order's state writes one delivery row per
endpoint in the same commit as the change itself, so nothing is told that did not happen and nothing that happened is
forgotten. A loop posts what is due; anything but a 2xx answer is tried again, later each time with jitter, and after
`attempts_max` the row stays as `dead` for an operator to see. The receiver drops a delivery id it has seen.

Signature, post and pauses are `edge.webhooks`'. Bounds: `endpoints_max` endpoints, `batch` deliveries at once, `timeout_s` each.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence

import msgspec

from fourplane.edge.webhooks import Endpoint, Sender, WebhookSettings, sign, target_of, verify
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Sql, Statement

__all__ = ["Endpoint", "Told", "WebhookSettings", "Webhooks", "sign", "verify"]


class Told(msgspec.Struct, frozen=True):
    """The body of a delivery."""

    id: str
    event: str
    order: str
    at_us: int


class Webhooks:
    """The owner of endpoints and deliveries."""

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        sql: Sql,
        ids: IdGenerator,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._settings = settings
        self._sql = sql
        self._ids = ids
        self._sender = Sender(settings, tls)
        self._endpoints: dict[int, Endpoint] = {}
        self._delivering = asyncio.Lock()
        self.delivered = self.failed = self.dead = 0

    async def open(self) -> None:
        """Read the endpoints; what waits for a time the clock was set back from is due now."""
        now = clock.now_us()
        latest = now + int(self._settings.retry_s_max * 2e6)
        await self._sql.commit(
            [
                Statement(
                    "UPDATE webhook_deliveries SET due_us = ?1 WHERE state = 'due' AND due_us > ?2",
                    (now, latest),
                )
            ]
        )
        rows = await self._sql.read("SELECT id, url, secret FROM webhook_endpoints ORDER BY id")
        self._endpoints = {
            int(number or 0): Endpoint(ids.encode("hook", int(number or 0)), str(url), str(secret))
            for number, url, secret in rows
        }

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, without their secrets."""
        return [endpoint.without_secret() for endpoint in self._endpoints.values()]

    async def register(self, url: str) -> Endpoint:
        """Add an endpoint; the answer holds its secret. Raises Rejected for anything but an http or https address."""
        target_of(url)
        if len(self._endpoints) >= self._settings.endpoints_max:
            raise Rejected(f"at most {self._settings.endpoints_max} endpoints", code="too_many_webhooks")
        number, secret = self._ids.next(), ids.capability(24)
        await self._sql.commit(
            [Statement("INSERT INTO webhook_endpoints (id, url, secret) VALUES (?1, ?2, ?3)", (number, url, secret))]
        )
        self._endpoints[number] = Endpoint(ids.encode("hook", number), url, secret)
        return self._endpoints[number]

    async def remove(self, endpoint_id: str) -> None:
        """Forget an endpoint and what it has not heard; raises NotFound."""
        number = ids.decode("hook", endpoint_id)
        if number not in self._endpoints:
            raise NotFound("no such webhook", code="no_such_webhook")
        await self._sql.commit(
            [
                Statement("DELETE FROM webhook_deliveries WHERE endpoint = ?1", (number,)),
                Statement("DELETE FROM webhook_endpoints WHERE id = ?1", (number,)),
            ]
        )
        del self._endpoints[number]

    def announce(self, order: int, state: str) -> Sequence[Statement]:
        """Rows for the commit that gives an order this state; none where nobody listens."""
        rows = []
        for endpoint in self._endpoints:
            number, now = self._ids.next(), clock.now_us()
            told = Told(ids.encode("event", number), f"order.{state}", ids.encode("order", order), now)
            rows.append(
                Statement(
                    "INSERT INTO webhook_deliveries (id, endpoint, body, attempts, due_us, state) "
                    "VALUES (?1, ?2, ?3, 0, ?4, 'due')",
                    (number, endpoint, msgspec.json.encode(told), now),
                )
            )
        return rows

    async def run(self) -> None:
        """Deliver until the part stops."""
        while True:
            try:
                sent = await self.deliver()
            except FourplaneError:
                sent = 0  # the store is away; the rows stay
            if sent < self._settings.batch:
                await clock.sleep(self._settings.poll_s)

    async def deliver(self) -> int:
        """Post what is due; how many were tried."""
        async with self._delivering:
            return await self._deliver_due()

    async def _deliver_due(self) -> int:
        rows = await self._sql.read(
            "SELECT id, endpoint, body, attempts FROM webhook_deliveries WHERE state = 'due' AND due_us <= ?1 "
            "ORDER BY due_us, id LIMIT ?2",
            clock.now_us(),
            self._settings.batch,
        )
        async with asyncio.TaskGroup() as group:
            for number, endpoint, body, attempts in rows:
                assert isinstance(number, int)
                assert isinstance(body, bytes)
                group.create_task(self._one(number, int(endpoint or 0), body, int(attempts or 0)))
        return len(rows)

    async def _one(self, number: int, endpoint_number: int, body: bytes, attempts: int) -> None:
        endpoint = self._endpoints.get(endpoint_number)
        if endpoint is None or await self._post(endpoint, body):
            self.delivered += endpoint is not None
            await self._sql.commit([Statement("DELETE FROM webhook_deliveries WHERE id = ?1", (number,))])
            return
        self.failed += 1
        attempts += 1
        dead = attempts >= self._settings.attempts_max
        self.dead += dead
        due = clock.now_us() + int(self._settings.pause_s(attempts) * 1e6)
        change = "UPDATE webhook_deliveries SET attempts = ?2, due_us = ?3, state = ?4 WHERE id = ?1"
        await self._sql.commit([Statement(change, (number, attempts, due, "dead" if dead else "due"))])

    async def _post(self, endpoint: Endpoint, body: bytes) -> bool:
        line = self._sender.line(endpoint)
        try:
            return await line.post(body)
        finally:
            line.close()
