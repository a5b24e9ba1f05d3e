"""The actor of one bare address: its sessions, contacts and stored messages, and RFC 6121's rules for what it receives.

Everything is synchronous: a stanza is decided in the call that brings it. `receive` takes what others send, `own_presence` and
`dispatch` what its own clients send. Until the store has been read (`mailbox` is a list) nothing is decided.
Messages follow RFC 6121 section 8.5; stored ones XEP-0160; copies for other devices XEP-0280.
"""

import re
from enum import Enum
from typing import TYPE_CHECKING

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging import presence, stanzas, subscriptions
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.roster import SUBSCRIPTION_TYPES, Contact
from fourplane.messaging.stream_management import MODULUS, Owed
from fourplane.messaging.user_session import CHAT_STATES, NO_ORIGIN, UserSession
from fourplane.messaging.user_store import NOBODY, StoredUser
from fourplane.messaging.xml_stream import CLIENT, MESSAGE, PRESENCE, Stanza
from fourplane.service.stored_order import next_id

if TYPE_CHECKING:
    from fourplane.messaging.routing import Router

__all__ = ["Delivery", "User"]

BODY = "jabber:client body"
EVENT = ["http://jabber.org/protocol/pubsub#event event"]
_EVENT_NODE = re.compile(rb"<(?:items|delete|purge) node=['\"]([^'\"]*)['\"]")
HINTS = "urn:xmpp:hints "
NO_STORE, NO_PERMANENT_STORE, STORE = f"{HINTS}no-store", f"{HINTS}no-permanent-store", f"{HINTS}store"
CARBONS = "urn:xmpp:carbons:2"
UNKEPT = frozenset({"groupchat", "headline", "error"})
FLUSH_PAGE = 100
FLUSH_AGAIN_MAX = 8  # failures of the store in a row: half a minute together
FLUSH_WAIT_S = 0.06  # doubled each time
SPOOL_POLL_S = 0.002
NOTHING: frozenset[int] = frozenset()
SUBSCRIPTIONS = frozenset(SUBSCRIPTION_TYPES)


class _Flush(Enum):
    """How far the reading of what is stored has come."""

    MORE = 1
    WAITS = 2  # all that is left is on its way to this very client, and goes when that has it
    DONE = 3


