"""From an address to whoever answers for it: a user's actor, the server itself, a service such as groups.

A user is an actor: one object per bare address that alone touches its sessions, contacts and stored messages, and is only
ever entered through `deliver` and `from_session`. An exception in it concerns nobody else: it is thrown away, built again
from the store with its live sessions, and the stanza that broke it is answered with an error. How often is the
supervisors' restart intensity (service/restart_intensity.py); past it, its sessions are closed: they are what depends on it.

A user nobody has loaded yet gets a mailbox of bounded length while the store is read; loaded ones need none, a
stanza is handled in the tick in which it came. Users without sessions stay in memory until there are too many of them.
"""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fourplane.control.nodes import Switch
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Histogram, Registry
from fourplane.messaging import stanzas
from fourplane.messaging.addresses import Address, parse, try_parse
from fourplane.messaging.credentials import Credentials
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.roster import SUBSCRIPTION_TYPES
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.user import User
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.user_store import UserStore
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza, StreamError
from fourplane.service.accounts import Accounts
from fourplane.service.restart_intensity import IntensitySettings, RestartIntensity

if TYPE_CHECKING:
    from fourplane.messaging.user_shards import UserShards

INTENSITY = IntensitySettings()  # of one user: 5 restarts in 10 s, then its trouble is no accident
RESTARTS_REMEMBERED = 1_000  # users


class Service(Protocol):
    """Answers for a whole domain such as `groups.localhost`."""

    def receive(self, delivery: Delivery) -> None: ...


class Queries(Protocol):
    """Answers requests to the server, and to users in their absence."""

    def to_server(self, delivery: Delivery) -> None: ...
    def to_user(self, user: User, delivery: Delivery) -> None: ...


class Archive(Protocol):
    """Keeps a copy of conversations (XEP-0313); may add the archive's id to the delivery's bytes."""

    def sent(self, user: User, delivery: Delivery) -> None: ...
    def received(self, user: User, delivery: Delivery) -> bool: ...


class PersonalEvents(Protocol):
    """Personal eventing (XEP-0163): what contacts publish goes to clients that said they are interested."""

    def presence(self, user: User, session: UserSession, stanza: Stanza) -> None: ...


class RouterCounts(msgspec.Struct):
    """What the router has done since it started."""

    messages: int = 0
    delivered: int = 0
    stored: int = 0
    bounced: int = 0
    presences: int = 0
    requests: int = 0
    crashes: int = 0
    loads: int = 0


class Switches:
    """The boxes an operator can stop."""

    __slots__ = ("connections", "groups", "media", "presence", "router", "spool")

    def __init__(self) -> None:
        self.connections = Switch("the connection manager")
        self.router = Switch("the message router")
        self.presence = Switch("the presence service")
        self.groups = Switch("the group manager")
        self.media = Switch("the media service")
        self.spool = Switch("the message storage")


