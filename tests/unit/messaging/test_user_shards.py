"""A stanza that goes to another worker is there what it was here."""

from types import SimpleNamespace

import msgspec
import pytest

from fourplane.foundation.errors import Rejected
from fourplane.messaging.addresses import parse
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.user_shards import Forwarded, Spread, UserShards
from fourplane.messaging.xml_stream import Framer
from fourplane.service.courier import Batch
from fourplane.service.shards import ShardMap

SENDER = parse("ann@localhost/phone")
STANZAS = [
    b"<message to='bob@localhost/pc' type='chat' id='1' xml:lang='de'><body>hi</body></message>",
    b"<message to='bob@localhost' id='a&amp;b&#10;'><body>a</body><x xmlns='urn:x'><y/></x></message>",
    b"<message to='room@groups.localhost' type='groupchat' id='3'><body>all</body></message>",
    b"<message to='bob@localhost' type='error'/>",
    b"<iq to='bob@localhost/pc' type='get' id='4'><ping xmlns='urn:xmpp:ping'/></iq>",
    b"<presence to='bob@localhost' type='subscribe'/>",
]


class Nobody:
    def method(self, _service, _method):
        return None


def forwarded(raw, *, source):
    """The stanza as its framer saw it, and as the other worker reads it."""
    shards = UserShards(None, Spread(ShardMap(2, 2), 0, {1: Nobody()}, None))
    told = []
    shards._ways[1] = lambda message, _owner: told.append(message)
    [stanza] = Framer(100, 100).feed(raw, len(raw))
    stamped = raw.replace(b" to=", b" from='%b' to=" % SENDER.full.encode(), 1)
    shards.forward(Delivery(stanza, stamped, SENDER, parse(stanza.attributes["to"]), source), 1)
    return stanza, msgspec.msgpack.decode(msgspec.msgpack.encode(told[0]), type=Forwarded)


@pytest.mark.parametrize("source", [SimpleNamespace(address=SENDER), None], ids=["its own client's", "nobody's"])
@pytest.mark.parametrize("raw", STANZAS)
def test_it_has_the_same_name_type_children_and_attributes(raw, source):
    here, there = forwarded(raw, source=source)
    assert (there.name, there.kind, there.children, there.to) == (
        here.name,
        here.kind,
        here.children,
        here.attributes["to"],
    )
    attributes = {name: value for name, value in there.attributes.items() if name != "from"}
    assert attributes == here.attributes
    assert there.sender == ("" if source is not None and raw.startswith(b"<message to='bob") else SENDER.full)


def test_attributes_are_read_again_for_who_asks_and_rooms_which_always_ask_are_told_them():
    chat, room = (forwarded(raw, source=SimpleNamespace(address=SENDER))[1] for raw in (STANZAS[0], STANZAS[2]))
    assert chat.told is None
    assert chat.attributes["id"] == "1"
    assert chat.attributes is chat.attributes, "once"
    assert room.told is not None


class Users:
    """In the place of a router: who can be reached, and what was said when one could not."""

    def __init__(self):
        self.routed, self.bounced, self.events = [], [], []
        self.registry = SimpleNamespace(event=lambda *said, **fields: self.events.append((said[2], fields)))

    def route(self, delivery):
        if delivery.to.local == "crash":
            raise RuntimeError("a bug")
        self.routed.append(delivery.to.full)

    def bounce(self, delivery, condition, *_):
        self.bounced.append((delivery.stanza.to, condition))


def batch_of(messages, groups, owners):
    messages = [Forwarded(b"<message/>", number, to) for number, to in enumerate(messages)]
    encode = msgspec.msgpack.encode
    return Batch(1, msgspec.Raw(encode(messages)), groups, msgspec.Raw(encode(owners)))


def test_a_message_that_fails_costs_nothing_but_itself_and_its_sender_hears_it():
    users = Users()
    shards = UserShards(users, Spread(ShardMap(2, 2), 0, {1: Nobody()}, None))
    to = ["bob@localhost", "crash@localhost", "@@", "eve@localhost"]
    batch = batch_of(to, [1, 1, 1, 1], [(SENDER.full, 1)])
    assert shards.received("00" * 8, batch, shards.read(batch), lambda _: None) == set()
    assert users.routed == ["bob@localhost", "eve@localhost"]
    assert users.bounced == [("crash@localhost", "internal-server-error"), ("@@", "internal-server-error")]
    assert len(users.events) == 2


@pytest.mark.parametrize(
    "batch",
    [
        Batch(1, msgspec.Raw(b"\xc1"), [0]),
        Batch(1, msgspec.Raw(msgspec.msgpack.encode([["raw", 1]])), [0]),
        batch_of(["bob@localhost"], [1, 1], [(SENDER.full, 1)]),
        batch_of(["bob@localhost"], [2], [(SENDER.full, 1)]),
    ],
    ids=["no msgpack", "another form", "one message short", "a sender nobody named"],
)
def test_a_batch_of_another_form_is_refused_as_a_whole(batch):
    shards = UserShards(Users(), Spread(ShardMap(2, 2), 0, {1: Nobody()}, None))
    with pytest.raises(Rejected):
        shards.read(batch)
