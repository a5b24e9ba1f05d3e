"""What people publish about themselves (XEP-0163), as stored: nodes with their options, and the newest items of each.

    p/<digest of node>                      a node: schema, Node
    q/<digest of node>/<digest of item id>  one item: schema, Item

All in the partition of the bare address, so that an account takes its events along. Bounds: `pep_nodes_max` nodes, of each the
newest `max_items` items (at most `pep_items_max`), each at most `pep_item_max` bytes.
"""

import hashlib
from typing import Literal

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Rejected
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.stanzas import escape
from fourplane.messaging.user_store import UserStore, partition_of
from fourplane.state.contracts import Change, Delete, Put

SCHEMA = 1
ID_MAX = 500
Access = Literal["open", "presence", "whitelist"]


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One node and its options."""

    name: str
    access: Access = "presence"
    max_items: int = 1
    persist: bool = True
    send_last: bool = True


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One published item."""

    id: str
    published_us: int
    payload: bytes
    publisher: str = ""

    def element(self) -> bytes:
        """`<item/>` as it is fetched and announced."""
        return f"<item id='{escape(self.id)}'>".encode() + self.payload + b"</item>"


class PersonalNodes:
    """Reads and writes; the caller lets only one change of a user run at a time."""

    def __init__(self, store: UserStore, settings: MessagingSettings) -> None:
        self._store = store
        self._settings = settings

    async def nodes(self, bare: str) -> list[Node]:
        """All nodes of a user."""
        limit = self._settings.pep_nodes_max
        found = await self._store.records.scan(partition_of(bare), start=b"p/", end=b"p0", limit=limit)
        return [msgspec.msgpack.decode(record.value[1:], type=Node) for record in found]

    async def node(self, bare: str, name: str) -> Node:
        """One node; raises NotFound."""
        value = await self._store.value(bare, _node_key(name))
        if value is None:
            raise NotFound("there is no such node")
        return msgspec.msgpack.decode(value[1:], type=Node)

    async def put_node(self, bare: str, node: Node) -> None:
        """Make a node or change its options; raises Conflict (`resource_constraint`) when there are too many."""
        known = await self.nodes(bare)
        if len(known) >= self._settings.pep_nodes_max and all(one.name != node.name for one in known):
            raise Conflict("too many nodes", code="resource_constraint")
        await self._store.written(bare, [Put(_node_key(node.name), _stored(node))])

    async def items(self, bare: str, name: str) -> list[Item]:
        """The items of a node, oldest first."""
        start = _items_key(name)
        limit = self._settings.pep_items_max
        found = await self._store.records.scan(partition_of(bare), start=start + b"/", end=start + b"0", limit=limit)
        items = [msgspec.msgpack.decode(record.value[1:], type=Item) for record in found]
        return sorted(items, key=lambda item: (item.published_us, item.id))

    async def publish(self, bare: str, node: Node, item_id: str, payload: bytes, publisher: str) -> Item:
        """Keep one more item, and no more than the node's number; durable when this returns."""
        if len(payload) > self._settings.pep_item_max or len(item_id) > ID_MAX:
            raise Rejected(f"an item may have {self._settings.pep_item_max} bytes", code="not_acceptable")
        item = Item(item_id, clock.now_us(), payload, publisher)
        if not node.persist:
            return item
        others = [one for one in await self.items(bare, node.name) if one.id != item_id]
        kept = min(node.max_items, self._settings.pep_items_max) - 1
        gone = others[: max(0, len(others) - kept)]
        changes: list[Change] = [Delete(_item_key(node.name, one.id)) for one in gone]
        await self._store.written(bare, [*changes, Put(_item_key(node.name, item_id), _stored(item))])
        return item

    async def retract(self, bare: str, name: str, item_id: str) -> bool:
        """Remove one item; whether it was there."""
        there = await self._store.value(bare, _item_key(name, item_id)) is not None
        await self._store.written(bare, [Delete(_item_key(name, item_id))])
        return there

    async def purge(self, bare: str, name: str, *, node_too: bool) -> None:
        """Remove all items, and the node itself if asked."""
        gone: list[Change] = [Delete(_item_key(name, item.id)) for item in await self.items(bare, name)]
        if node_too:
            gone.append(Delete(_node_key(name)))
        if gone:
            await self._store.written(bare, gone)


def _stored(value: Node | Item) -> bytes:
    return bytes([SCHEMA]) + msgspec.msgpack.encode(value)


def _node_key(name: str) -> bytes:
    return b"p/" + hashlib.sha256(name.encode()).digest()[:20]


def _items_key(name: str) -> bytes:
    return b"q/" + hashlib.sha256(name.encode()).hexdigest()[:40].encode()


def _item_key(name: str, item_id: str) -> bytes:
    return _items_key(name) + b"/" + hashlib.sha256(item_id.encode()).digest()[:20]