class User:
    """One local user; see the module's essay."""

    __slots__ = (
        "address",
        "blocked",
        "carbon_count",
        "contacts",
        "earlier_id",
        "flushing",
        "last_id",
        "mailbox",
        "offline_count",
        "router",
        "sessions",
        "spooling",
        "taken",
        "version",
    )

    def __init__(self, router: "Router", address: Address) -> None:
        self.router = router
        self.address = address if not address.resource else router.bare(address)
        self.sessions: dict[str, UserSession] = {}
        self.contacts: dict[str, Contact] = {}
        self.version = 0
        self.blocked = NOBODY
        self.last_id = 0  # of what is stored, see service/stored_order.py
        self.earlier_id = 0  # what it was when this user was loaded
        self.offline_count = 0
        self.spooling = 0  # messages on their way to the disk
        self.carbon_count = 0
        self.flushing = False  # stored messages are being read for a client
        self.taken = NOTHING  # ids a client has had and the store could not forget yet
        self.mailbox: list[tuple[Delivery, int]] | None = []

    def loaded(self, stored: StoredUser) -> list[tuple[Delivery, int]]:
        """Take over what the store knew; what waited meanwhile."""
        self.contacts = stored.contacts
        self.version = stored.version
        self.blocked = stored.blocked
        self.offline_count = stored.offline_count
        self.last_id = max(self.last_id, stored.last_id)
        self.earlier_id = stored.last_id
        waiting, self.mailbox = self.mailbox, None
        return waiting or []

    def adopt(self, crashed: "User") -> None:
        """Take over the live sessions of a crashed predecessor."""
        self.sessions = crashed.sessions
        self.carbon_count = crashed.carbon_count
        self.last_id = max(self.last_id, crashed.last_id)
        self.taken = crashed.taken
        for session in self.sessions.values():
            session.user = self
        if crashed.mailbox:
            assert self.mailbox is not None
            self.mailbox.extend(crashed.mailbox)

    def next_id(self) -> int:
        """An id behind everything that is stored for this user; raises Unavailable."""
        self.last_id = next_id(self.router.ids, self.last_id)
        return self.last_id

    def attach(self, session: UserSession) -> None:
        """A client has bound a resource; an older session of the same resource is replaced."""
        older = self.sessions.get(session.address.resource)
        if older is not None:
            older.close("conflict", "replaced by a new connection")
        if not self.sessions:
            self.router.became_active(self)
        self.sessions[session.address.resource] = session

    def ended(self, session: UserSession) -> None:
        """A session is over: its contacts learn it, what it never got goes to the others or to the store."""
        resource = session.address.resource
        if self.sessions.get(resource) is not session:
            return
        del self.sessions[resource]
        self.router.session_ended(session)
        if session.carbons:
            self.carbon_count -= 1
        presence.session_gone(self, session)
        self.keep_unacked(session)
        if not self.sessions:
            self.router.became_idle(self)

    def close_sessions(self, condition: str) -> None:
        """End all connections of this user."""
        for session in list(self.sessions.values()):
            session.close(condition)

    def dispatch(self, delivery: Delivery) -> None:
        """Send what one of the own clients addressed to somebody."""
        stanza = delivery.stanza
        router = self.router
        if stanza.name == MESSAGE:
            router.counts.messages += 1
            if self.blocked and self.blocks(delivery.to):
                router.bounce(delivery, "not-acceptable", "you have blocked this address")
                return
            if self.carbon_count and _wants_carbon(stanza):
                self._carbon("sent", delivery, frozenset((delivery.sender.resource,)))
            if router.archive is not None:
                router.archive.sent(self, delivery)
        elif stanza.name == PRESENCE:
            kind = stanza.attributes.get("type")
            if kind in SUBSCRIPTIONS:
                subscriptions.outbound(self, delivery, kind)
                return
            presence.directed(self, delivery)
        router.route(delivery)

    def own_presence(self, session: UserSession, stanza: Stanza) -> None:
        """A client of ours says that it is there, or no longer."""
        presence.broadcast(self, session, stanza)

    def receive(self, delivery: Delivery) -> None:
        """Act on a stanza from somebody."""
        name = delivery.stanza.name
        if self.blocked and self.blocks(delivery.sender):
            if name != PRESENCE:
                self.router.bounce(delivery, "service-unavailable")
            return
        if name == MESSAGE:
            self.receive_message(delivery)
        elif name == PRESENCE:
            kind = delivery.stanza.attributes.get("type")
            if kind in SUBSCRIPTIONS:
                subscriptions.inbound(self, delivery, kind)
            else:
                presence.receive(self, delivery)
        elif delivery.to.resource:
            session = self.sessions.get(delivery.to.resource)
            if session is None:
                self.router.bounce(delivery, "service-unavailable")
            else:
                self._push(session, delivery)
        else:
            assert self.router.queries is not None
            self.router.counts.requests += 1
            self.router.queries.to_user(self, delivery)

    def blocks(self, address: Address) -> bool:
        """Whether this user has blocked `address` (XEP-0191), which may name a user, a domain or one device."""
        blocked = self.blocked
        return address.bare in blocked or address.full in blocked or address.domain in blocked

    def available(self) -> list[UserSession]:
        """Sessions that sent presence with a priority of at least 0."""
        return [s for s in self.sessions.values() if s.presence is not None and s.priority >= 0]

    def push_roster(self, item: bytes) -> None:
        """Tell every interested client about one changed contact (RFC 6121 section 2.1.6)."""
        head = f"<iq type='set' id='push{self.version}' to='"
        query = f"'><query xmlns='jabber:iq:roster' ver='{self.version}'>".encode() + item + b"</query></iq>"
        for session in self.sessions.values():
            if session.interested:
                session.send((head + stanzas.escape(session.address.full)).encode() + query)

    def keep_unacked(self, session: UserSession) -> None:
        """The connection of `session` broke: store what it was sent and never acknowledged, and offer it to the others."""
        management = session.management
        if management is None:
            return
        for owed in management.unacked:
            if not owed.stored_id:
                self.keep(owed)
        live = [other for other in self.available() if other.stream is not None]
        if live:
            self.deliver_stored(live[0])

    def keep(self, owed: Owed) -> None:
        """Store one message a client has not acknowledged; its sender's acknowledgement goes out when it is durable."""
        message = owed.message
        if message is None or not worth_storing(message.stanza):
            owed.message = None
            owed.settle()
            return
        router = self.router
        try:
            owed.stored_id = self.next_id()
        except FourplaneError as error:  # it stays owed, and is tried again
            router.registry.event("error", "messaging", "a message cannot be kept now", error=error.reason)
            return
        owed.message = None
        self.offline_count += 1
        self.spooling += 1

        def stored(failure: FourplaneError | None) -> None:
            self.spooling -= 1
            if failure is None:
                router.counts.stored += 1
                owed.settle()
                return
            self.offline_count -= 1
            owed.stored_id, owed.message = 0, message
            router.registry.event(
                "error", "messaging", "an unacknowledged message cannot be stored", error=failure.reason
            )

        origin, again = origin_of(message)
        router.store.put_offline(self.address.bare, owed.stored_id, message.raw, stored, origin=origin, again=again)

    def forget_stored(self, ids: list[int]) -> None:
        """Messages that lie in the store were acknowledged after all."""
        self.offline_count = max(0, self.offline_count - len(ids))
        self.router.store.delete_offline(self.address.bare, ids)

    def deliver_stored(self, session: UserSession) -> None:
        """Send what came in the user's absence, oldest first; forgotten when it was handed over."""
        if self.offline_count and not self.flushing:
            self.flushing = True
            self.router.spawn(self._flush(session))

    async def _flush(self, session: UserSession) -> None:
        state, failed = _Flush.MORE, 0
        try:
            while state is _Flush.MORE and self.sessions.get(session.address.resource) is session:
                try:
                    state, failed = await self._flush_page(session), 0
                except FourplaneError as error:
                    failed += 1
                    if failed > FLUSH_AGAIN_MAX:  # the next presence tries it again
                        reason = error.reason
                        self.router.registry.event(
                            "warning", "messaging", "stored messages cannot be read", error=reason
                        )
                        return
                    await clock.sleep(FLUSH_WAIT_S * 2**failed)
        finally:
            self.flushing = False
        # A client came while another one was served, or this one went before it had taken everything.
        targets = [other for other in self.available() if other.stream is not None]
        if targets and self.offline_count and not (state is _Flush.WAITS and targets[0] is session):
            self.deliver_stored(targets[0])

    async def _flush_page(self, session: UserSession) -> "_Flush":
        """Send the next of what is stored, and forget it once it was taken; raises what the store says."""
        store, bare = self.router.store, self.address.bare
        if self.taken:
            await self._forget(self.taken)
        sent = session.stored_ids()
        found = await store.offline(bare, FLUSH_PAGE + len(sent))
        page = [message for message in found if message.id not in sent][:FLUSH_PAGE]
        if not page:
            if found:
                return _Flush.WAITS
            if self.spooling == 0:
                self.offline_count = 0
                return _Flush.DONE
            await clock.sleep(SPOOL_POLL_S)
            return _Flush.MORE
        for message in page:
            self.router.counts.delivered += 1
            session.send(stanzas.with_child(message.raw, stanzas.delay(message.stored_us, self.address.domain)))
        if not await session.wait_taken():
            return _Flush.DONE
        await self._forget(frozenset(message.id for message in page))
        return _Flush.MORE

    async def _forget(self, ids: frozenset[int]) -> None:
        """Take what a client has had out of the store; as long as that fails nothing is shown, so that nothing is shown twice."""
        self.taken |= ids
        await self.router.store.forget_offline(self.address.bare, sorted(ids))
        self.taken -= ids
        self.offline_count = max(0, self.offline_count - len(ids))

    def receive_message(self, delivery: Delivery, *, archived: bool = False) -> None:
        """RFC 6121 section 8.5; with an archive, once the message is durable there."""
        resource, archive = delivery.to.resource, self.router.archive
        session = self.sessions.get(resource) if resource else None
        if session is None and delivery.stanza.kind in {"error", "groupchat"}:
            self.router.bounce(delivery, "service-unavailable")
            return
        if not archived and archive is not None and archive.received(self, delivery):
            return
        if session is None:
            self._to_bare(delivery, delivery.stanza.kind)
            return
        alone = archived or delivery.stanza.kind not in UNKEPT  # of these kinds nothing is archived
        if not self.carbon_count:
            self._push(session, delivery, alone=alone)
            return
        self._push(session, delivery, alone=alone and len(self.sessions) == 1)
        if _wants_carbon(delivery.stanza):
            self._carbon("received", delivery, frozenset((session.address.resource,)))

    def _to_bare(self, delivery: Delivery, kind: str | None) -> None:
        targets = self.available()
        if kind == "headline":
            event = delivery.stanza.children == EVENT
            for session in targets:
                if not event or wanted_by(session, delivery.raw):
                    self._push(session, delivery)
            return
        if not targets or self.flushing:
            self._spool(delivery)
            return
        if len(targets) == 1 and not self.carbon_count:
            self._push(targets[0], delivery, alone=True)
            return
        if len(targets) > 1:
            top = max(session.priority for session in targets)
            targets = [session for session in targets if session.priority == top]
        # Several clients that live show it to each other's user; one among broken sessions, or the first of these, must keep it.
        live = [session for session in targets if session.stream is not None]
        others = self.carbon_count and sum(session.stream is not None for session in self.sessions.values()) > 1
        keeper = (live or targets)[0] if len(live) <= 1 and not others else None
        for session in targets:
            self._push(session, delivery, alone=session is keeper)
        if self.carbon_count and _wants_carbon(delivery.stanza):
            self._carbon("received", delivery, frozenset(session.address.resource for session in targets))

    def _push(self, session: UserSession, delivery: Delivery, *, alone: bool = False) -> None:
        stanza = delivery.stanza
        self.router.counts.delivered += 1
        stream = session.stream
        if session.management is None:
            if stream is not None and not session.quiet:
                stream.send(delivery.raw)
            else:
                session.send(delivery.raw)
        elif stanza.name != MESSAGE:
            session.send(delivery.raw)
        else:
            session.send(delivery.raw, delivery if alone else None, delivery.source)
        if stream is not None and stream.congested and delivery.source is not None:
            stream.slow_down(delivery.source)

    def _spool(self, delivery: Delivery) -> None:
        """Store a message for later (XEP-0160); its sender's answers wait until it is durable."""
        router = self.router
        if not worth_storing(delivery.stanza):
            return
        if not router.switches.spool.on:
            router.bounce(delivery, "service-unavailable", "the message storage was stopped by an operator")
            return
        if self.offline_count >= router.settings.offline_max:
            router.bounce(delivery, "service-unavailable", "too many messages wait for this user")
            return
        try:
            ident = self.next_id()
        except FourplaneError as error:
            router.bounce(delivery, "internal-server-error", error.public)
            return
        self.offline_count += 1
        self.spooling += 1
        source = delivery.source
        hold = source.hold() if source is not None else 0
        began = clock.monotonic_s()

        def stored(failure: FourplaneError | None) -> None:
            self.spooling -= 1
            if failure is None:
                router.counts.stored += 1
                router.store_latency.record(clock.monotonic_s() - began)
            else:
                self.offline_count -= 1
                router.bounce(delivery, "internal-server-error", "the message could not be stored")
            if source is not None:
                source.release(hold)

        origin, again = origin_of(delivery)
        router.store.put_offline(self.address.bare, ident, delivery.raw, stored, origin=origin, again=again)

    def _carbon(self, direction: str, delivery: Delivery, without: frozenset[str]) -> None:
        raw = delivery.raw
        if b"xmlns=" not in raw[: raw.index(b">")]:
            raw = stanzas.with_attribute(raw, f" xmlns='{CLIENT}'".encode())
        kind = delivery.stanza.kind or "normal"
        head = f"<message type='{kind}' from='{stanzas.escape(self.address.bare)}' to='"
        content = (
            f"'><{direction} xmlns='{CARBONS}'><forwarded xmlns='urn:xmpp:forward:0'>".encode()
            + raw
            + f"</forwarded></{direction}></message>".encode()
        )
        for session in self.sessions.values():
            if session.carbons and session.address.resource not in without:
                session.send((head + stanzas.escape(session.address.full)).encode() + content)


