"""Lists of addresses for crawlers, kept as they are sent.

Crawlers ask for the same few lists again and again, and a list is a thousand addresses: reading and writing one holds the
loop as long as several orders do. So each is rendered once and kept with its validator, by its cursor and by the host that
is asked. Past `fresh_s` whoever asks first renders it anew and all others get the kept one meanwhile, as does everybody
while that fails; nobody gets one older than `late_s_max`. That is how late a crawler may hear of a product at most.

Invariants: at most `lists_max` lists and `bytes_max` bytes are kept, those asked for least recently go first; a list is rendered
once at a time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b

import msgspec

from fourplane.commerce import pages
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Unavailable

ADDRESSES = 1_000  # a list
Ids = Callable[[str, int], Awaitable[list[str]]]


class SitemapSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is kept, and for how long."""

    lists_max: int = 256
    bytes_max: int = 16 << 20
    fresh_s: float = 10.0
    late_s_max: float = 60.0


class SitemapList(msgspec.Struct, frozen=True):
    """One list as it is sent."""

    body: bytes
    tag: str
    made_s: float


class Sitemap:
    """The lists over `ids(after, limit)`, which tells ids in their order behind one."""

    def __init__(self, ids: Ids, settings: SitemapSettings | None = None) -> None:
        self._ids = ids
        self._settings = settings or SitemapSettings()
        self._lists: OrderedDict[tuple[str, str], SitemapList] = OrderedDict()
        self._making: dict[tuple[str, str], asyncio.Future[SitemapList]] = {}
        self._bytes = 0
        self.made = 0

    async def find(self, after: str, host: str) -> SitemapList:
        """The list behind `after`; raises what the catalog raises when there is none to be sent instead."""
        key = (after[:200], host)
        found = self._lists.get(key)
        age_s = clock.monotonic_s() - found.made_s if found is not None else 0.0
        if found is not None and age_s <= self._settings.late_s_max:
            self._lists.move_to_end(key)
            if age_s <= self._settings.fresh_s or key in self._making:
                return found
            try:
                return await self._make(key)
            except FourplaneError:
                return found
        running = self._making.get(key)
        return await (self._make(key) if running is None else asyncio.shield(running))

    async def _make(self, key: tuple[str, str]) -> SitemapList:
        future: asyncio.Future[SitemapList] = asyncio.get_running_loop().create_future()
        self._making[key] = future
        try:
            after, host = key
            names = await self._ids(after, ADDRESSES)
            body = "".join([f"http://{host}{pages.path_of(name)}\n" for name in names]).encode()
            self.made += 1
            made = SitemapList(body, f'"{blake2b(body, digest_size=12).hexdigest()}"', clock.monotonic_s())
            self._keep(key, made)
            future.set_result(made)
            return made
        except BaseException as error:
            future.set_exception(error if isinstance(error, FourplaneError) else Unavailable("interrupted; ask again"))
            future.exception()  # perhaps nobody else waits
            raise
        finally:
            del self._making[key]

    def _keep(self, key: tuple[str, str], made: SitemapList) -> None:
        before = self._lists.pop(key, None)
        self._bytes += len(made.body) - (len(before.body) if before is not None else 0)
        self._lists[key] = made
        while len(self._lists) > self._settings.lists_max or self._bytes > self._settings.bytes_max:
            _, gone = self._lists.popitem(last=False)
            self._bytes -= len(gone.body)
