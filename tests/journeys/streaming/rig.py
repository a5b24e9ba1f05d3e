"""A streaming system on real stores and free ports, for tests in the same loop or in a thread of its own."""

import asyncio
import concurrent.futures
import contextlib
import threading
from pathlib import Path

import msgspec

from fourplane.edge.gateway import Gateway
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.edge.routes import StaticFolder
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts, AccountSettings
from fourplane.service.key_ring import KeyRing
from fourplane.service.tokens import Signer
from fourplane.state.stores import Stores, StoresSettings
from fourplane.streaming.app import Streaming
from fourplane.streaming.settings import TREE, EncodingSettings, StreamingSettings

ROOT = Path(__file__).resolve().parents[3]
QUICK = EncodingSettings(
    preset="ultrafast", per_title=False, rungs_max=2, height_max=540, duration_s_max=12.0, audio_kbps=64, nice=0
)


def run(main):
    """Run `main()` on a loop of its own in a thread: the browser's driver keeps a loop in this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()


class Here:
    """The parts a test looks at."""

    def __init__(self, streaming, server, registry, operator):
        self.streaming = streaming
        self.rooms = streaming.rooms
        self.port = server.port
        self.registry = registry
        self.operator = operator
        self.address = f"http://127.0.0.1:{server.port}"


@contextlib.asynccontextmanager
async def house(folder, *, encoding=QUICK, settings=None, players=None):
    registry = Registry()
    lifecycle = Lifecycle(registry)
    stores = Stores(StoresSettings(), data=folder)
    lifecycle.add("stores", stores)
    ids = IdGenerator(1)
    accounts = Accounts(await stores.sql("accounts"), ids=ids, settings=AccountSettings())
    lifecycle.add("accounts", accounts)
    tree = tuple(msgspec.structs.replace(node, port=0) for node in TREE)
    chosen = settings or StreamingSettings(cdn=tree, origin_port=0, encoding=encoding)
    streaming = Streaming(
        chosen,
        sql=await stores.sql("streaming"),
        blobs=await stores.blobs("streaming"),
        search=await stores.search("streaming"),
        signer=Signer(KeyRing.open(folder / "secrets" / "keys.json")),
        ids=ids,
        registry=registry,
        data=folder,
    )
    lifecycle.add("streaming", streaming)
    doors = [*streaming.doors(), StaticFolder("/console/", ROOT / "src/fourplane/console/static")]
    if (ROOT / "node_modules/hls.js/dist").is_dir():
        doors.append(StaticFolder("/vendor/hls.js/dist", ROOT / "node_modules/hls.js/dist", 86_400))
    if players is not None:
        doors.append(StaticFolder("/players/", players, 86_400))
    gateway = Gateway(doors, accounts, registry=registry)
    server = HttpServer(
        HttpServerSettings(listener=ListenerSettings(port=0)), gateway, registry=registry, classify=gateway.classify
    )
    lifecycle.add("http", server)
    await lifecycle.start()
    try:
        account = await accounts.find("studio")
        account = account or await accounts.create("studio", "a password of the studio", roles=("operator",))
        yield Here(streaming, server, registry, await accounts.open_session(account))
    finally:
        await lifecycle.drain()
        await lifecycle.stop()


@contextlib.contextmanager
def served(folder, file=None, *, size="1280x720", **options):
    """The same in a thread, with a title imported (a generated clip without `file`): what a browser test needs."""
    ready, ended, facts = threading.Event(), threading.Event(), {}

    async def main():
        async with house(folder, **options) as here:
            if file is None:
                facts["title"] = await here.streaming.ensure_title(duration_s=8.0, size=size)
            else:
                facts["title"] = (await here.streaming.import_file(file, lambda _: None)).title
            facts["here"], facts["loop"] = here, asyncio.get_running_loop()
            facts["over"] = asyncio.Event()
            ready.set()
            await facts["over"].wait()

    def live():
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - told to the test
            facts["error"] = error
        finally:
            ready.set()
            ended.set()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    ready.wait(120)
    if "error" in facts:
        raise facts["error"]
    try:
        yield facts["here"], facts["title"]
    finally:
        facts["loop"].call_soon_threadsafe(facts["over"].set)
        ended.wait(30)
