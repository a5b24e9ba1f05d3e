"""A large catalog: how long a million variants take to come in, how quick its search is, and how long a query holds the loop.

Products are made of word lists (four variants each: two sizes, two colours), imported like a file's rows into embedded
stores in a temporary folder, with stock in three warehouses. Then people search: single words, pairs, beginnings of words, words
with letters exchanged, departments with filters and counts, shelves sorted by price. `loop` is the longest CPU time of one turn
of the event loop during the queries; `told` is how long until a changed price and a sold-out product are found as such.

    python benchmarks/commerce_catalog.py [--variants 1000000] [--queries 2000]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from pathlib import Path

from fourplane.commerce.app import Commerce, CommerceSettings
from fourplane.commerce.catalog import FACETS
from fourplane.commerce.catalog_seed import COLORS, DEPARTMENTS, TONES
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.service.card_simulator import CardSimulator
from fourplane.state.contracts import Query
from fourplane.state.stores import Stores, StoresSettings

BARS = {"import minutes": 10, "search p99 ms": 20, "longest turn ms": 5, "told s": 1}
MATTER = (
    "oak walnut ash wool cotton linen steel copper leather suede canvas ceramic brass maple rosewood hickory".split()
)


class Rows:
    """The rows of a file that is never written: each is made when it is read."""

    def __init__(self, count):
        self.count = count
        self.styles = [
            (d, s, noun)
            for d, (_, styles) in DEPARTMENTS.items()
            for s, nouns in styles.items()
            for noun in nouns.split()
        ]

    def __len__(self):
        return self.count

    def __iter__(self):
        return map(self.__getitem__, range(self.count))

    def __getitem__(self, number):
        dice = random.Random(number)
        department, style, noun = dice.choice(self.styles)
        tone, color, matter = dice.choice(TONES), dice.choice(COLORS), dice.choice(MATTER)
        return {
            "id": f"bench-{number}",
            "name": f"{tone} {color.capitalize()} {matter.capitalize()} {noun.replace('-', ' ')} {number}",
            "category": f"{department} > {style}",
            "description": f"A {color} {noun.lower()} of {matter}, from the {tone} line, made to be used every day.",
            "price": f"{dice.randrange(500, 90_000) / 100:.2f}",
            "current_stock": dice.randrange(400),
            "options": {"size": ["S", "L"], "finish": ["matt", "bright"]},
            "popularity": int(1_000 * dice.paretovariate(1.1)) % 10_000,
        }


def questions(count):
    """What people ask; always the same."""
    dice = random.Random(7)
    nouns = [
        noun.replace("-", " ").lower()
        for _, styles in DEPARTMENTS.values()
        for words in styles.values()
        for noun in words.split()
    ]
    for _ in range(count):
        noun, color, matter = dice.choice(nouns), dice.choice(COLORS), dice.choice(MATTER)
        kind = dice.random()
        if kind < 0.25:
            yield Query(words=noun, limit=24, count_facets=FACETS)
        elif kind < 0.45:
            yield Query(words=f"{color} {noun}", limit=24, count_facets=FACETS)
        elif kind < 0.6:
            yield Query(words=noun[: dice.randrange(2, 5)], limit=5, count_facets=("in_stock",))  # while somebody types
        elif kind < 0.7 and len(noun) > 4:
            at = dice.randrange(1, len(noun) - 2)
            yield Query(
                words=f"{matter} {noun[:at]}{noun[at + 1]}{noun[at]}{noun[at + 2 :]}", limit=24, count_facets=FACETS
            )
        elif kind < 0.85:
            department = dice.choice(list(DEPARTMENTS))
            yield Query(
                facets={"department": [department], "in_stock": ["yes"]},
                sort="popularity",
                descending=True,
                limit=24,
                count_facets=FACETS,
            )
        else:
            yield Query(
                words=color,
                facets={"category": [dice.choice(list(DEPARTMENTS))]},
                sort="price",
                limit=24,
                count_facets=FACETS,
            )


class Turns:
    """The longest CPU time between two turns of the loop."""

    def __init__(self):
        self.longest, self.running = 0.0, True

    async def watch(self):
        while self.running:
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - began)
            await asyncio.sleep(0.0005)


async def told(commerce):
    """How long until a new price and a sold-out product are found."""
    product = (await commerce.catalog.page("", 1))[0]
    began = time.perf_counter()
    await commerce.catalog.change_price(product.variants[0].sku, "USD", 1)
    await commerce.catalog.stock_changed({variant.sku: 0 for variant in product.variants})
    while time.perf_counter() - began < 10:
        found = await commerce.catalog.find(Query(sort="price", facets={"in_stock": ["no"]}, limit=1))
        if found[0] and found[0][0].id == product.id:
            break
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def measured(folder, variants, queries):
    registry, ids = Registry(), IdGenerator()
    stores = Stores(StoresSettings(), data=Path(folder))
    cards = CardSimulator(await stores.sql("payments"), ids=ids)
    commerce = Commerce(
        CommerceSettings(generated_products=1, standing_offers=False), sql=await stores.sql("commerce"),
        records=await stores.records("commerce"), search=await stores.search("commerce"), payments=cards, ids=ids,
        registry=registry,
    )  # fmt: skip
    life = Lifecycle(registry)
    for name, part in (("stores", stores), ("cards", cards), ("commerce", commerce)):
        life.add(name, part)
    await life.start()
    rows = Rows(variants // 4)
    turns = Turns()
    watching = asyncio.create_task(turns.watch())
    began, cpu = time.perf_counter(), time.process_time()
    shown = [0.0]

    def progress(share, text):
        if share - shown[0] >= 0.05:
            shown[0] = share
            print(f"\r{share:5.0%}  {text}  {time.perf_counter() - began:.0f} s", end="", flush=True)

    report = await commerce.import_rows(rows, progress=progress)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print()
    figures = {
        "variants": report.variants, "import minutes": took / 60, "variants/s": report.variants / took,
        "variants/cpu s": report.variants / cpu, "longest turn while importing ms": turns.longest * 1e3,
    }  # fmt: skip
    for query in questions(50):
        await commerce.catalog.find(query)
    turns.longest = 0.0
    late, answered = [], 0
    for query in questions(queries):
        began = time.perf_counter()
        _, found = await commerce.catalog.find(query)
        late.append((time.perf_counter() - began) * 1e3)
        answered += found.total > 0
    late.sort()
    figures |= {
        "search p50 ms": late[len(late) // 2], "search p99 ms": late[int(len(late) * 0.99)], "answered": answered / len(late),
        "longest turn ms": turns.longest * 1e3, "told s": await told(commerce),
    }  # fmt: skip
    turns.running = False
    await watching
    await commerce.inventory.check()
    await life.drain()
    await life.stop()
    return figures


def run(options: argparse.Namespace) -> dict:
    variants = getattr(options, "variants", 20_000 if getattr(options, "quick", False) else 1_000_000)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measured(folder, variants, getattr(options, "queries", 2_000)))
    return figures | {
        "bars": BARS,
        "load": os.getloadavg()[0],
        "passed": {key: figures[key] <= bar for key, bar in BARS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2_000)
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
