"""The delivery tree of this deployment: the origin's server and the cache nodes of the settings, on their ports.

Parents start before the nodes that fill from them. Every node and the origin ask the same guard for the signed path; the
origin answers by ASGI, a node's hits never leave its connection. Stopping a node's switch, or its region's, makes it refuse
and steering avoid it.
"""

import socket
from collections.abc import Mapping

import msgspec

from fourplane.control.nodes import Switch
from fourplane.edge.asgi import Receive, Scope, Send
from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.steering import CdnNode, isp_of
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, FourplaneError, Misconfigured, NotFound
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Histogram, Registry
from fourplane.streaming.origin import Origin
from fourplane.streaming.playback import MediaGuard
from fourplane.streaming.settings import CdnSettings, StreamingSettings

LOAD_CONNECTIONS = 2_000  # connections at which a node counts as full


class Delivery:
    """Origin and cache nodes; a lifecycle part within streaming."""

    def __init__(
        self,
        settings: StreamingSettings,
        *,
        origin: Origin,
        guard: MediaGuard,
        registry: Registry,
        sockets: Mapping[str, socket.socket],
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._guard = guard
        self._registry = registry
        self._sockets = sockets
        self.nodes: dict[str, CacheNode] = {}
        self.switches: dict[str, Switch] = {}
        self.regions: dict[str, Switch] = {}
        self.evacuated: dict[str, float] = {}  # region to the moment from which its nodes refuse
        self.origin_switch = Switch("origin")
        self.origin_seconds = Histogram()
        self.origin_requests = 0
        self.origin_errors = 0
        self.origin_bytes = 0
        self._server: HttpServer | None = None
        self._order = _parents_first(settings.cdn)
        for node in settings.cdn:
            try:
                isp_of("127.0.0.1", {node.id: node.prefixes})
            except ValueError as error:
                raise Misconfigured(f"streaming.cdn: a prefix of {node.id}: {error}") from error
            self.switches[node.id] = Switch(node.id)
            self.regions.setdefault(node.region, Switch(f"region {node.region}"))

    async def start(self, tasks: Tasks) -> None:
        """Listen everywhere; raises OSError for a busy port."""
        settings, registry = self._settings, self._registry
        listener = ListenerSettings(host=settings.host, port=settings.origin_port)
        self._server = HttpServer(
            HttpServerSettings(listener=listener),
            self._answer,
            registry=registry,
            inherited=self._sockets.get("origin"),
            name="origin",
        )
        await self._server.start(tasks)
        for node in self._order:
            parent = self._server.port if not node.parent else self.nodes[node.parent].port
            cache = self._node(node, parent)
            self.nodes[node.id] = cache
            await cache.start(tasks)

    async def drain(self) -> None:
        """Take no new viewers, finish the answers under way; leaves first."""
        for node in reversed(self._order):
            if node.id in self.nodes:
                await self.nodes[node.id].drain()
        if self._server is not None:
            await self._server.drain()

    async def stop(self) -> None:
        """Release ports and write what is under way."""
        for node in reversed(self._order):
            if node.id in self.nodes:
                await self.nodes[node.id].stop()
        if self._server is not None:
            await self._server.stop()

    def ordered(self) -> list[CdnSettings]:
        """The nodes, every parent before its children."""
        return list(self._order)

    @property
    def origin_port(self) -> int:
        """The port the origin really listens on; 0 before the start."""
        return 0 if self._server is None else self._server.port

    def ports(self) -> dict[str, int]:
        """The port of every node by its id."""
        return {name: node.port for name, node in self.nodes.items()}

    def seen(self) -> list[CdnNode]:
        """Every node as steering sees it now."""
        return [
            CdnNode(
                node.id,
                node.region,
                node.id if node.parent else "",
                self.is_on(node) and node.region not in self.evacuated,
                min(1.0, len(self.nodes[node.id]._connections) / LOAD_CONNECTIONS),  # noqa: SLF001
            )
            for node in self._settings.cdn
            if node.id in self.nodes
        ]

    def is_on(self, node: CdnSettings) -> bool:
        """Whether the node answers: neither it nor its region is stopped, and no evacuation of it is over."""
        until_s = self.evacuated.get(node.region)
        if until_s is not None and clock.monotonic_s() >= until_s:
            return False
        return self.switches[node.id].on and self.regions[node.region].on

    def evacuate(self, region: str, *, back: bool = False) -> None:
        """Send all viewers of a region elsewhere, or let them `back`; raises NotFound for a region without nodes.

        Steering names its nodes last from now on, so players move within one steering TTL; those nodes go on serving for
        the grace and refuse afterwards, so a player that never asked moves by its own retry.
        """
        if region not in self.regions:
            raise NotFound(f"no node stands in region {region[:40]!r}", code="no_such_region")
        if back:
            self.evacuated.pop(region, None)
            self._registry.event("info", "streaming", f"Region {region} takes viewers again")
            return
        left = {node.region for node in self._settings.cdn if self.is_on(node)} - {region, *self.evacuated}
        if not left:
            raise Conflict("no other region could take the viewers", code="last_region")
        self.evacuated.setdefault(region, clock.monotonic_s() + self._settings.evacuation_grace_s)
        self._registry.event("warning", "streaming", f"Region {region} is being evacuated; its viewers move")

    def _node(self, node: CdnSettings, parent_port: int) -> CacheNode:
        settings = self._settings
        folder = None if settings.cache_folder is None else settings.cache_folder / node.id
        return CacheNode(
            CacheNodeSettings(
                name=node.id,
                listener=ListenerSettings(host=settings.host, port=node.port),
                origin=OriginSettings(host=settings.host, port=parent_port),
                folder=folder,
                bytes_max=node.bytes_max,
                obey_request=False,
                whole=True,
                key_host=False,
                cors=True,
                congestion=settings.congestion,
            ),
            registry=self._registry,
            guard=self._guard,
            allowed=lambda: self.is_on(node),
            inherited=self._sockets.get(f"cdn-{node.id}"),
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        began_s = clock.monotonic_s()
        self.origin_requests += 1
        try:
            self.origin_switch.check()
            if scope["method"] not in {"GET", "HEAD"}:
                raise NotFound("the origin only answers GET", code="method")
            found = await self._origin.fetch(self._guard(scope["raw_path"]).decode("latin-1"))
        except FourplaneError as error:
            self.origin_errors += 1
            body = msgspec.json.encode({"error": {"code": error.reason, "message": error.public}})
            head = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
            await _send(send, error.http_status, head, body)
            return
        head = [
            (b"content-type", found.media_type.encode()),
            (b"etag", found.etag.encode()),
            (b"cache-control", found.cache_control.encode()),
            (b"accept-ranges", b"bytes"),
        ]
        self.origin_bytes += len(found.body)
        await _send(send, 200, head, found.body)
        self.origin_seconds.record(clock.monotonic_s() - began_s)


async def _send(send: Send, status: int, head: list[tuple[bytes, bytes]], body: bytes) -> None:
    head.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _parents_first(nodes: tuple[CdnSettings, ...]) -> list[CdnSettings]:
    """Nodes so that each one's parent stands before it; raises Misconfigured for a missing one or a circle."""
    ordered: list[CdnSettings] = []
    left = list(nodes)
    while left:
        known = {node.id for node in ordered}
        ready = [node for node in left if not node.parent or node.parent in known]
        if not ready:
            raise Misconfigured(f"streaming.cdn: the parent of {left[0].id} is not one of the nodes before it")
        ordered += ready
        left = [node for node in left if node not in ready]
    return ordered
