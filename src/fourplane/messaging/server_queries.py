"""What the server answers itself: each request (`get` or `set`) by the qualified name of its payload.

A handler gets a `Request` and answers through it, now or later; an error of `foundation.errors` becomes the stanza error of
its class. Two tables: requests to the server or to the sender's own account, and requests to somebody else's
account, which are answered in that user's name whether or not a client is there.
"""

from collections.abc import Callable
from typing import Protocol
from xml.etree import ElementTree as ET

from fourplane import __version__
from fourplane.foundation import clock
from fourplane.foundation.errors import Forbidden, FourplaneError, Rejected
from fourplane.messaging import roster, stanzas, subscriptions
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.entity_caps import digest_of
from fourplane.messaging.roster import Contact
from fourplane.messaging.routing import Router, addressed
from fourplane.messaging.stanzas import escape
from fourplane.messaging.user import User
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.xml_stream import IQ, Stanza

INFO = "http://jabber.org/protocol/disco#info query"
ITEMS = "http://jabber.org/protocol/disco#items query"
COMMANDS = "http://jabber.org/protocol/commands"
NAME_MAX = 1_023
CAPS_NODE = "urn:fourplane"
GROUPS_MAX = 50

SERVER_FEATURES = [
    "http://jabber.org/protocol/disco#info",
    "http://jabber.org/protocol/disco#items",
    "http://jabber.org/protocol/caps",
    "jabber:iq:roster",
    "jabber:iq:version",
    "urn:xmpp:ping",
    "urn:xmpp:time",
    "urn:xmpp:carbons:2",
    "urn:xmpp:carbons:rules:0",
    "msgoffline",
]
ACCOUNT_FEATURES = ["http://jabber.org/protocol/disco#info", "http://jabber.org/protocol/disco#items"]


class Request:
    """One iq request: who asks, about which account, and how to answer."""

    __slots__ = ("_delivery", "_element", "kind", "router", "session", "user")

    def __init__(self, router: Router, delivery: Delivery, user: User | None) -> None:
        self.router = router
        self.session: UserSession | None = delivery.source
        self.user = user  # the account asked about; None: the server
        self.kind = delivery.stanza.attributes["type"]
        self._element: ET.Element | None = None
        self._delivery = delivery

    @property
    def element(self) -> ET.Element:
        """The payload as a tree, built when somebody looks; raises Rejected."""
        if self._element is None:
            self._element = stanzas.payload(self._delivery.stanza)[1]
        return self._element

    @property
    def delivery(self) -> Delivery:
        """The request as it came."""
        return self._delivery

    @property
    def own(self) -> bool:
        """Whether the sender asks about their own account."""
        return self.user is not None and self._delivery.sender.bare == self.user.address.bare

    def account(self) -> User:
        """The sender's own account; raises Forbidden when somebody else's is asked for."""
        if self.user is None or not self.own:
            raise Forbidden("this belongs to somebody else")
        return self.user

    def answer(self, content: bytes = b"") -> None:
        """Send the result, behind what is not yet durable."""
        raw = stanzas.result(addressed(self._delivery), content)
        if self.session is not None:
            self.session.reply(raw)
            return
        from_server = Stanza(IQ, {"type": "result"}, [], raw)
        self.router.route(Delivery(from_server, raw, self._delivery.to, self._delivery.sender, None))

    def refuse(self, condition: str, text: str = "", *, extra: bytes = b"") -> None:
        """Send an error; `extra` is an element that says more than the condition."""
        self.router.bounce(self._delivery, condition, text, extra=extra)

    def when_durable(self, failure: FourplaneError | None) -> None:
        """Answer with an empty result, or with the error of a write: given to the store as `done`."""
        if failure is None:
            self.answer()
        else:
            self.refuse(stanzas.condition_of(failure), failure.public)


Handler = Callable[[Request], None]


class NodeInfo(Protocol):
    """Answers discovery of an account's nodes, or of the list of them."""

    def __call__(self, request: Request, node: str, *, items: bool) -> None: ...


