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
import struct
from collections.abc import Callable, Mapping
from typing import Protocol
from xml.sax.saxutils import unescape

import msgspec

from fourplane.edge.passing import Passing
from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.messaging import addresses, stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.routing import Router
from fourplane.messaging.user_session import HOLDS_MAX, NO_ORIGIN, UserSession
from fourplane.messaging.user_store import partition_of
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza, attributes_of
from fourplane.service.courier import NOBODY, Batch, Courier, Safe
from fourplane.service.rpc import idempotent, remote
from fourplane.service.rpc_client import Peer
from fourplane.service.shards import ShardMap

MANAGED = 1
PUSHED = ""  # the name of what is no stanza
ERROR = b"<presence type='error'/>"
PAUSE = "far"
ROOMS = "messaging.rooms"
REMEMBERED_MAX = 100_000
_ORIGIN = struct.Struct(">8sQ").pack  # of a stanza: its sender's process and its number there
_FROM_WHOM = re.compile(rb" from='([^']+)'")
_FROM = re.compile(rb" from='([^'/]+)")
_NAMES = ((b"<m", MESSAGE), (b"<p", PRESENCE), (b"<i", IQ))


class Forwarded(msgspec.Struct, array_like=True, eq=False, gc=False):
    """A stanza between two workers, in the place of a `Stanza`; one without a name is bytes for one session of a user: what a
    room sends to an occupant.

    Nearly all are messages for a user, of whose attributes nobody asks for more than the type: these are left out, and read from
    the bytes again where they are wanted. What the batch says of the sender is left out too.
    """

    raw: bytes
    end: int  # its number among all that its worker sends
    to: str
    children: list[str] = []
    kind: str | None = None
    sender: str = ""  # where it is not the owner
    name: str = MESSAGE
    told: dict[str, str] | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """See `Stanza`; 15 us the first time, if they were left out."""
        if self.told is None:
            self.told = attributes_of(self.raw)
        return self.told


class Spread(msgspec.Struct, frozen=True):
    """How a domain's users are spread over workers."""

    shards: ShardMap
    slot: int
    peers: Mapping[int, Peer]
    passing: Passing | None  # of connections; None when there is nobody else


_decode = msgspec.msgpack.Decoder(Forwarded).decode
_decode_all = msgspec.msgpack.Decoder(list[Forwarded]).decode
_decode_owners = msgspec.msgpack.Decoder(
    list[tuple[str, int]]
).decode  # full address, whether it acknowledges (XEP-0198)
_decode_owner = msgspec.msgpack.Decoder(tuple[str, int]).decode


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


Letters = tuple[list[Forwarded], list[tuple[str, int]]]  # a batch: stanzas, and who is behind them
# The process a batch comes from, and whether another one in this slot may have had it before.
Origin = tuple[bytes, bool]


