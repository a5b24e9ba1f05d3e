"""A dispatch deployment for the benchmark: durable stores in a folder, HTTP, the feed; prints where it listens."""

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path

from fourplane.control.fleet import COLLECT_AFTER
from fourplane.dispatch import compiled
from fourplane.dispatch.app import Dispatch, DispatchSettings
from fourplane.dispatch.location_feed import FeedSettings
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.service.card_simulator import CardSimulator
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer
from fourplane.state.stores import Stores, StoresSettings


async def main(folder: Path, city: str) -> None:
    compiled.compile_all()
    registry, ids = Registry(), IdGenerator()
    stores = Stores(StoresSettings(search="memory://"), data=folder)
    cards = CardSimulator(await stores.sql("payments"), ids=ids)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    dispatch = Dispatch(
        DispatchSettings(map=city, feed=FeedSettings(port=0), guests_per_s=1e6, ride_calls_per_s=1e6),
        records=await stores.records("dispatch"), log=await stores.log("dispatch"), blobs=await stores.blobs("dispatch"),
        payments=cards, signer=Signer(KeyRing.in_memory()), ids=ids, registry=registry,
    )  # fmt: skip
    gateway = Gateway(
        dispatch.doors(), accounts, registry=registry, settings=GatewaySettings(hosts=("*",), rate_per_s=1e6)
    )
    server = HttpServer(
        HttpServerSettings(listener=ListenerSettings(host="127.0.0.1", port=0)), gateway, registry=registry,
        classify=gateway.classify, sockets=gateway.open_socket,
    )  # fmt: skip
    for method, path, handler in dispatch.hot_routes():
        server.hot(method, path, handler)
    life = Lifecycle(registry)
    for name, part in (
        ("stores", stores),
        ("accounts", accounts),
        ("cards", cards),
        ("dispatch", dispatch),
        ("http", server),
    ):
        life.add(name, part)
    await life.start()
    operator = await accounts.create("operator", "a long password", roles=("operator",))
    token = await accounts.open_session(operator)
    print(json.dumps({"http": server.port, "feed": dispatch.feed.port, "token": token}), flush=True)
    gc.collect()
    gc.freeze()  # as a worker of `up` does
    gc.set_threshold(*COLLECT_AFTER)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await life.drain()
    await life.stop()
    gateway.close()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(Path(sys.argv[1]), "".join(sys.argv[2:3])))
    except ImportError:
        asyncio.run(main(Path(sys.argv[1]), "".join(sys.argv[2:3])))
