"""What people and programs send by mistake or on purpose: a clear answer, the right status, nothing lost, nothing charged."""

import asyncio
import re
from urllib.parse import quote, urlencode

import msgspec
import pytest
from tests.journeys.commerce.rig import ADDRESS, COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.checkout import PlaceOrder
from fourplane.edge.routes import Identity
from fourplane.foundation import ids
from fourplane.state.contracts import Statement

ONE = CommerceSettings(generated_products=2, standing_offers=False, pages=COLD)
INJECTIONS = (
    "'; DROP TABLE orders; --",
    '"><script>alert(1)</script>',
    "{{7*7}}",
    "${jndi:ldap://x}",
    "../../../../etc/passwd",
    "\u202eabc",
    "%00%0d%0aset-cookie: a=b",
    "=cmd|' /C calc'!A0",
)


def in_a_shop(body):
    async def main():
        async with shop(settings=ONE) as s:
            sku = await s.some_sku(5)
            await body(s, sku)
            await s.commerce.inventory.check()
            balances = (await s.money()).get("EUR", {"merchant": 0, "held": 0})
            orders = await s.commerce.orders._sql.read(
                "SELECT SUM(total) FROM orders WHERE state NOT IN ('failed', 'placing', 'cancelled')"
            )
            assert balances.get("merchant", 0) == (orders[0][0] or 0), "what was charged was ordered"
            assert balances.get("held", 0) == 0

    asyncio.run(main())


@pytest.mark.parametrize("quantity", [-1, 0, 1_000, 10**9, 10**30, 1.5, "1", None, True, [], {}])
def test_absurd_quantities_put_nothing_in(quantity):
    async def body(s, sku):
        cart = (await s.call("POST", "/commerce/api/carts"))[1]["id"]
        status, answer = await s.call("POST", f"/commerce/api/carts/{cart}/lines", {"sku": sku, "quantity": quantity})
        assert status == 400, answer
        assert answer["error"]["message"]
        _, view = await s.call("GET", f"/commerce/api/carts/{cart}")
        assert view["lines"] == []

    in_a_shop(body)


@pytest.mark.parametrize("quantity", ["-1", "1e3", "٣", "99999999", "", "0x10", " 1"])
def test_absurd_quantities_in_a_form_are_told_to_the_person(quantity):
    async def body(s, sku):
        form = urlencode({"sku": sku, "quantity": quantity, "operation": "op-12345678"}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "text/html"}
        answer = await s.client.request("POST", "/commerce/cart/add", body=form, headers=headers)
        assert answer.status == 400
        assert b"whole number" in answer.body
        assert b"</html>" in answer.body

    in_a_shop(body)


def test_an_unknown_currency_changes_no_price():
    async def body(s, sku):
        operator = await s.accounts.create("operator", "a long enough password", roles=("operator",))
        bearer = f"Bearer {await s.accounts.open_session(operator)}"
        for told, code in (
            ({"currency": "DOGE", "amount": 1}, "unknown_currency"),
            ({"currency": "EUR", "amount": -1}, "bad_price"),
        ):
            status, answer = await s.call("PUT", f"/commerce/api/prices/{sku}", told, authorization=bearer)
            assert (status, answer["error"]["code"]) == (400, code)
        status, _ = await s.call("PUT", f"/commerce/api/prices/{sku}", {"currency": "EUR", "amount": 100})
        assert status == 401, "prices are for operators"

    in_a_shop(body)


def test_a_price_that_changed_since_the_cart_is_told_before_it_is_charged():
    async def body(s, sku):
        cart = await s.cart_with(sku)
        _, view = await s.call("GET", f"/commerce/api/carts/{cart}?country=PT")
        seen = view["quote"]["total"]
        await s.commerce.catalog.change_price(sku, "EUR", 98_765)
        status, answer = await s.order(cart, "attempt-1", expected_total=seen)
        assert (status, answer["error"]["code"]) == (409, "price_changed")
        _, view = await s.call("GET", f"/commerce/api/carts/{cart}?country=PT")
        assert [notice["kind"] for notice in view["notices"]] == ["price_changed"]
        status, order = await s.order(cart, "attempt-2", expected_total=view["quote"]["total"])
        assert (status, order["total"]) == (201, view["quote"]["total"])

    in_a_shop(body)


