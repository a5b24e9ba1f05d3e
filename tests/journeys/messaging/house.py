"""The messaging system alone on a data folder, inside the test's loop or as a child process that can be killed."""

import asyncio
import contextlib
import functools
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fourplane.edge import certificate
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.app import Messaging
from fourplane.messaging.authentication import certificate_binding
from fourplane.messaging.settings import MessagingSettings
from fourplane.service.accounts import Accounts, AccountSettings, NewAccount
from fourplane.service.key_ring import KeyRing
from fourplane.service.login_throttle import ThrottleSettings
from fourplane.service.names import normal_password
from fourplane.service.passwords import SALT_BYTES, PasswordKeys, derive
from fourplane.service.tokens import Signer
from fourplane.state.stores import Stores, StoresSettings

PASSWORD = "correct horse"
QUICK_ACCOUNTS = AccountSettings(throttle=ThrottleSettings())
IN_MEMORY = StoresSettings(sql="memory://", records="memory://", log="memory://")


@functools.lru_cache
def keys() -> PasswordKeys:
    """What is stored of the password, derived once for all accounts of all tests, so that no test waits for PBKDF2."""
    salts = (b"1" * SALT_BYTES, b"2" * SALT_BYTES, b"3" * SALT_BYTES)
    return derive(normal_password(PASSWORD), salts, QUICK_ACCOUNTS.scrypt, QUICK_ACCOUNTS.scram_iterations)


class House:
    def __init__(self, messaging: Messaging, accounts: Accounts, registry: Registry, certificate_path: Path | None):
        self.messaging = messaging
        self.accounts = accounts
        self.registry = registry
        self.certificate_path = certificate_path

    def client_tls(self) -> ssl.SSLContext:
        return certificate.client_context(self.certificate_path)


@contextlib.asynccontextmanager
async def house(
    data: Path | None = None, users: tuple[str, ...] = (), *, tls: bool = True, **settings: object
) -> AsyncIterator[House]:
    registry = Registry()
    ids = IdGenerator(0)
    stores = Stores(data=data) if data is not None else Stores(IN_MEMORY)
    accounts = Accounts(await stores.sql("accounts"), ids=ids, settings=QUICK_ACCOUNTS)
    context, path, digest = None, None, b""
    if tls:
        assert data is not None
        path, key = certificate.ensure_certificate(data / "tls")
        context = certificate.server_context(path, key, alpn=("xmpp-client",))
        digest = certificate_binding(path.read_bytes())
    chosen = MessagingSettings(**{"port": 0, "tls_port": 0, "tls_required": tls, **settings})
    messaging = Messaging(
        chosen,
        records=await stores.records("messaging"),
        accounts=accounts,
        ids=ids,
        registry=registry,
        tls=context,
        certificate_hash=digest,
        blobs=await stores.blobs("messaging") if data is not None else None,
        signer=Signer(KeyRing.open(data / "keys.json")) if data is not None else None,
    )
    life = Lifecycle(registry)
    life.add("stores", stores)
    life.add("accounts", accounts)
    life.add("messaging", messaging)
    await life.start()
    try:
        new = [NewAccount(user, keys=keys()) for user in users if await accounts.find(user) is None]
        await accounts.create_many(new)
        yield House(messaging, accounts, registry, path)
    finally:
        await life.drain()
        await life.stop()


async def _serve(data: Path, users: tuple[str, ...]) -> None:
    async with house(data, users) as here:
        sys.stdout.write(json.dumps({"port": here.messaging.port, "tls_port": here.messaging.tls_port}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), tuple(sys.argv[2:])))
