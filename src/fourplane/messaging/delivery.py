"""One stanza on its way: what the mailbox of a user holds."""

from typing import TYPE_CHECKING

import msgspec

from fourplane.messaging.addresses import Address
from fourplane.messaging.xml_stream import Stanza

if TYPE_CHECKING:
    from fourplane.messaging.user_session import UserSession


class Delivery(msgspec.Struct, eq=False):
    """A stanza, its bytes with the true sender, and the session to tell when it cannot be delivered."""

    stanza: Stanza
    raw: bytes
    sender: Address
    to: Address
    source: "UserSession | None" = None