class FarSource:
    """Somebody connected to another worker who has stanzas in a batch; stands in for a `UserSession`."""

    __slots__ = ("_again", "_boot", "_brake", "_count", "_held", "_holds", "_router", "address", "management", "safe")

    def __init__(self, router: Router, address: Address, origin: Origin, *, managed: bool) -> None:
        self.address = address
        self._boot, self._again = origin
        self.management: object | None = self if managed else None
        self.safe: Safe | None = None  # whom to tell when nothing holds it any more
        self._router = router
        self._holds: set[int] = set()
        self._held: list[bytes] | None = None
        self._count = self._brake = 0

    @property
    def stream(self) -> "FarSource":
        """A slow reader pauses this; the sender is paused when too much of what it sent is not safe."""
        return self

    @property
    def waits(self) -> bool:
        """Whether something of the sender's is not safe yet."""
        return bool(self._holds)

    def hold(self) -> int:
        """See `UserSession.hold`."""
        token = self._count = self._count + 1
        self._holds.add(token)
        return token

    owe = hold

    def origin_of(self, stanza: Stanza | Forwarded) -> tuple[bytes, bool]:
        """What names a stanza, whoever tells it again, and whether it may have been told to a process before this one."""
        if not isinstance(stanza, Forwarded):
            return NO_ORIGIN
        return _ORIGIN(self._boot, stanza.end), self._again

    def go_on(self, hold: int) -> None:
        """See `UserSession.go_on`; here nothing is counted."""

    def release(self, token: int) -> None:
        """See `UserSession.release`."""
        holds = self._holds
        holds.discard(token)
        if holds:
            return
        held, self._held = self._held, None
        for data in held or ():
            self.reply(data)
        safe, self.safe = self.safe, None
        if safe is not None:
            safe()

    settle = release

    def pause(self, reason: str) -> None:  # noqa: ARG002 - one reason is as good as another
        """The reader is slow."""
        if not self._brake:
            self._brake = self.hold()

    def resume(self, reason: str) -> None:  # noqa: ARG002 - see pause
        """It has caught up."""
        brake, self._brake = self._brake, 0
        self.release(brake)

    def reply(self, data: bytes) -> None:
        """Answer the sender, behind what is not yet durable."""
        if self._holds:
            if self._held is None:
                self._held = []
            self._held.append(data)
            return
        name = next(name for prefix, name in _NAMES if data.startswith(prefix))
        head = data[: data.index(b">")]
        kind = "error" if b"type='error'" in head else "result"
        found = _FROM_WHOM.search(head)
        whose = self._router.parse(unescape(found.group(1).decode())) if found is not None else None
        answer = Stanza(name, {"type": kind} if name == IQ or kind == "error" else {}, [], data)
        self._router.route(Delivery(answer, data, whose or self.address, self.address, None))


