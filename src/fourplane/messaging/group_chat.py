"""Groups (XEP-0045) as a service with a domain of its own, `groups.<domain>`: one actor per room.

A room that was not used since the start is read from the store first, its stanzas wait meanwhile. A message is spliced once
and sent to each occupant with its own `to`; a slow occupant slows the sender, as between two people. Occupants leave when
their session ends, because joining is directed presence (presence.py).
"""

import struct
from contextlib import suppress
from xml.etree import ElementTree as ET

from fourplane.foundation import clock
from fourplane.foundation.errors import Forbidden, FourplaneError, NotFound, Overloaded, Rejected
from fourplane.messaging import group_queries, stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.room import USER_NS, Occupant, Room
from fourplane.messaging.routing import Router
from fourplane.messaging.stanzas import escape
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza
from fourplane.service.stored_order import ID_MAX, next_id
from fourplane.state.contracts import Delete, Put

MUC_NS = "http://jabber.org/protocol/muc"
JOIN = f"{MUC_NS} x"
INVITATION = f"{USER_NS} x"
BODY = "jabber:client body"
SUBJECT = "jabber:client subject"
INDEX = "groups:index"
SCHEMA = 1


class GroupCounts:
    """What the group manager has done since it started."""

    __slots__ = ("deliveries", "messages", "refused")

    def __init__(self) -> None:
        self.messages = self.deliveries = self.refused = 0


