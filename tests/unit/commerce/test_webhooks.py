"""Webhooks: told with the commit, signed, tried again, and nobody else can send them."""

import asyncio

import msgspec
import pytest
from tests.journeys.commerce.rig import COLD, shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.webhooks import WebhookSettings, sign, verify
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.routes import Reply, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected, Unauthenticated
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "bad_signature"),
        ("t=1000", "bad_signature"),
        ("v1=00", "bad_signature"),
        ("t=x,v1=00", "bad_signature"),
        (sign("other", b"body", 1_000), "bad_signature"),
        (sign("secret", b"other", 1_000), "bad_signature"),
        (sign("secret", b"body", 600), "stale_signature"),
    ],
)
def test_a_forged_or_replayed_delivery_is_refused(header: str, code: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        verify("secret", header, b"body", 1_000)
    assert refusal.value.reason == code


def test_a_fresh_signature_is_accepted() -> None:
    verify("secret", sign("secret", b"body", 900), b"body", 1_000)


@pytest.mark.parametrize(
    "url", ["", "ftp://x/", "http://", "http://user@host/", "http://h:99999/", "http://h/ x", "x" * 600]
)
def test_only_plain_http_addresses_can_listen(url: str) -> None:
    async def main() -> None:
        async with shop() as s:
            with pytest.raises(Rejected):
                await s.commerce.webhooks.register(url)

    asyncio.run(main())


def test_an_order_is_told_signed_and_again_until_it_is_heard() -> None:
    heard: list[tuple[bytes, str]] = []
    statuses = [500, 200, 200]

    async def hook(call):
        heard.append((call.body, call.headers["fourplane-signature"]))
        return Reply(status=statuses[len(heard) - 1])

    async def main() -> None:
        registry = Registry()
        quiet = CommerceSettings(generated_products=2, pages=COLD, webhooks=WebhookSettings(poll_s=3_600))
        async with shop(settings=quiet) as s:
            route = Route("POST", "/hook", hook, "hear", body=bytes)
            gateway = Gateway([route], s.accounts, registry=registry, settings=GatewaySettings(hosts=("*",)))
            server = HttpServer(
                HttpServerSettings(listener=ListenerSettings(host="127.0.0.1", port=0)), gateway, registry=registry
            )
            life = Lifecycle(registry)
            life.add("hook", server)
            await life.start()
            endpoint = await s.commerce.webhooks.register(f"http://127.0.0.1:{server.port}/hook")
            assert s.commerce.webhooks.endpoints()[0].secret == ""
            cart = await s.cart_with(await s.some_sku(5))
            _, order = await s.order(cart, "attempt-1")
            await s.commerce.webhooks.deliver()
            assert (len(heard), s.commerce.webhooks.failed) == (1, 1)
            await s.commerce.webhooks._sql.commit([_due_now()])
            await s.commerce.webhooks.deliver()
            assert s.commerce.webhooks.delivered == 1
            assert heard[0][0] == heard[1][0], "the same delivery has the same id"
            told = msgspec.json.decode(heard[1][0])
            assert (told["event"], told["order"]) == ("order.paid", order["id"])
            verify(endpoint.secret, heard[1][1], heard[1][0], clock.now_us() // 1_000_000)
            assert await s.commerce.webhooks.deliver() == 0
            await life.stop()
            gateway.close()

    asyncio.run(main())


def _due_now():
    from fourplane.state.contracts import Statement

    return Statement("UPDATE webhook_deliveries SET due_us = 0")
