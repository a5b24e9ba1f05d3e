"""The messaging system: listeners, router, stores and services put together, and what the console sees of them."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fourplane.control.nodes import Node
from fourplane.edge.routes import Call, Door, Reply, Route, SocketRoute, SocketSession, StaticFolder
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Forbidden
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.account_data import AccountData
from fourplane.messaging.addresses import prepare_local
from fourplane.messaging.archive import MessageArchive
from fourplane.messaging.client_stream import Streams
from fourplane.messaging.commands import Commands
from fourplane.messaging.diagram import diagram
from fourplane.messaging.group_chat import GroupChat
from fourplane.messaging.handover import Handover
from fourplane.messaging.media import Media
from fourplane.messaging.operations import Operations
from fourplane.messaging.personal_events import PersonalEventing
from fourplane.messaging.registration import Registration
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import ServerQueries
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.tcp_stream import TcpStream, prepare_listener
from fourplane.messaging.user_shards import ROOMS, Rooms, Spread, UserShards
from fourplane.messaging.user_store import UserStore
from fourplane.messaging.web_stream import WebStream
from fourplane.messaging.xml_stream import StreamError
from fourplane.service.accounts import Accounts
from fourplane.service.courier import METHODS, Courier
from fourplane.service.courier import SERVICE as COURIER
from fourplane.service.tokens import Signer
from fourplane.state.contracts import Blobs, Records

STATIC = Path(__file__).parent / "static"


class MessagingStatistics(msgspec.Struct, frozen=True):
    """What the system has done since it started, and what it holds now."""

    connections: int
    sessions: int
    users_in_memory: int
    messages: int
    delivered: int
    stored: int
    bounced: int
    presences: int
    requests: int
    logins: int
    login_failures: int
    actor_crashes: int
    writes_waiting: int
    parsers: int
    bytes_in: int
    bytes_out: int


class WebConfiguration(msgspec.Struct, frozen=True):
    """What the page must know before it logs in."""

    domain: str
    registration: bool
    socket: str = "/messaging/ws"


class NewAccount(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody who registers sends."""

    name: str
    password: str


