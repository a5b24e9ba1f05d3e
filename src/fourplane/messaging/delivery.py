"""One stanza on its way: what the mailbox of a user holds."""

from typing import TYPE_CHECKING

from fourplane.messaging.addresses import Address
from fourplane.messaging.xml_stream import Stanza

if TYPE_CHECKING:
    from fourplane.messaging.user_session import UserSession


class Delivery:
    """A stanza, its bytes with the true sender, and the session to tell when it cannot be delivered."""

    __slots__ = ("raw", "sender", "source", "stanza", "to")

    def __init__(
        self, stanza: Stanza, raw: bytes, sender: Address, to: Address, source: "UserSession | None" = None
    ) -> None:
        self.stanza = stanza
        self.raw = raw
        self.sender = sender
        self.to = to
        self.source = source
