"""Users of one domain in several workers: whose actor is where, and the way of a stanza to it.

A user's shard follows from the bare address, a room's too; what has no name of its own (the domains) is at home, where shard 0
is. Sessions live where their user does (handover.py brings the connection there), so that an actor touches only what is in
its own process. A stanza for somebody elsewhere leaves through the courier: in order, joined per tick, and again to an owner
that began anew.

The promise to the sender stays the same: its acknowledgement (or, without stream management, the answers behind the stanza)
waits until the receiver's worker says that the stanza is safe, which there means what it means for a sender of its own:
`FarSource` stands for the sender and collects its holds and debts.
"""

import re
from collections.abc import Mapping
from typing import Protocol

import msgspec

from fourplane.edge.passing import Passing
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging import addresses, stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.routing import Router
from fourplane.messaging.user_session import HOLDS_MAX, UserSession
from fourplane.messaging.user_store import partition_of
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza
from fourplane.service.courier import Courier, Safe
from fourplane.service.rpc import idempotent, remote
from fourplane.service.rpc_client import Peer
from fourplane.service.shards import ShardMap

MANAGED = 1
PUSHED_ARRAY = 0x92  # what msgpack begins an array of two with
ERROR = b"<presence type='error'/>"
PAUSE = "far"
ROOMS = "messaging.rooms"
_FROM = re.compile(rb" from='([^'/]+)")
_NAMES = ((b"<m", MESSAGE), (b"<p", PRESENCE), (b"<i", IQ))


class Forwarded(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A stanza between two workers."""

    to: str
    sender: str
    name: str
    attributes: dict[str, str]
    children: list[str]
    raw: bytes
    managed: int = 0  # the sender acknowledges (XEP-0198)


class Pushed(msgspec.Struct, array_like=True, gc=False):
    """Bytes for one session of a user elsewhere: what a room sends to an occupant."""

    to: str
    data: bytes


class Spread(msgspec.Struct, frozen=True):
    """How a domain's users are spread over workers."""

    shards: ShardMap
    slot: int
    peers: Mapping[int, Peer]
    passing: Passing | None  # of connections; None when there is nobody else


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Forwarded).decode
_decode_pushed = msgspec.msgpack.Decoder(Pushed).decode


class FarRooms(Protocol):
    """What a worker tells the others about its rooms."""

    async def public_rooms(self) -> list[tuple[str, str]]: ...


class Rooms:
    """The same, served by rpc."""

    def __init__(self, groups: FarRooms) -> None:
        self._groups = groups

    @idempotent
    async def public_rooms(self) -> list[tuple[str, str]]:
        return await self._groups.public_rooms()


class FarSource:
    """The sender of one stanza, who is connected to another worker; stands in for its `UserSession`."""

    __slots__ = ("_brake", "_count", "_held", "_holds", "_router", "_safe", "_to", "address", "management")

    def __init__(self, router: Router, address: Address, to: Address, safe: Safe | None, *, managed: bool) -> None:
        self.address = address
        self.management: object | None = self if managed else None
        self._router = router
        self._to = to
        self._safe = safe
        self._holds: set[int] | None = None
        self._held: list[bytes] | None = None
        self._count = self._brake = 0

    @property
    def stream(self) -> "FarSource":
        """A slow reader pauses this; the sender is paused when too much of what it sent is not safe."""
        return self

    def hold(self) -> int:
        """See `UserSession.hold`."""
        if self._holds is None:
            self._holds = set()
        self._count += 1
        self._holds.add(self._count)
        return self._count

    owe = hold

    def release(self, token: int) -> None:
        """See `UserSession.release`."""
        if self._holds is not None:
            self._holds.discard(token)
            if not self._holds:
                held, self._held = self._held, None
                for data in held or ():
                    self.reply(data)
                self.finished()

    settle = release

    def pause(self, reason: str) -> None:  # noqa: ARG002 - one reason is as good as another
        """The reader is slow."""
        self._brake = self.hold()

    def resume(self, reason: str) -> None:  # noqa: ARG002 - see pause
        """It has caught up."""
        self.release(self._brake)

    def reply(self, data: bytes) -> None:
        """Answer the sender, behind what is not yet durable."""
        if self._holds:
            if self._held is None:
                self._held = []
            self._held.append(data)
            return
        name = next(name for prefix, name in _NAMES if data.startswith(prefix))
        kind = "error" if b"type='error'" in data[: data.index(b">")] else "result"
        answer = Stanza(name, {"type": kind} if name == IQ or kind == "error" else {}, [], data)
        self._router.route(Delivery(answer, data, self._to, self.address, None))

    def finished(self) -> None:
        """Say that it is safe unless something holds it."""
        if not self._holds and self._safe is not None:
            safe, self._safe = self._safe, None
            safe()