class ServerQueries:
    """The two tables and the lists of features; other modules add theirs with `own` and `of_others`."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._own: dict[tuple[str, str], Handler] = {}
        self._others: dict[tuple[str, str], Handler] = {}
        self.server_features = list(SERVER_FEATURES)
        self.account_features = list(ACCOUNT_FEATURES)
        self.items: list[tuple[str, str]] = []  # services: domain and name
        self.forms: list[bytes] = []  # extended information of the server
        self.answered: Callable[[Delivery], None] | None = None  # answers of clients to questions of their accounts
        self.commands: Handler | None = None  # lists what operators may run (XEP-0050)
        self.node_info: NodeInfo | None = None
        for name, get, put in (
            (INFO, _info, None),
            (ITEMS, _items, None),
            ("urn:xmpp:ping ping", _ping, None),
            ("jabber:iq:version query", _version, None),
            ("urn:xmpp:time time", _time, None),
            ("jabber:iq:roster query", _roster_get, _roster_set),
            ("urn:ietf:params:xml:ns:xmpp-session session", None, _ping),
            ("urn:xmpp:carbons:2 enable", None, _carbons_on),
            ("urn:xmpp:carbons:2 disable", None, _carbons_off),
        ):
            self.own(name, get=get, put=put)
        self.of_others(INFO, get=_info)
        self.of_others(ITEMS, get=_items)
        router.queries = self

    def own(self, name: str, *, get: Handler | None = None, put: Handler | None = None) -> None:
        """Answer requests with this payload to the server or to the sender's own account."""
        if get is not None:
            self._own["get", name] = get
        if put is not None:
            self._own["set", name] = put

    def of_others(self, name: str, *, get: Handler) -> None:
        """Answer requests with this payload to somebody else's account."""
        self._others["get", name] = get

    def to_server(self, delivery: Delivery) -> None:
        """Answer a request to the domain; account requests addressed there mean the sender's own account."""
        own = self._router.users.get(delivery.sender.bare)
        self._handle(self._own, delivery, own if delivery.stanza.children != [INFO] else None)

    def to_user(self, user: User, delivery: Delivery) -> None:
        """Answer a request to a bare address in that user's name."""
        table = self._own if delivery.sender.bare == user.address.bare else self._others
        self._handle(table, delivery, user)

    def _handle(self, table: dict[tuple[str, str], Handler], delivery: Delivery, user: User | None) -> None:
        stanza = delivery.stanza
        kind = stanza.attributes["type"]
        if kind in {"result", "error"}:
            if self.answered is not None:
                self.answered(delivery)
            return
        try:
            if len(stanza.children) != 1:
                raise Rejected("an iq request has exactly one child", code="bad_request")
            name = stanza.children[0]
            handler = table.get((kind, name))
            if handler is None:
                other = "get" if kind == "set" else "set"
                known = (other, name) in table
                self._router.bounce(delivery, "not-allowed" if known else "service-unavailable")
                return
            if "to" in stanza.attributes and not delivery.to.local and name in {INFO, ITEMS}:
                user = None
            request = Request(self._router, delivery, user)
            if name in {INFO, ITEMS}:
                self._discover(request, name)
            else:
                handler(request)
        except FourplaneError as error:
            self._router.bounce(delivery, stanzas.condition_of(error), error.public)

    def _discover(self, request: Request, name: str) -> None:
        node = request.element.get("node", "")
        if node == COMMANDS and name == ITEMS and request.user is None and self.commands is not None:
            self.commands(request)
            return
        if self.node_info is not None and request.user is not None and (node or name == ITEMS):
            self.node_info(request, node, items=name == ITEMS)
            return
        attribute = f" node='{escape(node)}'" if node else ""
        if name == ITEMS:
            shown = self.items if request.user is None and not node else []
            items = "".join(f"<item jid='{escape(jid)}' name='{escape(title)}'/>" for jid, title in shown)
            namespace = "http://jabber.org/protocol/disco#items"
            request.answer(f"<query xmlns='{namespace}'{attribute}>{items}</query>".encode())
            return
        if request.user is None:
            request.answer(self._server_info(attribute))
            return
        if not request.own and not _may_see(request):
            request.refuse("service-unavailable")
            return
        identity = "<identity category='account' type='registered'/><identity category='pubsub' type='pep'/>"
        request.answer(_described(attribute, identity, self.account_features))

    def caps(self) -> str:
        """The digest of all that the server can (XEP-0115 section 6.3), once everything has registered itself."""
        digest = digest_of(ET.fromstring(self._server_info("")))  # noqa: S314 - our own bytes
        return f"<c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='{CAPS_NODE}' ver='{digest}'/>"

    def _server_info(self, attribute: str) -> bytes:
        identity = "<identity category='server' type='im' name='Fourplane'/>"
        return _described(attribute, identity, self.server_features + self.account_features, b"".join(self.forms))


