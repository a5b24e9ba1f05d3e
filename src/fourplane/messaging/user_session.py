"""One bound resource of a user: what its client asked for, and everything that leaves towards it.

A session outlives its connection when stream management allows it: `stream` is None then, what would be sent waits in the
acknowledgement queue, and a resumption attaches the next connection. Without it the session ends with its connection.

Order and durability: answers of the server to this client (`reply`) wait while one of the client's own stanzas is not yet
durable (`hold` ... `release`), so that an answer to a later request proves that everything before it is safe.
"""

import re
from collections import deque
from typing import TYPE_CHECKING

from fourplane.foundation import clock
from fourplane.messaging import stanzas
from fourplane.messaging.addresses import Address, seen
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.stream_management import MODULUS, Owed, StreamManagement
from fourplane.messaging.stream_management import NAMESPACE as SM
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza, StreamError

if TYPE_CHECKING:
    from fourplane.messaging.client_stream import ClientStream
    from fourplane.messaging.user import User

HOLDS_MAX = 500
KEEP_AFTER_S = 2.0
NOTHING_OWED: dict[int, int] = {}  # shared by all who never owe; `owe` makes a session's own
NOTHING_WANTED: frozenset[str] = frozenset()
TAKEN_POLL_S = 0.01
QUIET_MAX = 1_000
NO_ORIGIN = (b"", False)
ACK_REQUEST = b"<r xmlns='urn:xmpp:sm:3'/>"  # one at a time: its answer asks for the next while something is owed
_REQUESTS = (ACK_REQUEST, b'<r xmlns="urn:xmpp:sm:3"/>')
_ANSWER = re.compile(rb"<a xmlns=(['\"])urn:xmpp:sm:3\1 h=(['\"])(\d{1,10})\2 ?/>")
SM_REQUEST = f"{SM} r"
SM_ANSWER = f"{SM} a"
CSI_ACTIVE = "urn:xmpp:csi:0 active"
CSI_INACTIVE = "urn:xmpp:csi:0 inactive"
CHAT_STATES = "http://jabber.org/protocol/chatstates "
KINDS = frozenset({MESSAGE, PRESENCE, IQ})
MESSAGE_TYPES = frozenset({None, "normal", "chat", "groupchat", "headline", "error"})
IQ_TYPES = frozenset({"get", "set", "result", "error"})


