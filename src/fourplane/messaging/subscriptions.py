"""Asking for and granting presence (RFC 6121 section 3): the states of roster.py, made durable, pushed and sent on."""

from typing import TYPE_CHECKING, cast

from fourplane.foundation.errors import Conflict
from fourplane.messaging import presence, roster, stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.roster import Contact, Outcome, SubscriptionType
from fourplane.messaging.xml_stream import PRESENCE, Stanza

if TYPE_CHECKING:
    from fourplane.messaging.user import User

REQUEST_MAX = 4_096


def outbound(user: "User", delivery: Delivery, kind: str) -> None:
    """A client of the user sends subscribe, subscribed, unsubscribe or unsubscribed."""
    to = user.router.bare(delivery.to)
    if to.bare == user.address.bare:
        return
    contact = user.contacts.get(to.bare) or Contact(to.bare, in_roster=False)
    outcome = roster.outbound(contact, cast("SubscriptionType", kind))
    if outcome.contact.in_roster and not contact.in_roster and _is_full(user):
        user.router.bounce(delivery, "not-allowed", "the roster is full")
        return
    _store(user, contact, outcome)
    if outcome.hides_presence:
        presence.hide_from(user, to)
    if outcome.travels:
        _send(user, kind, to, delivery.stanza)
    if outcome.shows_presence:
        presence.show_to(user, to)


def inbound(user: "User", delivery: Delivery, kind: str) -> None:
    """Somebody sends the user one of the four."""
    sender = user.router.bare(delivery.sender)
    if sender.bare == user.address.bare:
        return
    contact = user.contacts.get(sender.bare) or Contact(sender.bare, in_roster=False)
    if kind == "subscribe" and sender.bare not in user.contacts and len(user.contacts) >= _contacts_max(user):
        return
    outcome = roster.inbound(contact, cast("SubscriptionType", kind), _kept_request(delivery))
    _store(user, contact, outcome)
    if outcome.answer is not None:
        _send(user, outcome.answer, sender)
        presence.show_to(user, sender)
    if outcome.hides_presence:
        presence.hide_from(user, sender)
    if outcome.travels:
        for session in user.sessions.values():
            if session.interested or session.presence is not None:
                session.send(delivery.raw)
    if kind == "unsubscribed" and outcome.pushed:
        for session in user.sessions.values():
            if session.presence is not None:
                session.send(
                    b"<presence type='unavailable'"
                    + stanzas.attribute("from", sender.bare)
                    + stanzas.attribute("to", session.address.full)
                    + b"/>"
                )


def change(user: "User", contact: Contact) -> None:
    """A client adds a contact or changes its name and groups; raises Conflict (`not_allowed`) when the roster is full."""
    if contact.jid not in user.contacts and _is_full(user):
        raise Conflict("the roster is full", code="not_allowed")
    before = user.contacts.get(contact.jid) or Contact(contact.jid, in_roster=False)
    _store(user, before, Outcome(contact, pushed=True))


def remove(user: "User", contact: Contact) -> None:
    """A client removes a contact: both directions of presence end (RFC 6121 section 2.5)."""
    address = user.router.parse(contact.jid)
    user.contacts.pop(contact.jid, None)
    user.version += 1
    gone = Contact(contact.jid, in_roster=False)
    user.router.store.put_contact(user.address.bare, gone, user.version)
    user.push_roster(f"<item jid='{stanzas.escape(contact.jid)}' subscription='remove'/>".encode())
    if address is None:
        return
    if contact.to or contact.asked:
        _send(user, "unsubscribe", address)
    if contact.from_ or contact.request:
        if contact.from_:
            presence.hide_from(user, address)
        _send(user, "unsubscribed", address)


def _store(user: "User", before: Contact, outcome: Outcome) -> None:
    contact = outcome.contact
    if contact == before:
        return
    user.version += 1
    contact = _numbered(contact, user.version)
    if contact.empty:
        user.contacts.pop(contact.jid, None)
    else:
        user.contacts[contact.jid] = contact
    user.router.store.put_contact(user.address.bare, contact, user.version)
    if outcome.pushed and contact.in_roster:
        user.push_roster(roster.item_element(contact))


def _numbered(contact: Contact, version: int) -> Contact:
    return Contact(
        contact.jid,
        contact.to,
        contact.from_,
        contact.asked,
        contact.approved,
        contact.request,
        contact.in_roster,
        contact.name,
        contact.groups,
        version,
    )


def _send(user: "User", kind: str, to: Address, original: Stanza | None = None) -> None:
    addresses = stanzas.attribute("from", user.address.bare) + stanzas.attribute("to", to.bare)
    if original is not None:
        raw = stanzas.readdressed(original.raw, addresses)
        stanza = Stanza(PRESENCE, original.attributes, original.children, raw)
    else:
        raw = b"<presence type='" + kind.encode() + b"'" + addresses + b"/>"
        stanza = Stanza(PRESENCE, {"type": kind}, [], raw)
    user.router.route(Delivery(stanza, raw, user.address, to, None))


def _kept_request(delivery: Delivery) -> bytes:
    if len(delivery.raw) <= REQUEST_MAX:
        return delivery.raw
    to = stanzas.attribute("to", delivery.to.bare)
    return b"<presence type='subscribe'" + stanzas.attribute("from", delivery.sender.bare) + to + b"/>"


def _is_full(user: "User") -> bool:
    return len(user.contacts) >= user.router.settings.roster_max


def _contacts_max(user: "User") -> int:
    return 2 * user.router.settings.roster_max
