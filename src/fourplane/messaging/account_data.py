"""What an account keeps here: blocked addresses (XEP-0191), its card (XEP-0054), private notes of its clients (XEP-0049)."""

import hashlib
from xml.etree import ElementTree as ET

from fourplane.foundation.errors import FourplaneError, NotFound, Rejected, TooLarge
from fourplane.messaging import presence, stanzas
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import Request, ServerQueries
from fourplane.messaging.stanzas import escape
from fourplane.messaging.user import User
from fourplane.state.contracts import Change, Delete, Put

BLOCKING = "urn:xmpp:blocking"
VCARD = "vcard-temp"
PRIVATE = "jabber:iq:private"
SCHEMA = 1


class AccountData:
    """Handlers of the three; registers itself."""

    def __init__(self, router: Router, queries: ServerQueries) -> None:
        self._router = router
        queries.own(f"{BLOCKING} blocklist", get=_blocked)
        queries.own(f"{BLOCKING} block", put=_block)
        queries.own(f"{BLOCKING} unblock", put=_unblock)
        queries.own(f"{VCARD} vCard", get=self._get_card, put=_set_card)
        queries.of_others(f"{VCARD} vCard", get=self._get_card)
        queries.own(f"{PRIVATE} query", get=self._get_private, put=_set_private)
        queries.server_features += [BLOCKING, VCARD, PRIVATE]
        queries.account_features += [VCARD]

    def _get_card(self, request: Request) -> None:
        user = request.user
        if user is None:
            raise NotFound("the server has no card")
        self._router.spawn(self._answer_stored(request, user, b"v", f"<vCard xmlns='{VCARD}'/>".encode()))

    def _get_private(self, request: Request) -> None:
        child = _only_child(request.element)
        empty = stanzas.text_of(ET.Element(child.tag))
        self._router.spawn(self._answer_stored(request, request.account(), _private_key(child.tag), empty))

    async def _answer_stored(self, request: Request, user: User, key: bytes, empty: bytes) -> None:
        try:
            stored = await self._router.store.value(user.address.bare, key)
        except FourplaneError as error:
            request.refuse(stanzas.condition_of(error), error.public)
            return
        content = stored[1:] if stored is not None else empty
        if key != b"v":
            content = f"<query xmlns='{PRIVATE}'>".encode() + content + b"</query>"
        elif stored is None and not request.own:
            request.refuse("item-not-found")
            return
        request.answer(content)


def _set_card(request: Request) -> None:
    user = request.account()
    raw = stanzas.text_of(request.element)
    if len(raw) > request.router.settings.vcard_max:
        raise TooLarge(f"a card may have {request.router.settings.vcard_max} bytes")
    request.router.store.write(user.address.bare, [Put(b"v", bytes([SCHEMA]) + raw)], request.when_durable)


def _set_private(request: Request) -> None:
    user = request.account()
    child = _only_child(request.element)
    raw = stanzas.text_of(child)
    if len(raw) > request.router.settings.private_max:
        raise TooLarge(f"a note may have {request.router.settings.private_max} bytes")
    put = Put(_private_key(child.tag), bytes([SCHEMA]) + raw)
    request.router.store.write(user.address.bare, [put], request.when_durable)


def _only_child(element: ET.Element) -> ET.Element:
    if len(element) != 1 or not element[0].tag.startswith("{"):
        raise Rejected("exactly one element with a namespace of its own is kept or fetched", code="bad_request")
    return element[0]


def _private_key(tag: str) -> bytes:
    return b"x/" + hashlib.sha256(tag.encode()).digest()


def _blocked(request: Request) -> None:
    user = request.account()
    if request.session is not None:
        request.session.knows_blocking = True
    items = "".join(f"<item jid='{escape(jid)}'/>" for jid in sorted(user.blocked))
    request.answer(f"<blocklist xmlns='{BLOCKING}'>{items}</blocklist>".encode())


def _block(request: Request) -> None:
    user = request.account()
    wanted = _addresses(request)
    if not wanted:
        raise Rejected("whom?", code="bad_request")
    fresh = [jid for jid in wanted if jid not in user.blocked]
    if len(user.blocked) + len(fresh) > request.router.settings.blocked_max:
        raise Rejected("too many addresses are blocked", code="not_allowed")
    for jid in fresh:
        for contact in user.contacts.values():
            address = request.router.parse(contact.jid)
            if address is not None and contact.from_ and jid in {address.bare, address.domain}:
                presence.hide_from(user, address)
    user.blocked |= frozenset(fresh)
    _store(request, user, [Put(b"b/" + jid.encode()[:500], bytes([SCHEMA])) for jid in fresh], "block", wanted)


def _unblock(request: Request) -> None:
    user = request.account()
    wanted = _addresses(request)
    gone = [jid for jid in wanted or sorted(user.blocked) if jid in user.blocked]
    user.blocked -= frozenset(gone)
    for contact in user.contacts.values():
        address = request.router.parse(contact.jid)
        if address is not None and contact.from_ and (address.bare in gone or address.domain in gone):
            presence.show_to(user, address)
    _store(request, user, [Delete(b"b/" + jid.encode()[:500]) for jid in gone], "unblock", wanted)


def _store(request: Request, user: User, changes: list[Change], verb: str, jids: list[str]) -> None:
    request.router.store.write(user.address.bare, changes, request.when_durable)
    items = "".join(f"<item jid='{escape(jid)}'/>" for jid in jids)
    for session in user.sessions.values():
        if session.knows_blocking:
            head = f"<iq type='set' id='{verb}{request.router.ids.next()}' to='{escape(session.address.full)}'>"
            session.send(f"{head}<{verb} xmlns='{BLOCKING}'>{items}</{verb}></iq>".encode())


def _addresses(request: Request) -> list[str]:
    found = []
    for item in request.element.findall(f"{{{BLOCKING}}}item"):
        address = request.router.parse(item.get("jid", ""))
        if address is None:
            raise Rejected("an address is malformed", code="jid_malformed")
        found.append(address.full)
    return found
