"""The messaging system with its web door: HTTP server and gateway in front of the house."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.journeys.messaging.house import House, house

from fourplane.edge.gateway import Gateway
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.routes import StaticFolder
from fourplane.foundation.lifecycle import Lifecycle

CONSOLE = Path(__file__).parents[3] / "src" / "fourplane" / "console" / "static"


@contextlib.asynccontextmanager
async def web_house(data: Path, users: tuple[str, ...] = (), **settings: object) -> AsyncIterator[tuple[House, str]]:
    async with house(data, users, **settings) as here:
        doors = [*here.messaging.doors(), StaticFolder("/console", CONSOLE)]
        gateway = Gateway(doors, here.accounts, registry=here.registry)
        chosen = HttpServerSettings(listener=ListenerSettings(host="127.0.0.1", port=0))
        server = HttpServer(chosen, gateway, registry=here.registry, sockets=gateway.open_socket)
        life = Lifecycle(here.registry)
        life.add("http", server)
        await life.start()
        try:
            yield here, f"http://127.0.0.1:{server.statistics().port}"
        finally:
            await life.drain()
            await life.stop()
            gateway.close()
