"""The operator's side of a cache node that stands alone: statistics, and purges by address and by tag.

It listens on a port of its own, on this machine only, and wants a bearer token; the node itself never offers either, so
nothing an origin or a client sends can empty the cache.

    GET  /statistics                                     what the node did and holds
    POST /purge?url=https://host/path?query              one address; without a host: the path under every host
    POST /purge?tag=word                                 everything whose Cache-Tag names the word
"""

import hmac
import socket
from urllib.parse import parse_qs, urlsplit

import msgspec

from fourplane.edge.asgi import Receive, Scope, Send
from fourplane.edge.cache_node import CacheNode
from fourplane.edge.cache_store import CacheStore
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected, Unauthenticated
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry


class Purged(msgspec.Struct, frozen=True):
    """How many stored responses a purge removed."""

    purged: int


class CacheOperator:
    """The operator's door of one node; a lifecycle part."""

    def __init__(
        self,
        node: CacheNode,
        *,
        port: int,
        token: str,
        registry: Registry,
        inherited: socket.socket | None = None,
    ) -> None:
        assert token
        self._node = node
        self._token = token.encode()
        listener = ListenerSettings(host="127.0.0.1", port=port)
        self._server = HttpServer(
            HttpServerSettings(listener=listener),
            self._answer,
            registry=registry,
            inherited=inherited,
            name="cache-operator",
        )

    @property
    def port(self) -> int:
        """The port it really listens on."""
        return self._server.port

    async def start(self, tasks: Tasks) -> None:
        """Listen; raises OSError for a busy port."""
        await self._server.start(tasks)

    async def drain(self) -> None:
        """Finish the answers under way."""
        await self._server.drain()

    async def stop(self) -> None:
        """Release the port."""
        await self._server.stop()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            status, told = 200, self._told(scope)
        except FourplaneError as error:
            status, told = error.http_status, {"error": {"code": error.reason, "message": error.message}}
        body = msgspec.json.encode(told)
        head = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    def _told(self, scope: Scope) -> object:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Unauthenticated("the operator's token is needed", code="no_token")
        match scope["method"], scope["path"]:
            case "GET", "/statistics":
                return self._node.statistics()
            case "POST", "/purge":
                return self._purge(parse_qs(scope["query_string"].decode("latin-1")))
        raise NotFound("there are GET /statistics and POST /purge", code="no_such_path")

    def _purge(self, asked: dict[str, list[str]]) -> Purged:
        store = self._node.store
        match asked:
            case {"tag": [tag]} if len(asked) == 1:
                return Purged(store.purge_tag(tag.encode("latin-1", "replace")))
            case {"url": [url]} if len(asked) == 1:
                return Purged(purge_url(store, url, hosts=self._node.settings.key_host))
        raise Rejected("a purge names one url or one tag", code="bad_purge")


def purge_url(store: CacheStore, url: str, *, hosts: bool) -> int:
    """Forget every response stored for an address; how many there were. Raises Rejected for what is no address."""
    parts = urlsplit(url)
    if not parts.path.startswith("/") or (parts.scheme and not parts.netloc):
        raise Rejected("an address is https://host/path or /path", code="bad_url")
    target = (parts.path + (f"?{parts.query}" if parts.query else "")).encode("latin-1", "replace")
    if not hosts:
        return store.purge(target)
    if parts.netloc:
        return store.purge(parts.netloc.encode("latin-1", "replace") + b"\0" + target)
    return sum(store.purge(key) for key in store.listed() if key.partition(b"\0")[2] == target)
