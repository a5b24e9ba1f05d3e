"""The waiting room: first come, first in; a place that cannot be forged; an estimate that is true; room for everybody again."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.serving import HOST, answers, serving, talk

from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_request import plain_request
from fourplane.edge.http_server import HttpServer
from fourplane.edge.routes import Priority, Route
from fourplane.edge.waiting_room import Line, WaitingRoom, WaitingRoomSettings, wait_text
from fourplane.foundation import clock
from fourplane.foundation.errors import Misconfigured, Overloaded
from fourplane.foundation.telemetry import Registry
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer

SETTINGS = WaitingRoomSettings(prefixes=("/shop/",), entries_per_s=10.0)
ROOM = "/shop/waiting-room"
PAGE = b"GET /shop/lamp HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"


class Held(clock.MachineSource):
    now_s = 1_000.0

    def monotonic_s(self):
        return self.now_s


class Shop:
    """A room and the count of an admission that is told what it sheds."""

    def __init__(self, settings=SETTINGS, ring=None):
        self.shed = 0
        self.registry = Registry()
        self.room = WaitingRoom(settings, Signer(ring or KeyRing.in_memory()), self.registry)
        self.room.watch(self)

    def shed_count(self, _priority):
        return self.shed

    def crowd(self, clock_held, seconds=0.0):
        """Somebody is shed now, or all through these seconds."""
        ends = clock_held.now_s + seconds
        while True:
            self.shed += 1
            told = self.room.instead(PAGE, b"/shop/lamp")
            if clock_held.now_s >= ends:
                return told
            clock_held.now_s += 0.2

    def ask(self, what, cookie=""):
        head = f"GET {ROOM}{what} HTTP/1.1\r\nHost: localhost\r\n{f'Cookie: {cookie}' + chr(13) + chr(10) if cookie else ''}\r\n"
        request = plain_request(head.encode(), "peer")
        handler = next(one for _, path, one in self.room.hot_routes() if path.encode() == request.path)
        return answers(handler(request))[0]


@pytest.fixture
def held():
    with clock.installed(Held()) as source:
        yield source


def cookie_of(answer):
    return answer.headers["set-cookie"].partition(";")[0]


def test_whose_page_is_shed_is_shown_the_way_to_a_place(held):
    shop = Shop()
    found = answers(shop.crowd(held))[0]
    assert (found.status, found.headers["location"]) == (303, f"{ROOM}?to=/shop/lamp")
    assert shop.room.instead(PAGE.replace(b"text/html", b"*/*"), b"/shop/lamp") is None
    assert shop.room.instead(PAGE, b"/other/lamp") is None


def test_people_go_in_in_the_order_in_which_they_came(held):
    shop = Shop()
    shop.crowd(held)
    places = [cookie_of(shop.ask("?to=/shop/lamp")) for _ in range(30)]
    assert "29 people are before you" in shop.ask("", places[-1]).body.decode()
    held.now_s += 0.5
    inside = [shop.ask("?to=/shop/lamp", place).status == 303 for place in places]
    assert inside == [True] * 5 + [False] * 25
    found = shop.ask("?to=/shop/lamp", places[0])
    assert found.headers["location"] == "/shop/lamp"
    assert not shop.room.stops("/shop/lamp", {"cookie": cookie_of(found)}, Priority.USER)
    assert shop.room.stops("/shop/lamp", {}, Priority.USER)
    assert shop.room.stops("/shop/lamp", {"cookie": places[20].replace("place", "pass")}, Priority.USER)
    assert not shop.room.stops("/shop/api/orders", {}, Priority.CRITICAL)
    assert not shop.room.stops("/other", {}, Priority.USER)


def test_a_forged_place_or_one_of_another_opening_goes_to_the_end(held):
    ring = KeyRing.in_memory()
    shop = Shop(ring=ring)
    shop.crowd(held)
    early = cookie_of(shop.ask(""))
    other = Shop(ring=ring)
    other.crowd(held)
    for _ in range(10):
        other.ask("")
    for cookie in (early, "waiting_place=a.b.c", "waiting_place=" + "x" * 9_000, early[:-2] + "AA"):
        told = msgspec.json.decode(other.ask("/place", cookie).body)
        assert told["state"] == "wait"
        assert told["ahead"] > 10


def test_nobody_is_let_in_while_people_are_shed(held):
    shop = Shop()
    shop.crowd(held)
    for _ in range(200):
        shop.ask("")
    shop.crowd(held, seconds=20.0)
    crowded = shop.room.line.served
    held.now_s += 1.0
    shop.room.turn()
    for _ in range(10):
        held.now_s += 1.0
        shop.room.turn()
    assert crowded <= 60
    assert shop.room.line.served > crowded + 5


def test_the_room_closes_when_it_is_empty_and_the_crowd_is_gone(held):
    shop = Shop()
    shop.crowd(held)
    shop.ask("")
    for _ in range(8):
        held.now_s += 1.0
        shop.room.turn()
    assert not shop.room.statistics().active
    assert shop.ask("?to=/shop/lamp").headers["location"] == "/shop/lamp"
    assert [one.text for one in shop.registry.events if "waiting room" in one.text][-1].endswith(
        "1 people came through it"
    )
    shop.shed += 1
    held.now_s += 60.0
    assert not shop.room.stops("/shop/lamp", {}, Priority.USER)
    assert not shop.room.statistics().active, "an old refusal opens nothing"


def test_programs_take_a_place_and_a_pass_by_header(held):
    shop = Shop()
    shop.crowd(held)
    told = msgspec.json.decode(shop.ask("/place").body)
    assert (told["state"], told["ahead"], told["ask_again_s"]) == ("wait", 1, 5.0)
    held.now_s += 1.0
    request = plain_request(
        f"GET {ROOM}/place HTTP/1.1\r\nHost: a\r\nWaiting-Place: {told['place']}\r\n\r\n".encode(), "p"
    )
    entered = msgspec.json.decode(answers(shop.room.place(request))[0].body)
    assert entered["state"] == "enter"
    shop.ask("")
    assert shop.room.stops("/shop/lamp", {}, Priority.USER)
    assert not shop.room.stops("/shop/lamp", {"waiting-pass": entered["pass"]}, Priority.USER)


@pytest.mark.parametrize("to", ["https://elsewhere/", "//elsewhere/shop/", "/other/", "/shop/%0d%0aSet-Cookie:x", ""])
def test_the_way_in_leads_nowhere_else(held, to):
    shop = Shop()
    assert shop.ask(f"?to={to}").headers["location"] == "/shop/"


def test_the_room_is_bounded(held):
    shop = Shop(WaitingRoomSettings(prefixes=("/shop/",), places_max=3))
    shop.crowd(held)
    assert [shop.ask("").status for _ in range(4)] == [200, 200, 200, 503]
    with pytest.raises(Misconfigured):
        WaitingRoomSettings(prefixes=("shop",))


@given(st.lists(st.tuples(st.floats(0.1, 3.0), st.booleans(), st.integers(0, 50)), max_size=60))
def test_numbers_never_go_back_and_nobody_enters_before_joining(steps):
    line, now_s, entered = Line(SETTINGS), 0.0, 0
    line.turn(now_s, crowded=True)
    for passed_s, crowded, joining in steps:
        now_s += passed_s
        for _ in range(joining):
            line.join()
        opening = line.opening
        line.turn(now_s, crowded=crowded)
        if line.opening == opening:
            assert entered <= line.served <= line.given
        entered = line.served


def test_the_estimate_is_the_speed_of_the_last_minute():
    line, now_s = Line(SETTINGS), 0.0
    line.turn(now_s, crowded=True)
    for _ in range(1_000):
        line.join()
    while line.served < 500:
        now_s += 0.5
        line.turn(now_s, crowded=False)
    told, began_s = line.estimate_s(900, now_s), now_s
    while line.served < 900:
        now_s += 0.5
        line.turn(now_s, crowded=False)
    assert now_s - began_s <= told <= 8 * (now_s - began_s) + 1
    line.given = line.served + SETTINGS.places_max
    with pytest.raises(Overloaded):
        line.join()


def test_an_estimate_is_never_told_shorter_than_it_is():
    assert [wait_text(one) for one in (None, 20.0, 61.0, 7_300.0)] == [
        "The line is standing still at the moment.",
        "Less than a minute to go.",
        "About 2 minutes to go.",
        "More than 2 hours to go.",
    ]


def test_a_shed_page_leads_into_the_room_and_a_call_of_a_program_is_told_where_it_is():
    async def shown(_call):
        return {}

    async def main():
        registry = Registry()
        room = WaitingRoom(SETTINGS, Signer(KeyRing.in_memory()), registry)
        route = Route("GET", "/shop/lamp", shown, "A lamp")
        gateway = Gateway([route], None, registry=registry, settings=GatewaySettings(), room=room)
        async with serving(gateway, registry=registry, classify=gateway.classify) as server:
            assert isinstance(server, HttpServer)
            server.behind_room(room)
            server.admission.close_from(Priority.USER)
            shed = answers(await talk(server.port, PAGE))[0]
            joined = answers(await talk(server.port, f"GET {ROOM} HTTP/1.1\r\n".encode() + HOST + b"\r\n"))[0]
            server.admission.close_from(None)
            program = answers(await talk(server.port, PAGE.replace(b"text/html", b"application/json")))[0]
            person = answers(await talk(server.port, PAGE))[0]
        gateway.close()
        return shed, joined, program, person

    shed, joined, program, person = asyncio.run(main())
    assert (shed.status, joined.status, program.status, person.status) == (303, 200, 503, 303)
    assert b"<noscript>" in joined.body
    assert msgspec.json.decode(program.body)["error"]["fields"]["place"] == f"{ROOM}/place"
    assert person.headers["location"] == f"{ROOM}?to=/shop/lamp"
