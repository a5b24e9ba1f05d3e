"""Lists for crawlers: rendered once for all who ask, soon anew, at most so late, bounded."""

import asyncio

import pytest
from tests.journeys.commerce.rig import shop

from fourplane.commerce.app import CommerceSettings
from fourplane.commerce.sitemap import Sitemap, SitemapSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import Unavailable

HOST = "shop.example"


class Still(clock.MachineSource):
    """A clock that goes on when told."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic_s(self):
        return self.now


class Names:
    """A catalog of ids; it can be away, and it can be held."""

    def __init__(self, *names):
        self.names, self.asked, self.away, self.held = list(names), 0, False, None

    async def ids(self, after, limit):
        self.asked += 1
        if self.held is not None:
            await self.held.wait()
        if self.away:
            raise Unavailable("the catalog is away")
        return [name for name in sorted(self.names) if name > after][:limit]


def told(one):
    return [line.rpartition("/")[2] for line in one.body.decode().split()]


def test_a_list_is_rendered_once_then_anew_and_never_later_than_allowed():
    async def main(still):
        names = Names("a", "b")
        lists = Sitemap(names.ids, SitemapSettings(fresh_s=10.0, late_s_max=60.0))
        first = await lists.find("", HOST)
        assert told(first) == ["a", "b"]
        assert first.body.startswith(b"http://shop.example/commerce/p/a\n")
        names.names.append("c")
        still.now += 10.0
        assert await lists.find("", HOST) is first
        assert names.asked == 1
        still.now += 0.1
        again = await lists.find("", HOST)
        assert told(again) == ["a", "b", "c"], "who asks first past that renders it anew"
        assert again.tag != first.tag
        names.away = True
        still.now += 60.0
        assert await lists.find("", HOST) is again, "an old one is better than none"
        still.now += 0.1
        with pytest.raises(Unavailable):
            await lists.find("", HOST)
        names.away = False
        assert told(await lists.find("b", HOST)) == ["c"]

    with clock.installed(Still()) as still:
        asyncio.run(main(still))


def test_many_who_ask_at_once_share_one_rendering_and_nobody_waits_where_an_old_one_is_there():
    async def main(still):
        names = Names("a")
        names.held = asyncio.Event()
        lists = Sitemap(names.ids)
        crowd = [asyncio.ensure_future(lists.find("", HOST)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        crowd[3].cancel()  # one of those who only wait
        names.held.set()
        found = await asyncio.gather(*crowd, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in found] == [at == 3 for at in range(20)]
        assert names.asked == lists.made == 1
        still.now += 20.0
        names.held = asyncio.Event()
        renewing = asyncio.ensure_future(lists.find("", HOST))
        await asyncio.sleep(0)
        assert await lists.find("", HOST) is found[0]
        assert not renewing.done()
        names.held.set()
        assert (await renewing).made_s == still.now
        assert names.asked == 2

    with clock.installed(Still()) as still:
        asyncio.run(main(still))


def test_lists_are_bounded_in_count_and_bytes():
    async def main():
        names = Names(*(f"{number:03}" for number in range(100)))
        few = Sitemap(names.ids, SitemapSettings(lists_max=3))
        for after in ("000", "010", "020", "030", "030", "010"):
            await few.find(after, HOST)
        assert few.made == 4
        await few.find("000", HOST)
        assert few.made == 5, "what was asked for least recently is forgotten"
        size = len((await few.find("010", HOST)).body)
        small = Sitemap(names.ids, SitemapSettings(bytes_max=2 * size))
        for host in ("shop.example", "shop.invalid", "shop.example", "shop.invalid"):
            assert f"http://{host}/".encode() in (await small.find("010", host)).body
        assert small.made == 2
        await small.find("", HOST)
        await small.find("010", "shop.invalid")
        assert small.made == 4

    asyncio.run(main())


def test_a_crawler_that_knows_the_list_is_told_that_it_is_the_same():
    async def main():
        async with shop(settings=CommerceSettings(generated_products=4)) as s:
            first = await s.client.request("GET", "/commerce/sitemap.txt")
            known = {"if-none-match": first.headers["etag"]}
            same = await s.client.request("GET", "/commerce/sitemap.txt", headers=known)
            rest = await s.client.request("GET", "/commerce/sitemap.txt?after=zz", headers=known)
            return first, same, rest

    first, same, rest = asyncio.run(main())
    assert (first.status, same.status, same.body) == (200, 304, b"")
    assert same.headers["etag"] == first.headers["etag"]
    assert first.headers["cache-control"] == "public, max-age=10"
    assert (rest.status, rest.body) == (200, b"")