class Router:
    """All users of one process; see the module's essay."""

    def __init__(
        self, settings: MessagingSettings, *, store: UserStore, accounts: Accounts, ids: IdGenerator, registry: Registry
    ) -> None:
        self.settings = settings
        self.store = store
        self.accounts = accounts
        self.credentials = Credentials(accounts, seconds=settings.credentials_s, count_max=settings.credentials_max)
        self.ids = ids
        self.registry = registry
        self.domains = frozenset(settings.domains)
        self.users: dict[str, User] = {}
        self.services: dict[str, Service] = {}
        self.shards: UserShards | None = None  # where users are, when they are in several workers
        self.far_domains: frozenset[str] = frozenset()  # of services that are only in another worker
        self.queries: Queries | None = None
        self.caps = ""  # what says in one word what this server can (XEP-0115), for the features of streams
        self.counts = RouterCounts()
        self.switches = Switches()
        self.store_latency = Histogram()
        self.session_count = 0
        self.now_s = 0.0  # to the second; see _keep_old
        self.owing: dict[UserSession, None] = {}  # with stanzas whose senders wait for an acknowledgement
        self.resume_ids: dict[str, UserSession] = {}
        self.archive: Archive | None = None
        self.personal_events: PersonalEvents | None = None
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._idle: dict[str, User] = {}  # users without sessions, oldest first
        self._restarts: dict[str, RestartIntensity] = {}
        self._tasks: Tasks | None = None

    def start(self, tasks: Tasks) -> None:
        """Be able to load users; their loads end when the system stops."""
        self._tasks = tasks
        tasks.start(self._keep_old(), "keep-unacknowledged")

    def parse(self, text: str) -> Address | None:
        """The prepared address, or None when it is none."""
        return try_parse(text)

    def bare(self, address: Address) -> Address:
        """The same address without its resource."""
        return parse(address.bare) if address.resource else address

    def resumable(self, session: UserSession) -> None:
        """The connection of `session` broke: keep it until it is resumed or `resume_s` are over."""
        management = session.management
        assert management is not None
        loop = asyncio.get_running_loop()
        self._expiries[management.resume_id] = loop.call_later(self.settings.resume_s, session.user_ended)

    def resumed(self, resume_id: str) -> UserSession | None:
        """The session that may go on under this id; its old connection, if there is one, is closed."""
        session = self.resume_ids.get(resume_id)
        if session is None:
            return None
        expiry = self._expiries.pop(resume_id, None)
        if expiry is not None:
            expiry.cancel()
        stream, session.stream = session.stream, None
        if stream is not None:
            stream.session = None
            stream.fail(StreamError("conflict", "the session was resumed elsewhere"))
        return session

    def session_ended(self, session: UserSession) -> None:
        """Forget what was kept for a resumption."""
        self.session_count -= 1
        self.owing.pop(session, None)
        if session.management is not None:
            self.resume_ids.pop(session.management.resume_id, None)
            expiry = self._expiries.pop(session.management.resume_id, None)
            if expiry is not None:
                expiry.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that handles its own errors until it ends or the system stops."""
        assert self._tasks is not None
        self._tasks.start(work)

    def route(self, delivery: Delivery) -> None:
        """Hand a stanza to whoever answers for its address; never raises."""
        to = delivery.to
        user = self.users.get(to.bare)
        if user is not None and user.mailbox is None and self.switches.router.on:
            try:
                user.receive(delivery)
            except Exception as error:  # noqa: BLE001 - let it crash: this user restarts, the others do not notice
                self.crashed(user, error, delivery)
            return
        shards = self.shards
        if user is None and shards is not None and self.switches.router.on:
            slot = shards.slots.get(to.bare, shards.slot)
            if slot != shards.slot:
                shards.forward(delivery, slot)
                return
        if to.domain in self.domains:
            if to.local:
                self.deliver(delivery)
            else:
                self._to_server(delivery)
            return
        service = self.services.get(to.domain)
        if shards is not None and (service is not None or to.domain in self.far_domains) and shards.is_far(to):
            shards.forward(delivery, shards.slot_of(to))
            return
        if service is None:
            self.bounce(delivery, "remote-server-not-found")
            return
        try:
            service.receive(delivery)
        except FourplaneError as error:
            self.bounce(delivery, stanzas.condition_of(error), error.public)

    def deliver(self, delivery: Delivery) -> None:
        """Hand a stanza to the actor of a local user."""
        if not self.switches.router.on:
            self.bounce(delivery, "service-unavailable", "the message router was stopped by an operator")
            return
        user = self.users.get(delivery.to.bare)
        if user is None:
            if self.shards is not None and self.shards.is_far(delivery.to):
                self.shards.forward(delivery, self.shards.slot_of(delivery.to))
            elif delivery.stanza.name == IQ or _wakes(delivery.stanza):
                self._load(delivery)
            return
        if user.mailbox is not None:
            self._queue(user, delivery)
            return
        try:
            user.receive(delivery)
        except Exception as error:  # noqa: BLE001 - let it crash: this user restarts, the others do not notice
            self.crashed(user, error, delivery)

    def archived(self, user: User, delivery: Delivery) -> None:
        """A message is in the receiver's archive: deliver it, to the actor of the present."""
        current = self.users.get(user.address.bare)
        try:
            (current or user).receive_message(delivery, archived=True)
        except Exception as error:  # noqa: BLE001 - let it crash: this user restarts, the others do not notice
            self.crashed(current or user, error, delivery)

    def from_session(self, session: UserSession, stanza: Stanza) -> None:
        """Handle a stanza of a user's own client, inside its actor."""
        user = session.user
        if user.mailbox is not None:
            self._queue(user, Delivery(stanza, b"", session.address, session.address, session))
            return
        try:
            session.handle(stanza)
        except StreamError:
            raise
        except Exception as error:  # noqa: BLE001 - let it crash: this user restarts, the others do not notice
            self.crashed(user, error, Delivery(stanza, stanza.raw, session.address, session.address, session))

    def bounce(self, delivery: Delivery, condition: str, text: str = "", *, extra: bytes = b"") -> None:
        """Answer a stanza with an error, unless it is one itself or needs none."""
        stanza = delivery.stanza
        kind = stanza.kind
        if (
            kind == "error"
            or (stanza.name == IQ and kind == "result")
            or (stanza.name == PRESENCE and kind is not None)
        ):
            return
        self.counts.bounced += 1
        reply = stanzas.error_reply(addressed(delivery), condition, text, extra=extra)
        if delivery.source is not None:
            delivery.source.reply(reply)
            return
        answer = Stanza(stanza.name, {"type": "error"}, [], reply)
        self.route(Delivery(answer, reply, delivery.to, delivery.sender, None))

    async def user(self, address: Address, *, proved: bool = False) -> User | None:
        """The loaded actor of a local user, None when there is no such account; `proved` by a login just now."""
        user = self.users.get(address.bare)
        if user is None:
            user = self._begin(address)
            await self._finish(user, proved=proved)
        while user.mailbox is not None:
            await clock.sleep(0.001)
        return self.users.get(address.bare)

    def became_idle(self, user: User) -> None:
        """The last session of `user` is gone; it may be unloaded when memory is needed."""
        self._idle[user.address.bare] = user
        while len(self._idle) > self.settings.users_in_memory_max:
            bare = next(iter(self._idle))
            del self._idle[bare]
            self.users.pop(bare, None)

    def became_active(self, user: User) -> None:
        """The first session of `user` is there."""
        self._idle.pop(user.address.bare, None)

    def forget(self, address: Address) -> None:
        """Drop the actor of a deleted account and close its sessions."""
        user = self.users.pop(address.bare, None)
        self._idle.pop(address.bare, None)
        if user is not None:
            user.close_sessions("not-authorized")

    def crashed(self, user: User, error: Exception, delivery: Delivery) -> None:
        """Restart one user from the store; close its sessions when that happens too often."""
        bare = user.address.bare
        self.counts.crashes += 1
        self.registry.event("error", "messaging", f"the actor of {bare} crashed and restarts", error=repr(error))
        self.users.pop(bare, None)
        self._idle.pop(bare, None)
        intensity = self._restarts.get(bare)
        if intensity is None:
            intensity = self._restarts[bare] = RestartIntensity(INTENSITY)
        if len(self._restarts) > RESTARTS_REMEMBERED:
            del self._restarts[next(iter(self._restarts))]
        self.bounce(delivery, "internal-server-error")
        if not intensity.allow(clock.monotonic_s()):
            self.registry.event("error", "messaging", f"{bare} crashes again and again, its sessions are closed")
            user.close_sessions("internal-server-error")
            return
        successor = self._begin(user.address)
        successor.adopt(user)
        self.spawn(self._finish(successor))

    async def _keep_old(self) -> None:
        """Once a second, store what readers have owed an acknowledgement for too long."""
        while True:
            self.now_s = clock.monotonic_s()
            await clock.sleep(1.0)
            now = clock.monotonic_s()
            for session in list(self.owing):
                if not session.keep_old(now):
                    self.owing.pop(session, None)

    def _to_server(self, delivery: Delivery) -> None:
        assert self.queries is not None
        if delivery.stanza.name == IQ:
            self.counts.requests += 1
            self.queries.to_server(delivery)
        elif delivery.stanza.name == MESSAGE:
            self.bounce(delivery, "service-unavailable")

    def _load(self, delivery: Delivery) -> None:
        user = self._begin(delivery.to)
        self._queue(user, delivery)
        self.spawn(self._finish(user))

    def _begin(self, address: Address) -> User:
        user = User(self, address)
        self.users[address.bare] = user
        self.counts.loads += 1
        return user

    def _queue(self, user: User, delivery: Delivery) -> None:
        assert user.mailbox is not None
        if len(user.mailbox) >= self.settings.mailbox_max:
            self.bounce(delivery, "resource-constraint", "too many stanzas wait for this user")
            return
        user.mailbox.append((delivery, delivery.source.hold() if delivery.source is not None else 0))

    async def _finish(self, user: User, *, proved: bool = False) -> None:
        bare = user.address.bare
        try:
            known = proved or await self.accounts.find(user.address.local) is not None
            stored = await self.store.load(bare) if known else None
        except FourplaneError as error:
            self._abandon(user, stanzas.condition_of(error))
            return
        if stored is None:
            self._abandon(user, "service-unavailable")
            return
        if self.users.get(bare) is not user:
            self._abandon(user, "internal-server-error")
            return
        waiting = user.loaded(stored)
        if not user.sessions:
            self.became_idle(user)
        for delivery, hold in waiting:
            if delivery.source is not None and delivery.raw:
                delivery.source.go_on(hold)
            if delivery.raw:
                self.deliver(delivery)
            elif delivery.source is not None:
                self._own_from_mailbox(delivery.source, delivery.stanza)
            if delivery.source is not None:
                delivery.source.release(hold)

    def _own_from_mailbox(self, session: UserSession, stanza: Stanza) -> None:
        try:
            self.from_session(session, stanza)
        except StreamError as error:
            session.close(error.condition, error.text)

    def _abandon(self, user: User, condition: str) -> None:
        if self.users.get(user.address.bare) is user:
            del self.users[user.address.bare]
        waiting, user.mailbox = user.mailbox, None
        user.close_sessions("internal-server-error")
        for delivery, hold in waiting or []:
            self.bounce(delivery, condition)
            if delivery.source is not None:
                delivery.source.release(hold)


def addressed(delivery: Delivery) -> Stanza:
    """The stanza with its true sender among its attributes, to be answered."""
    stanza = delivery.stanza
    attributes = {**stanza.attributes, "from": delivery.sender.full}
    return Stanza(stanza.name, attributes, stanza.children, stanza.raw)


def _wakes(stanza: Stanza) -> bool:
    """Whether a stanza is worth loading a user who is not there."""
    kind = stanza.kind
    if stanza.name == MESSAGE:
        return kind not in {"error", "headline"}
    return stanza.name == PRESENCE and kind in SUBSCRIPTION_TYPES
