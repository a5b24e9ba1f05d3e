"""How a system declares its HTTP doors: one frozen `Route` per verb and path.

The gateway turns routes into handlers (authentication, roles, limits, decoding, error mapping, OpenAPI). A handler is an
async function of one `Call`; it returns a msgspec Struct (sent as JSON), a `Reply` (sent as it is) or None (204).
Errors of `foundation.errors` become `{"error": {"code", "message", "fields"}}` with the status of the error.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

B = TypeVar("B")

Access = Literal["public", "user", "operator"]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Priority(IntEnum):
    """Who suffers last when there is too much to do: the lowest number."""

    CRITICAL = 0  # checkout, payment, a rider in a trip, message delivery, play
    USER = 1  # what a person waits for
    DEGRADED = 2  # search, recommendations, prefetch
    BULK = 3  # crawlers, exports, telemetry


class Identity(msgspec.Struct, frozen=True):
    """Who is calling, as proved by a session cookie, a bearer token or a signed token."""

    account_id: int
    name: str
    roles: frozenset[str] = frozenset()


class Call(Generic[B]):
    """One request as a handler sees it. `identity` is never None where the route's access is user or operator."""

    __slots__ = ("body", "headers", "identity", "params", "peer", "query", "request_id")

    def __init__(
        self,
        *,
        params: Mapping[str, str],
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: B,
        identity: Identity | None,
        request_id: str,
        peer: str,
    ) -> None:
        self.params = params
        self.query = query
        self.headers = headers
        self.body = body
        self.identity = identity
        self.request_id = request_id
        self.peer = peer


class Reply(msgspec.Struct):
    """An answer that is not plain JSON 200: a page, a redirect, a created thing with headers, a stream."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    media_type: str = "text/html; charset=utf-8"
    headers: dict[str, str] = {}


Handler = Callable[[Call[Any]], Awaitable[msgspec.Struct | Reply | list[Any] | dict[str, Any] | None]]


class Route(msgspec.Struct, frozen=True):
    """One verb on one path (`/commerce/api/products/{product_id}`), its types and who may use it."""

    method: Method
    path: str
    handler: Handler
    summary: str
    body: type | None = None  # a msgspec Struct for JSON bodies, `bytes` for raw ones
    answer: type | None = None  # for OpenAPI
    access: Access = "public"
    priority: Priority = Priority.USER
    body_max: int = 1 << 20
    rate_per_s: float = 0.0  # per identity or peer address; 0 = the gateway's default


class SocketSession(Protocol):
    """One WebSocket as a handler sees it; sends are bounded, a slow reader gets `Overloaded` raised at the sender."""

    identity: Identity | None
    query: Mapping[str, str]
    peer: str

    async def receive(self) -> str | bytes | None:
        """The next message, None when the peer is gone."""

    def send(self, message: str | bytes) -> None:
        """Queue one message; raises Overloaded past the bound, Unavailable when closed."""

    def buffered(self) -> int:
        """Bytes queued and not yet taken by the network."""

    async def close(self, code: int = 1000, reason: str = "") -> None: ...


class SocketRoute(msgspec.Struct, frozen=True):
    """A WebSocket door: the handler runs until it returns or the peer leaves."""

    path: str
    handler: Callable[[SocketSession], Awaitable[None]]
    summary: str
    access: Access = "public"
    subprotocols: tuple[str, ...] = ()
    message_max: int = 1 << 20


class StaticFolder(msgspec.Struct, frozen=True):
    """Files of one folder under one prefix: GET and HEAD, validators, ranges, no listing, no dot files."""

    prefix: str
    folder: Path
    cache_s: int = 60


Door = Route | SocketRoute | StaticFolder
