"""Kept pages: shared by visitors without a cart, renewed by one, dropped when stock runs low, better than an error."""

import asyncio
import gzip

from tests.journeys.commerce.rig import shop

from fourplane.commerce.page_cache import PageCache, PageCacheSettings
from fourplane.edge.http_request import HttpRequest
from fourplane.foundation import clock


class Still(clock.MachineSource):
    now = 0.0

    def monotonic_s(self) -> float:
        return self.now


def asked(path: bytes, *headers: tuple[bytes, bytes], query: bytes = b"") -> HttpRequest:
    request = HttpRequest("test")
    request.path, request.query, request.fields = path, query, list(headers)
    return request


def test_a_kept_page_is_for_visitors_without_cookies_or_queries() -> None:
    cache = PageCache(PageCacheSettings())
    cache.keep("/p/1", b"<h1>")
    assert cache.hot(asked(b"/p/1")).endswith(b"<h1>")
    assert cache.hot(asked(b"/p/1", (b"cookie", b"fp_cart=1"))) is None
    assert cache.hot(asked(b"/p/1", (b"authorization", b"Bearer x"))) is None
    assert cache.hot(asked(b"/p/1", query=b"a=1")) is None
    assert cache.hot(asked(b"/p/2")) is None


def test_an_old_page_is_still_sent_and_renewed_behind_everybodys_back() -> None:
    source = Still()
    with clock.installed(source):
        cache = PageCache(PageCacheSettings(fresh_s=5, stale_s=60))
        cache.keep("/p/1", b"old")
        source.now = 6.1
        assert cache.hot(asked(b"/p/1")).endswith(b"old")
        assert cache.hot(asked(b"/p/1")).endswith(b"old")
        assert cache.take_due(8) == ["/p/1"]
        assert cache.take_due(8) == []
        cache.keep("/p/1", b"new")
        assert cache.hot(asked(b"/p/1")).endswith(b"new")
        source.now = 100.0
        assert cache.hot(asked(b"/p/1")) is None
        assert cache.find_stale("/p/1") is None


def test_pages_kept_together_do_not_grow_old_together() -> None:
    source = Still()
    with clock.installed(source):
        cache = PageCache(PageCacheSettings(fresh_s=5, stale_s=60))
        for number in range(200):
            cache.keep(f"/p/{number}", b"page")
        source.now = 5.0
        for number in range(200):
            cache.hot(asked(b"/p/%d" % number))
        assert 20 < len(cache.take_due(1_000)) < 180


def test_a_page_whose_rendering_fails_is_sent_and_tried_again() -> None:
    source = Still()
    with clock.installed(source):
        cache = PageCache(PageCacheSettings(fresh_s=5, stale_s=60))
        cache.keep("/p/1", b"old")
        source.now = 7.0
        for _ in range(3):
            assert cache.hot(asked(b"/p/1")).endswith(b"old")
            assert cache.take_due(8) == ["/p/1"]


def test_a_validator_saves_the_body_and_the_bound_holds() -> None:
    cache = PageCache(PageCacheSettings(pages_max=2, page_bytes_max=100))
    cache.keep("/p/1", b"page")
    tag = cache.hot(asked(b"/p/1")).partition(b"etag: ")[2].partition(b"\r\n")[0]
    assert cache.hot(asked(b"/p/1", (b"if-none-match", tag))).startswith(b"HTTP/1.1 304")
    cache.keep("/p/large", b"x" * 101)
    for number in range(2, 5):
        cache.keep(f"/p/{number}", b"page")
    assert cache.statistics().pages == 2


def test_the_shop_keeps_a_page_drops_it_when_few_are_left_and_serves_it_when_all_else_is_away() -> None:
    async def main() -> None:
        async with shop() as s:
            for method, path, handler in s.commerce.hot_routes():
                s.server.hot(method, path, handler)
            sku = await s.some_sku(20)
            product = await s.commerce.catalog.find_by_sku(sku)
            path = f"/commerce/p/{product.id}"
            first = await s.client.request("GET", path)
            again = await s.client.request("GET", path)
            assert first.body == again.body
            assert "etag" in again.headers
            assert "set-cookie" not in again.headers
            s.commerce.store.boxes.catalog.switch.on = False
            with_cart = await s.client.request("GET", path, headers={"cookie": f"fp_cart={'a' * 32}"})
            assert (with_cart.status, with_cart.body) == (200, first.body), "a static fallback instead of an error"
            assert "warning" in with_cart.headers
            s.commerce.store.boxes.catalog.switch.on = True
            cart = await s.cart_with(sku, 15)
            assert (await s.order(cart, "attempt-1"))[0] == 201
            for product_id in await s.commerce.checkout.tell_stock():
                s.commerce.pages.drop([f"/commerce/p/{product_id}"])
            assert b"Only 5 left" in (await s.client.request("GET", path)).body

    asyncio.run(main())


def test_who_takes_gzip_gets_the_twin_with_a_validator_of_its_own() -> None:
    cache = PageCache(PageCacheSettings())
    page = b"<p>the same again</p>" * 200
    cache.keep("/p/1", page)
    [(path, body)] = cache.take_plain(8)
    assert (path, body, cache.take_plain(8)) == ("/p/1", page, [])
    cache.pack(path, body, gzip.compress(body))
    plain = cache.hot(asked(b"/p/1"))
    packed = cache.hot(asked(b"/p/1", (b"accept-encoding", b"br, GZIP")))
    assert b"content-encoding: gzip" in packed
    assert gzip.decompress(packed.partition(b"\r\n\r\n")[2]) == page
    assert len(packed) < len(plain) / 5
    for one in (plain, packed):
        assert b"vary: cookie, accept-encoding" in one
    tags = [one.partition(b"etag: ")[2].partition(b"\r\n")[0] for one in (plain, packed)]
    assert tags[0] != tags[1]
    again = cache.hot(asked(b"/p/1", (b"accept-encoding", b"gzip"), (b"if-none-match", tags[1])))
    assert again.startswith(b"HTTP/1.1 304")
    refused = cache.hot(asked(b"/p/1", (b"accept-encoding", b"gzip; q=0, br")))
    assert refused.endswith(page)


def test_a_twin_of_a_page_that_has_changed_meanwhile_is_not_kept() -> None:
    cache = PageCache(PageCacheSettings())
    cache.keep("/p/1", b"old" * 500)
    [(path, body)] = cache.take_plain(8)
    cache.keep("/p/1", b"new" * 500)
    cache.pack(path, body, gzip.compress(body))
    assert cache.hot(asked(b"/p/1", (b"accept-encoding", b"gzip"))).endswith(b"new")
