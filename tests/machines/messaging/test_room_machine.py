"""A room and three people with two devices each: who may come, speak, rule and stay, in any order of everything they may try."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fourplane.foundation.errors import FourplaneError
from fourplane.messaging.addresses import parse
from fourplane.messaging.room import RANK, Room, RoomConfiguration

PEOPLE = ("ann@x", "bea@x", "cleo@x")
DEVICES = st.sampled_from([f"{bare}/{device}" for bare in PEOPLE for device in ("a", "b")])
NICKS = st.sampled_from(["one", "two", "three"])
AFFILIATIONS = st.sampled_from(sorted(RANK))
OCCUPANTS_MAX = 4


class Rooms(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.room = Room(parse("room@groups.x"), 10, OCCUPANTS_MAX)
        self.room.affiliations["ann@x"] = "owner"

    @rule(device=DEVICES, nick=NICKS, password=st.sampled_from(["", "secret"]))
    def somebody_comes(self, device, nick, password):
        room, address = self.room, parse(device)
        if device in room.by_address:
            return
        taken = room.occupants.get(nick)
        try:
            room.admit(address, nick, password)
        except FourplaneError:
            assert room.occupants.get(nick) is taken, "a refused guest changes nothing"
            return
        rank = RANK[room.affiliation(address.bare)]
        assert room.affiliation(address.bare) != "outcast"
        assert not room.configuration.members_only or rank >= RANK["member"]
        assert not room.configuration.password or password == room.configuration.password or rank == RANK["owner"]
        assert taken is None or taken.address.bare == address.bare

    @rule(device=DEVICES)
    def somebody_goes(self, device):
        occupant = self.room.by_address.get(device)
        if occupant is not None:
            self.room.leave(occupant)

    @rule(device=DEVICES, nick=NICKS)
    def somebody_is_called_otherwise(self, device, nick):
        occupant = self.room.by_address.get(device)
        if occupant is None:
            return
        taken = nick in self.room.occupants
        try:
            self.room.rename(occupant, nick)
        except FourplaneError:
            assert taken
        else:
            assert not taken

    @rule(actor=st.sampled_from(PEOPLE), whom=st.sampled_from(PEOPLE), affiliation=AFFILIATIONS)
    def somebody_makes_somebody_something(self, actor, whom, affiliation):
        room = self.room
        rank, before = RANK[room.affiliation(actor)], room.affiliation(whom)
        try:
            room.set_affiliation(room.affiliation(actor), whom, affiliation)
        except FourplaneError:
            assert room.affiliation(whom) == before
            return
        assert rank >= RANK["admin"], "only those above decide"
        assert rank >= max(RANK[before], RANK[affiliation]) or rank == RANK["owner"]
        if affiliation == "outcast":
            for occupant in room.of(whom):
                room.leave(occupant)

    @rule(members_only=st.booleans(), moderated=st.booleans(), password=st.sampled_from(["", "secret"]))
    def an_owner_configures(self, members_only, moderated, password):
        self.room.configuration = RoomConfiguration(members_only=members_only, moderated=moderated, password=password)

    @rule()
    def it_is_forgotten_and_read_again(self):
        """Occupants go with their connections; what the room is stays."""
        again = Room(self.room.address, 10, OCCUPANTS_MAX)
        again.restore(self.room.stored())
        assert again.affiliations == self.room.affiliations
        assert again.configuration == self.room.configuration
        self.room = again

    @invariant()
    def the_room_is_sound(self):
        self.room.check()
        assert "owner" in self.room.affiliations.values(), "a room without an owner is nobody's"
        for occupant in self.room.occupants.values():
            if RANK[self.room.affiliation(occupant.address.bare)] >= RANK["admin"]:
                assert self.room.may_speak(occupant)


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
