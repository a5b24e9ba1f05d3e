"""A catalog from a file: every row checked, nothing half-read, a report that names each bad row.

YAML and JSON (a list of mappings) and CSV (a header line) are read; the wanted columns are `name`, `category` and
`price`, the others are optional.
A bad row is reported with its number, field and reason, and skipped; a good one becomes a `Draft` (product and
stock). `dry_run` does all of that and writes nothing. Options such as `sizes: "S M L"` make one variant each and share the stock.

Prices are list prices in US dollars; other currencies come from their own columns (`price_eur`), else from a fixed list rate
rounded to .99, as shops do.
"""

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from hashlib import blake2b

import msgspec
import yaml

from fourplane.commerce.catalog import Catalog, Product, Variant
from fourplane.commerce.inventory import Adjustment, Inventory
from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected

ROWS_MAX = 2_000_000
BYTES_MAX = 512 << 20
TEXT_MAX = {"name": 200, "category": 60, "style": 60, "description": 4_000}
PRICE_MAX = 100_000_000
STOCK_MAX = 10_000_000
LIST_RATE = {"EUR": Decimal("0.95"), "GBP": Decimal("0.82")}
REDUCED = {"groceries", "books", "food service", "cold dispensed", "hot dispensed", "salty snacks"}
COLORS = (
    "black white red blue green yellow orange purple pink brown grey beige navy teal gold silver turquoise ivory mauve "
    "caramel khaki burgundy olive coral lavender crimson emerald charcoal cream tan copper maroon"
).split()
_COLOR = re.compile(r"\b(" + "|".join(COLORS) + r"|gray|golden)\b", re.IGNORECASE)
_SAME = {"gray": "grey", "golden": "gold"}
_WORD = re.compile(r"[^a-z0-9]+")


class RowError(msgspec.Struct, frozen=True):
    """One row that was not taken."""

    row: int
    field: str
    reason: str


class Draft(msgspec.Struct, frozen=True):
    """One good row: the product and the stock of each sku."""

    product: Product
    stock: dict[str, int]


class ImportReport(msgspec.Struct):
    """What an import did, or with `dry_run` would have done."""

    rows: int = 0
    taken: int = 0
    variants: int = 0
    dry_run: bool = False
    errors: list[RowError] = []
    errors_total: int = 0


Progress = Callable[[float, str], None]


def parse(content: bytes, kind: str) -> list[Mapping[str, object]]:
    """The rows of a file; raises Rejected with the place when it cannot be read at all."""
    if len(content) > BYTES_MAX:
        raise Rejected(f"a catalog file has at most {BYTES_MAX >> 20} MiB", code="file_too_large")
    try:
        rows = _read(content, kind.lower().lstrip("."))
    except UnicodeDecodeError as error:
        raise Rejected(f"the file is not UTF-8 text at byte {error.start}", code="not_text") from error
    except (yaml.YAMLError, json.JSONDecodeError, csv.Error) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise Rejected(f"the file is not {kind}: {reason[:200]}", code="unreadable_file") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Rejected("the file must hold a list of products", code="unreadable_file")
    if len(rows) > ROWS_MAX:
        raise Rejected(f"a catalog file has at most {ROWS_MAX} rows", code="file_too_large")
    return rows


def _read(content: bytes, kind: str) -> object:
    text = content.decode("utf-8-sig")
    match kind:
        case "yaml" | "yml":
            return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
        case "json":
            return json.loads(text)
        case "csv":
            return list(csv.DictReader(io.StringIO(text), strict=True))
    raise Rejected(f"a catalog is yaml, json or csv, not {kind[:20]!r}", code="unknown_format")


def draft(row: Mapping[str, object]) -> Draft:
    """One row as a product; raises Rejected with `field` and a reason."""
    name = _text(row, "name", needed=True)
    department = _text(row, "category", needed=True).lower()
    style = _text(row, "style").lower() or department
    description = _text(row, "description")
    price = _price(row.get("price"), "price")
    reference = str(row.get("id") or name)[:100]
    slug = _WORD.sub("-", name.lower()).strip("-")[:60] or "product"
    mark = blake2b(reference.encode(), digest_size=4).hexdigest()
    stock = _count(row.get("current_stock", row.get("stock", 0)), "current_stock")
    prices = {"USD": price} | {currency: _listed(row, price, currency) for currency in LIST_RATE}
    was = _was(row, prices)
    sizes = _sizes(row)
    weight = _count(row.get("weight_g", 500), "weight_g")
    variants = [
        Variant(
            sku=f"{mark}-{size.lower()}" if size else mark,
            options={"size": size} if size else {},
            prices=prices,
            was=was,
            weight_g=weight,
        )
        for size in sizes
    ]
    share, rest = divmod(stock, len(variants))
    product = Product(
        schema=1,
        id=f"{slug}-{mark}",
        reference=reference,
        name=name,
        description=description,
        department=department,
        style=style,
        variants=variants,
        attributes=_attributes(row, f"{name} {description}"),
        aliases=[str(alias)[:60] for alias in _list(row.get("aliases"))[:20]],
        tax_class=str(row.get("tax_class") or ("reduced" if department in REDUCED else "standard")),
        popularity=_count(row.get("popularity", int.from_bytes(bytes.fromhex(mark[:4])) % 1_000), "popularity")
        + (1_000 if row.get("promoted") else 0)
        + (2_000 if row.get("featured") else 0),
    )
    return Draft(product, {v.sku: share + (index < rest) for index, v in enumerate(variants)})