def origin_of(delivery: Delivery) -> tuple[bytes, bool]:
    """What names a stanza of another worker, whoever tells it, and whether it was told before; nothing for one of this worker."""
    return delivery.source.origin_of(delivery.stanza) if delivery.source is not None else NO_ORIGIN


def wanted_by(session: UserSession, raw: bytes) -> bool:
    """Whether the client has asked for events of the node that `raw` tells about (XEP-0163)."""
    found = _EVENT_NODE.search(raw)
    return found is not None and found.group(1).decode() in session.wanted


def unacked_number(session: UserSession) -> int:
    """How many stanzas the client has not acknowledged, for the operator's view."""
    return len(session.management.unacked) % MODULUS if session.management is not None else 0


def _wants_carbon(stanza: Stanza) -> bool:
    """XEP-0280 section 6.1: conversations, not groups, unless the sender asked for privacy."""
    kind = stanza.kind
    children = stanza.children
    if f"{CARBONS} private" in children or f"{HINTS}no-copy" in children:
        return False
    if kind == "chat":
        return True
    return kind in {None, "normal"} and BODY in children


def worth_storing(stanza: Stanza) -> bool:
    """XEP-0160 and XEP-0334: anything with content, but no chat states, and nothing that says no."""
    children = stanza.children
    if NO_STORE in children or NO_PERMANENT_STORE in children:
        return False
    if BODY in children or STORE in children:
        return True
    return any(not child.startswith((CHAT_STATES, "jabber:client thread")) for child in children)