class UserShards:
    """The shards of this worker and the ways to all others."""

    def __init__(self, router: Router, spread: Spread) -> None:
        self.shards = spread.shards
        self.slot = spread.slot
        self.forwarded = self.received = 0
        self.courier = Courier(spread.slot, spread.peers, self.receive, restarted=self.restarted)
        self.far_rooms: list[FarRooms] = [
            remote(Rooms, peer, ROOMS, only=frozenset(("public_rooms",))) for peer in spread.peers.values()
        ]
        self._router = router
        self._paused: set[UserSession] = set()

    def slot_of(self, address: Address) -> int:
        """Where the actor of a user or a room is; domains are at home."""
        return self.shards.slot_of(partition_of(address.bare)) if address.local else self.shards.home

    def is_far(self, address: Address) -> bool:
        """Whether another worker answers for this address."""
        return self.slot_of(address) != self.slot

    def index_of(self, index: str, bare: str) -> str:
        """The index partition that lies in the shard of a room."""
        return index if self.shards.count == 1 else f"{index}{{{self.shards.shard_of(partition_of(bare))}}}"

    def own_indexes(self, index: str) -> list[str]:
        """The index partitions of the shards here."""
        if self.shards.count == 1:
            return [index]
        return [f"{index}{{{shard}}}" for shard in self.shards.of_slot(self.slot)]

    def forward(self, delivery: Delivery) -> None:
        """Send a stanza to the worker of its receiver; never raises."""
        stanza, source = delivery.stanza, delivery.source
        managed = source is not None and source.management is not None
        message = _encode(
            Forwarded(
                delivery.to.full, delivery.sender.full, stanza.name, stanza.attributes, stanza.children, delivery.raw,
                MANAGED if managed else 0,
            )
        )  # fmt: skip
        self.forwarded += 1
        try:
            if source is None:
                self.courier.send(self.slot_of(delivery.to), message)
            elif managed:
                self._owing(delivery, source, message)
            else:
                self._holding(delivery, source, message)
        except FourplaneError as error:
            self._router.bounce(delivery, "resource-constraint", error.message)

    def restarted(self, slot: int) -> None:
        """Another worker began anew: none of its users is connected any more, and their contacts learn it."""
        router = self._router
        for user in list(router.users.values()):
            for contact in user.contacts.values() if user.sessions else ():
                address = router.parse(contact.jid) if contact.to else None
                if address is not None and address.domain in router.domains and self.slot_of(address) == slot:
                    raw = b"<presence type='unavailable'" + stanzas.attribute("from", address.bare)
                    raw += stanzas.attribute("to", user.address.bare) + b"/>"
                    gone = Stanza(PRESENCE, {"type": "unavailable"}, [], raw)
                    router.route(Delivery(gone, raw, address, user.address, None))

    def push(self, to: Address, data: bytes) -> None:
        """Hand bytes of a room to one session elsewhere."""
        try:
            self.courier.send(self.slot_of(to), _encode(Pushed(to.full, data)))
        except FourplaneError:
            return  # as a client that takes nothing: it is behind and will lose its place

    def receive(self, _sender: int, body: msgspec.Raw, safe: Safe | None) -> None:
        """A stanza from another worker."""
        self.received += 1
        if memoryview(body)[0] == PUSHED_ARRAY:
            self._take_pushed(_decode_pushed(body))
            return
        told = _decode(body)
        to, sender = addresses.parse(told.to), addresses.parse(told.sender)
        stanza = Stanza(told.name, told.attributes, told.children, told.raw)
        if safe is None:
            self._router.route(Delivery(stanza, told.raw, sender, to, None))
            return
        source = FarSource(self._router, sender, to, safe, managed=told.managed == MANAGED)
        self._router.route(Delivery(stanza, told.raw, sender, to, source))  # type: ignore[arg-type] # stands in for a session
        source.finished()

    def _take_pushed(self, told: Pushed) -> None:
        to = addresses.parse(told.to)
        user = self._router.users.get(to.bare)
        session = user.sessions.get(to.resource) if user is not None else None
        if session is not None:
            session.send(told.data)
        elif (room := _FROM.search(told.data)) is not None:  # its worker began anew: the room learns that it left
            gone = Stanza(PRESENCE, {"type": "error"}, [], ERROR)
            self._router.route(Delivery(gone, ERROR, to, addresses.parse(room.group(1).decode()), None))

    def _owing(self, delivery: Delivery, source: UserSession, message: bytes) -> None:
        token = source.owe()

        def settled(safe: bool) -> None:  # noqa: FBT001 - the courier's word
            source.settle(token)
            if source in self._paused and source.owes() <= HOLDS_MAX // 2:
                self._paused.discard(source)
                if source.stream is not None:
                    source.stream.resume(PAUSE)
            if not safe:
                self._lost(delivery)

        try:
            self.courier.send(self.slot_of(delivery.to), message, settled)
        except FourplaneError:
            source.settle(token)
            raise
        if source.owes() > HOLDS_MAX and source not in self._paused and source.stream is not None:
            self._paused.add(source)
            source.stream.pause(PAUSE)

    def _holding(self, delivery: Delivery, source: UserSession, message: bytes) -> None:
        hold = source.hold()

        def settled(safe: bool) -> None:  # noqa: FBT001 - the courier's word
            if not safe:
                self._lost(delivery)
            source.release(hold)

        try:
            self.courier.send(self.slot_of(delivery.to), message, settled)
        except FourplaneError:
            source.release(hold)
            raise

    def _lost(self, delivery: Delivery) -> None:
        """The owner did not come back in time."""
        self._router.bounce(delivery, "remote-server-timeout", "the receiver's worker does not answer")
