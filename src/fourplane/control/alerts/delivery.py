"""Notifications on their way out: one bounded queue a receiver, signed, tried again until it is taken.

A message is sent in order; one that cannot be delivered is tried again after 0.5, 1, 2 ... seconds (with a fifth of chance), at
most `attempts_max` times, and holds up only its own receiver. A receiver that says no (4xx but 408 and 429) is not asked
again. What does not fit into a full queue pushes out the oldest: the newest word about an alert is the one that counts.

Every body is signed as all webhooks are (`edge/webhooks.py`), under the key in `data/secrets/alerts`, so that a receiver can tell
our page from anybody's and refuse an old one that is played again.
"""

import asyncio
import ssl
from collections import deque
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from fourplane.edge import webhooks
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Misconfigured
from fourplane.foundation.telemetry import Registry

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
FIRST_WAIT_S = 0.5
WAIT_S_MAX = 60.0
TIMEOUT_S = 5.0
ANSWER_MAX = 64 << 10
AGAIN = frozenset({408, 429})


class ReceiverSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place alerts go to. PagerDuty's routing key lies in `data/secrets/<routing_key_file>`."""

    name: str
    kind: Literal["alertmanager", "pagerduty"] = "alertmanager"
    url: str = ""
    routing_key_file: str = "pagerduty"
    severities: tuple[str, ...] = ("page", "ticket")
    queue_max: int = 100
    attempts_max: int = 10

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Misconfigured(f"{self.url!r} is no http:// or https:// address", setting=f"receivers.{self.name}.url")
        if self.queue_max < 1 or self.attempts_max < 1 or "/" in self.routing_key_file:
            raise Misconfigured("a receiver has a queue, attempts and the name of a file",
                                setting=f"receivers.{self.name}")  # fmt: skip

    @property
    def address(self) -> str:
        return self.url or (PAGERDUTY_URL if self.kind == "pagerduty" else "")


class DeliveryStatistics(msgspec.Struct, frozen=True):
    """What went to one receiver. `last_error` is empty once something was taken again."""

    name: str
    kind: str
    waiting: int
    delivered: int
    failed: int
    dropped: int
    last_error: str


class _Message(msgspec.Struct):
    body: bytes
    attempts: int = 0


class Delivery:
    """The queue of one receiver; `run` is its only task."""

    def __init__(self, settings: ReceiverSettings, *, key: str, registry: Registry) -> None:
        self.settings = settings
        self._key = key
        self._registry = registry
        parts = urlsplit(settings.address)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        host = str(parts.hostname)
        bounds = HttpClientSettings(connections_max=2)
        self._client = HttpClient(host, parts.port or (80 if tls is None else 443), tls, settings=bounds)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._queue: deque[_Message] = deque()
        self._wake = asyncio.Event()
        self._delivered = self._failed = self._dropped = 0
        self._error = ""

    def put(self, body: bytes) -> None:
        """Queue a message; the oldest is dropped when there are too many."""
        if len(self._queue) >= self.settings.queue_max:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(_Message(body))
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            message = self._queue[0]
            outcome = await self._try(message)
            if outcome == "again" and message.attempts < self.settings.attempts_max:
                wait_s = min(WAIT_S_MAX, FIRST_WAIT_S * 2 ** (message.attempts - 1))
                await clock.sleep(wait_s * (0.9 + 0.2 * clock.random().random()))
                continue
            if self._queue and self._queue[0] is message:
                self._queue.popleft()
            if outcome == "taken":
                self._delivered += 1
                self._error = ""
            else:
                self._failed += 1
                self._registry.event("error", "alerts", f"{self.settings.name} was not told: {self._error}")

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def statistics(self) -> DeliveryStatistics:
        return DeliveryStatistics(
            self.settings.name, self.settings.kind, len(self._queue), self._delivered, self._failed, self._dropped,
            self._error,
        )  # fmt: skip

    async def _try(self, message: _Message) -> Literal["taken", "again", "refused"]:
        message.attempts += 1
        at_s = int(clock.now_us() / 1e6)
        headers = {
            "content-type": "application/json",
            "user-agent": "fourplane",
            webhooks.SIGNATURE: webhooks.sign(self._key, message.body, at_s),
        }
        try:
            answer = await self._client.request(
                "POST", self._path, body=message.body, headers=headers, timeout_s=TIMEOUT_S, body_max=ANSWER_MAX
            )
        except FourplaneError as error:
            self._error = error.message
            return "again"
        if 200 <= answer.status < 300:
            return "taken"
        self._error = f"it answers {answer.status}"
        return "again" if answer.status >= 500 or answer.status in AGAIN else "refused"