def _described(attribute: str, identity: str, features: list[str], forms: bytes = b"") -> bytes:
    listed = "".join(f"<feature var='{feature}'/>" for feature in sorted(set(features)))
    head = f"<query xmlns='http://jabber.org/protocol/disco#info'{attribute}>{identity}{listed}"
    return head.encode() + forms + b"</query>"


def _may_see(request: Request) -> bool:
    assert request.user is not None
    contact = request.user.contacts.get(request.delivery.sender.bare)
    return contact is not None and contact.from_


def _info(_request: Request) -> None:
    raise AssertionError("answered by _discover")


def _items(_request: Request) -> None:
    raise AssertionError("answered by _discover")


def _ping(request: Request) -> None:
    request.answer()


def _version(request: Request) -> None:
    content = f"<name>Fourplane</name><version>{__version__}</version>"
    request.answer(f"<query xmlns='jabber:iq:version'>{content}</query>".encode())


def _time(request: Request) -> None:
    now = stanzas.timestamp(clock.now_us())
    request.answer(f"<time xmlns='urn:xmpp:time'><tzo>+00:00</tzo><utc>{now}</utc></time>".encode())


def _carbons_on(request: Request) -> None:
    session = request.session
    if session is None:
        raise Rejected("only a client can ask for copies")
    if not session.carbons:
        session.carbons = True
        session.user.carbon_count += 1
    request.answer()


def _carbons_off(request: Request) -> None:
    session = request.session
    if session is not None and session.carbons:
        session.carbons = False
        session.user.carbon_count -= 1
    request.answer()


def _roster_get(request: Request) -> None:
    user = request.account()
    if request.session is not None:
        request.session.interested = True
    asked = request.element.get("ver") if b"ver" in request.delivery.stanza.raw else None
    if asked is not None and asked == str(user.version):
        request.answer()
        return
    items = b"".join(roster.item_element(contact) for contact in user.contacts.values() if contact.in_roster)
    request.answer(f"<query xmlns='jabber:iq:roster' ver='{user.version}'>".encode() + items + b"</query>")


def _roster_set(request: Request) -> None:
    user = request.account()
    items = request.element.findall("{jabber:iq:roster}item")
    if len(items) != 1:
        raise Rejected("a roster set has exactly one item", code="bad_request")
    item = items[0]
    address = request.router.parse(item.get("jid", ""))
    if address is None:
        raise Rejected("the item's address is malformed", code="jid_malformed")
    bare = request.router.bare(address).bare
    if bare == user.address.bare:
        raise Rejected("nobody is a contact of themselves", code="not_allowed")
    before = user.contacts.get(bare)
    if item.get("subscription") == "remove":
        if before is None or not before.in_roster:
            request.refuse("item-not-found")
            return
        subscriptions.remove(user, before)
    else:
        subscriptions.change(user, _renamed(before or Contact(bare), item))
    request.router.store.write(user.address.bare, [], request.when_durable)


def _renamed(contact: Contact, item: ET.Element) -> Contact:
    name = item.get("name", "")
    groups: list[str] = []
    for group in item.findall("{jabber:iq:roster}group"):
        text = group.text or ""
        if not text:
            raise Rejected("a group has a name", code="not_acceptable")
        if text in groups:
            raise Rejected("a group is named twice", code="bad_request")
        groups.append(text)
    if len(name) > NAME_MAX or len(groups) > GROUPS_MAX or any(len(group) > NAME_MAX for group in groups):
        raise Rejected("a name or a group is too long, or there are too many", code="not_acceptable")
    return Contact(
        contact.jid,
        contact.to,
        contact.from_,
        contact.asked,
        contact.approved,
        contact.request,
        in_roster=True,
        name=name,
        groups=tuple(groups),
        version=contact.version,
    )
