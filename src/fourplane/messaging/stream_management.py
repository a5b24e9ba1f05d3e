"""Acknowledgement and resumption of one session (XEP-0198), as a pure queue with two counters.

Outgoing: everything sent and not yet acknowledged waits in order; `acknowledged(h)` drops what the client has. Incoming: the
count of handled stanzas, of which those with an unfinished durable write hold the reported number back, so
that an acknowledgement is never ahead of the disk. Counters are 32 bits and wrap around.
"""

from collections import deque
from collections.abc import Iterable

from fourplane.messaging.xml_stream import Stanza, StreamError

NAMESPACE = "urn:xmpp:sm:3"
MODULUS = 1 << 32


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
        self.unacked: deque[tuple[bytes, Stanza | None]] = deque()
        self.acknowledged_h = 0  # the client's last h
        self.answered = -1  # the h we told last
        self.requested = False  # an acknowledgement was asked for and has not come yet
        self.wanted = False  # the client asked and its answer was held back

    def sent(self, data: bytes, message: Stanza | None) -> int:
        """Remember one stanza that goes to the client; how many it has not acknowledged."""
        self.unacked.append((data, message))
        self.sent_count += 1
        return len(self.unacked)

    def acknowledged(self, h: int) -> None:
        """The client has handled `h` of our stanzas; raises StreamError when that is more than were sent."""
        count = (h - self.acknowledged_h) % MODULUS
        if count > len(self.unacked):
            raise StreamError("undefined-condition", f"acknowledged {h}, more than was sent")
        for _ in range(count):
            self.unacked.popleft()
        self.acknowledged_h = h % MODULUS

    def durable_h(self, holds: Iterable[int]) -> int:
        """How many of the client's stanzas are handled, up to the first whose durable write (in `holds`) is not finished."""
        return min((number - 1 for number in holds), default=self.handled) % MODULUS