def test_stock_that_went_between_two_pages_is_told_and_the_cart_stays():
    async def body(s, sku):
        mine, theirs = await s.cart_with(sku, 3), await s.cart_with(sku, 4)
        assert (await s.order(theirs, "attempt-1"))[0] == 201
        status, answer = await s.order(mine, "attempt-2")
        assert (status, answer["error"]["code"]) == (409, "out_of_stock")
        assert answer["error"]["fields"]["available"] == 1
        assert "only 1 left" in answer["error"]["message"]
        _, view = await s.call("GET", f"/commerce/api/carts/{mine}?country=PT")
        assert [line["quantity"] for line in view["lines"]] == [3]

    in_a_shop(body)


GUESSES = (
    "cart-0017",
    "1",
    "ada@example.org",
    "0" * 31,
    "0" * 33,
    "F" * 32,
    "g" * 32,
    "a" * 31 + "\n",
    "account-000000000001",
)


def test_a_cart_that_could_be_guessed_is_not_filled_shown_or_ordered():
    async def body(s, sku):
        for guess in GUESSES:
            mine = guess.startswith("account-")
            expected = (403, "not_your_cart") if mine else (400, "bad_cart_id")
            for method, rest, said in (
                ("GET", "", None),
                ("POST", "/lines?country=PT", {"sku": sku, "quantity": 1}),
                ("PUT", f"/lines/{sku}", {"quantity": 1}),
                ("DELETE", f"/lines/{sku}", None),
                ("POST", "/codes", {"code": "WELCOME"}),
                ("POST", "/orders", {"address": ADDRESS}),
            ):
                path = f"/commerce/api/carts/{quote(guess, safe='')}{rest}"
                status, answer = await s.call(method, path, said, idempotency_key="attempt-1")
                assert (status, answer["error"]["code"]) == expected, (method, path, answer)
            assert await s.commerce.carts._records.get(b"cart:" + guess.encode(), b"cart") is None

    in_a_shop(body)


def test_a_cookie_that_names_no_cart_is_no_cart():
    async def body(s, sku):
        product = (await s.commerce.catalog.page("", 1))[0]
        for cookie in (*GUESSES[:-2], GUESSES[-1], "g" * 32):
            for path in ("/commerce/", "/commerce/cart", "/commerce/search?q=a", f"/commerce/p/{product.id}"):
                headers = {"cookie": f"fp_cart={quote(cookie, safe='')}", "accept": "text/html"}
                assert (await s.client.request("GET", path, headers=headers)).status == 200, (cookie, path)

    in_a_shop(body)


def test_a_cart_is_given_out_in_the_form_the_description_tells():
    async def main():
        async with shop(settings=ONE, described=True) as s:
            told = (await s.call("GET", "/openapi.json"))[1]["components"]["schemas"]["NewCart"]["properties"]["id"]
            given = [(await s.call("POST", "/commerce/api/carts"))[1]["id"] for _ in range(20)]
            assert all(re.match(told["pattern"], cart) for cart in given)
            assert len(set(given)) == len(given)

    asyncio.run(main())


def test_the_name_of_an_accounts_cart_proves_nothing():
    async def body(s, sku):
        store, cart = s.commerce.store, "account-000000000007"
        await store.add(cart, sku, 1, operation="once", country="PT")
        order = await store.place(cart, "attempt-1", msgspec.convert({"address": ADDRESS}, PlaceOrder), account=7)
        for method, path in (("GET", ""), ("POST", "/cancel")):
            status, answer = await s.call(method, f"/commerce/api/orders/{order.id}{path}", x_cart=cart)
            assert (status, answer["error"]["code"]) == (404, "no_such_order")
        answer = await s.client.request("GET", f"/commerce/orders/{order.id}", headers={"cookie": f"fp_cart={cart}"})
        assert answer.status == 404
        assert (await store.order(order.id, "", Identity(7, "ada"))).id == order.id

    in_a_shop(body)


