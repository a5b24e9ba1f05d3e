"""One room of a group chat (XEP-0045): who is in it, who may what, what was said. Pure: bytes and decisions, no delivery.

Affiliation lasts (owner, admin, member, none, outcast), a role lives as long as the visit (moderator, participant, visitor).
A room is an actor of its own name: `group_chat.py` alone enters it.
"""

from collections import deque
from collections.abc import Iterator
from typing import Literal

import msgspec

from fourplane.foundation.errors import Conflict, Forbidden, Overloaded, Rejected, Unauthenticated
from fourplane.messaging import stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.stanzas import escape

USER_NS = "http://jabber.org/protocol/muc#user"
Affiliation = Literal["owner", "admin", "member", "none", "outcast"]
Role = Literal["moderator", "participant", "visitor", "none"]
RANK: dict[str, int] = {"outcast": 0, "none": 1, "member": 2, "admin": 3, "owner": 4}
SCHEMA = 1


class RoomConfiguration(msgspec.Struct, frozen=True):
    """What an owner decides."""

    title: str = ""
    description: str = ""
    persistent: bool = False
    public: bool = True
    members_only: bool = False
    moderated: bool = False
    members_may_invite: bool = False
    everybody_may_change_subject: bool = False
    shows_addresses: bool = False  # to everybody; moderators always see them
    password: str = ""
    occupants_max: int = 0  # 0: the server's bound


class StoredRoom(msgspec.Struct):
    """What of a persistent room is on disk."""

    configuration: RoomConfiguration
    affiliations: dict[str, Affiliation]
    subject: bytes = b""


class Occupant:
    """One client in the room."""

    __slots__ = ("address", "content", "nick", "role", "to_attribute")

    def __init__(self, address: Address, nick: str, role: Role) -> None:
        self.address = address
        self.nick = nick
        self.role: Role = role
        self.content = b""  # what its presence says
        self.to_attribute = stanzas.attribute("to", address.full)