class UserSession:
    """One connected (or resumable) resource."""

    __slots__ = (
        "_belongs",
        "_held",
        "_hold_next",
        "_holds",
        "_owed",
        "address",
        "carbons",
        "directed",
        "from_attribute",
        "interested",
        "knows_blocking",
        "management",
        "presence",
        "priority",
        "quiet",
        "stream",
        "user",
        "wanted",
    )

    def __init__(self, user: "User", address: Address, stream: "ClientStream") -> None:
        self.user = user
        self.address = address
        self.stream: ClientStream | None = stream
        self.from_attribute = stanzas.attribute("from", address.full)
        self.presence: bytes | None = None  # the last available presence, stamped
        self.priority = 0
        self.interested = False  # asked for the roster
        self.carbons = False
        self.knows_blocking = False
        self.wanted: frozenset[str] = NOTHING_WANTED  # nodes whose events the client asked for (XEP-0163)
        self.directed: set[str] | None = None  # addresses that got directed presence
        self.management: StreamManagement | None = None
        self.quiet: dict[str, bytes] | None = None  # presence kept back while the client is inactive (XEP-0352)
        self._holds: dict[int, int] | None = None
        self._hold_next = 0
        self._belongs = 0  # to which of the client's stanzas new holds belong, 0: the last one
        self._owed: dict[int, int] = NOTHING_OWED
        self._held: deque[bytes] | None = None

    def send(self, data: bytes, message: Delivery | None = None, source: "UserSession | None" = None) -> None:
        """Send one stanza to the client.

        `message` is given when it must be kept if the client never gets it; `source` is not told that it was taken before
        this client has acknowledged it or it is on disk.
        """
        if self.quiet:
            self._wake()
        management = self.management
        stream = self.stream
        if management is not None:
            owed = Owed(data, message)
            if source is not None and source.management is not None:
                owed.source = source
                owed.token = source.owe()
                router = self.user.router
                owed.at_s = router.now_s
                router.owing[self] = None
            unacked = management.unacked
            unacked.append(owed)
            management.sent_count += 1
            if stream is not None:
                stream.send(data)
                if not management.requested:
                    management.requested = True
                    stream.send(ACK_REQUEST)
            else:
                self.user.keep(owed)
            if len(unacked) > self.user.router.settings.unacked_max:
                self.close("policy-violation", "too many stanzas are not acknowledged")
        elif stream is not None:
            stream.send(data)

    def send_presence(self, data: bytes, sender: str) -> None:
        """Send a presence; an inactive client gets only the last one of each sender, when it wakes up."""
        if self.quiet is None or len(self.quiet) > QUIET_MAX:
            self.send(data)
            return
        self.quiet.pop(sender, None)
        self.quiet[sender] = data

    def reply(self, data: bytes) -> None:
        """Send an answer of the server, behind what is not yet durable."""
        if self._holds:
            if self._held is None:
                self._held = deque()
            self._held.append(data)
        else:
            self.send(data)

    def hold(self) -> int:
        """A stanza of this client waits for the disk: keep answers and acknowledgements back until `release`."""
        if self._holds is None:
            self._holds = {}
        token = self._hold_next = self._hold_next + 1
        management = self.management
        self._holds[token] = self._belongs or (management.handled if management is not None else 1)  # as `_number` says
        if len(self._holds) > HOLDS_MAX and self.stream is not None:
            self.stream.pause("disk")
        return token

    def origin_of(self, stanza: Stanza) -> tuple[bytes, bool]:  # noqa: ARG002 - see FarSource
        """What its own client sends needs no name: nobody tells it again."""
        return NO_ORIGIN

    def go_on(self, hold: int) -> None:
        """What follows, up to the release of `hold`, is done for its stanza, however many have come since."""
        self._belongs = self._holds.get(hold, 0) if self._holds is not None else 0

    def release(self, hold: int) -> None:
        """The write of `hold` is finished, or its stanza was answered with an error."""
        self._belongs = 0
        holds = self._holds
        if holds is None or holds.pop(hold, None) is None:
            return
        management = self.management
        if management is not None and management.wanted and self.stream is not None:
            self.stream.acknowledge()
        if holds:
            if len(holds) <= HOLDS_MAX // 2 and self.stream is not None:
                self.stream.resume("disk")
            return
        self._holds = None
        if self.stream is not None:
            self.stream.resume("disk")
        held, self._held = self._held, None
        for data in held or ():
            self.send(data)

    def owe(self) -> int:
        """A stanza of this client was passed on and is not safe yet: hold its acknowledgement back until `settle`."""
        assert self.management is not None
        self._hold_next += 1
        if self._owed is NOTHING_OWED:
            self._owed = {}
        self._owed[self._hold_next] = self._number()
        return self._hold_next

    def _number(self) -> int:
        """The client's stanza that is being handled, by its count."""
        return self._belongs or (self.management.handled if self.management is not None else 1)  # 1 of none

    def owes(self) -> int:
        """How many stanzas of this client are passed on and not safe yet."""
        return len(self._owed)

    def settle(self, token: int) -> None:
        """A passed-on stanza is safe: with its reader, or on disk."""
        if self._owed.pop(token, None) is not None:
            management = self.management
            if management is not None and management.wanted and self.stream is not None:
                self.stream.acknowledge()

    def take_marks(self, data: bytes) -> tuple[bytes, bool]:
        """Act on the acknowledgement `data` begins with; what is left, without a request at its end, and whether one was there.

        These two come with every message and their bytes are always the same, so no parser is asked; the caller stands
        between stanzas, and has to look again when the rest does not end there.
        """
        matched = _ANSWER.match(data)
        if matched is not None:
            self._answered(int(matched.group(3)))
            data = data[matched.end() :]
        if data.endswith(_REQUESTS):
            return data[: -len(ACK_REQUEST)], True
        return data, False

    def want_acknowledgement(self) -> None:
        """The client asked how much of what it sent is handled."""
        assert self.management is not None
        self.management.wanted = True
        if self.stream is not None:
            self.stream.acknowledge()

    def taken(self, acknowledged: list[Owed]) -> None:
        """The client has these; what was stored for it can go."""
        stored = None
        for owed in acknowledged:
            if owed.stored_id:
                stored = [*(stored or ()), owed.stored_id]
            if owed.source is not None:
                owed.settle()
        if stored:
            self.user.forget_stored(stored)

    def keep_old(self, now_s: float) -> bool:
        """Store what the client has not acknowledged for long, so that its senders need not wait; False when nothing is owed."""
        management = self.management
        owes = False
        for owed in list(management.unacked) if management is not None else ():
            if owed.source is not None:
                owes = True
                if not owed.stored_id and now_s - owed.at_s > KEEP_AFTER_S:
                    self.user.keep(owed)
        return owes

    def handle(self, stanza: Stanza) -> None:
        """Act on one stanza of the client; raises StreamError when the stream must end."""
        name = stanza.name
        attributes = stanza.attributes
        management = self.management
        if name not in KINDS:
            self._handle_nonza(name, stanza)
            return
        if management is not None:
            management.handled += 1
        claimed = attributes.get("from")
        if claimed is not None and claimed not in {self.address.full, self.address.bare}:
            raise StreamError("invalid-from", "a client may only speak for itself")
        if name == MESSAGE:
            if attributes.get("type") not in MESSAGE_TYPES:
                attributes["type"] = "normal"
        elif name == IQ:
            if not self._is_sound_request(stanza):
                return
        elif "to" not in attributes:
            self.user.own_presence(self, stanza)
            return
        to = seen(attributes.get("to")) or self._target(stanza)
        if to is None:
            return
        raw = stanza.raw
        if name == MESSAGE and claimed is None and raw.startswith(b"<message"):
            raw = raw[:8] + self.from_attribute + raw[8:]
        else:
            raw = stanzas.stamped(stanza, self.from_attribute)
        self.user.dispatch(Delivery(stanza, raw, self.address, to, self))

    def _target(self, stanza: Stanza) -> Address | None:
        target = stanza.attributes.get("to")
        if target is None:
            return self.user.address
        to = self.user.router.parse(target)
        if to is None:
            answer = Delivery(stanza, stanza.raw, self.address, self.address, self)
            self.user.router.bounce(answer, "jid-malformed", target[:100])
        return to

    def close(self, condition: str, text: str = "") -> None:
        """End the connection with a stream error; the session ends with it."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.session = None
            stream.fail(StreamError(condition, text))
        self.user.ended(self)

    def disconnected(self) -> None:
        """The connection broke: wait for a resumption where that was agreed, end otherwise."""
        self.stream = None
        if self.management is not None and self.management.resume_id:
            self.user.router.resumable(self)
            self.user.keep_unacked(self)
        else:
            self.user.ended(self)

    def user_ended(self) -> None:
        """Nobody resumed in time."""
        if self.stream is None:
            self.user.ended(self)

    def attach(self, stream: "ClientStream") -> None:
        """Go on over another connection; the caller has told the client its counters."""
        self.stream = stream
        assert self.management is not None
        for owed in self.management.unacked:
            stream.send(owed.data)
        self.management.requested = bool(self.management.unacked)
        if self.management.requested:
            stream.send(ACK_REQUEST)

    async def wait_taken(self) -> bool:
        """Wait until the client has acknowledged everything sent so far (without XEP-0198: until the network took it).

        A client that takes nothing for `stalled_s` is disconnected. False when the session ended, or broke while another
        client of the same user could be served.
        """
        management = self.management
        target = management.sent_count if management is not None else 0
        patience = clock.monotonic_s() + self.user.router.settings.stalled_s
        while True:
            await clock.sleep(TAKEN_POLL_S)
            if self.user.sessions.get(self.address.resource) is not self:
                return False
            if self.stream is None and any(other.stream is not None for other in self.user.available()):
                return False
            if self.stream is not None and clock.monotonic_s() > patience:
                self.stream.give_up()
            if management is not None:
                if management.sent_count - len(management.unacked) >= target:
                    return True
            elif self.stream is None:
                return False
            elif not self.stream.buffered():
                return True

    def stored_ids(self) -> frozenset[int]:
        """What this client was sent, has not acknowledged, and lies in the store meanwhile."""
        unacked = self.management.unacked if self.management is not None else ()
        return frozenset(owed.stored_id for owed in unacked if owed.stored_id)

    def holds(self) -> int:
        """How many writes of this client are not finished."""
        return len(self._holds) if self._holds else 0

    def durable_h(self) -> int:
        """The acknowledgement that may be given now."""
        assert self.management is not None
        return self.management.durable_h(self._holds, self._owed)

    def acknowledgement(self) -> tuple[bytes, ...]:
        """The answer to the client's request for its count, or nothing while there is nothing new to say."""
        management = self.management
        if management is None or not management.wanted:
            return ()
        h = management.durable_h(self._holds, self._owed)
        if h != management.handled % MODULUS:
            if h == management.answered:
                return ()  # release and settle come back
        else:
            management.wanted = False
        management.answered = h
        return (b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % h,)

    def _is_sound_request(self, stanza: Stanza) -> bool:
        attributes = stanza.attributes
        kind = attributes.get("type")
        if kind in IQ_TYPES and "id" in attributes and (kind in {"result", "error"} or len(stanza.children) == 1):
            return True
        if kind not in {"result", "error"}:
            delivery = Delivery(stanza, stanza.raw, self.address, self.user.address, self)
            self.user.router.bounce(delivery, "bad-request", "an iq has a type, an id and one child")
        return False

    def _handle_nonza(self, name: str, stanza: Stanza) -> None:
        management = self.management
        if name == SM_REQUEST and management is not None:
            self.want_acknowledgement()
        elif name == SM_ANSWER and management is not None:
            h = stanza.attributes.get("h", "")
            if not h.isdecimal() or len(h) > 10:
                raise StreamError("undefined-condition", "an acknowledgement without h")
            self._answered(int(h))
        elif name == CSI_INACTIVE:
            if self.quiet is None:
                self.quiet = {}
        elif name == CSI_ACTIVE:
            if self.quiet:
                self._wake()
            self.quiet = None
        else:
            raise StreamError("unsupported-stanza-type")

    def _answered(self, h: int) -> None:
        management = self.management
        assert management is not None
        self.taken(management.acknowledged(h))
        management.requested = bool(management.unacked)
        if management.requested and self.stream is not None:
            self.stream.send(ACK_REQUEST)

    def _wake(self) -> None:
        quiet, self.quiet = self.quiet, {}
        for data in (quiet or {}).values():
            self.send(data)