def test_a_hold_that_waited_too_long_is_counted_and_settled_not_sold_twice():
    from fourplane.commerce.inventory import HoldRequest, Wanted
    from fourplane.service.participants import Transaction

    async def body(s, sku):
        inventory = s.commerce.inventory
        shard = inventory.shards[inventory.shard_of(sku)]
        lost = Transaction(s.commerce.coordinator._ids.next(), "commerce", s.commerce.coordinator.epoch)
        await shard.prepare(lost, HoldRequest([Wanted(sku, 5)], "europe"))
        await shard._sql.commit([Statement("UPDATE holds SET expires_us = 1")])
        assert await shard.overdue() > 0
        status, answer = await s.order(await s.cart_with(sku), "attempt-1")
        assert (status, answer["error"]["code"]) == (409, "out_of_stock")
        assert await s.commerce.coordinator.resolve() == 0  # seen once
        assert await s.commerce.coordinator.resolve() == 1  # and let go
        assert await shard.overdue() == 0
        cart = await s.cart_with(sku, 5)
        assert (await s.order(cart, "attempt-2"))[0] == 201

    in_a_shop(body)


def test_another_country_shows_its_own_price_and_calls_none_of_them_new():
    async def body(s, sku):
        cart = await s.cart_with(sku)
        for country in ("US", "GB", "DE"):
            _, view = await s.call("GET", f"/commerce/api/carts/{cart}?country={country}")
            assert view["notices"] == [], country
        product = await s.commerce.catalog.find_by_sku(sku)
        await s.commerce.catalog.change_price(sku, "EUR", product.variant(sku).prices["USD"])
        _, view = await s.call("GET", f"/commerce/api/carts/{cart}?country=PT")
        assert [notice["kind"] for notice in view["notices"]] == ["price_changed"], "also to what it costs elsewhere"

    in_a_shop(body)


def test_what_is_wrong_with_an_address_stands_field_by_field():
    async def body(s, sku):
        cart = await s.cart_with(sku)
        status, answer = await s.order(cart, "attempt-1", address=ADDRESS | {"name": "", "email": "nobody"})
        assert (status, answer["error"]["code"]) == (400, "bad_address")
        assert answer["error"]["fields"] == {
            "name": "between 2 and 80 characters, please",
            "email": "please enter an e-mail address",
        }

    in_a_shop(body)


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        ("card_declined", 402, "card_declined"),
        ("card_expired", 402, "card_declined"),
        ("card_failing", 503, "payment_unavailable"),
        ("gold", 400, "bad_method"),
        ("", 400, "bad_method"),
    ],
)
def test_a_card_that_says_no_charges_nothing_and_another_may_be_tried(method, status, code):
    async def body(s, sku):
        cart = await s.cart_with(sku)
        got, answer = await s.order(cart, "attempt-1", method=method)
        assert (got, answer["error"]["code"]) == (status, code)
        assert await s.commerce.inventory.available(sku) == 5
        assert (await s.order(cart, "attempt-2"))[0] == 201

    in_a_shop(body)


def test_the_same_submission_is_one_order_also_with_another_body():
    async def body(s, sku):
        cart = await s.cart_with(sku)
        first = await s.order(cart, "attempt-1")
        again = await s.order(cart, "attempt-1", method="card_declined")
        assert first[0] == again[0] == 201
        assert first[1]["id"] == again[1]["id"]
        other = await s.order(cart, "attempt-2")
        assert (other[0], other[1]["error"]["code"]) in ((409, "already_ordered"), (400, "empty_cart"))

    in_a_shop(body)


