"""Vendure as a peer: its own server from npm on PostgreSQL, guest checkouts through its shop API, and a race for ten pieces.

The configuration is that of its "manual installation": one node process, the built-in test payment, which settles at once, one
country, one tax rate, one shipping method; no asset server, no search, no mail, which only helps it. The database is filled by
its own `populate`. A checkout is seven requests of one session: add to the order, customer, address, look for shipping, choose
it, go to payment, pay. In the race every buyer stands before the last of them.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import postgres

VERSION = "3.7.3"
PACKAGE = {
    "name": "peershop",
    "private": True,
    "overrides": {"@graphql-tools/batch-execute": "10.2.0"},  # a later one does not load with it
    "dependencies": {"@vendure/core": VERSION, "pg": "^8"},
}
SHOP = """
const { bootstrap, DefaultLogger, LogLevel, dummyPaymentHandler } = require('@vendure/core');
const { populate } = require('@vendure/core/cli');
const path = require('path');
const [what, port, database] = process.argv.slice(2);
const config = {
  apiOptions: { port: Number(port), hostname: '127.0.0.1', adminApiPath: 'admin-api', shopApiPath: 'shop-api' },
  authOptions: { tokenMethod: 'bearer', superadminCredentials: { identifier: 'superadmin', password: 'superadmin' } },
  dbConnectionOptions: { type: 'postgres', host: '127.0.0.1', port: Number(database), username: 'shop',
    database: 'postgres', synchronize: what === 'fill', logging: false },
  paymentOptions: { paymentMethodHandlers: [dummyPaymentHandler] },
  importExportOptions: { importAssetsDir: __dirname },
  logger: new DefaultLogger({ level: LogLevel.Error }),
  plugins: [],
};
const data = {
  defaultLanguage: 'en', defaultZone: 'Europe', countries: [{ name: 'United Kingdom', code: 'GB', zone: 'Europe' }],
  taxRates: [{ name: 'Standard Tax', percentage: 20 }], shippingMethods: [{ name: 'Standard Shipping', price: 500 }],
  paymentMethods: [{ name: 'Standard Payment', handler: { code: dummyPaymentHandler.code,
    arguments: [{ name: 'automaticSettle', value: 'true' }] } }],
  collections: [],
};
(async () => {
  if (what === 'fill') {
    const app = await populate(() => bootstrap(config), data, path.join(__dirname, 'products.csv'));
    await app.close();
    process.exit(0);
  }
  await bootstrap(config);
  console.log('ready');
})().catch(error => { console.error(error); process.exit(1); });
"""
PRODUCTS = """name,slug,description,assets,facets,optionGroups,optionValues,sku,price,taxCategory,stockOnHand,trackInventory,\
variantAssets,variantFacets
plenty,plenty,A thing,,,,,plenty,10.00,standard,10000000,true,,
rare,rare,A thing,,,,,rare,10.00,standard,10,true,,
"""
ADD = "mutation { addItemToOrder(productVariantId: %d, quantity: 1) { __typename } }"
CUSTOMER = '{firstName: "Ada", lastName: "Vale", emailAddress: "ada@example.org"}'
ADDRESS = '{streetLine1: "12 Harbour Road", city: "London", postalCode: "N1 9GU", countryCode: "GB"}'
STEPS = (
    f"mutation {{ setCustomerForOrder(input: {CUSTOMER}) {{ __typename }} }}",
    f"mutation {{ setOrderShippingAddress(input: {ADDRESS}) {{ __typename }} }}",
    "{ eligibleShippingMethods { id } }",
    "mutation { setOrderShippingMethod(shippingMethodId: [1]) { __typename } }",
    'mutation { transitionOrderToState(state: "ArrangingPayment") { __typename } }',
)
PAY = 'mutation { addPaymentToOrder(input: {method: "standard-payment", metadata: {}}) { __typename ... on Order { state } } }'
PLENTY, RARE = 1, 2


class Session:
    """One buyer: a kept connection and its token."""

    def __init__(self, port):
        self.port, self.token, self.streams = port, "", None

    async def ask(self, query):
        """The answer's data."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        body = json.dumps({"query": query}).encode()
        head = f"POST /shop-api HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{self.token}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if "vendure-auth-token" in fields:
            self.token = f"Authorization: Bearer {fields['vendure-auth-token']}\r\n"
        return json.loads(await reader.readexactly(int(fields["content-length"]))).get("data") or {}

    def close(self):
        if self.streams is not None:
            self.streams[1].close()


