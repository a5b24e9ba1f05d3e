"""How each system is put together on a simulated host: the settings of short runs, and its recipe.

The recipes wire the same constructors as `compose`; what differs is said here: patience is shorter, catalogs are smaller,
the search is the plain twin of the real one, TLS is off (the simulator's connections stay readable). A recipe that finds itself
at one of several sites (`Platform.peers`) takes its part and lets the others call it.
"""

import os
import tempfile
from pathlib import Path

import msgspec

from fourplane.commerce.app import Commerce, CommerceSettings
from fourplane.commerce.fulfilment import FulfilmentSettings
from fourplane.dispatch.app import Dispatch, DispatchSettings
from fourplane.dispatch.location_feed import FeedSettings
from fourplane.dispatch.matching import MatchingSettings
from fourplane.foundation.lifecycle import Tasks
from fourplane.messaging.app import Messaging
from fourplane.messaging.settings import MessagingSettings
from fourplane.messaging.user_shards import Spread
from fourplane.service.rpc import remote
from fourplane.service.shards import ShardMap
from fourplane.simulator.cache_site import CacheSite, Health, watched
from fourplane.simulator.deployment import HOME, Built, Platform, Recipe
from fourplane.simulator.far_sql import FarSql, SqlDesk
from fourplane.simulator.film import publish_film
from fourplane.state.contracts import Sql
from fourplane.state.stores import StoresSettings
from fourplane.streaming.app import Streaming
from fourplane.streaming.settings import CdnSettings, StreamingSettings

XMPP_PORT = 5_222
FEED_PORT = 8_300
ORIGIN_PORT = 8_100
CDN_PORTS = {"EDGE1": 8_101, "ISP1": 8_104}
CDN_PORT = 8_110  # of the node at site n: n more
SHOP = CommerceSettings(
    generated_products=6,
    standing_offers=False,
    fulfilment=FulfilmentSettings(pass_s=5, pack_s=3_600, ship_s=3_600),
)
CITY = DispatchSettings(
    feed=FeedSettings(port=FEED_PORT),
    matching=MatchingSettings(window_s=0.5, offer_s=4.0, patience_s=40.0),
)
CHAT = MessagingSettings(port=XMPP_PORT, tls_port=0, tls_required=False, resume_s=20.0)
FILM = StreamingSettings(
    cdn=(CdnSettings("EDGE1", CDN_PORTS["EDGE1"], "eu"), CdnSettings("ISP1", CDN_PORTS["ISP1"], "eu", "EDGE1")),
    origin_port=ORIGIN_PORT,
    cache_folder=None,
)
MAPS = Path(tempfile.gettempdir()) / f"fourplane-simulated-maps-{os.getuid()}"


async def messaging(on: Platform) -> Built:
    """The XMPP server; its gateway doors too. At several sites each has a shard of the users."""
    spread = None
    name = "messaging"
    if on.peers:
        shards = shards_of(len(on.peers) + 1)
        spread = Spread(shards, on.slot, on.peers, None)
        name = shards.store_name(name, on.slot)
    system = Messaging(
        msgspec.structs.replace(CHAT, host=on.host),
        records=await on.stores.records(name),
        accounts=on.accounts,
        ids=on.ids,
        registry=on.registry,
        tls=None,
        certificate_hash=b"",
        spread=spread,
    )
    if on.calls is not None:
        for service, (source, target, only) in system.calls().items():
            on.calls.add(service, source, target, only=only)
    return Built(system, system.doors())


def shards_of(sites: int) -> ShardMap:
    """Which of so many sites has which user."""
    return ShardMap(sites, sites)


async def dispatch(on: Platform) -> Built:
    """The city's dispatcher on the generated map; each site has a city of its own."""
    system = Dispatch(
        msgspec.structs.replace(CITY, feed=msgspec.structs.replace(CITY.feed, host=on.host)),
        records=await on.stores.records("dispatch"),
        log=await on.stores.log("dispatch"),
        blobs=await on.stores.blobs("dispatch"),
        payments=on.payments,
        signer=on.signer,
        ids=on.ids,
        registry=on.registry,
        work=on.folder / "maps",
    )
    return Built(system, system.doors())


async def commerce(on: Platform) -> Built:
    """The shop with two shards of stock; at several sites the second lies on the disk of the next one."""
    shards: list[Sql] = [await on.stores.sql("stock-0")]
    if on.calls is not None:
        count = len(on.peers) + 1
        whose = (on.slot - 1) % count
        on.calls.add(f"stock of {whose}", SqlDesk, SqlDesk(await on.stores.sql(f"stock-of-{whose}")))
        shards.append(
            FarSql(remote(SqlDesk, on.peers[(on.slot + 1) % count], f"stock of {on.slot}"), shards[0].dialect)
        )
    else:
        shards.append(await on.stores.sql("stock-1"))
    system = Commerce(
        SHOP,
        sql=await on.stores.sql("commerce"),
        records=await on.stores.records("commerce"),
        search=await on.stores.search("commerce"),
        payments=on.payments,
        ids=on.ids,
        registry=on.registry,
        shards=shards,
    )
    return Built(system, system.doors())


async def streaming(on: Platform) -> Built:
    """Origin and two cache nodes with films made of bytes that say where they belong; every other site has a node more."""
    if on.slot != HOME:
        node = CacheSite(on, port=CDN_PORT + on.slot, origin=on.others[HOME].address, origin_port=ORIGIN_PORT)
        assert on.calls is not None, "a site that is not the first has others to answer"
        on.calls.add("node", Health, node)
        return Built(node, [])
    far = tuple(CdnSettings(f"FAR{slot}", CDN_PORT + slot, spot.region) for slot, spot in sorted(on.others.items()))
    system = Streaming(
        msgspec.structs.replace(FILM, host=on.host, cdn=FILM.cdn + far),
        sql=await on.stores.sql("streaming"),
        blobs=await on.stores.blobs("streaming"),
        signer=on.signer,
        ids=on.ids,
        registry=on.registry,
        data=on.folder,
    )
    return Built(_WithFilms(system, on), system.doors())


class _WithFilms:
    """Streaming, and on the first start of its data folder the films."""

    def __init__(self, system: Streaming, on: Platform) -> None:
        self.system = system
        self._on = on
        self.drain = system.drain
        self.stop = system.stop

    async def start(self, tasks: Tasks) -> None:
        await self.system.start(tasks)
        if not await self.system.rooms.titles.all():
            blobs = await self._on.stores.blobs("streaming")
            await publish_film(self.system, blobs, self._on.folder / "work")
        for slot, peer in self._on.peers.items():
            switch = self.system.rooms.delivery.switches[f"FAR{slot}"]
            tasks.start(watched(remote(Health, peer, "node"), switch), f"health of site {slot}")


RECIPES: dict[str, Recipe] = {
    "streaming": streaming,
    "dispatch": dispatch,
    "commerce": commerce,
    "messaging": messaging,
}


def stores_of(system: str) -> StoresSettings:
    """Files on the simulated disk, the plain search; the map is made once per machine and shared by all runs."""
    usual = StoresSettings(search="memory://")
    if system == "dispatch":
        return msgspec.structs.replace(usual, blobs=f"folder:///{MAPS}")
    return usual