class Room:
    """See the module's essay."""

    def __init__(self, address: Address, history_max: int, occupants_max: int) -> None:
        self.address = address
        self.configuration = RoomConfiguration()
        self.affiliations: dict[str, Affiliation] = {}
        self.occupants: dict[str, Occupant] = {}  # by nick
        self.by_address: dict[str, Occupant] = {}  # by full address
        self.history: deque[tuple[int, bytes]] = deque(maxlen=history_max)  # when, and the message without `to`
        self.last_id = 0  # of what is stored, see service/stored_order.py
        self.subject = b""  # the whole message, without `to`
        self._occupants_max = occupants_max

    def affiliation(self, bare: str) -> Affiliation:
        """What this person is to the room."""
        return self.affiliations.get(bare, "none")

    def admit(self, address: Address, nick: str, password: str) -> Occupant:
        """Let a client in; raises what the protocol answers."""
        configuration = self.configuration
        affiliation = self.affiliation(address.bare)
        if affiliation == "outcast":
            raise Forbidden("you are banned from this room")
        if configuration.members_only and RANK[affiliation] < RANK["member"]:
            raise Rejected("this room is for its members", code="registration_required")
        if configuration.password and password != configuration.password and affiliation != "owner":
            raise Unauthenticated("this room has a password")
        taken = self.occupants.get(nick)
        if taken is not None and taken.address.bare != address.bare:
            raise Conflict("this name is taken")
        bound = min(configuration.occupants_max or self._occupants_max, self._occupants_max)
        if len(self.by_address) >= bound and RANK[affiliation] < RANK["admin"]:
            raise Overloaded("the room is full", code="service_unavailable")
        if taken is not None:
            self.by_address.pop(taken.address.full, None)
        occupant = Occupant(address, nick, self._role(affiliation))
        self.occupants[nick] = occupant
        self.by_address[address.full] = occupant
        return occupant

    def check_free(self, nick: str) -> None:
        """Raise Conflict when a name is taken."""
        if nick in self.occupants:
            raise Conflict("this name is taken")

    def rename(self, occupant: Occupant, nick: str) -> None:
        """Give an occupant another name; raises Conflict when it is taken."""
        self.check_free(nick)
        del self.occupants[occupant.nick]
        occupant.nick = nick
        self.occupants[nick] = occupant

    def leave(self, occupant: Occupant) -> None:
        """An occupant is gone."""
        self.by_address.pop(occupant.address.full, None)
        if self.occupants.get(occupant.nick) is occupant:
            del self.occupants[occupant.nick]

    def set_affiliation(self, actor: Affiliation, bare: str, affiliation: Affiliation) -> None:
        """An owner or admin changes what somebody is; raises Forbidden or Conflict."""
        before = self.affiliation(bare)
        needed = "owner" if RANK[max(before, affiliation, key=RANK.__getitem__)] >= RANK["admin"] else "admin"
        if RANK[actor] < RANK[needed]:
            raise Forbidden("this needs a higher affiliation")
        last_owner = before == "owner" and list(self.affiliations.values()).count("owner") == 1
        if last_owner and affiliation != "owner":
            raise Conflict("a room has at least one owner")
        if affiliation == "none":
            self.affiliations.pop(bare, None)
        else:
            self.affiliations[bare] = affiliation
        for occupant in self.of(bare):
            occupant.role = self._role(affiliation)

    def of(self, bare: str) -> list[Occupant]:
        """The clients of one person that are in the room."""
        return [occupant for occupant in self.by_address.values() if occupant.address.bare == bare]

    def may_speak(self, occupant: Occupant) -> bool:
        return occupant.role in {"moderator", "participant"}

    def may_change_subject(self, occupant: Occupant) -> bool:
        return occupant.role == "moderator" or (
            self.configuration.everybody_may_change_subject and self.may_speak(occupant)
        )

    def presence(self, occupant: Occupant, reader: Occupant, *codes: int, kind: str = "", item: str = "") -> bytes:
        """The presence of `occupant` as `reader` sees it."""
        sees = self.configuration.shows_addresses or reader.role == "moderator" or reader is occupant
        jid = f" jid='{escape(occupant.address.full)}'" if sees else ""
        role = "none" if kind and not item else occupant.role
        affiliation = self.affiliation(occupant.address.bare)
        statuses = "".join(f"<status code='{code}'/>" for code in codes)
        head = f"<presence from='{escape(self.address.bare)}/{escape(occupant.nick)}'" + (
            f" type='{kind}'" if kind else ""
        )
        shown = item or f"<item affiliation='{affiliation}' role='{role}'{jid}/>"
        tail = f"<x xmlns='{USER_NS}'>{shown}{statuses}</x></presence>"
        return head.encode() + reader.to_attribute + b">" + (b"" if item else occupant.content) + tail.encode()

    def readers(self, last: Occupant | None = None) -> Iterator[Occupant]:
        """Everybody in the room, in the order in which they came.

        `last` is the one whose deed they are told: when it learns that it is done, the others were told before.
        """
        everybody = list(self.by_address.values())
        if last is not None and self.by_address.get(last.address.full) is last:
            everybody.remove(last)
            everybody.append(last)
        return iter(everybody)

    def stored(self) -> bytes:
        """The stored form; begins with the schema number."""
        return bytes([SCHEMA]) + msgspec.msgpack.encode(StoredRoom(self.configuration, self.affiliations, self.subject))

    def restore(self, stored: bytes) -> None:
        """Take over what `stored` wrote."""
        assert stored[0] == SCHEMA, f"room schema {stored[0]}"
        found = msgspec.msgpack.decode(stored[1:], type=StoredRoom)
        self.configuration = found.configuration
        self.affiliations = found.affiliations
        self.subject = found.subject

    def check(self) -> None:
        """Both indexes hold the same occupants, and nobody banned is in."""
        assert sorted(map(id, self.occupants.values())) == sorted(map(id, self.by_address.values()))
        assert all(self.affiliation(occupant.address.bare) != "outcast" for occupant in self.by_address.values())

    def _role(self, affiliation: Affiliation) -> Role:
        if RANK[affiliation] >= RANK["admin"]:
            return "moderator"
        if self.configuration.moderated and RANK[affiliation] < RANK["member"]:
            return "visitor"
        return "participant"
