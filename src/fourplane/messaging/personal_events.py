"""Personal eventing (XEP-0163): an account publishes (mood, avatar, bookmarks, keys), its contacts' clients hear of it.

Every account is a pubsub service of its own (XEP-0060, the part that PEP needs): publish with options, fetch, retract,
purge, delete, create and configure; a node that does not exist is made by the first publication. What is
announced travels as a headline message to the bare address of each contact who may see it; there it reaches only the clients
whose capabilities (entity_caps.py) ask for that node. So a publisher never needs to know who has which client, wherever they are.

Changes of one user run one at a time; answers come when the change is durable.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any
from xml.etree import ElementTree as ET

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Forbidden, FourplaneError, NotFound, Rejected
from fourplane.messaging import stanzas
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.entity_caps import EntityCaps
from fourplane.messaging.personal_nodes import Item, Node, PersonalNodes
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import Request, ServerQueries
from fourplane.messaging.stanzas import escape
from fourplane.messaging.user import User
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.xml_stream import MESSAGE, Stanza

PUBSUB = "http://jabber.org/protocol/pubsub"
OWNER = f"{PUBSUB}#owner"
EVENT = f"{PUBSUB}#event"
ERRORS = f"{PUBSUB}#errors"
FORM = "jabber:x:data"
NODE_MAX = 500
FEATURES = (
    "publish auto-create auto-subscribe filtered-notifications persistent-items publish-options retrieve-items retract-items"
    " delete-nodes purge-nodes create-nodes config-node item-ids last-published access-open access-presence access-whitelist"
    " multi-items create-and-configure"
)


class PersonalEventing:
    """Answers pubsub requests to accounts; registers itself."""

    def __init__(self, router: Router, queries: ServerQueries) -> None:
        self._router = router
        self._nodes = PersonalNodes(router.store, router.settings)
        self._caps = EntityCaps()
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        router.personal_events = self
        queries.answered = self.answered
        for name in (f"{PUBSUB} pubsub", f"{OWNER} pubsub"):
            queries.own(name, get=self._asked, put=self._asked)
            queries.of_others(name, get=self._asked)
        queries.account_features += [PUBSUB, *(f"{PUBSUB}#{feature}" for feature in FEATURES.split())]
        queries.node_info = self.describe

    def presence(self, user: User, session: UserSession, stanza: Stanza) -> None:
        """A client shows itself: learn what it wants, and tell it the newest of that."""
        wanted = self._caps.look(session, stanza)
        if wanted is not None:
            self._wants(user, session, wanted)

    def answered(self, delivery: Delivery) -> None:
        """A client answered the user's own address."""
        session = delivery.source
        if session is not None:
            wanted = self._caps.answered(session, delivery.stanza)
            if wanted is not None:
                self._wants(session.user, session, wanted)

    def describe(self, request: Request, node: str, *, items: bool) -> None:
        """Service discovery of an account's node, or the list of its nodes."""
        self._router.spawn(self._describe(request, node, items=items))

    def _wants(self, user: User, session: UserSession, wanted: frozenset[str]) -> None:
        fresh = wanted - session.wanted
        session.wanted = wanted
        if fresh:
            self._router.spawn(self._tell_newest(user, session, fresh))

    async def _tell_newest(self, user: User, session: UserSession, wanted: frozenset[str]) -> None:
        """What this user and their contacts published last, to one client that has just come."""
        seen = [user.address.bare, *(contact.jid for contact in user.contacts.values() if contact.to)]
        try:
            for bare in seen:
                own = bare == user.address.bare
                for node in await self._nodes.nodes(bare):
                    if node.name in wanted and node.send_last and (own or node.access != "whitelist"):
                        items = await self._nodes.items(bare, node.name)
                        if items and user.sessions.get(session.address.resource) is session:
                            session.send(_event(bare, session.address.full, _items(node.name, items[-1:])))
        except FourplaneError as error:
            self._router.registry.event("warning", "messaging", "published items cannot be read", error=error.reason)

    def _asked(self, request: Request) -> None:
        element = request.element
        if not len(element):
            raise Rejected("what about this node?", code="bad_request")
        action = element[0].tag.rpartition("}")[2]
        owner = element.tag == f"{{{OWNER}}}pubsub"
        work: Coroutine[Any, Any, None]
        match (request.kind, owner, action):
            case ("get", False, "items"):
                work = self._fetch(request, element[0])
            case ("set", False, "publish"):
                work = self._publish(request, element)
            case ("set", False, "retract"):
                work = self._retract(request, element[0])
            case ("set", False, "create"):
                work = self._create(request, element)
            case ("set", True, "delete" | "purge"):
                work = self._purge(request, element[0], node_too=action == "delete")
            case (_, True, "configure"):
                work = self._configure(request, element[0])
            case _:
                extra = f"<unsupported xmlns='{ERRORS}' feature='{escape(action)}'/>".encode()
                request.refuse("feature-not-implemented", extra=extra)
                return
        if action != "items":
            request.account()
        self._router.spawn(self._answer(request, work))

    async def _answer(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        assert request.user is not None or request.session is not None
        bare = request.delivery.sender.bare if request.user is None else request.user.address.bare
        lock, count = self._locks.get(bare, (asyncio.Lock(), 0))
        self._locks[bare] = (lock, count + 1)
        try:
            async with lock:
                await work
        except FourplaneError as error:
            extra = error.extra if isinstance(error, PubsubError) else b""
            request.refuse(stanzas.condition_of(error), error.public, extra=extra)
        finally:
            lock, count = self._locks[bare]
            if count == 1:
                del self._locks[bare]
            else:
                self._locks[bare] = (lock, count - 1)

    async def _fetch(self, request: Request, wanted: ET.Element) -> None:
        user, name = request.user, _node_name(wanted)
        if user is None:
            raise NotFound("the server publishes nothing")
        bare = user.address.bare
        node = await self._nodes.node(bare, name)
        _check_access(request, user, node)
        items = await self._nodes.items(bare, name)
        asked = [item.get("id", "") for item in wanted.findall(f"{{{PUBSUB}}}item")]
        if asked:
            items = [item for item in items if item.id in asked]
            if not items:
                raise NotFound("there is no such item")
        most = wanted.get("max_items", "")
        if most.isdecimal() and int(most) > 0:
            items = items[-int(most) :]
        request.answer(f"<pubsub xmlns='{PUBSUB}'>".encode() + _items(name, items) + b"</pubsub>")

    async def _publish(self, request: Request, element: ET.Element) -> None:
        user, publish = request.account(), element[0]
        name, bare = _node_name(publish), user.address.bare
        published = publish.findall(f"{{{PUBSUB}}}item")
        if len(published) > 1 or (published and len(published[0]) != 1):
            raise Rejected("one item with one payload is published at a time", code="bad_request")
        options = _options(element.find(f"{{{PUBSUB}}}publish-options"))
        try:
            node = await self._nodes.node(bare, name)
            if _configured(node, options) != node:
                unmet = f"<precondition-not-met xmlns='{ERRORS}'/>".encode()
                raise PubsubError("the node has other options", code="conflict", extra=unmet)
        except NotFound:
            node = _configured(Node(name), options)
            await self._nodes.put_node(bare, node)
        if not published:
            request.answer(f"<pubsub xmlns='{PUBSUB}'><publish node='{escape(name)}'/></pubsub>".encode())
            return
        item_id = published[0].get("id") or clock.token_bytes(8).hex()
        payload = stanzas.text_of(published[0][0])
        item = await self._nodes.publish(bare, node, item_id, payload, request.delivery.sender.full)
        self._announce(user, node, _items(name, [item]))
        told = f"<publish node='{escape(name)}'><item id='{escape(item_id)}'/></publish>"
        request.answer(f"<pubsub xmlns='{PUBSUB}'>{told}</pubsub>".encode())

    async def _retract(self, request: Request, wanted: ET.Element) -> None:
        user, name = request.account(), _node_name(wanted)
        node = await self._nodes.node(user.address.bare, name)
        item = wanted.find(f"{{{PUBSUB}}}item")
        if item is None or not item.get("id"):
            raise Rejected("which item?", code="bad_request")
        if not await self._nodes.retract(user.address.bare, name, item.get("id", "")):
            raise NotFound("there is no such item")
        if wanted.get("notify") in {"true", "1"}:
            gone = f"<items node='{escape(name)}'><retract id='{escape(item.get('id', ''))}'/></items>"
            self._announce(user, node, gone.encode())
        request.answer()

    async def _create(self, request: Request, element: ET.Element) -> None:
        user, name = request.account(), _node_name(element[0])
        try:
            await self._nodes.node(user.address.bare, name)
        except NotFound:
            options = _options(element.find(f"{{{PUBSUB}}}configure"))
            await self._nodes.put_node(user.address.bare, _configured(Node(name), options))
            request.answer()
            return
        raise Conflict("the node exists")

    async def _purge(self, request: Request, wanted: ET.Element, *, node_too: bool) -> None:
        user, name = request.account(), _node_name(wanted)
        node = await self._nodes.node(user.address.bare, name)
        await self._nodes.purge(user.address.bare, name, node_too=node_too)
        self._announce(user, node, f"<{'delete' if node_too else 'purge'} node='{escape(name)}'/>".encode())
        request.answer()

    async def _configure(self, request: Request, wanted: ET.Element) -> None:
        user, name = request.account(), _node_name(wanted)
        node = await self._nodes.node(user.address.bare, name)
        if request.kind == "set":
            await self._nodes.put_node(user.address.bare, _configured(node, _options(wanted)))
            request.answer()
            return
        form = _form(node, f"{PUBSUB}#node_config", "form")
        request.answer(f"<pubsub xmlns='{OWNER}'><configure node='{escape(name)}'>{form}</configure></pubsub>".encode())

    async def _describe(self, request: Request, node: str, *, items: bool) -> None:
        assert request.user is not None
        bare = request.user.address.bare
        try:
            if items and not node:
                shown = [one for one in await self._nodes.nodes(bare) if _may_read(request, request.user, one)]
                content = "".join(f"<item jid='{escape(bare)}' node='{escape(one.name)}'/>" for one in shown)
                request.answer(f"<query xmlns='http://jabber.org/protocol/disco#items'>{content}</query>".encode())
                return
            known = await self._nodes.node(bare, node)
            _check_access(request, request.user, known)
            about = f" node='{escape(node)}'"
            if items:
                listed = await self._nodes.items(bare, node)
                content = "".join(f"<item jid='{escape(bare)}' name='{escape(one.id)}'/>" for one in listed)
                request.answer(
                    f"<query xmlns='http://jabber.org/protocol/disco#items'{about}>{content}</query>".encode()
                )
                return
            identity = "<identity category='pubsub' type='leaf'/>" + _form(known, f"{PUBSUB}#meta-data", "result")
            request.answer(f"<query xmlns='http://jabber.org/protocol/disco#info'{about}>{identity}</query>".encode())
        except FourplaneError as error:
            request.refuse(stanzas.condition_of(error), error.public)

    def _announce(self, user: User, node: Node, content: bytes) -> None:
        """Tell the user's own clients and, unless the node is for nobody else, all who see the user's presence."""
        targets = [user.address.bare]
        if node.access != "whitelist":
            targets += [contact.jid for contact in user.contacts.values() if contact.from_]
        for target in targets:
            to = self._router.parse(target)
            if to is not None:
                raw = _event(user.address.bare, target, content)
                stanza = Stanza(MESSAGE, {"type": "headline"}, [f"{EVENT} event"], raw)
                self._router.route(Delivery(stanza, raw, user.address, to, None))


class PubsubError(Conflict):
    """A refusal with pubsub's own condition beside it."""

    def __init__(self, message: str, *, code: str, extra: bytes) -> None:
        super().__init__(message, code=code)
        self.extra = extra


def _items(name: str, items: list[Item]) -> bytes:
    return f"<items node='{escape(name)}'>".encode() + b"".join(item.element() for item in items) + b"</items>"


def _event(bare: str, to: str, content: bytes) -> bytes:
    head = f"<message type='headline' from='{escape(bare)}' to='{escape(to)}'><event xmlns='{EVENT}'>"
    return head.encode() + content + b"</event></message>"


def _node_name(element: ET.Element) -> str:
    name = element.get("node", "")
    if not name or len(name) > NODE_MAX:
        missing = f"<nodeid-required xmlns='{ERRORS}'/>".encode()
        raise PubsubError("a node has a name", code="bad_request", extra=missing)
    return name


def _may_read(request: Request, user: User, node: Node) -> bool:
    if request.own or node.access == "open":
        return True
    contact = user.contacts.get(request.delivery.sender.bare)
    return node.access == "presence" and contact is not None and contact.from_


def _check_access(request: Request, user: User, node: Node) -> None:
    if _may_read(request, user, node):
        return
    if node.access == "presence":
        extra = f"<presence-subscription-required xmlns='{ERRORS}'/>".encode()
        raise PubsubError("only for those who see this user", code="not_authorized", extra=extra)
    raise Forbidden("only for its owner")


def _options(around: ET.Element | None) -> dict[str, str]:
    if around is None:
        return {}
    fields = around.iter(f"{{{FORM}}}field")
    return {field.get("var", "").removeprefix("pubsub#"): field.findtext(f"{{{FORM}}}value") or "" for field in fields}


def _configured(node: Node, options: dict[str, str]) -> Node:
    access = options.get("access_model", node.access)
    if access in {"roster", "authorize"}:
        access = "presence"
    if access not in {"open", "presence", "whitelist"}:
        raise Rejected("an access model that is not offered", code="not_acceptable")
    most = options.get("max_items", str(node.max_items))
    if most != "max" and not most.isdecimal():
        raise Rejected("max_items is a number or max", code="not_acceptable")
    return Node(
        node.name,
        access,  # type: ignore[arg-type]
        10_000 if most == "max" else max(1, int(most)),
        options.get("persist_items", "1" if node.persist else "0") in {"1", "true"},
        options.get("send_last_published_item", "x" if node.send_last else "never") != "never",
    )


def _form(node: Node, kind: str, shape: str) -> str:
    values = {
        "access_model": node.access,
        "max_items": str(node.max_items),
        "persist_items": "1" if node.persist else "0",
        "send_last_published_item": "on_sub_and_presence" if node.send_last else "never",
    }
    fields = f"<field var='FORM_TYPE' type='hidden'><value>{kind}</value></field>"
    fields += "".join(f"<field var='pubsub#{key}'><value>{value}</value></field>" for key, value in values.items())
    return f"<x xmlns='{FORM}' type='{shape}'>{fields}</x>"