async def import_rows(
    rows: Sequence[Mapping[str, object]],
    *,
    catalog: Catalog,
    inventory: Inventory,
    progress: Progress | None = None,
    dry_run: bool = False,
    errors_max: int = 1_000,
) -> ImportReport:
    """Take every good row in batches; stock is set, not added, so that a second import changes nothing."""
    report = ImportReport(dry_run=dry_run)
    batch: list[Draft] = []
    seen: dict[str, int] = {}
    size = 100  # with 50 variants each still within one commit
    for number, row in enumerate(rows, start=1):
        report.rows = number
        try:
            made = draft(row)
            _once(made, seen, number)
        except Rejected as error:
            report.errors_total += 1
            if len(report.errors) < errors_max:
                report.errors.append(RowError(number, str(error.fields.get("field", "")), error.message))
            continue
        report.taken += 1
        report.variants += len(made.product.variants)
        batch.append(made)
        if len(batch) == size:
            await _take(batch, catalog, inventory, dry_run=dry_run)
            batch = []
            if progress is not None:
                progress(number / len(rows), f"{report.taken:,} products, {report.errors_total} rows refused")
            await clock.sleep(0)
    await _take(batch, catalog, inventory, dry_run=dry_run)
    if not dry_run:
        await catalog.refresh_menus()
    if progress is not None:
        progress(1.0, f"{report.taken:,} products, {report.variants:,} variants, {report.errors_total} rows refused")
    return report


async def export_rows(catalog: Catalog) -> AsyncIterator[bytes]:
    """The whole catalog as JSON lines, in order of id."""
    after = ""
    while products := await catalog.page(after, 200):
        yield b"".join(msgspec.json.encode(product) + b"\n" for product in products)
        after = products[-1].id


def _once(made: Draft, seen: dict[str, int], number: int) -> None:
    first = seen.setdefault(made.product.id, number)
    if first != number:
        raise Rejected(f"the same product as row {first}", field="id")


async def _take(batch: Sequence[Draft], catalog: Catalog, inventory: Inventory, *, dry_run: bool) -> None:
    if not batch or dry_run:
        return
    stock = {sku: count for made in batch for sku, count in made.stock.items()}
    await inventory.set_stock([Adjustment(sku, count, "import") for sku, count in stock.items()])
    await catalog.seed_stock(stock)
    await catalog.put([made.product for made in batch])


def _text(row: Mapping[str, object], field: str, *, needed: bool = False) -> str:
    value = row.get(field)
    if value is None or value == "":
        if needed:
            raise Rejected("missing", field=field)
        return ""
    if not isinstance(value, (str, int, float)):
        raise Rejected("must be text", field=field)
    text = " ".join(str(value).split())
    if len(text) > TEXT_MAX[field]:
        raise Rejected(f"longer than {TEXT_MAX[field]} characters", field=field)
    if any(ord(letter) < 32 for letter in text):
        raise Rejected("holds control characters", field=field)
    return text


def _price(value: object, field: str) -> int:
    try:
        amount = Decimal(str(value).strip().lstrip("$"))
    except InvalidOperation:
        raise Rejected(f"not a price: {str(value)[:30]!r}", field=field) from None
    if not amount.is_finite() or amount < 0:
        raise Rejected("a price is zero or more", field=field)
    cents = amount * 100
    if cents != cents.to_integral_value() or cents > PRICE_MAX:
        raise Rejected("a price has two decimals and is at most 1,000,000.00", field=field)
    return int(cents)


def _listed(row: Mapping[str, object], usd: int, currency: str) -> int:
    field = f"price_{currency.lower()}"
    if row.get(field) not in (None, ""):
        return _price(row[field], field)
    whole = int(usd * LIST_RATE[currency]) // 100
    return whole * 100 + 99 if usd >= 100 else int(usd * LIST_RATE[currency])


def _was(row: Mapping[str, object], prices: Mapping[str, int]) -> dict[str, int]:
    if row.get("was") not in (None, ""):
        return {"USD": _price(row["was"], "was")}
    if not row.get("promoted"):
        return {}
    return {currency: amount * 5 // 4 // 100 * 100 + 99 for currency, amount in prices.items() if amount >= 400}


def _count(value: object, field: str) -> int:
    try:
        count = int(str(value).strip() or "0")
    except ValueError:
        raise Rejected(f"not a whole number: {str(value)[:30]!r}", field=field) from None
    if not 0 <= count <= STOCK_MAX:
        raise Rejected(f"must be 0 to {STOCK_MAX:,}", field=field)
    return count


def _sizes(row: Mapping[str, object]) -> list[str]:
    sizes = [str(size)[:12] for size in _list(row.get("sizes"))]
    if len(sizes) > 50 or len(set(sizes)) != len(sizes) or not all(size.replace(".", "").isalnum() for size in sizes):
        raise Rejected("sizes are up to 50 different short words", field="sizes")
    return sizes or [""]


def _list(value: object) -> list[object]:
    if isinstance(value, str):
        return list(value.split())
    return list(value) if isinstance(value, Iterable) else []


def _attributes(row: Mapping[str, object], text: str) -> dict[str, str]:
    attributes = {}
    found = _COLOR.search(text)
    if found:
        color = found.group(1).lower()
        attributes["color"] = _SAME.get(color, color)
    if row.get("gender_affinity") in ("F", "M"):
        attributes["for"] = "women" if row["gender_affinity"] == "F" else "men"
    return attributes
