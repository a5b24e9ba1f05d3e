"""Acknowledgement and resumption of one session (XEP-0198), as a pure queue with two counters.

Outgoing: everything sent and not yet acknowledged waits in order; `acknowledged(h)` drops what the client has. Incoming: the
count of handled stanzas, of which those with an unfinished durable write hold the reported number back, so
that an acknowledgement is never ahead of the disk. Counters are 32 bits and wrap around.
"""

from collections import deque
from typing import TYPE_CHECKING

from fourplane.messaging.xml_stream import StreamError

if TYPE_CHECKING:
    from fourplane.messaging.delivery import Delivery
    from fourplane.messaging.user_session import UserSession

NAMESPACE = "urn:xmpp:sm:3"
MODULUS = 1 << 32


class Owed:
    """One stanza the client has not acknowledged, and whose own acknowledgement waits for that."""

    __slots__ = ("at_s", "data", "message", "source", "stored_id", "token")

    def __init__(self, data: bytes, message: "Delivery | None") -> None:
        self.data = data
        self.message = message  # None when it need not, or need no longer, be kept for others
        self.source: UserSession | None = None
        self.token = 0
        self.stored_id = 0  # where it lies in the store
        self.at_s = 0.0

    def settle(self) -> None:
        """It is safe: the sender's acknowledgement may go out."""
        source, self.source = self.source, None
        if source is not None:
            source.settle(self.token)


class StreamManagement:
    """The counters and the queue of one session."""

    __slots__ = (
        "acknowledged_h",
        "answered",
        "handled",
        "requested",
        "resume_id",
        "sent_count",
        "unacked",
        "wanted",
    )

    def __init__(self, resume_id: str) -> None:
        self.resume_id = resume_id  # empty: may not be resumed
        self.handled = 0  # stanzas taken from the client
        self.sent_count = 0
        self.unacked: deque[Owed] = deque()
        self.acknowledged_h = 0  # the client's last h
        self.answered = -1  # the h we told last
        self.requested = False  # an acknowledgement was asked for and has not come yet
        self.wanted = False  # the client asked and its answer was held back

    def sent(self, owed: Owed) -> int:
        """Remember one stanza that goes to the client; how many it has not acknowledged."""
        self.unacked.append(owed)
        self.sent_count += 1
        return len(self.unacked)

    def acknowledged(self, h: int) -> list[Owed]:
        """The client has handled `h` of our stanzas: the newly acknowledged; raises StreamError for more than were sent."""
        unacked = self.unacked
        count = (h - self.acknowledged_h) % MODULUS
        if count > len(unacked):
            raise StreamError("undefined-condition", f"acknowledged {h}, more than was sent")
        self.acknowledged_h = h % MODULUS
        if count == 1:
            return [unacked.popleft()]
        return [unacked.popleft() for _ in range(count)]

    def durable_h(self, *holds: dict[int, int] | None) -> int:
        """How many of the client's stanzas are handled, up to the first whose durable write (in `holds`) is not finished.

        A table is not in order: a stanza that was first written to the archive may then go to the store, behind later ones.
        """
        handled = self.handled
        for table in holds:
            if table:
                handled = min(handled, min(table.values()) - 1)
        return handled % MODULUS
