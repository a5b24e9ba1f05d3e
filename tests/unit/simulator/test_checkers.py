"""Each checker is fed a broken history by hand, and says so."""

from fourplane.simulator import film
from fourplane.simulator.checkers import films, shop
from fourplane.simulator.checkers.messages import MessageBook
from fourplane.simulator.checkers.rides import RideBook
from fourplane.simulator.checkers.shop import Placed


def book():
    made = MessageBook()
    for number in (1, 2):
        made.sent(f"m{number}", "ann", "bob", number)
        made.acknowledged(f"m{number}")
    return made


def test_what_arrives_once_and_in_order_is_fine():
    made = book()
    made.shown("m1", "bob", "bob/1")
    made.shown("m2", "bob", "bob/1")
    assert made.check(settled=True) == []


def test_an_acknowledged_message_that_never_arrives_is_lost_once_everything_settled():
    made = book()
    made.shown("m1", "bob", "bob/1")
    assert made.check(settled=False) == []
    assert made.check(settled=True) == ["messages: m2 to bob was acknowledged and lost"]


def test_twice_in_one_session_is_doubled_but_in_the_next_session_it_is_not():
    made = book()
    made.shown("m1", "bob", "bob/1")
    made.shown("m1", "bob", "bob/2")
    assert made.check(settled=False) == []
    made.shown("m1", "bob", "bob/2")
    assert "twice" in made.check(settled=False)[0]


def test_a_later_message_first_is_out_of_order():
    made = book()
    made.shown("m2", "bob", "bob/1")
    made.shown("m1", "bob", "bob/1")
    assert "after number 2" in made.check(settled=False)[0]


def test_a_message_shown_to_somebody_else_is_found():
    made = book()
    made.shown("m1", "eve", "eve/1")
    assert "which was for bob" in made.check(settled=False)[0]


def test_more_sold_than_there_was():
    placed = [Placed("k1", "o1", "lamp", 2, 10), Placed("k2", "o2", "lamp", 1, 5)]
    assert shop.oversold({"lamp": 3}, placed) == []
    assert shop.oversold({"lamp": 2}, placed) == ["shop: 3 of lamp sold, 2 were there"]


def test_one_attempt_that_became_two_orders():
    assert shop.doubled([Placed("k", "o1", "lamp", 1, 5), Placed("k", "o1", "lamp", 1, 5)]) == []
    assert "became 2 orders" in shop.doubled([Placed("k", "o1", "lamp", 1, 5), Placed("k", "o2", "lamp", 1, 5)])[0]


def test_a_ledger_that_does_not_add_up_or_holds_money():
    assert shop.unbalanced({"EUR": {"card": -5, "held": 0, "merchant": 5}}) == []
    assert "off by 1" in shop.unbalanced({"EUR": {"card": -5, "merchant": 6}})[0]
    assert "held" in shop.unbalanced({"EUR": {"card": -5, "held": 5}})[0]


def test_a_card_charged_twice():
    placed = [Placed("k", "o", "lamp", 1, 500)]
    assert shop.charged_wrong(placed, 700, other_orders=200) == []
    assert shop.charged_wrong(placed, 1_000, other_orders=0) == ["shop: cards were charged 1000, orders cost 500"]


def test_a_cart_that_forgot():
    assert shop.cart_lost("c", {"lamp": 2}, {"lamp": 3}) == []
    assert shop.cart_lost("c", {"lamp": 2}, {"lamp": 1}) == ["shop: cart c shows 1 of lamp, 2 were put there"]


def test_two_drivers_on_a_trip_and_two_trips_on_a_driver():
    rides = RideBook()
    rides.accepted("t1", "ana")
    rides.accepted("t1", "ana")
    assert rides.check() == []
    rides.accepted("t1", "ben")
    rides.accepted("t2", "ana")
    assert len(rides.check()) == 2


def test_a_driver_may_take_the_next_trip_when_the_first_has_ended():
    rides = RideBook()
    rides.accepted("t1", "ana")
    rides.ended("t1")
    rides.accepted("t2", "ana")
    assert rides.check() == []


def test_a_promised_ride_that_is_gone():
    rides = RideBook()
    rides.unknown("t1")
    assert rides.check() == []
    rides.requested("t1")
    rides.unknown("t1")
    assert rides.check() == ["rides: t1 was promised and is gone"]


def test_bytes_of_another_segment_or_cut_short_are_wrong():
    mark = film.mark("Harbour", "360p", 1)
    assert films.wrong_bytes(b"....mdat" + mark * 9, "Harbour", "360p", 1) == []
    assert films.wrong_bytes(b"....mdat" + mark * 9, "Harbour", "360p", 2)
    assert films.wrong_bytes(b"....mdat" + mark + b"?" + mark, "Harbour", "360p", 1)
    assert films.wrong_bytes(b"", "Harbour", "360p", 1)
    assert films.unearned(403, "x") == []
    assert films.unearned(200, "x")


def test_a_message_whose_sender_was_told_is_owed_to_nobody():
    made = book()
    made.shown("m1", "bob", "bob/1")
    made.refused("m2")
    assert made.check(settled=True) == []


def test_a_cart_is_ordered_once():
    assert shop.ordered_twice(["a", "b"]) == []
    assert shop.ordered_twice(["a", "b", "a"]) == ["shop: cart a became 2 orders"]


def test_what_was_not_sold_can_be_bought_again():
    stock, sold = {"x": 10, "y": 5}, {"x": 3}
    assert shop.not_given_back({"x": 7, "y": 5, "other": 1}, stock, sold) == []
    assert shop.not_given_back({"x": 6, "y": 5}, stock, sold) == ["shop: 6 of x can be bought, 7 were not sold"]