async def ready_to_pay(port, variant):
    """A session with everything but the payment done."""
    buyer = Session(port)
    for query in (ADD % variant, *STEPS):
        await buyer.ask(query)
    return buyer


async def pay(buyer):
    answer = (await buyer.ask(PAY)).get("addPaymentToOrder") or {}
    buyer.close()
    return answer.get("state") == "PaymentSettled"


async def checkouts(port, seconds, count):
    """How many whole checkouts per second, and how long the last step takes."""
    done, late = 0, []
    began = time.perf_counter()

    async def visitor():
        nonlocal done
        while time.perf_counter() < began + seconds:
            buyer = await ready_to_pay(port, PLENTY)
            last = time.perf_counter()
            if await pay(buyer):
                done += 1
                late.append((time.perf_counter() - last) * 1e3)

    await asyncio.gather(*(visitor() for _ in range(count)))
    late.sort()
    return {
        "count": done,
        "checkouts/s": done / (time.perf_counter() - began),
        "p50 ms": late[len(late) // 2] if late else 0.0,
        "p99 ms": late[int(len(late) * 0.99)] if late else 0.0,
    }


async def race(port, count):
    buyers = await asyncio.gather(*(ready_to_pay(port, RARE) for _ in range(count)))
    return sum(await asyncio.gather(*(pay(buyer) for buyer in buyers)))


def prepare(folder):
    """Install Vendure and fill a shop, once per `folder`; the folder of both."""
    root = Path(folder) / f"vendure-{VERSION}"
    root.mkdir(parents=True, exist_ok=True)
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise postgres.CannotRun("node and npm are not installed")
    for name, text in (("package.json", json.dumps(PACKAGE)), ("shop.js", SHOP), ("products.csv", PRODUCTS)):
        (root / name).write_text(text)
    if not (root / "node_modules" / "@vendure" / "core").exists():
        print(f"installing @vendure/core {VERSION} (once)", file=sys.stderr, flush=True)
        argv = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=400, cwd=root)
        if done.returncode:
            shutil.rmtree(root / "node_modules", ignore_errors=True)
            raise postgres.CannotRun(f"npm could not install Vendure: {done.stderr.strip()[-200:]}")
    if not (root / "shop.sql").exists():
        print("filling its database (once)", file=sys.stderr, flush=True)
        with postgres.running() as database:
            argv = [node, "shop.js", "fill", "0", str(database.port)]
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=400, cwd=root)
            if done.returncode:
                raise postgres.CannotRun(f"the shop cannot be filled: {done.stderr.strip()[-300:]}")
            postgres.dump(database, root / "part.sql")
        (root / "part.sql").rename(root / "shop.sql")
    return root


class Shop:
    """A running Vendure."""

    def __init__(self, process, port):
        self.pid, self.port = process.pid, port

    def checkouts(self, seconds, count):
        """As many as fit, from so many buyers at a time."""
        return asyncio.run(checkouts(self.port, seconds, count))

    def race(self, count):
        """How many pieces of ten are sold to so many at once."""
        return asyncio.run(race(self.port, count))


@contextlib.contextmanager
def serving(root, database):
    """The shop on this PostgreSQL, as long as the block; it is still starting."""
    postgres.restore(database, root / "shop.sql")
    port = postgres.free_port()
    argv = [shutil.which("node"), "shop.js", "serve", str(port), str(database.port)]
    with tempfile.TemporaryFile() as told:
        server = subprocess.Popen(argv, cwd=root, stdout=told, stderr=told)
        try:
            yield Shop(server, port)
        finally:
            server.terminate()
            server.wait(30)
