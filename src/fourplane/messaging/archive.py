"""The archive of every account (XEP-0313), paged by result sets (XEP-0059), newest ids last.

One record per message and owner in the owner's partition, under the id that clients see as `<stanza-id/>` (XEP-0359). Ids carry
their time, so a question about a time is a range of keys. Whoever receives a message gets it once its archive record is
durable, so an archive id is never a promise that a crash could break; the order of a user's messages is that of the
writes. Filtering by person reads up to `SCAN_MAX` records a page.
"""

import struct
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected
from fourplane.foundation.ids import EPOCH_MS, SEQUENCE_BITS, SLOT_BITS
from fourplane.messaging import stanzas
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import Request, ServerQueries
from fourplane.messaging.stanzas import escape
from fourplane.messaging.user import BODY, User, worth_storing
from fourplane.messaging.user_session import NO_ORIGIN
from fourplane.messaging.user_store import Unless
from fourplane.messaging.xml_stream import CLIENT, Stanza
from fourplane.service.stored_order import ID_MAX
from fourplane.state.contracts import Put

if TYPE_CHECKING:
    from fourplane.messaging.user_session import UserSession

MAM = "urn:xmpp:mam:2"
RSM = "http://jabber.org/protocol/rsm"
FORM = "jabber:x:data"
STANZA_ID = "urn:xmpp:sid:0 stanza-id"
PAGE_MAX = 100
SCAN_MAX = 2_000
SCHEMA, SCHEMA_FAR = 1, 2  # the second with the origin of a message from another worker
_CONVERSATIONS = frozenset({None, "chat", "normal"})
_ONLY_BODY = [BODY]
_KEY = struct.Struct(">2sQ").pack
_HEAD, _HEAD_FAR = struct.Struct(">BQH").pack, struct.Struct(">BQHB").pack
# So long before its last record an earlier process may have archived what is told again: longer than others try.
AGAIN_S = 180.0
AGAIN_MAX = 20_000  # records of one account that are read for that, and origins that are remembered of all


class Question(msgspec.Struct, frozen=True):
    """One page that a client asks for."""

    peer: str = ""  # bare or full address, empty for everybody
    first: int = 0  # smallest and largest id
    last: int = ID_MAX
    count: int = 50
    backwards: bool = False


class ArchivedMessage(msgspec.Struct, frozen=True):
    """One record."""

    id: int
    at_us: int
    peer: str
    raw: bytes
    origin: bytes = b""  # what names it if it came from another worker


class _Sent(msgspec.Struct, eq=False):
    """What is done when the copy of a sender is durable or failed. One object, as thousands wait for a commit."""

    archive: "MessageArchive"
    source: "UserSession | None"
    hold: int

    def __call__(self, failure: FourplaneError | None) -> None:
        if failure is not None:
            self.archive.complain(failure)
        if self.source is not None:
            self.source.release(self.hold)


class _Received(msgspec.Struct, eq=False):
    """The same for the copy of a receiver, who gets the message then."""

    archive: "MessageArchive"
    user: User
    delivery: Delivery
    hold: int

    def __call__(self, failure: FourplaneError | None) -> None:
        self.archive.deliver(self.user, self.delivery, self.hold, failure)


