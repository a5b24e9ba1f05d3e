"""A shop behind a real listener: browsers and programs buy, and nobody gets what is not there."""

import asyncio
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.journeys.commerce.rig import ADDRESS, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.commerce.promotions import Promotion
from fourplane.commerce.shipping import ShippingSettings

CHROMIUM = shutil.which("chromium") or ""


def test_200_buyers_race_for_10_pieces_and_10_orders_result() -> None:
    async def main() -> None:
        async with shop() as s:
            sku = await s.some_sku(10)
            carts = await asyncio.gather(*(s.cart_with(sku) for _ in range(200)))
            answers = await asyncio.gather(*(s.order(cart, f"attempt-{n}") for n, cart in enumerate(carts)))
            statuses = [status for status, _ in answers]
            assert statuses.count(201) == 10
            assert {body["error"]["code"] for status, body in answers if status != 201} == {"out_of_stock"}
            assert await s.commerce.inventory.available(sku) == 0
            await s.commerce.inventory.check()
            total = sum(body["total"] for status, body in answers if status == 201)
            assert (await s.money())["EUR"] == {"card": -total, "held": 0, "merchant": total}

    asyncio.run(main())


def test_an_attempt_sent_again_and_at_once_is_one_order() -> None:
    async def main() -> None:
        async with shop() as s:
            cart = await s.cart_with(await s.some_sku(5))
            answers = await asyncio.gather(*(s.order(cart, "attempt-1") for _ in range(20)))
            later = await s.order(cart, "attempt-1")
            assert {status for status, _ in [*answers, later]} == {201}
            assert len({body["id"] for _, body in [*answers, later]}) == 1
            assert s.commerce.statistics().placed == 1

    asyncio.run(main())


def test_two_tabs_cannot_buy_the_same_cart_twice() -> None:
    async def main() -> None:
        async with shop() as s:
            cart = await s.cart_with(await s.some_sku(5), 2)
            answers = await asyncio.gather(*(s.order(cart, f"attempt-{n}", method="card_slow") for n in range(5)))
            assert sorted(status for status, _ in answers) == [201, 409, 409, 409, 409]
            assert sum(await asyncio.gather(*(shard.available("x") for shard in s.commerce.inventory.shards))) == 0
            assert s.commerce.statistics().sold == 2
            await s.commerce.inventory.check()

    asyncio.run(main())


def test_a_declined_card_charges_nothing_frees_the_stock_and_can_be_tried_again() -> None:
    async def main() -> None:
        async with shop() as s:
            sku = await s.some_sku(3)
            cart = await s.cart_with(sku, 3)
            status, body = await s.order(cart, "attempt-1", method="card_declined")
            assert (status, body["error"]["code"]) == (402, "card_declined")
            assert await s.commerce.inventory.available(sku) == 3
            status, body = await s.order(cart, "attempt-1")
            assert (status, body["error"]["code"]) == (402, "card_declined"), "the same attempt hears the same answer"
            status, _ = await s.order(cart, "attempt-2")
            assert status == 201
            await s.commerce.inventory.check()

    asyncio.run(main())


def test_a_limited_code_is_used_as_often_as_allowed_in_a_race() -> None:
    async def main() -> None:
        async with shop() as s:
            rule = Promotion("p", "Five off", "order_fixed", amounts={"EUR": 50}, code="FIVE", uses_max=5)
            await s.commerce.promotions.put(rule)
            sku = await s.some_sku(100)
            carts = await asyncio.gather(*(s.cart_with(sku) for _ in range(30)))
            for cart in carts:
                await s.call("POST", f"/commerce/api/carts/{cart}/codes", {"code": "five"})
            answers = await asyncio.gather(*(s.order(cart, f"attempt-{n}") for n, cart in enumerate(carts)))
            assert [status for status, _ in answers].count(201) == 5
            assert {body["error"]["code"] for status, body in answers if status != 201} == {"code_used_up"}
            assert await s.commerce.promotions.uses("FIVE") == 5

    asyncio.run(main())


def test_a_cancelled_order_is_refunded_and_restocked_once() -> None:
    async def main() -> None:
        async with shop() as s:
            sku = await s.some_sku(2)
            cart = await s.cart_with(sku, 2)
            _, order = await s.order(cart, "attempt-1")
            for _ in range(2):
                status, body = await s.call("POST", f"/commerce/api/orders/{order['id']}/cancel", x_cart=cart)
                assert (status, body["state"]) == (200, "cancelled")
            assert await s.commerce.inventory.available(sku) == 2
            await s.commerce.inventory.check()
            assert set((await s.money())["EUR"].values()) == {0}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"sku": "none"}, 404, "no_such_sku"),
        ({"sku": "SKU", "quantity": -1}, 400, "bad_quantity"),
        ({"sku": "SKU", "quantity": 0}, 400, "bad_quantity"),
        ({"sku": "SKU", "quantity": 10**9}, 400, "bad_quantity"),
        ({"sku": "SKU", "quantity": 10**40}, 400, ""),
        ({"sku": "SKU", "quantity": "2"}, 400, ""),
        ({"sku": "x' OR 1=1 --"}, 404, "no_such_sku"),
        ({"sku": "SKU", "surprise": 1}, 400, ""),
    ],
)
def test_a_wrong_line_is_refused_clearly(body: dict[str, object], status: int, code: str) -> None:
    async def main() -> None:
        async with shop() as s:
            sku = await s.some_sku(5)
            cart = (await s.call("POST", "/commerce/api/carts"))[1]["id"]
            sent = {key: sku if value == "SKU" else value for key, value in body.items()}
            got, answer = await s.call("POST", f"/commerce/api/carts/{cart}/lines", sent)
            assert got == status, answer
            assert code in answer["error"]["code"]

    asyncio.run(main())