class UserShards:
    """The shards of this worker and the ways to all others."""

    def __init__(self, router: Router, spread: Spread) -> None:
        self.shards = spread.shards
        self.slot = spread.slot
        self.forwarded = self.received_count = 0
        self.courier = Courier(spread.slot, spread.peers, self)
        self.slots: dict[str, int] = {}  # of users and rooms, by bare addresses, as far as known
        self._ways = {slot: self.courier.way(slot) for slot in spread.peers}
        self.far_rooms: list[FarRooms] = [
            remote(Rooms, peer, ROOMS, only=frozenset(("public_rooms",))) for peer in spread.peers.values()
        ]
        self._router = router
        self._paused: set[UserSession] = set()

    def slot_of(self, address: Address) -> int:
        """Where the actor of a user or a room is; domains are at home."""
        if not address.local:
            return self.shards.home
        slot = self.slots.get(address.bare)
        if slot is None:
            if len(self.slots) >= REMEMBERED_MAX:
                self.slots.clear()
            slot = self.slots[address.bare] = self.shards.slot_of(partition_of(address.bare))
        return slot

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

    def forward(self, delivery: Delivery, slot: int) -> None:
        """Send a stanza to the worker of its receiver; never raises."""
        stanza, source, kind = delivery.stanza, delivery.source, delivery.stanza.kind
        number = self.forwarded = self.forwarded + 1
        told: tuple[object, ...] = delivery.raw, number, delivery.to.full, stanza.children, kind  # a Forwarded
        if source is None or source.address is not delivery.sender or stanza.name != MESSAGE or kind == "groupchat":
            told = *told, delivery.sender.full, stanza.name, stanza.attributes
        try:
            self._ways[slot](told, source)
        except FourplaneError as error:
            self._router.bounce(delivery, "resource-constraint", error.public)

    # -- what the courier asks

    def begin(self, owner: object) -> int:
        """A session has stanzas in a batch: what it is told waits, one token for all of them. Debts count upwards, holds down."""
        assert isinstance(owner, UserSession)
        if owner.management is None:
            return -owner.hold()
        if owner.owes() > HOLDS_MAX and owner not in self._paused and owner.stream is not None:
            self._paused.add(owner)
            owner.stream.pause(PAUSE)
        return owner.owe()

    def introduce(self, owner: object) -> object:
        """A session: its address, and whether it acknowledges."""
        assert isinstance(owner, UserSession)
        return owner.address.full, 0 if owner.management is None else MANAGED

    def end(self, owner: object, token: int) -> None:
        """All of that is safe, or was answered with errors."""
        assert isinstance(owner, UserSession)
        if token < 0:
            owner.release(-token)
            return
        owner.settle(token)
        if owner in self._paused and owner.owes() <= HOLDS_MAX // 2:
            self._paused.discard(owner)
            if owner.stream is not None:
                owner.stream.resume(PAUSE)

    def lost(self, message: msgspec.Raw, owner: msgspec.Raw | None) -> None:
        """The receiver's worker did not come back in time."""
        try:
            told = _decode(message)
            if told.name == PUSHED:
                return
            sender = told.sender or (_decode_owner(owner)[0] if owner is not None else "")
            delivery = Delivery(told, told.raw, addresses.parse(sender), addresses.parse(told.to), None)  # type: ignore[arg-type]
            self._router.bounce(delivery, "remote-server-timeout", "the receiver's worker did not take it")
        except Exception as error:  # noqa: BLE001 - a bug costs one message; the lane goes on
            self._complain("a sender could not be told that a message is lost", error)

    def read(self, batch: Batch) -> Letters:
        """Stanzas and their senders; raises Rejected when another version wrote them."""
        try:
            letters = _decode_all(batch.messages), _decode_owners(batch.owners)
        except msgspec.DecodeError as error:
            raise Rejected(f"the batch cannot be read: {error}", code="unreadable") from None
        if len(letters[0]) != len(batch.groups) or max(batch.groups, default=0) > len(letters[1]):
            raise Rejected("the batch does not name a sender for each message", code="unreadable")
        return letters

    def received(self, boot: str, batch: Batch, read: Letters, safe: Callable[[int], Safe]) -> set[int]:
        """Stanzas from another worker."""
        router, parse, seen, route = self._router, addresses.parse, addresses.seen, self._router.route
        (letters, owners), origin = read, (bytes.fromhex(boot), batch.again)
        self.received_count += len(letters)
        sources: dict[int, FarSource] = {}
        for told, group in zip(letters, batch.groups, strict=True):
            try:
                source = sources.get(group)
                if source is None and group != NOBODY:
                    name, managed = owners[group - 1]
                    source = sources[group] = FarSource(router, parse(name), origin, managed=managed == MANAGED)
                elif source is None and told.name == PUSHED:
                    self._take_pushed(told)
                    continue
                whom, name = told.to, told.sender
                sender = parse(name) if name or source is None else source.address
                route(Delivery(told, told.raw, sender, seen(whom) or parse(whom), source))  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 - a bug costs one message; those behind it go on
                self._complain("a message of another worker could not be handed on", error)
                if source is not None:
                    failed = Delivery(told, told.raw, source.address, source.address, source)  # type: ignore[arg-type]
                    router.bounce(failed, "internal-server-error")
        longer: set[int] = set()
        for group, source in sources.items():
            if source.waits:
                source.safe = safe(group)
                longer.add(group)
        return longer

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
            self.courier.send(self.slot_of(to), (data, 0, to.full, (), None, "", PUSHED))
        except FourplaneError:
            return  # as a client that takes nothing: it is behind and will lose its place

    def _complain(self, what: str, error: Exception) -> None:
        self._router.registry.event("error", "messaging", what, error=repr(error))

    def _take_pushed(self, told: Forwarded) -> None:
        to = addresses.parse(told.to)
        user = self._router.users.get(to.bare)
        session = user.sessions.get(to.resource) if user is not None else None
        if session is not None:
            session.send(told.raw)
        elif (room := _FROM.search(told.raw)) is not None:  # its worker began anew: the room learns that it left
            gone = Stanza(PRESENCE, {"type": "error"}, [], ERROR)
            self._router.route(Delivery(gone, ERROR, to, addresses.parse(room.group(1).decode()), None))
