"""Contacts and subscriptions (RFC 6121 sections 2 and 3, appendix A), as pure functions over one contact's state.

Four facts make the nine states of the RFC: do I see them (`to`), do they see me (`from_`), have I asked (`asked`), have
they asked (`request`, the stanza itself). `approved` is a permission given in advance. Each function returns the new
contact and what follows: is it pushed to my devices, does the stanza travel on, what must be answered.
"""

from typing import Literal

import msgspec

from fourplane.messaging.stanzas import escape

SubscriptionType = Literal["subscribe", "subscribed", "unsubscribe", "unsubscribed"]
SUBSCRIPTION_TYPES = ("subscribe", "subscribed", "unsubscribe", "unsubscribed")
SCHEMA = 1


class Contact(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a roster, or only a waiting request (`in_roster` False)."""

    jid: str
    to: bool = False
    from_: bool = False
    asked: bool = False
    approved: bool = False
    request: bytes = b""
    in_roster: bool = True
    name: str = ""
    groups: tuple[str, ...] = ()
    version: int = 0

    @property
    def subscription(self) -> str:
        """none, to, from or both."""
        if self.to:
            return "both" if self.from_ else "to"
        return "from" if self.from_ else "none"

    @property
    def empty(self) -> bool:
        """Nothing worth keeping."""
        return not (self.in_roster or self.request or self.to or self.from_ or self.asked or self.approved)

    def check(self) -> None:
        """The invariants of the RFC's state table."""
        assert not (self.asked and self.to), "asked and already seeing"
        assert not (self.request and self.from_), "a request of somebody who already sees"
        assert self.in_roster or not (self.to or self.asked), "seeing somebody who is not in the roster"


class Outcome(msgspec.Struct, frozen=True):
    """What a subscription stanza did to one side."""

    contact: Contact
    pushed: bool = False  # the roster changed visibly
    travels: bool = False  # outbound: send it on; inbound: show it to the user
    answer: SubscriptionType | None = None  # inbound: reply in the user's name
    shows_presence: bool = False  # outbound: the contact now sees us: send presence
    hides_presence: bool = False  # outbound: the contact no longer sees us: send unavailable


def outbound(contact: Contact, kind: SubscriptionType) -> Outcome:
    """The user sends `kind` to `contact` (RFC 6121 A.2)."""
    replace = msgspec.structs.replace
    match kind:
        case "subscribe":
            if contact.to:
                return Outcome(contact, travels=True)
            changed = replace(contact, asked=True, in_roster=True)
            return Outcome(changed, pushed=changed != contact, travels=True)
        case "unsubscribe":
            changed = replace(contact, to=False, asked=False)
            return Outcome(changed, pushed=changed != contact and contact.in_roster, travels=True)
        case "subscribed":
            if contact.request:
                changed = replace(contact, request=b"", from_=True, in_roster=True, approved=False)
                return Outcome(changed, pushed=True, travels=True, shows_presence=True)
            if contact.from_:
                return Outcome(contact)
            changed = replace(contact, approved=True, in_roster=True)
            return Outcome(changed, pushed=changed != contact)
        case "unsubscribed":
            changed = replace(contact, request=b"", from_=False, approved=False)
            if contact.from_:
                return Outcome(changed, pushed=True, travels=True, hides_presence=True)
            pushed = contact.approved and contact.in_roster
            return Outcome(changed, pushed=pushed, travels=bool(contact.request))


def inbound(contact: Contact, kind: SubscriptionType, stanza: bytes = b"") -> Outcome:
    """`contact` sends `kind` to the user (RFC 6121 A.3)."""
    replace = msgspec.structs.replace
    match kind:
        case "subscribe":
            if contact.from_:
                return Outcome(contact, answer="subscribed")
            if contact.approved:
                changed = replace(contact, from_=True, approved=False, request=b"")
                return Outcome(changed, pushed=True, answer="subscribed")
            changed = replace(contact, request=stanza)
            return Outcome(changed, travels=not contact.request)
        case "unsubscribe":
            changed = replace(contact, from_=False, request=b"", approved=False)
            if contact.from_:
                return Outcome(changed, pushed=True, travels=True, hides_presence=True)
            return Outcome(changed, travels=bool(contact.request))
        case "subscribed":
            if contact.asked and not contact.to:
                changed = replace(contact, to=True, asked=False)
                return Outcome(changed, pushed=True, travels=True)
            return Outcome(contact)
        case "unsubscribed":
            if contact.to or contact.asked:
                changed = replace(contact, to=False, asked=False)
                return Outcome(changed, pushed=True, travels=True)
            return Outcome(contact)


def item_element(contact: Contact) -> bytes:
    """`<item/>` as a roster result or push shows it."""
    parts = [f"<item jid='{escape(contact.jid)}' subscription='{contact.subscription}'"]
    if contact.asked:
        parts.append(" ask='subscribe'")
    if contact.approved:
        parts.append(" approved='true'")
    if contact.name:
        parts.append(f" name='{escape(contact.name)}'")
    groups = "".join(f"<group>{escape(group)}</group>" for group in contact.groups)
    parts.append(f">{groups}</item>" if groups else "/>")
    return "".join(parts).encode()


def encode(contact: Contact) -> bytes:
    """The stored form; begins with the schema number."""
    return bytes([SCHEMA]) + msgspec.msgpack.encode(contact)


def decode(stored: bytes) -> Contact:
    """What `encode` wrote."""
    assert stored[0] == SCHEMA, f"roster schema {stored[0]}"
    return msgspec.msgpack.decode(stored[1:], type=Contact)
