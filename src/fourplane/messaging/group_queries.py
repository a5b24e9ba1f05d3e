"""Requests to the group service and its rooms: discovery, configuration, affiliations and roles, invitations (XEP-0045)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast
from xml.etree import ElementTree as ET

from fourplane.foundation.errors import Forbidden, FourplaneError, NotFound, Rejected
from fourplane.messaging import stanzas
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.room import RANK, USER_NS, Affiliation, Occupant, Role, Room, RoomConfiguration
from fourplane.messaging.stanzas import escape
from fourplane.messaging.xml_stream import MESSAGE, Stanza

if TYPE_CHECKING:
    from fourplane.messaging.group_chat import GroupChat

INFO = "http://jabber.org/protocol/disco#info"
ITEMS = "http://jabber.org/protocol/disco#items"
OWNER = "http://jabber.org/protocol/muc#owner"
ADMIN = "http://jabber.org/protocol/muc#admin"
CONFIGURATION = "http://jabber.org/protocol/muc#roomconfig"
FORM = "jabber:x:data"
MUC = "http://jabber.org/protocol/muc"
TEXT_MAX = 1_000
FIELDS: dict[str, tuple[str, str, str]] = {  # form variable -> attribute, kind, label
    "muc#roomconfig_roomname": ("title", "text-single", "Name"),
    "muc#roomconfig_roomdesc": ("description", "text-single", "Description"),
    "muc#roomconfig_persistentroom": ("persistent", "boolean", "Stays when everybody has left"),
    "muc#roomconfig_publicroom": ("public", "boolean", "Can be found by everybody"),
    "muc#roomconfig_membersonly": ("members_only", "boolean", "Only for members"),
    "muc#roomconfig_moderatedroom": ("moderated", "boolean", "Only members may speak"),
    "muc#roomconfig_allowinvites": ("members_may_invite", "boolean", "Everybody may invite"),
    "muc#roomconfig_changesubject": ("everybody_may_change_subject", "boolean", "Everybody may change the subject"),
    "muc#roomconfig_whois": ("shows_addresses", "list-single", "Who sees the addresses"),
    "muc#roomconfig_roomsecret": ("password", "text-private", "Password"),
    "muc#roomconfig_maxusers": ("occupants_max", "text-single", "Most occupants, 0 for the server's bound"),
}


def to_service(groups: "GroupChat", delivery: Delivery) -> None:
    """Answer a request to the service itself."""
    if delivery.stanza.attributes["type"] in {"result", "error"}:
        return
    name, _ = stanzas.payload(delivery.stanza)
    if name == f"{INFO} query":
        identity = "<identity category='conference' type='text' name='Groups'/>"
        _answer(groups, delivery, f"<query xmlns='{INFO}'>{identity}{_features(MUC, INFO, ITEMS)}</query>")
    elif name == f"{ITEMS} query":
        groups.router.spawn(_list_rooms(groups, delivery))
    elif name == "urn:xmpp:ping ping":
        _answer(groups, delivery, "")
    else:
        groups.router.bounce(delivery, "service-unavailable")


def to_room(groups: "GroupChat", room: Room, delivery: Delivery) -> None:
    """Answer a request to a room, or pass one on to an occupant; raises what the protocol answers."""
    stanza = delivery.stanza
    kind = stanza.attributes["type"]
    occupant = room.by_address.get(delivery.sender.full)
    if delivery.to.resource:
        _to_occupant(groups, room, delivery, occupant)
        return
    if kind in {"result", "error"}:
        return
    name, element = stanzas.payload(stanza)
    handlers: dict[tuple[str, str], Callable[[], None]] = {
        ("get", f"{INFO} query"): lambda: _answer(groups, delivery, _room_info(room)),
        ("get", f"{ITEMS} query"): lambda: _answer(groups, delivery, _room_items(room, occupant)),
        ("get", "urn:xmpp:ping ping"): lambda: _answer(groups, delivery, ""),
        ("get", f"{OWNER} query"): lambda: _answer(groups, delivery, _form(room, delivery)),
        ("set", f"{OWNER} query"): lambda: _configure(groups, room, delivery, element),
        ("get", f"{ADMIN} query"): lambda: _answer(groups, delivery, _list(room, delivery, element)),
        ("set", f"{ADMIN} query"): lambda: _administer(groups, room, delivery, element),
    }
    handler = handlers.get((kind, name))
    if handler is None:
        groups.router.bounce(delivery, "service-unavailable")
        return
    handler()


def invite(groups: "GroupChat", room: Room, delivery: Delivery, occupant: Occupant | None) -> None:
    """Pass a mediated invitation on; a declined one goes back to whoever invited."""
    root = stanzas.tree(delivery.stanza)
    wish = root.find(f"{{{USER_NS}}}x")
    if wish is None:
        raise Rejected("a room takes messages of type groupchat", code="bad_request")
    for kind in ("invite", "decline"):
        for element in wish.findall(f"{{{USER_NS}}}{kind}"):
            if kind == "invite":
                _check_may_invite(room, occupant)
            to = groups.router.parse(element.get("to", ""))
            if to is None:
                raise Rejected("an invitation needs an address", code="jid_malformed")
            if kind == "invite" and room.configuration.members_only and room.affiliation(to.bare) == "none":
                room.affiliations[to.bare] = "member"
                groups.save(room)
            reason = element.findtext(f"{{{USER_NS}}}reason") or ""
            sender = f"{room.address.bare}/{occupant.nick}" if occupant is not None else delivery.sender.bare
            why = f"<reason>{escape(reason)}</reason>" if reason else ""
            secret = (
                f"<password>{escape(room.configuration.password)}</password>" if room.configuration.password else ""
            )
            content = f"<x xmlns='{USER_NS}'><{kind} from='{escape(sender)}'>{why}</{kind}>{secret}</x>"
            head = f"<message from='{escape(room.address.bare)}' to='{escape(to.full)}'>"
            raw = f"{head}{content}</message>".encode()
            children = [f"{USER_NS} x"]
            groups.router.route(Delivery(Stanza(MESSAGE, {}, children, raw), raw, room.address, to, None))


def _check_may_invite(room: Room, occupant: Occupant | None) -> None:
    if occupant is None:
        raise Rejected("you are not in this room", code="not_acceptable")
    if room.configuration.members_only and not room.configuration.members_may_invite and occupant.role != "moderator":
        raise Forbidden("only moderators invite here")


async def _list_rooms(groups: "GroupChat", delivery: Delivery) -> None:
    try:
        rooms = await groups.all_public_rooms()
    except FourplaneError as error:
        groups.router.bounce(delivery, stanzas.condition_of(error), error.public)
        return
    items = "".join(f"<item jid='{escape(jid)}' name='{escape(title)}'/>" for jid, title in rooms[:500])
    _answer(groups, delivery, f"<query xmlns='{ITEMS}'>{items}</query>")


def _to_occupant(groups: "GroupChat", room: Room, delivery: Delivery, occupant: Occupant | None) -> None:
    target = room.occupants.get(delivery.to.resource)
    if occupant is None:
        raise Rejected("you are not in this room", code="not_acceptable")
    if target is None:
        raise NotFound("nobody has this name here")
    if target is occupant and delivery.stanza.children == ["urn:xmpp:ping ping"]:  # XEP-0410
        _answer(groups, delivery, "")
        return
    sender = stanzas.attribute("from", f"{room.address.bare}/{occupant.nick}")
    groups.send(target, stanzas.readdressed(delivery.stanza.raw, sender + target.to_attribute), delivery)


def _answer(groups: "GroupChat", delivery: Delivery, content: str) -> None:
    attributes = {**delivery.stanza.attributes, "from": delivery.sender.full}
    stanza = Stanza(delivery.stanza.name, attributes, [], b"")
    raw = stanzas.result(stanza, content.encode())
    if delivery.source is not None:
        delivery.source.reply(raw)
    else:
        answer = Stanza(delivery.stanza.name, {"type": "result"}, [], raw)
        groups.router.route(Delivery(answer, raw, delivery.to, delivery.sender, None))


def _features(*names: str) -> str:
    return "".join(f"<feature var='{name}'/>" for name in names)


def _room_info(room: Room) -> str:
    chosen = room.configuration
    names = [
        MUC,
        "muc_persistent" if chosen.persistent else "muc_temporary",
        "muc_public" if chosen.public else "muc_hidden",
        "muc_membersonly" if chosen.members_only else "muc_open",
        "muc_moderated" if chosen.moderated else "muc_unmoderated",
        "muc_nonanonymous" if chosen.shows_addresses else "muc_semianonymous",
        "muc_passwordprotected" if chosen.password else "muc_unsecured",
        "http://jabber.org/protocol/muc#stable_id",
        "http://jabber.org/protocol/muc#self-ping-optimization",
        "urn:xmpp:sid:0",
    ]
    title = escape(chosen.title or room.address.local)
    identity = f"<identity category='conference' type='text' name='{title}'/>"
    fields = (
        f"<field var='FORM_TYPE' type='hidden'><value>{MUC}#roominfo</value></field>"
        f"<field var='muc#roominfo_description'><value>{escape(chosen.description)}</value></field>"
        f"<field var='muc#roominfo_occupants'><value>{len(room.by_address)}</value></field>"
    )
    return f"<query xmlns='{INFO}'>{identity}{_features(*names)}<x xmlns='{FORM}' type='result'>{fields}</x></query>"


def _room_items(room: Room, occupant: Occupant | None) -> str:
    shown = room.occupants if occupant is not None else {}
    items = "".join(f"<item jid='{escape(room.address.bare)}/{escape(nick)}'/>" for nick in shown)
    return f"<query xmlns='{ITEMS}'>{items}</query>"


def _check_owner(room: Room, delivery: Delivery) -> None:
    if room.affiliation(delivery.sender.bare) != "owner":
        raise Forbidden("only owners configure a room")


def _form(room: Room, delivery: Delivery) -> str:
    _check_owner(room, delivery)
    fields = [f"<field var='FORM_TYPE' type='hidden'><value>{CONFIGURATION}</value></field>"]
    for variable, (attribute, kind, label) in FIELDS.items():
        value = getattr(room.configuration, attribute)
        if attribute == "shows_addresses":
            options = "".join(f"<option><value>{one}</value></option>" for one in ("anyone", "moderators"))
            shown = f"<value>{'anyone' if value else 'moderators'}</value>{options}"
        else:
            shown = f"<value>{int(value) if isinstance(value, bool) else escape(str(value))}</value>"
        fields.append(f"<field var='{variable}' type='{kind}' label='{escape(label)}'>{shown}</field>")
    return f"<query xmlns='{OWNER}'><x xmlns='{FORM}' type='form'>{''.join(fields)}</x></query>"


def _configure(groups: "GroupChat", room: Room, delivery: Delivery, element: ET.Element) -> None:
    _check_owner(room, delivery)
    destroyed = element.find(f"{{{OWNER}}}destroy")
    if destroyed is not None:
        _answer(groups, delivery, "")
        groups.destroy(room, destroyed.findtext(f"{{{OWNER}}}reason") or "")
        return
    form = element.find(f"{{{FORM}}}x")
    if form is None:
        raise Rejected("a form was expected", code="bad_request")
    if form.get("type") == "submit":
        room.configuration = _read_form(room.configuration, form)
        groups.save(room)
        if room.configuration.members_only:
            for occupant in room.readers():
                if RANK[room.affiliation(occupant.address.bare)] < RANK["member"]:
                    groups.remove(room, occupant, 322)
    groups.router.store.write(room.address.bare, [], lambda _: _answer(groups, delivery, ""))


def _read_form(before: RoomConfiguration, form: ET.Element) -> RoomConfiguration:
    changes: dict[str, str | bool | int] = {}
    for field in form.findall(f"{{{FORM}}}field"):
        known = FIELDS.get(field.get("var", ""))
        if known is None:
            continue
        attribute = known[0]
        value = (field.findtext(f"{{{FORM}}}value") or "").strip()[:TEXT_MAX]
        if attribute == "shows_addresses":
            changes[attribute] = value == "anyone"
        elif attribute == "occupants_max":
            changes[attribute] = int(value) if value.isdecimal() else 0
        elif known[1] == "boolean":
            changes[attribute] = value in {"1", "true"}
        else:
            changes[attribute] = value
    names = {name: getattr(before, name) for name in RoomConfiguration.__struct_fields__}
    return RoomConfiguration(**{**names, **changes})


def _list(room: Room, delivery: Delivery, element: ET.Element) -> str:
    asked = element.find(f"{{{ADMIN}}}item")
    actor = room.affiliation(delivery.sender.bare)
    if asked is None or RANK[actor] < RANK["admin"]:
        raise Forbidden("only admins see these lists")
    affiliation, role = asked.get("affiliation"), asked.get("role")
    items = ""
    if affiliation:
        for bare, found in room.affiliations.items():
            if found == affiliation:
                items += f"<item jid='{escape(bare)}' affiliation='{found}'/>"
    elif role:
        for occupant in room.readers():
            if occupant.role == role:
                jid, nick = escape(occupant.address.full), escape(occupant.nick)
                items += f"<item jid='{jid}' nick='{nick}' role='{role}'/>"
    return f"<query xmlns='{ADMIN}'>{items}</query>"


def _administer(groups: "GroupChat", room: Room, delivery: Delivery, element: ET.Element) -> None:
    for item in element.findall(f"{{{ADMIN}}}item"):
        reason = item.findtext(f"{{{ADMIN}}}reason") or ""
        if item.get("affiliation"):
            _set_affiliation(groups, room, delivery, item, reason)
        elif item.get("role"):
            _set_role(groups, room, delivery, item, reason)
        else:
            raise Rejected("an item says what changes", code="bad_request")
    groups.router.store.write(room.address.bare, [], lambda _: _answer(groups, delivery, ""))


def _set_affiliation(groups: "GroupChat", room: Room, delivery: Delivery, item: ET.Element, reason: str) -> None:
    affiliation = item.get("affiliation", "")
    target = groups.router.parse(item.get("jid", ""))
    if affiliation not in RANK or target is None:
        raise Rejected("an affiliation and an address are needed", code="bad_request")
    room.set_affiliation(room.affiliation(delivery.sender.bare), target.bare, cast("Affiliation", affiliation))
    if room.configuration.persistent:
        groups.save(room)
    for occupant in room.of(target.bare):
        if affiliation == "outcast":
            groups.remove(room, occupant, 301, reason)
        elif room.configuration.members_only and RANK[affiliation] < RANK["member"]:
            groups.remove(room, occupant, 321, reason)
        else:
            groups.show(room, occupant)


def _set_role(groups: "GroupChat", room: Room, delivery: Delivery, item: ET.Element, reason: str) -> None:
    role = item.get("role", "")
    actor = room.by_address.get(delivery.sender.full)
    occupant = room.occupants.get(item.get("nick", ""))
    if actor is None or actor.role != "moderator":
        raise Forbidden("only moderators change roles")
    if occupant is None:
        raise NotFound("nobody has this name here")
    if role not in {"moderator", "participant", "visitor", "none"}:
        raise Rejected("there is no such role", code="bad_request")
    theirs, own = room.affiliation(occupant.address.bare), room.affiliation(actor.address.bare)
    if RANK[theirs] >= RANK["admin"] and RANK[theirs] >= RANK[own] and occupant is not actor:
        raise Rejected("this occupant cannot be touched", code="not_allowed")
    if role == "moderator" and RANK[own] < RANK["admin"]:
        raise Forbidden("only admins make moderators")
    if role == "none":
        groups.remove(room, occupant, 307, reason)
    else:
        occupant.role = cast("Role", role)
        groups.show(room, occupant)