class MessageArchive:
    """Writes copies and answers queries; registers itself with the router."""

    def __init__(self, router: Router, queries: ServerQueries) -> None:
        self._router = router
        self._earlier: dict[str, dict[bytes, int]] = {}  # of accounts that were told something again: see _id_of
        self._earlier_count = 0
        queries.own(f"{MAM} query", get=_answer_form, put=self._query)
        queries.account_features += [MAM, f"{MAM}#extended", "urn:xmpp:sid:0"]
        router.archive = self

    def sent(self, user: User, delivery: Delivery) -> None:
        """Keep a copy for the sender; its acknowledgement waits for the disk."""
        if not _is_conversation(delivery.stanza):
            return
        source = delivery.source
        hold = source.hold() if source is not None else 0
        put = self._record(user.next_id(), delivery.to.full, delivery.raw)
        self._router.store.write(user.address.bare, (put,), _Sent(self, source, hold))

    def received(self, user: User, delivery: Delivery) -> bool:
        """Keep a copy for the receiver and deliver it then; False when this message is not kept."""
        if not _is_conversation(delivery.stanza):
            return False
        source = delivery.source
        if source is None:
            hold, (origin, again) = 0, NO_ORIGIN
        else:
            hold, (origin, again) = source.hold(), source.origin_of(delivery.stanza)
        ident = user.next_id()
        unless = self._unless(user, delivery, hold, origin) if again and origin else None
        self._mark(user, delivery, ident)
        put = self._record(ident, delivery.sender.full, delivery.raw, origin)
        self._router.store.write(user.address.bare, (put,), _Received(self, user, delivery, hold), unless=unless)
        return True

    def _unless(self, user: User, delivery: Delivery, hold: int, origin: bytes) -> Unless:
        """A process before this one may have archived it and have said nothing: then it is delivered as archived there."""
        raw = delivery.raw

        def there(earlier: bytes) -> None:
            delivery.raw = raw
            self._mark(user, delivery, int.from_bytes(earlier, "big"))
            self.deliver(user, delivery, hold, None)

        return Unless(partial(self._id_of, user, origin), 1, there)

    async def _id_of(self, user: User, origin: bytes) -> bytes | None:
        """Under which id an earlier process archived a message of another worker, if it did.

        What was there when the account was loaded is read once; what has come since, however much, is this process's own.
        """
        bare = user.address.bare
        found = self._earlier.get(bare)
        if found is None:
            found = await self._read_earlier(bare, user.earlier_id)
            while self._earlier and self._earlier_count + len(found) > AGAIN_MAX:
                self._earlier_count -= len(self._earlier.pop(next(iter(self._earlier))))
            self._earlier[bare] = found
            self._earlier_count += len(found)
        ident = found.get(origin)
        return None if ident is None else ident.to_bytes(8, "big")

    async def _read_earlier(self, bare: str, last: int) -> dict[bytes, int]:
        """Ids by origin, of records up to this id; `AGAIN_S` are counted by the records, as a clock may be set meanwhile."""
        found: dict[bytes, int] = {}
        read, newest_us = 0, 0
        while read < AGAIN_MAX:
            records = await self._router.store.archived(bare, 0, last, PAGE_MAX, backwards=True)
            for sort, value in records:
                message = _read(sort, value)
                newest_us = newest_us or message.at_us
                if message.at_us < newest_us - AGAIN_S * 1e6:
                    return found
                if message.origin:
                    found[message.origin] = message.id
                last = message.id - 1
            read += len(records)
            if len(records) < PAGE_MAX:
                break
        return found

    def _mark(self, user: User, delivery: Delivery, ident: int) -> None:
        """Say in the message under which id it is archived."""
        raw = delivery.raw
        if STANZA_ID in delivery.stanza.children:
            raw = _without_claims(raw, user.address.bare)
        delivery.raw = stanzas.with_child(raw, _mark_of(user.address.bare) + b"%d'/>" % ident)

    def deliver(self, user: User, delivery: Delivery, hold: int, failure: FourplaneError | None) -> None:
        """The archive has the message, or could not take it."""
        source = delivery.source
        if failure is not None:
            self.complain(failure)
            self._router.bounce(delivery, "internal-server-error", "the message could not be stored")
        else:
            if source is not None:
                source.go_on(hold)
            self._router.archived(user, delivery)
        if source is not None:
            source.release(hold)

    def _record(self, ident: int, peer: str, raw: bytes, origin: bytes = b"") -> Put:
        name, now_us = peer.encode(), clock.now_us()
        if origin:
            value = _HEAD_FAR(SCHEMA_FAR, now_us, len(name), len(origin)) + name + origin + raw
        else:
            value = _HEAD(SCHEMA, now_us, len(name)) + name + raw
        return Put(_KEY(b"a/", ident), value, None, self._router.settings.archive_s)

    def complain(self, failure: FourplaneError) -> None:
        """Tell an operator that a message could not be kept."""
        self._router.registry.event("error", "messaging", "the archive cannot be written", error=failure.reason)

    def _query(self, request: Request) -> None:
        user = request.account()
        question = read_question(request)
        self._router.spawn(self._answer(request, user, question))

    async def _answer(self, request: Request, user: User, question: Question) -> None:
        try:
            found, complete = await self.page(user.address.bare, question)
        except FourplaneError as error:
            request.refuse(stanzas.condition_of(error), error.public)
            return
        query_id = request.element.get("queryid", "")
        marked = f" queryid='{escape(query_id)}'" if query_id else ""
        to = escape(request.delivery.sender.full)
        for message in found:
            raw = message.raw
            if b"xmlns=" not in raw[: raw.index(b">")]:
                raw = stanzas.with_attribute(raw, f" xmlns='{CLIENT}'".encode())
            stamp = stanzas.timestamp(message.at_us)
            head = (
                f"<message to='{to}' from='{escape(user.address.bare)}'><result xmlns='{MAM}'{marked} id='{message.id}'>"
                f"<forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' stamp='{stamp}'/>"
            )
            if request.session is not None:
                request.session.reply(head.encode() + raw + b"</forwarded></result></message>")
        edges = f"<first>{found[0].id}</first><last>{found[-1].id}</last>" if found else ""
        finished = " complete='true'" if complete else ""
        request.answer(f"<fin xmlns='{MAM}'{finished}><set xmlns='{RSM}'>{edges}</set></fin>".encode())

    async def page(self, bare: str, question: Question) -> tuple[list[ArchivedMessage], bool]:
        """Up to `count` messages in order, and whether nothing is left beyond them in the asked direction."""
        found: list[ArchivedMessage] = []
        first, last, read = question.first, question.last, 0
        while len(found) <= question.count and first <= last and read < SCAN_MAX:
            records = await self._router.store.archived(bare, first, last, PAGE_MAX, backwards=question.backwards)
            for sort, value in records:
                message = _read(sort, value)
                if not question.peer or _is_with(message.peer, question.peer):
                    found.append(message)
                if question.backwards:
                    last = message.id - 1
                else:
                    first = message.id + 1
            read += len(records)
            if len(records) < PAGE_MAX:
                break
        complete = len(found) <= question.count and read < SCAN_MAX
        found = found[: question.count]
        return (found[::-1] if question.backwards else found), complete