class GroupChat:
    """All rooms of one domain; a `routing.Service`."""

    def __init__(self, router: Router, domain: str) -> None:
        self.router = router
        self.domain = domain
        self.rooms: dict[str, Room] = {}
        self.counts = GroupCounts()
        self._loading: dict[str, list[Delivery]] = {}

    def receive(self, delivery: Delivery) -> None:
        """Act on a stanza for the service or one of its rooms."""
        self.router.switches.groups.check()
        to = delivery.to
        if not to.local:
            if delivery.stanza.name == IQ:
                group_queries.to_service(self, delivery)
            return
        room = self.rooms.get(to.bare)
        if room is not None:
            self._enter(room, delivery)
            return
        waiting = self._loading.get(to.bare)
        if waiting is None:
            self._loading[to.bare] = [delivery]
            self.router.spawn(self._load(to))
        elif len(waiting) < self.router.settings.mailbox_max:
            waiting.append(delivery)
        else:
            raise Overloaded("too many stanzas wait for this room")

    async def public_rooms(self) -> list[tuple[str, str]]:
        """Address and title of the rooms that may be found."""
        found = {room.address.bare: room for room in self.rooms.values() if room.configuration.public}
        listed = {bare: room.configuration.title or room.address.local for bare, room in found.items()}
        shards = self.router.shards
        for index in (INDEX,) if shards is None else shards.own_indexes(INDEX):
            for name in await self.router.store.names(index):
                if name not in self.rooms:
                    listed.setdefault(name, name.partition("@")[0])
        return sorted(listed.items())

    async def all_public_rooms(self) -> list[tuple[str, str]]:
        """The same of all workers; of one that does not answer, none."""
        found = await self.public_rooms()
        for far in self.router.shards.far_rooms if self.router.shards is not None else ():
            with suppress(FourplaneError):
                found += await far.public_rooms()
        return sorted(found)

    def _index(self, bare: str) -> str:
        """The partition that lists a room."""
        return INDEX if self.router.shards is None else self.router.shards.index_of(INDEX, bare)

    def save(self, room: Room) -> None:
        """Keep a persistent room; forget one that is no longer persistent."""
        bare = room.address.bare
        store = self.router.store
        if room.configuration.persistent:
            store.write(bare, [Put(b"room", room.stored())])
            hidden = not room.configuration.public
            key = b"n/" + bare.encode()[:500]
            store.write(self._index(bare), [Delete(key) if hidden else Put(key, bytes([SCHEMA]) + bare.encode())])
        else:
            store.write(bare, [Delete(b"room")])
            store.write(self._index(bare), [Delete(b"n/" + bare.encode()[:500])])

    def destroy(self, room: Room, reason: str) -> None:
        """Everybody leaves, nothing stays."""
        why = f"<reason>{escape(reason)}</reason>" if reason else ""
        item = f"<item affiliation='none' role='none'/><destroy>{why}</destroy>"
        for occupant in room.readers():
            self.send(occupant, room.presence(occupant, occupant, 110, kind="unavailable", item=item))
            room.leave(occupant)
        self.rooms.pop(room.address.bare, None)
        bare = room.address.bare
        self.router.store.write(bare, [Delete(b"room")])
        self.router.store.write(self._index(bare), [Delete(b"n/" + bare.encode()[:500])])
        self.router.spawn(self._forget_history(room))

    def send(self, occupant: Occupant, data: bytes, delivery: Delivery | None = None) -> None:
        """Hand bytes to the client of an occupant."""
        self.counts.deliveries += 1
        user = self.router.users.get(occupant.address.bare)
        session = user.sessions.get(occupant.address.resource) if user is not None else None
        if session is None:
            shards = self.router.shards
            if shards is not None and user is None and shards.is_far(occupant.address):
                shards.push(occupant.address, data)
            return
        session.send(data)
        stream = session.stream
        if stream is not None and stream.congested and delivery is not None and delivery.source is not None:
            stream.slow_down(delivery.source)

    def show(self, room: Room, occupant: Occupant, *codes: int) -> None:
        """Tell everybody how an occupant is now."""
        for reader in room.readers(last=occupant):
            self.send(reader, room.presence(occupant, reader, *(codes if reader is occupant else ())))

    def remove(self, room: Room, occupant: Occupant, code: int, reason: str = "") -> None:
        """Throw an occupant out: 307 kicked, 301 banned, 321 and 322 no longer a member."""
        affiliation = room.affiliation(occupant.address.bare)
        why = f"<reason>{escape(reason)}</reason>" if reason else ""
        item = f"<item affiliation='{affiliation}' role='none'>{why}</item>"
        for reader in room.readers(last=occupant):
            own = (110,) if reader is occupant else ()
            self.send(reader, room.presence(occupant, reader, code, *own, kind="unavailable", item=item))
        self._left(room, occupant)

    async def _forget_history(self, room: Room) -> None:
        try:
            await self.router.store.forget_room_history(room.address.bare, room.last_id)
        except FourplaneError as error:  # it goes when a room of this name is made again
            self.router.registry.event(
                "warning", "messaging", "a group's history cannot be removed now", error=error.reason
            )

    async def _load(self, to: Address) -> None:
        bare, store = to.bare, self.router.store
        settings = self.router.settings
        failure: FourplaneError | None = None
        room = Room(self.router.bare(to), settings.room_history_max, settings.room_occupants_max)
        try:
            await store.wait_behind(bare)
            stored = await store.value(bare, b"room")
            if stored is None:  # what an earlier room of this name said is nobody's business
                await store.forget_room_history(bare, ID_MAX)
            else:
                for ident, at_us, raw in await store.room_history(bare, settings.room_history_max):
                    room.history.append((at_us, raw))
                    room.last_id = ident
                room.restore(stored)
                self.rooms[bare] = room
        except FourplaneError as error:
            failure = error
        for delivery in self._loading.pop(bare):
            if failure is not None:
                self.router.bounce(delivery, stanzas.condition_of(failure), failure.message)
            else:
                self._enter(self.rooms.get(bare) or room, delivery)

    def _enter(self, room: Room, delivery: Delivery) -> None:
        try:
            name = delivery.stanza.name
            if name == PRESENCE:
                self._presence(room, delivery)
            elif room.address.bare not in self.rooms:
                raise NotFound("there is no such room")
            elif name == MESSAGE:
                self._message(room, delivery)
            else:
                group_queries.to_room(self, room, delivery)
        except FourplaneError as error:
            self.counts.refused += 1
            self._refuse(delivery, error)

    def _refuse(self, delivery: Delivery, error: FourplaneError) -> None:
        condition = stanzas.condition_of(error)
        if delivery.stanza.name != PRESENCE:
            self.router.bounce(delivery, condition, error.public)
            return
        if delivery.stanza.attributes.get("type") is None and delivery.source is not None:
            to = stanzas.attribute("to", delivery.sender.full) + stanzas.attribute("from", delivery.to.full)
            ident = delivery.stanza.attributes.get("id")
            to += stanzas.attribute("id", ident) if ident else b""
            join = f"<x xmlns='{MUC_NS}'/>".encode()
            what = stanzas.error_element(condition, error.public, by=delivery.to.bare)
            delivery.source.reply(b"<presence type='error'" + to + b">" + join + what + b"</presence>")

    def _presence(self, room: Room, delivery: Delivery) -> None:
        stanza, nick = delivery.stanza, delivery.to.resource
        kind = stanza.attributes.get("type")
        occupant = room.by_address.get(delivery.sender.full)
        if kind in {"unavailable", "error"}:
            if occupant is not None:
                occupant.content = _content(stanzas.tree(stanza)) if kind == "unavailable" else b""
                for reader in room.readers(last=occupant):
                    own = (110,) if reader is occupant else ()
                    self.send(reader, room.presence(occupant, reader, *own, kind="unavailable"))
                self._left(room, occupant)
            return
        if kind is not None:
            return
        if not nick:
            raise Rejected("a name in the room is needed", code="jid_malformed")
        root = stanzas.tree(stanza)
        content = _content(root)
        if occupant is None or JOIN in stanza.children:
            if occupant is not None:
                room.leave(occupant)
            self._join(room, delivery, root, content)
        elif occupant.nick != nick:
            self._rename(room, occupant, nick)
        else:
            occupant.content = content
            self.show(room, occupant, 110)

    def _join(self, room: Room, delivery: Delivery, root: ET.Element, content: bytes) -> None:
        bare = room.address.bare
        wish = root.find(f"{{{MUC_NS}}}x")
        if wish is None:
            raise NotFound("join the room first", code="not_acceptable")
        made = bare not in self.rooms
        if made:
            if len(self.rooms) >= self.router.settings.rooms_max:
                raise Overloaded("there are too many rooms")
            room.affiliations[delivery.sender.bare] = "owner"
        occupant = room.admit(delivery.sender, delivery.to.resource, wish.findtext(f"{{{MUC_NS}}}password") or "")
        self.rooms[bare] = room
        occupant.content = content
        for other in room.readers():
            if other is not occupant:
                self.send(occupant, room.presence(other, occupant))
        for reader in room.readers():
            if reader is not occupant:
                self.send(reader, room.presence(occupant, reader))
        codes = [110] + ([201] if made else []) + ([100] if room.configuration.shows_addresses else [])
        self.send(occupant, room.presence(occupant, occupant, *codes))
        self._tell_history(room, occupant, wish.find(f"{{{MUC_NS}}}history"))
        head = b"<message type='groupchat'" + occupant.to_attribute + stanzas.attribute("from", bare)
        subject = room.subject and _addressed(room.subject, occupant)
        self.send(occupant, subject or head + b"><subject/></message>")
        if made:
            self.router.registry.event("info", "messaging", f"the group {room.address.local} was made")

    def _tell_history(self, room: Room, occupant: Occupant, wish: ET.Element | None) -> None:
        entries = list(room.history)
        if wish is not None:
            count = wish.get("maxstanzas")
            if count is not None and count.isdecimal():
                entries = entries[-int(count) :] if int(count) else []
            seconds, since = wish.get("seconds"), wish.get("since")
            oldest = clock.now_us() - int(seconds) * 1_000_000 if seconds and seconds.isdecimal() else 0
            oldest = max(oldest, stanzas.parse_timestamp(since) if since else 0)
            entries = [entry for entry in entries if entry[0] >= oldest]
            if wish.get("maxchars") == "0":
                entries = []
        for at_us, raw in entries:
            delayed = stanzas.with_child(raw, stanzas.delay(at_us, room.address.bare))
            self.send(occupant, _addressed(delayed, occupant))

    def _rename(self, room: Room, occupant: Occupant, nick: str) -> None:
        affiliation, role = room.affiliation(occupant.address.bare), occupant.role
        room.check_free(nick)
        item = f"<item affiliation='{affiliation}' role='{role}' nick='{escape(nick)}'/>"
        for reader in room.readers(last=occupant):
            own = (110,) if reader is occupant else ()
            self.send(reader, room.presence(occupant, reader, 303, *own, kind="unavailable", item=item))
        room.rename(occupant, nick)
        self.show(room, occupant, 110)

    def _left(self, room: Room, occupant: Occupant) -> None:
        room.leave(occupant)
        if not room.by_address and not room.configuration.persistent:
            self.rooms.pop(room.address.bare, None)

    def _message(self, room: Room, delivery: Delivery) -> None:
        stanza = delivery.stanza
        kind = stanza.attributes.get("type")
        occupant = room.by_address.get(delivery.sender.full)
        if kind == "error":
            return
        if kind != "groupchat" and not delivery.to.resource:
            group_queries.invite(self, room, delivery, occupant)
            return
        if occupant is None:
            raise Rejected("you are not in this room", code="not_acceptable")
        sender = stanzas.attribute("from", f"{room.address.bare}/{occupant.nick}")
        if delivery.to.resource:
            if kind == "groupchat":
                raise Rejected("a message to one occupant has another type", code="bad_request")
            target = room.occupants.get(delivery.to.resource)
            if target is None:
                raise NotFound("nobody has this name here")
            whisper = stanzas.readdressed(stanza.raw, sender + target.to_attribute)
            self.send(target, stanzas.with_child(whisper, f"<x xmlns='{USER_NS}'/>".encode()), delivery)
            return
        self._say(room, occupant, stanza, sender, delivery)

    def _say(self, room: Room, occupant: Occupant, stanza: Stanza, sender: bytes, delivery: Delivery) -> None:
        if not room.may_speak(occupant):
            raise Forbidden("you may not speak here")
        has_body = BODY in stanza.children
        raw = stanzas.readdressed(stanza.raw, sender)
        if SUBJECT in stanza.children and not has_body:
            if not room.may_change_subject(occupant):
                raise Forbidden("you may not change the subject")
            room.subject = raw
            if room.configuration.persistent:
                self.save(room)
        elif has_body:
            ident = room.last_id = next_id(self.router.ids, room.last_id)
            mark = f"<stanza-id xmlns='urn:xmpp:sid:0' by='{escape(room.address.bare)}' id='{ident}'/>"
            raw = stanzas.with_child(raw, mark.encode())
            now_us = clock.now_us()
            room.history.append((now_us, raw))
            if room.configuration.persistent:
                self._keep(room, ident, now_us, raw, delivery)
        self.counts.messages += 1
        head, tail = raw[:8], raw[8:]
        for reader in room.readers():
            self.send(reader, head + reader.to_attribute + tail, delivery)

    def _keep(self, room: Room, ident: int, now_us: int, raw: bytes, delivery: Delivery) -> None:
        source = delivery.source
        hold = source.hold() if source is not None else 0

        def kept(failure: FourplaneError | None) -> None:
            if source is not None:
                source.release(hold)
            if failure is not None:
                self.router.registry.event(
                    "warning", "messaging", "a group's history cannot be kept", error=failure.reason
                )

        value = bytes([SCHEMA]) + struct.pack(">Q", now_us) + raw
        put = Put(b"h/" + struct.pack(">Q", ident), value, ttl_s=self.router.settings.archive_s)
        self.router.store.write(room.address.bare, [put], kept)


def _content(root: ET.Element) -> bytes:
    return b"".join(stanzas.text_of(child) for child in root if not child.tag.startswith(f"{{{MUC_NS}"))


def _addressed(raw: bytes, occupant: Occupant) -> bytes:
    return raw[:8] + occupant.to_attribute + raw[8:]