@pytest.mark.parametrize("words", INJECTIONS)
def test_injections_are_words_in_every_field(words):
    async def body(s, sku):
        cart = await s.cart_with(sku)
        for field in ADDRESS:
            status, answer = await s.order(cart, f"attempt-{field}", address=ADDRESS | {field: words})
            if status == 201:  # a person may be called so; then it is shown as text
                page = await s.client.request(
                    "GET", f"/commerce/orders/{answer['id']}", headers={"cookie": f"fp_cart={cart}"}
                )
                assert b"<script>alert" not in page.body
                cart = await s.cart_with(sku)
                await s.set_stock(sku, 5)
            else:
                assert status == 400, answer
        for path in (
            f"/commerce/api/products/{quote(words, safe='')}",
            f"/commerce/api/stock/{quote(words, safe='')}",
            f"/commerce/api/orders/{quote(words, safe='')}",
            f"/commerce/p/{quote(words, safe='')}",
            f"/commerce/api/products?q={quote(words)}&sort={quote(words)}",
            f"/commerce/api/products?cursor={quote(words)}",
            f"/commerce/media/{quote(words, safe='')}/480.jpg",
            f"/commerce/search?q={quote(words)}&color={quote(words)}",
            f"/commerce/api/suggestions?q={quote(words)}",
        ):
            answer = await s.client.request("GET", path)
            assert answer.status < 500, path
            if answer.headers.get("content-type", "").startswith("text/html"):
                assert b"<script>alert" not in answer.body
            assert "a=b" not in answer.headers.get("set-cookie", "")
        status, _ = await s.call("POST", f"/commerce/api/carts/{cart}/codes", {"code": words[:30]})
        assert status < 500
        status, _ = await s.call(
            "POST", f"/commerce/api/carts/{quote(words, safe='')}/lines", {"sku": words, "quantity": 1}
        )
        assert 400 <= status < 500

    in_a_shop(body)


@pytest.mark.parametrize(
    "order", ["order_0000000000000", "order_zzzzzzzzzzzzz", "order_", "pay_0000000000001", "0", "%00"]
)
def test_orders_that_are_none_of_mine_are_not_found(order):
    async def body(s, sku):
        assert (await s.call("GET", f"/commerce/api/orders/{order}"))[0] == 404
        assert (await s.call("POST", f"/commerce/api/orders/{order}/cancel"))[0] == 404

    in_a_shop(body)


def test_an_order_that_was_sent_cannot_be_cancelled():
    async def body(s, sku):
        cart = await s.cart_with(sku)
        _, made = await s.order(cart, "attempt-1")
        number = ids.decode("order", made["id"])
        for state in ("packed", "shipped"):
            await s.commerce.orders.advance(number, state, "newark FP1")
        status, answer = await s.call("POST", f"/commerce/api/orders/{made['id']}/cancel", x_cart=cart)
        assert (status, answer["error"]["code"]) == (409, "wrong_state")

    in_a_shop(body)


def test_a_code_for_each_buyers_first_order_is_used_once_per_buyer_in_a_race():
    from fourplane.commerce.promotions import Promotion

    async def body(s, sku):
        await s.set_stock(sku, 50)
        rule = Promotion("first", "First order", "order_percent", percent=10, code="FIRST", uses_per_buyer=1)
        await s.commerce.promotions.put(rule)

        async def buy(number, email):
            cart = await s.cart_with(sku)
            await s.call("POST", f"/commerce/api/carts/{cart}/codes", {"code": "first"})
            return await s.order(cart, f"attempt-{number}", address=ADDRESS | {"email": email})

        mine = await asyncio.gather(*(buy(number, "Ada@example.org") for number in range(6)))
        assert sorted(status for status, _ in mine) == [201, 409, 409, 409, 409, 409]
        refused = next(answer for status, answer in mine if status == 409)
        assert refused["error"]["message"] == "you have used the code FIRST already"
        assert (await buy(7, "grace@example.org"))[0] == 201
        made = next(answer for status, answer in mine if status == 201)
        cancelled = await s.commerce.orders.fetch(ids.decode("order", made["id"]))
        await s.commerce.store.cancel(made["id"], cancelled.cart, None)
        assert (await buy(8, "ada@example.org"))[0] == 201, "a cancelled order gives the code back"

    in_a_shop(body)
