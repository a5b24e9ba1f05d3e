"""Who sees whom (RFC 6121 section 4): broadcast to subscribers, probes at login, directed presence, the last goodbye.

A subscriber who is not in memory has no client here, so nothing is sent and nobody is loaded. Presence rests nowhere: it is
the memory of the sessions. Cost of a broadcast: one splice per contact, one append per client of the contact.
"""

from typing import TYPE_CHECKING

from fourplane.messaging import stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.xml_stream import PRESENCE, Stanza

if TYPE_CHECKING:
    from fourplane.messaging.user import User
    from fourplane.messaging.user_session import UserSession

AVAILABILITY = frozenset({None, "unavailable"})
DIRECTED_MAX = 1_000
PRIORITY = "jabber:client priority"


def broadcast(user: "User", session: "UserSession", stanza: Stanza) -> None:
    """A client's own presence without `to`: initial, changed or unavailable."""
    kind = stanza.attributes.get("type")
    router = user.router
    if kind not in AVAILABILITY:
        delivery = Delivery(stanza, stanza.raw, session.address, user.address, session)
        if kind != "probe":
            router.bounce(delivery, "bad-request", "a presence of this type needs an address")
        return
    raw = stanzas.stamped(stanza, session.from_attribute)
    if "to" in stanza.attributes:
        raw = stanzas.readdressed(stanza.raw, session.from_attribute)
    if kind == "unavailable":
        _goodbye(user, session, raw)
        return
    first = session.presence is None
    session.presence = raw
    session.priority = _priority(stanza)
    if not router.switches.presence.on:
        return
    _to_subscribers(user, raw, session.address)
    for other in user.sessions.values():
        if other.presence is not None:
            other.send_presence(_addressed(raw, user.address.bare), session.address.full)
    if router.personal_events is not None:
        router.personal_events.presence(user, session, stanza)
    if first:
        _first_presence(user, session)
    if session.priority >= 0:
        user.deliver_stored(session)


def session_gone(user: "User", session: "UserSession") -> None:
    """A session ended without a word: say goodbye in its name."""
    if session.presence is not None or session.directed:
        _goodbye(user, session, b"<presence type='unavailable'" + session.from_attribute + b"/>")


def directed(user: "User", delivery: Delivery) -> None:
    """A client shows itself to, or hides itself from, one address; remembered so that it gets the goodbye."""
    session = delivery.source
    kind = delivery.stanza.attributes.get("type")
    if session is None or kind not in AVAILABILITY:
        return
    contact = user.contacts.get(delivery.to.bare)
    if contact is not None and contact.from_ and not delivery.to.resource:
        return
    if kind is None:
        if session.directed is None:
            session.directed = set()
        if len(session.directed) < DIRECTED_MAX:
            session.directed.add(delivery.to.full)
    elif session.directed is not None:
        session.directed.discard(delivery.to.full)


def receive(user: "User", delivery: Delivery) -> None:
    """A presence from somebody arrives at this user."""
    kind = delivery.stanza.attributes.get("type")
    if kind == "probe":
        answer_probe(user, delivery.sender)
    elif delivery.to.resource:
        session = user.sessions.get(delivery.to.resource)
        if session is not None:
            session.send_presence(delivery.raw, delivery.sender.full)
    else:
        for session in user.sessions.values():
            if session.presence is not None:
                session.send_presence(delivery.raw, delivery.sender.full)


def answer_probe(user: "User", asker: Address) -> None:
    """Show every available client to `asker` if it may see them (RFC 6121 section 4.3)."""
    contact = user.contacts.get(asker.bare)
    if asker.bare != user.address.bare and (contact is None or not contact.from_):
        return
    show_to(user, asker)


def show_to(user: "User", asker: Address) -> None:
    """Send the presence of every available client to one address."""
    for session in list(user.sessions.values()):
        if session.presence is not None:
            _send(user, session.presence, session.address, asker)


def hide_from(user: "User", other: Address) -> None:
    """Tell one address that every client is gone, for it no longer may see them."""
    for session in list(user.sessions.values()):
        if session.presence is not None:
            raw = b"<presence type='unavailable'" + session.from_attribute + b"/>"
            _send(user, raw, session.address, other)


def _first_presence(user: "User", session: "UserSession") -> None:
    router = user.router
    for other in list(user.sessions.values()):
        if other is not session and other.presence is not None:
            session.send_presence(_addressed(other.presence, session.address.bare), other.address.full)
    for contact in user.contacts.values():
        if contact.request:
            session.send(contact.request)
        if not contact.to:
            continue
        address = router.parse(contact.jid)
        if address is None:
            continue
        if address.domain not in router.domains or (router.shards is not None and router.shards.is_far(address)):
            _send(user, b"<presence type='probe'" + session.from_attribute + b"/>", session.address, address)
            continue
        peer = router.users.get(address.bare)
        if peer is not None and peer.sessions:
            mine = peer.contacts.get(user.address.bare)
            if mine is not None and mine.from_:
                for theirs in peer.sessions.values():
                    if theirs.presence is not None:
                        session.send_presence(_addressed(theirs.presence, user.address.bare), theirs.address.full)


def _goodbye(user: "User", session: "UserSession", raw: bytes) -> None:
    was_there = session.presence is not None
    session.presence = None
    if was_there:
        _to_subscribers(user, raw, session.address)
        for other in user.sessions.values():
            if other.presence is not None and other is not session:
                other.send_presence(_addressed(raw, user.address.bare), session.address.full)
    targets, session.directed = session.directed, None
    for target in sorted(targets or ()):
        address = user.router.parse(target)
        if address is not None:
            _send(user, raw, session.address, address)


def _to_subscribers(user: "User", raw: bytes, sender: Address) -> None:
    router = user.router
    router.counts.presences += 1
    users, domains = router.users, router.domains
    for contact in user.contacts.values():
        if not contact.from_:
            continue
        address = router.parse(contact.jid)
        if address is None:
            continue
        if address.domain not in domains or (router.shards is not None and router.shards.is_far(address)):
            _send(user, raw, sender, address)
            continue
        peer = users.get(address.bare)
        if peer is None or not peer.sessions or (peer.blocked and peer.blocks(user.address)):
            continue
        data = _addressed(raw, contact.jid)
        for session in peer.sessions.values():
            if session.presence is not None:
                router.counts.delivered += 1
                if session.quiet is None:
                    session.send(data)
                else:
                    session.send_presence(data, sender.full)


def _send(user: "User", raw: bytes, sender: Address, to: Address) -> None:
    data = _addressed(raw, to.full)
    kind = {"type": "unavailable"} if b"unavailable" in data[: data.index(b">")] else {}
    if b" type='probe'" in data[:60]:
        kind = {"type": "probe"}
    user.router.route(Delivery(Stanza(PRESENCE, kind, [], data), data, sender, to, None))


def _addressed(raw: bytes, to: str) -> bytes:
    if raw[:9] == b"<presence":
        return raw[:9] + stanzas.attribute("to", to) + raw[9:]
    return stanzas.with_attribute(raw, stanzas.attribute("to", to))


def _priority(stanza: Stanza) -> int:
    if PRIORITY not in stanza.children:
        return 0
    text = stanzas.tree(stanza).findtext("priority") or "0"
    try:
        return max(-128, min(127, int(text.strip())))
    except ValueError:
        return 0