def test_hostile_words_in_every_field_are_only_words() -> None:
    async def main() -> None:
        async with shop() as s:
            for words in (
                '"',
                "a AND (",
                "*",
                "' OR 1=1 --",
                "<script>alert(1)</script>",
                "title:x^9",
                "\\",
                "é" * 100,
            ):
                answer = await s.client.request("GET", f"/commerce/search?q={quote(words)}")
                assert answer.status == 200
                assert b"<script>alert" not in answer.body
            cart = await s.cart_with(await s.some_sku(5))
            bad = ADDRESS | {"name": "<script>alert(1)</script>"}
            status, body = await s.order(cart, "attempt-1", address=bad)
            assert (status, body["error"]["code"]) == (400, "bad_address")
            status, body = await s.order(cart, "attempt-2", address=ADDRESS | {"country": "XX"})
            assert (status, body["error"]["code"]) == (400, "unknown_country")
            status, body = await s.order(cart, "attempt-3", method="gold")
            assert (status, body["error"]["code"]) == (400, "bad_method")
            status, body = await s.order(cart, "attempt-4", expected_total=1)
            assert (status, body["error"]["code"]) == (409, "price_changed")
            status, body = await s.order(cart, "x")
            assert (status, body["error"]["code"]) == (400, "bad_key")
            assert s.commerce.statistics().placed == 0

    asyncio.run(main())


def test_a_stranger_sees_no_order_of_mine() -> None:
    async def main() -> None:
        async with shop() as s:
            cart = await s.cart_with(await s.some_sku(5))
            _, order = await s.order(cart, "attempt-1")
            assert (await s.call("GET", f"/commerce/api/orders/{order['id']}"))[0] == 404
            assert (await s.call("GET", f"/commerce/api/orders/{order['id']}", x_cart="f" * 32))[0] == 404
            assert (await s.call("GET", f"/commerce/api/orders/{order['id']}", x_cart=cart))[0] == 200

    asyncio.run(main())


@pytest.mark.parametrize("box", ["search", "inventory", "cart", "payment", "shipping", "order"])
def test_pages_answer_while_a_dependency_is_stopped(box: str) -> None:
    async def main() -> None:
        async with shop() as s:
            sku = await s.some_sku(5)
            product = await s.commerce.catalog.find_by_sku(sku)
            assert product is not None
            cart = await s.cart_with(sku)
            getattr(s.commerce.store.boxes, box).switch.on = False
            for path in ("/commerce/", "/commerce/search?q=lamp", f"/commerce/p/{product.id}"):
                assert (await s.client.request("GET", path)).status == 200, path
            status, body = await s.order(cart, "attempt-1")
            assert status == (201 if box in ("search", "cart") else 503), body
            getattr(s.commerce.store.boxes, box).switch.on = True
            assert (await s.order(cart, "attempt-1"))[0] == 201

    asyncio.run(main())


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_a_browser_buys_with_javascript_and_without(tmp_path: Path) -> None:
    from playwright.async_api import async_playwright

    async def main() -> None:
        quick = CommerceSettings(
            generated_products=40,
            fulfilment=FulfilmentSettings(pass_s=0.1, pack_s=0.0, ship_s=0.0),
            shipping=ShippingSettings(hour_s=0.005),
        )
        async with shop(data=tmp_path, settings=quick) as s, async_playwright() as p:
            browser = await p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for javascript in (True, False):
                await buy(s, browser, javascript=javascript)
            assert s.commerce.statistics().placed == 2
            await browser.close()

    asyncio.run(main())


async def losing(page) -> list[str]:
    """The first answer to an addition and to an order gets lost on its way, after the shop has done both."""
    lost: list[str] = []

    async def cut(route) -> None:
        name = route.request.url.partition("?")[0].rpartition("/")[2]
        if route.request.method != "POST" or name in lost:
            await route.continue_()
            return
        answer = await route.fetch(max_redirects=0)
        assert answer.status in (200, 303)
        lost.append(name)
        await route.abort("connectionreset")

    await page.route("**/lines?*", cut)
    await page.route("**/commerce/checkout", cut)
    return lost


async def buy(s, browser, *, javascript: bool) -> None:
    context = await browser.new_context(java_script_enabled=javascript, viewport={"width": 390, "height": 844})
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    lost = await losing(page) if javascript else []
    await page.goto(f"http://127.0.0.1:{s.server.port}/commerce/")
    await page.locator(".product h3 a").first.click()
    await page.get_by_role("button", name="Add to cart").click()
    if javascript:
        await page.get_by_role("link", name="View cart").click()
    await page.get_by_role("link", name="Checkout").click()
    for field, value in ADDRESS.items():
        if field != "country":
            await page.fill(f"input[name={field}]", value)
    await page.locator("#place").click()
    await page.wait_for_selector("#order-id")
    assert "1 x " in await page.inner_text(".mini"), "what was sent again counted once"
    assert lost == (["lines", "checkout"] if javascript else [])
    headline = await page.inner_text("h1")
    assert "Thank you" in headline or "Your order is" in headline  # packed already, on a quick machine
    assert await page.inner_text("#cart-count") == "0"
    for _ in range(100):  # the parcel is followed to its door
        await page.reload()
        if "Out for delivery" in await page.inner_text(".history"):
            break
    assert "sorting centre" in await page.inner_text(".history")
    assert "tracking number FP" in await page.inner_text("main")
    assert faults == []
    await context.close()
