"""What a page sends again: bounded, with pauses, only what is safe; and what the shop is asked about afterwards."""

from fourplane.edge.http_client import HttpResponse
from fourplane.foundation import clock
from fourplane.foundation.errors import DeadlineExceeded, Unavailable
from fourplane.simulator import loop as simulated
from fourplane.simulator.crowds import Tally, Target
from fourplane.simulator.crowds import commerce as crowd
from fourplane.simulator.crowds.again import PATIENCE_S, Again

CUT = Unavailable("cut", code="no_answer")
AWAY = HttpResponse(503, {"retry-after": "1"}, b"")
OVER = HttpResponse(503, {}, b"")
ORDERED = HttpResponse(201, {}, b'{"id": "order_1", "total": 100, "currency": "EUR", "quote": {"lines": []}}')


class Shop:
    """A client whose answers are given; it keeps what it was sent."""

    def __init__(self, *answers):
        self.answers, self.sent = list(answers), []

    async def request(self, method, path, *, headers=None, **_):
        self.sent.append((method, path, headers.get("idempotency-key"), clock.monotonic_s()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        pass


def asked(shop, method="POST", *, key="k", headers=None):
    async def main(_world):
        tally = Tally()
        ours = crowd.CommerceCrowd()
        answer = await ours._ask(shop, tally, "an action", method, "/commerce/api/x", headers=headers, key=key)
        return answer, tally

    return simulated.run(main, 1).result


def test_a_cut_request_with_a_key_is_sent_again_with_the_same_key_and_is_no_error():
    shop = Shop(CUT, AWAY, ORDERED)
    answer, tally = asked(shop)
    assert answer is ORDERED
    assert tally.errors == {}
    assert tally.facts["asked_again"] == 1
    assert [key for _, _, key, _ in shop.sent] == ["k", "k", "k"]
    assert shop.sent[2][3] - shop.sent[1][3] > 0.99, "Retry-After is waited for"


def test_patience_ends_and_the_person_sees_one_error():
    shop = Shop(CUT)
    answer, tally = asked(shop)
    assert answer is None
    assert tally.errors == {"no_answer": 1}
    assert shop.sent[-1][3] - shop.sent[0][3] <= PATIENCE_S
    assert 4 <= len(shop.sent) <= 12


def test_what_is_not_safe_to_send_twice_is_an_error_at_once():
    for shop, options in (
        (Shop(CUT), {"key": ""}),
        (Shop(CUT), {"method": "GET", "key": "", "headers": crowd.PAGE}),
        (Shop(OVER), {}),
        (Shop(DeadlineExceeded("late")), {}),
    ):
        _, tally = asked(shop, **options)
        assert sum(tally.errors.values()) == 1
        assert len(shop.sent) == 1


def test_those_who_failed_together_do_not_come_back_together():
    async def main(_world):
        pauses = []
        for _ in range(20):
            began_s = clock.monotonic_s()
            assert await Again().after_error(CUT)
            pauses.append(clock.monotonic_s() - began_s)
        return pauses

    assert len(set(simulated.run(main, 1).result)) == 20


def test_an_order_that_is_gone_or_became_another_is_found(monkeypatch):
    async def main(_world):
        found = {}
        for name, *answers in (
            ("kept", HttpResponse(200, {}, b""), ORDERED),
            ("lost", HttpResponse(404, {}, b""), ORDERED),
            ("doubled", HttpResponse(200, {}, b""), HttpResponse(201, {}, ORDERED.body.replace(b"_1", b"_2"))),
        ):
            shop, ours = Shop(*answers), crowd.CommerceCrowd()
            monkeypatch.setattr(crowd, "HttpClient", lambda *_, shop=shop: shop)
            ours._attempts.append(crowd.Attempt("cart", {}))
            ours._attempts[0].order = "order_1"
            found[name] = await ours.audit(Target())
        return found

    found = simulated.run(main, 1).result
    assert found["kept"] == (1, [])
    assert "cannot be seen" in found["lost"][1][0]
    assert "asked for again is order_2" in found["doubled"][1][0]