class Messaging:
    """One process's part of the messaging system. A lifecycle part."""

    def __init__(
        self,
        settings: MessagingSettings,
        *,
        records: Records,
        accounts: Accounts,
        ids: IdGenerator,
        registry: Registry,
        tls: ssl.SSLContext | None = None,
        certificate_hash: bytes = b"",
        blobs: Blobs | None = None,
        signer: Signer | None = None,
        sockets: Mapping[str, socket.socket] | None = None,
        spread: Spread | None = None,
    ) -> None:
        """`certificate_hash` (see authentication.py) offers SCRAM with channel binding; `blobs` and `signer` offer uploads.

        `spread`: this is one of several workers that share the users; `records` holds its own shards.
        """
        self._settings = settings
        self._registry = registry
        self._tls = tls
        self._sockets = sockets or {}  # bound by the parent process: "xmpp" and "xmpps"
        self.store = UserStore(records, settings.offline_s)
        self.router = Router(settings, store=self.store, accounts=accounts, ids=ids, registry=registry)
        self.shards = UserShards(self.router, spread) if spread is not None else None
        self.router.shards = self.shards
        self.queries = ServerQueries(self.router)
        AccountData(self.router, self.queries)
        PersonalEventing(self.router, self.queries)
        Registration(self.router, self.queries)
        Commands(self.router, self.queries)
        if settings.archive:
            MessageArchive(self.router, self.queries)
        self.groups = GroupChat(self.router, f"groups.{settings.domains[0]}")
        self.router.services[self.groups.domain] = self.groups
        self.queries.items.append((self.groups.domain, "Groups"))
        self.media: Media | None = None
        upload = f"upload.{settings.domains[0]}"
        if blobs is not None and signer is not None:
            self.media = Media(self.router, upload, blobs=blobs, signer=signer, registry=registry)
            self.router.services[upload] = self.media
        elif self.shards is not None and self.shards.slot != self.shards.shards.home:
            self.router.far_domains = frozenset((upload,))
        if self.media is not None or self.router.far_domains:
            self.queries.items.append((upload, "Media"))
        self.router.caps = self.queries.caps()
        self.streams = Streams(self.router, certificate_der_hash=certificate_hash, tls_offered=tls is not None)
        if self.shards is not None and spread is not None and spread.passing is not None:
            self.streams.handover = Handover(self.streams, self.shards, passing=spread.passing, tls=tls)
        self._servers: list[asyncio.Server] = []
        self.port = 0
        self.tls_port = 0

    async def start(self, tasks: Tasks) -> None:
        """Listen; port 0 takes any free one, see `port` and `tls_port`."""
        settings = self._settings
        self.store.start(tasks)
        self.router.start(tasks)
        if self.shards is not None:
            await self.shards.courier.start(tasks)
        if self.media is not None:
            self.media.start(tasks)
        server = await network.listen(self._stream, settings.host, settings.port, inherited=self._sockets.get("xmpp"))
        prepare_listener(server, settings)
        self._servers.append(server)
        self.port = network.port_of(server)
        if self._tls is not None:
            secured = await network.listen(
                self._stream, settings.host, settings.tls_port, tls=self._tls, inherited=self._sockets.get("xmpps")
            )
            prepare_listener(secured, settings)
            self._servers.append(secured)
            self.tls_port = network.port_of(secured)
        self._registry.event("info", "messaging", f"XMPP listens on port {self.port}, with TLS on {self.tls_port}")

    async def drain(self) -> None:
        """Take no new connection, finish the writes that were accepted, and tell the clients to come back."""
        for server in self._servers:
            server.close()
        await self.store.wait_written()
        for stream in list(self.streams.open.values()):
            stream.fail(StreamError("system-shutdown"))
        self.streams.flush()
        await self.store.wait_written()
        if self.shards is not None:
            await self.shards.courier.drain()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for stream in list(self.streams.open.values()):
            stream.fail(StreamError("system-shutdown"))
        await clock.sleep(0)
        if self.shards is not None:
            await self.shards.courier.stop()

    def calls(self) -> dict[str, tuple[type, object, frozenset[str] | None]]:
        """What the other workers of this system may call, by name: class, object, methods."""
        if self.shards is None:
            return {}
        return {COURIER: (Courier, self.shards.courier, METHODS), ROOMS: (Rooms, Rooms(self.groups), None)}

    def doors(self) -> list[Door]:
        """The web client, its socket, and what it must know."""
        return [
            Route("GET", "/messaging/", self._page, "The web client"),
            Route(
                "GET",
                "/messaging/api/configuration",
                self._configuration,
                "Domain and socket of the web client",
                answer=WebConfiguration,
            ),
            Route(
                "POST",
                "/messaging/api/accounts",
                self._register,
                "Make an account, where registration is open",
                body=NewAccount,
                body_max=4_096,
                rate_per_s=0.2,
            ),
            SocketRoute("/messaging/ws", self._web_socket, "XMPP over WebSocket (RFC 7395)", subprotocols=("xmpp",)),
            StaticFolder("/messaging/static", STATIC),
            *Operations(self.router, self.streams, self.groups, self._registry).doors(),
            *(self.media.doors() if self.media is not None else ()),
        ]

    def statistics(self) -> MessagingStatistics:
        """Counts since the start and sizes now."""
        counts, streams = self.router.counts, self.streams
        return MessagingStatistics(
            connections=len(streams.open),
            sessions=self.router.session_count,
            users_in_memory=len(self.router.users),
            messages=counts.messages,
            delivered=counts.delivered,
            stored=counts.stored,
            bounced=counts.bounced,
            presences=counts.presences,
            requests=counts.requests,
            logins=streams.login_count,
            login_failures=streams.login_failures,
            actor_crashes=counts.crashes,
            writes_waiting=self.store.waiting_count,
            parsers=streams.framers.made,
            bytes_in=streams.bytes_in,
            bytes_out=streams.bytes_out,
        )

    def hold_back(self, seconds: float) -> None:
        """Write to clients so much later than could be: a slow release, as it is rehearsed; 0 as soon as can be."""
        self.streams.held_back_s = seconds

    def nodes(self) -> list[Node]:
        """The boxes of the study's diagram."""
        return diagram(self.router, self.streams, self.groups, self.media)

    def _stream(self) -> TcpStream:
        return TcpStream(self.streams, self._tls)

    async def _web_socket(self, socket: SocketSession) -> None:
        await WebStream(self.streams, socket).run()

    async def _page(self, _call: Call[None]) -> Reply:
        return Reply((STATIC / "index.html").read_bytes())

    async def _configuration(self, _call: Call[None]) -> WebConfiguration:
        return WebConfiguration(self._settings.domains[0], self._settings.registration)

    async def _register(self, call: Call[NewAccount]) -> None:
        if not self._settings.registration:
            raise Forbidden("accounts are made by an operator here", code="registration_closed")
        name = prepare_local(call.body.name.strip().lower())
        account = await self.router.accounts.create(name, call.body.password)
        self._registry.event("info", "messaging", f"{account.name} made an account")