def read_question(request: Request) -> Question:
    """What a `<query/>` asks for; raises Rejected, or NotFound for an id that cannot be."""
    element = request.element
    values = {
        field.get("var", ""): (field.findtext(f"{{{FORM}}}value") or "").strip()
        for field in element.iterfind(f"{{{FORM}}}x/{{{FORM}}}field")
    }
    first, last = 0, ID_MAX
    if values.get("start"):
        first = _id_at(stanzas.parse_timestamp(values["start"]))
    if values.get("end"):
        last = _id_at(stanzas.parse_timestamp(values["end"]) + 1_000) - 1
    peer = ""
    if values.get("with"):
        address = request.router.parse(values["with"])
        if address is None:
            raise Rejected("the address is malformed", code="jid_malformed")
        peer = address.full
    result_set = element.find(f"{{{RSM}}}set")
    count, backwards = 50, False
    if result_set is not None:
        wanted = result_set.findtext(f"{{{RSM}}}max") or ""
        count = min(int(wanted), PAGE_MAX) if wanted.isdecimal() and len(wanted) < 10 else count
        after, before = result_set.findtext(f"{{{RSM}}}after"), result_set.findtext(f"{{{RSM}}}before")
        if after:
            first = max(first, _id(after) + 1)
        if before is not None:
            backwards = True
            if before:
                last = min(last, _id(before) - 1)
    return Question(peer, max(0, first), max(0, last), count, backwards)


def _answer_form(request: Request) -> None:
    request.account()
    fields = "".join(
        f"<field var='{name}' type='{kind}'/>"
        for name, kind in (("with", "jid-single"), ("start", "text-single"), ("end", "text-single"))
    )
    hidden = f"<field var='FORM_TYPE' type='hidden'><value>{MAM}</value></field>"
    request.answer(f"<query xmlns='{MAM}'><x xmlns='{FORM}' type='form'>{hidden}{fields}</x></query>".encode())


def _is_conversation(stanza: Stanza) -> bool:
    if stanza.kind not in _CONVERSATIONS:
        return False
    return stanza.children == _ONLY_BODY or worth_storing(stanza)


@lru_cache(maxsize=10_000)
def _mark_of(bare: str) -> bytes:
    """The mark of a message in the archive of an account, up to the id."""
    return f"<stanza-id xmlns='urn:xmpp:sid:0' by='{escape(bare)}' id='".encode()


def _is_with(peer: str, wanted: str) -> bool:
    return peer == wanted or (peer.partition("/")[0] == wanted)


def _id(text: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise NotFound("there is no such archive id")
    return int(text)


def _id_at(at_us: int) -> int:
    return min(ID_MAX, max(0, at_us // 1_000 - EPOCH_MS) << (SLOT_BITS + SEQUENCE_BITS))


def _read(sort: bytes, value: bytes) -> ArchivedMessage:
    assert value[0] in {SCHEMA, SCHEMA_FAR}, f"archive schema {value[0]}"
    at_us, size = struct.unpack(">QH", value[1:11])
    if value[0] == SCHEMA_FAR:
        name, behind = value[12 : 12 + size], 12 + size + value[11]
        return ArchivedMessage(
            struct.unpack(">Q", sort[2:])[0], at_us, name.decode(), value[behind:], value[12 + size : behind]
        )
    return ArchivedMessage(struct.unpack(">Q", sort[2:])[0], at_us, value[11 : 11 + size].decode(), value[11 + size :])


def _without_claims(raw: bytes, bare: str) -> bytes:
    """The message without ids that somebody else claims we gave it."""
    root = stanzas.tree(Stanza("", {}, [], raw))
    for child in list(root):
        if child.tag == "{urn:xmpp:sid:0}stanza-id" and child.get("by") == bare:
            root.remove(child)
    return stanzas.text_of(root)
