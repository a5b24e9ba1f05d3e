"""Half an hour of people coming, talking, joining rooms, breaking off and leaving: memory stays where it was (`--all`)."""

import gc
import random
import tracemalloc

import pytest
from tests.protocol.messaging.test_client_streams import PASSWORD, in_virtual_time

from fourplane.foundation import clock
from fourplane.simulator.crowds.messaging_client import XmppClient

MINUTES = 30
NAMES = tuple(f"u{number}" for number in range(12))


async def visit(here, rng, name):
    one = XmppClient(name, PASSWORD, resource=f"r{rng.randrange(3)}")
    one.on_stanza = lambda _stanza: None
    await one.connect("127.0.0.1", here.messaging.port)
    await one.login(manage=rng.random() < 0.5)
    for _ in range(rng.randint(1, 20)):
        one.message(f"{rng.choice(NAMES)}@localhost", "soak")
    room = f"r{rng.randrange(3)}@groups.localhost/{name}"
    one.send(f"<presence to='{room}'><x xmlns='http://jabber.org/protocol/muc'/></presence>".encode())
    await one.request("get", "<ping xmlns='urn:xmpp:ping'/>")
    await clock.sleep(rng.random() * 5)
    if rng.random() < 0.3:
        one.abort()
    else:
        await one.close()


@pytest.mark.slow
def test_memory_is_flat_after_half_an_hour():
    async def work(here):
        rng, line = random.Random(1), []
        tracemalloc.start()
        try:
            for minute in range(MINUTES):
                until = clock.monotonic_s() + 60
                while clock.monotonic_s() < until:
                    await visit(here, rng, rng.choice(NAMES))
                gc.collect()
                line.append(tracemalloc.get_traced_memory()[0])
                print(f"minute {minute + 1}: {line[-1] / 1024:,.0f} KiB")  # noqa: T201 - the memory line
        finally:
            tracemalloc.stop()
        return line

    line = in_virtual_time(work, users=NAMES, offline_max=50, resume_s=60.0, archive=False)
    assert max(line[-5:]) < 1.10 * max(line[8:13]), line
