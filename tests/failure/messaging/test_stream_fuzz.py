"""Bytes nobody should send, before and after login: every stream ends in order or goes on, nobody else notices."""

import random

from tests.protocol.messaging.test_client_streams import HEADER, bodies, client, in_virtual_time, settled, wire

from fourplane.foundation import clock

SEEDS = 120
PIECES = (
    b"<message to='bob@localhost' type='chat'><body>x</body></message>",
    b"<presence/>",
    b"<presence type='subscribe' to='bob@localhost'/>",
    b"<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>",
    (
        b"<iq type='set' id='2'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='n'><item><a xmlns='b'/></item>"
        b"</publish></pubsub></iq>"
    ),
    b"<iq type='set' id='3' to='localhost'><command xmlns='http://jabber.org/protocol/commands' node='x'/></iq>",
    b"<r xmlns='urn:xmpp:sm:3'/><a xmlns='urn:xmpp:sm:3' h='1'/>",
    b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>",
    b"<resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/>",
    b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>biwsbj1hLHI9Yg==</auth>",
    b"<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>Yz1iaXdz</response>",
    b"<authenticate xmlns='urn:xmpp:sasl:2' mechanism='HT-SHA-256-NONE'><initial-response>YQBi</initial-response></authenticate>",
    b"<presence to='room@groups.localhost/me'><x xmlns='http://jabber.org/protocol/muc'/></presence>",
    b"<iq type='get' id='4' to='groups.localhost'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
    HEADER,
    b"</stream:stream>",
)
NASTY = (
    b"<",
    b">",
    b"&",
    b"'",
    b'"',
    b"\0",
    b"\xff\xfe",
    b"&lt;",
    b"]]>",
    b"<!--",
    b"<?x?>",
    b"<!DOCTYPE x>",
    b"x" * 300,
    b"\r\n",
)


def mutated(rng):
    """Some pieces, cut, doubled, shuffled and sprinkled with what does not belong there."""
    data = b"".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
    for _ in range(rng.randint(0, 4)):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        match rng.randrange(4):
            case 0:
                data = data[:at] + rng.choice(NASTY) + data[at:]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:end] + data[at:end] + data[end:]
            case _:
                data = data[:at] + bytes(rng.randrange(256) for _ in range(3)) + data[at:]
    return data


def chunks(rng, data):
    while data:
        size = rng.choice((1, 7, 60, 4_096))
        yield data[:size]
        data = data[size:]


def test_no_bytes_disturb_the_others_or_stay_behind():
    async def work(here):
        alice, bob = await client(here, "alice"), await client(here, "bob")
        for seed in range(SEEDS):
            rng = random.Random(seed)
            if seed % 2:
                peer = await wire(here, HEADER)
                transport = peer.transport
            else:
                victim = await client(here, "carol", resource=f"r{seed}")
                victim.on_stanza = lambda _stanza: None
                transport = victim._transport
            for part in chunks(rng, mutated(rng)):
                if not transport.is_closing():
                    transport.write(part)
                if rng.random() < 0.2:
                    await clock.sleep(0.01)
            await clock.sleep(0.05)
            transport.abort()
            await clock.sleep(0.05)
        bob.inbox.clear()
        alice.message("bob@localhost", "still here")
        await settled(alice, bob)
        await clock.sleep(400)
        statistics = here.messaging.statistics()
        return bodies(bob), statistics.actor_crashes, statistics.sessions, statistics.connections

    assert in_virtual_time(work) == (["still here"], 0, 2, 2)
