"""Other programs hear of orders: signed, at least once, in the commit that makes it true.

An endpoint is registered by an operator and gets a secret once. Every change of an order's state writes one delivery row per
endpoint in the same commit as the change itself, so nothing is told that did not happen and nothing that happened is
forgotten. A loop posts what is due; anything but a 2xx answer is tried again, later each time with jitter, and after
`attempts_max` the row stays as `dead` for an operator to see. The receiver drops a delivery id it has seen.

    Fourplane-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body" under the secret>

`verify` is what a receiver does; the time inside the signature is what makes an old delivery, sent again by somebody else, fail.
Bounds: `endpoints_max` endpoints, `batch` deliveries at once, `timeout_s` each.
"""

import asyncio
import hmac
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected, Unauthenticated
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Sql, Statement

TOLERANCE_S = 300
URL_MAX = 500


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of deliveries."""

    endpoints_max: int = 20
    batch: int = 50
    poll_s: float = 1.0
    timeout_s: float = 5.0
    retry_s: float = 2.0
    retry_s_max: float = 3_600.0
    attempts_max: int = 12


class Endpoint(msgspec.Struct, frozen=True):
    """Somebody who wants to hear; the secret is shown once, at registration."""

    id: str
    url: str
    secret: str = ""


class Told(msgspec.Struct, frozen=True):
    """The body of a delivery."""

    id: str
    event: str
    order: str
    at_us: int


def sign(secret: str, body: bytes, now_s: int) -> str:
    """The signature header of a body sent now."""
    mac = hmac.new(secret.encode(), b"%d." % now_s + body, "sha256").hexdigest()
    return f"t={now_s},v1={mac}"


def verify(secret: str, header: str, body: bytes, now_s: int) -> None:
    """Raise Unauthenticated unless this body was signed with the secret within the last five minutes."""
    parts = dict(part.partition("=")[::2] for part in header.split(",")[:10])
    stamp = parts.get("t", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12):
        raise Unauthenticated("the signature has no time", code="bad_signature")
    wanted = sign(secret, body, int(stamp)).partition("v1=")[2]
    if not hmac.compare_digest(wanted.encode(), parts.get("v1", "").encode()):
        raise Unauthenticated("the signature does not fit", code="bad_signature")
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        raise Unauthenticated("the delivery is too old", code="stale_signature")


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
        self._tls = tls
        self._endpoints: dict[int, Endpoint] = {}
        self._delivering = asyncio.Lock()
        self.delivered = self.failed = self.dead = 0

    async def open(self) -> None:
        """Read the endpoints."""
        rows = await self._sql.read("SELECT id, url, secret FROM webhook_endpoints ORDER BY id")
        self._endpoints = {
            int(number or 0): Endpoint(ids.encode("hook", int(number or 0)), str(url), str(secret))
            for number, url, secret in rows
        }

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, without their secrets."""
        return [msgspec.structs.replace(endpoint, secret="") for endpoint in self._endpoints.values()]

    async def register(self, url: str) -> Endpoint:
        """Add an endpoint; the answer holds its secret. Raises Rejected for anything but an http or https address."""
        _target(url)
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
        wait_s = min(self._settings.retry_s_max, self._settings.retry_s * 2 ** (attempts - 1))
        due = clock.now_us() + int(wait_s * (0.5 + clock.random().random()) * 1e6)
        change = "UPDATE webhook_deliveries SET attempts = ?2, due_us = ?3, state = ?4 WHERE id = ?1"
        await self._sql.commit([Statement(change, (number, attempts, due, "dead" if dead else "due"))])

    async def _post(self, endpoint: Endpoint, body: bytes) -> bool:
        host, port, path, secure = _target(endpoint.url)
        client = HttpClient(host, port, self._tls() if secure else None, settings=HttpClientSettings(connections_max=1))
        headers = {
            "content-type": "application/json",
            "fourplane-signature": sign(endpoint.secret, body, clock.now_us() // 1_000_000),
        }
        try:
            answer = await client.request(
                "POST", path, body=body, headers=headers, timeout_s=self._settings.timeout_s, body_max=65_536
            )
        except FourplaneError:
            return False
        finally:
            client.close()
        return 200 <= answer.status < 300


def _target(url: str) -> tuple[str, int, str, bool]:
    """Host, port, path and whether to encrypt."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Rejected("not an address", code="bad_url") from None
    plain = len(url) <= URL_MAX and url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Rejected("a webhook is an http or https address without a password", code="bad_url")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, port or (443 if secure else 80), path, secure
