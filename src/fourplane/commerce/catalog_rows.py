"""One row of a catalog file as a product: every field checked, every mistake named by its field.

    name, category, price       wanted; a category may be a path: "Clothing > Shoes > Boots" (or with slashes)
    id, style, description, current_stock, weight_g, tax_class, popularity, aliases, promoted, featured, was, price_eur ...
    currency                    of `price` and `was`: USD (default), EUR or GBP
    sku                         of a product without options; made from the id otherwise
    sizes                       "S M L": one variant each, sharing the stock
    options                     {"size": ["S", "M"], "colour": ["red", "blue"]}: every combination is a variant;
                                in CSV a column each: option_size = "S|M"
    variants                    a list of {sku, options, price, price_eur, current_stock, weight_g}: exactly these
    attributes                  {"material": "wool"}; in CSV a column each: attribute_material

Prices in the other currencies come from their own columns (`price_eur`), else from a fixed list rate rounded to .99, as shops
do. `as_row` is the way back: what is exported can be imported.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from itertools import product as combinations

import msgspec

from fourplane.commerce.catalog import Product, Variant
from fourplane.foundation.errors import Rejected

TEXT_MAX = {"name": 200, "category": 60, "style": 60, "description": 4_000}
PRICE_MAX = 100_000_000
STOCK_MAX = 10_000_000
LIST_RATE = {"USD": Decimal(1), "EUR": Decimal("0.95"), "GBP": Decimal("0.82")}
REDUCED = {"groceries", "books", "food service", "cold dispensed", "hot dispensed", "salty snacks"}
COLORS = (
    "black white red blue green yellow orange purple pink brown grey beige navy teal gold silver turquoise ivory mauve "
    "caramel khaki burgundy olive coral lavender crimson emerald charcoal cream tan copper maroon"
).split()
_COLOR = re.compile(r"\b(" + "|".join(COLORS) + r"|gray|golden)\b", re.IGNORECASE)
_SAME = {"gray": "grey", "golden": "gold"}
_WORD = re.compile(r"[^a-z0-9]+")
VARIANTS_MAX = 100
ATTRIBUTES_MAX = 30
DEPTH_MAX = 6
_SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_PATH = re.compile(r"\s*[>/]\s*")


class Draft(msgspec.Struct, frozen=True):
    """One good row: the product and the stock of each sku."""

    product: Product
    stock: dict[str, int]


def draft(row: Mapping[str, object]) -> Draft:
    """One row as a product; raises Rejected with `field` and a reason."""
    name = _text(row, "name", needed=True)
    path = _categories(_text(row, "category", needed=True))
    department = path[0]
    style = _text(row, "style").lower() or path[-1]
    description = _text(row, "description")
    reference = str(row.get("id") or name)[:100]
    slug = _WORD.sub("-", name.lower()).strip("-")[:60] or "product"
    mark = blake2b(reference.encode(), digest_size=6).hexdigest()
    variants, stock = _variants(row, mark)
    product = Product(
        schema=1,
        id=f"{slug}-{mark}",
        reference=reference,
        name=name,
        description=description,
        department=department,
        style=style,
        variants=tuple(variants),
        attributes=_attributes(row, f"{name} {description}"),
        aliases=tuple(str(alias)[:60] for alias in _list(row.get("aliases"))[:20]),
        tax_class=_tax_class(row, department),
        popularity=_count(row.get("popularity", int.from_bytes(bytes.fromhex(mark[:4])) % 1_000), "popularity")
        + (1_000 if row.get("promoted") else 0)
        + (2_000 if row.get("featured") else 0),
        categories=tuple(path) if len(path) > 1 else (),
    )
    return Draft(product, stock)


def as_row(product: Product, stock: Mapping[str, int]) -> dict[str, object]:
    """A product as a row that `draft` reads again into the same product."""
    return {
        "id": product.reference,
        "name": product.name,
        "category": " > ".join(product.categories or [product.department]),
        "style": product.style,
        "description": product.description,
        "price": _decimal(product.variants[0].prices["USD"]),
        "tax_class": product.tax_class,
        "popularity": product.popularity,
        "aliases": list(product.aliases),
        "attributes": product.attributes,
        "variants": [
            {
                "sku": variant.sku,
                "options": variant.options,
                "price": _decimal(variant.prices["USD"]),
                **{
                    f"price_{currency.lower()}": _decimal(amount)
                    for currency, amount in variant.prices.items()
                    if currency != "USD"
                },
                **{
                    "was" if currency == "USD" else f"was_{currency.lower()}": _decimal(amount)
                    for currency, amount in variant.was.items()
                },
                "weight_g": variant.weight_g,
                "current_stock": stock.get(variant.sku, 0),
            }
            for variant in product.variants
        ],
    }


def _variants(row: Mapping[str, object], mark: str) -> tuple[list[Variant], dict[str, int]]:
    """The row's variants and the stock of each; without any options it is one."""
    given = row.get("variants")
    if given:
        return _named_variants(row, given)
    prices = _prices(row, "price")
    was = _was(row, prices)
    weight = _count(row.get("weight_g", 500), "weight_g")
    chosen = _options(row)
    total = _count(row.get("current_stock", row.get("stock", 0)), "current_stock")
    share, rest = divmod(total, len(chosen))
    variants = [
        Variant(
            _sku(row) or "-".join([mark, *(_WORD.sub("-", value.lower()).strip("-") for value in options.values())]),
            options,
            prices,
            was,
            weight,
        )
        for options in chosen
    ]
    if len({variant.sku for variant in variants}) != len(variants):
        if _sku(row):
            raise Rejected("one sku cannot stand for several variants: list them with a sku each", field="sku")
        raise Rejected("two options differ only in signs", field="options")
    return variants, {variant.sku: share + (index < rest) for index, variant in enumerate(variants)}


def _named_variants(row: Mapping[str, object], given: object) -> tuple[list[Variant], dict[str, int]]:
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given) or len(given) > VARIANTS_MAX:
        raise Rejected(f"variants are a list of up to {VARIANTS_MAX} mappings", field="variants")
    variants, stock = [], {}
    for one in given:
        sku = _sku(one, "variants.sku")
        if not sku or sku in stock:
            raise Rejected(f"every variant has a sku of its own, not {sku[:20]!r}", field="variants.sku")
        options = one.get("options") or {}
        if not isinstance(options, dict) or len(options) > 5:
            raise Rejected("options are up to 5 names with a value", field="variants.options")
        merged = {**row, **one}
        prices = _prices(merged, "variants.price")
        texts = {str(name)[:30]: str(value)[:40] for name, value in options.items()}
        variants.append(
            Variant(sku, texts, prices, _was(merged, prices), _count(merged.get("weight_g", 500), "weight_g"))
        )
        stock[sku] = _count(one.get("current_stock", one.get("stock", 0)), "variants.current_stock")
    return variants, stock


def _sku(row: Mapping[str, object], field: str = "sku") -> str:
    sku = str(row.get("sku") or "").strip()
    if sku and not _SKU.fullmatch(sku):
        raise Rejected(f"a sku is up to 60 letters, digits, . _ -, not {sku[:20]!r}", field=field)
    return sku


def _options(row: Mapping[str, object]) -> list[dict[str, str]]:
    """Every combination of the row's options; one without any where there are none."""
    options = row.get("options") or {}
    if not isinstance(options, dict):
        raise Rejected("options are names with a list of values", field="options")
    values = {str(name)[:30]: [str(value) for value in _list(of)] for name, of in options.items()}
    for column, text in row.items():
        if column.startswith("option_") and text not in (None, ""):
            values[column[7:][:30]] = [part.strip() for part in str(text).split("|")]
    if row.get("sizes"):
        values["size"] = _sizes(row)
    count = 1
    for name, of in values.items():
        count *= len(of)
        if not of or len(set(of)) != len(of) or not all(0 < len(value) <= 40 and value.isprintable() for value in of):
            raise Rejected(f"{name}: values are different short words", field="options")
    if count > VARIANTS_MAX or len(values) > 5:
        raise Rejected(f"up to 5 options with {VARIANTS_MAX} combinations, not {count:,}", field="options")
    return [dict(zip(values, chosen, strict=True)) for chosen in combinations(*values.values())]


def _categories(text: str) -> list[str]:
    path = [part.lower() for part in _PATH.split(text) if part]
    if not path or len(path) > DEPTH_MAX or any(len(part) > TEXT_MAX["category"] for part in path):
        raise Rejected(f"a category is a path of up to {DEPTH_MAX} names", field="category")
    return path


def _tax_class(row: Mapping[str, object], department: str) -> str:
    chosen = str(row.get("tax_class") or ("reduced" if department in REDUCED else "standard"))
    if chosen not in ("standard", "reduced", "zero"):
        raise Rejected("a tax class is standard, reduced or zero", field="tax_class")
    return chosen


def _currency(row: Mapping[str, object]) -> str:
    currency = str(row.get("currency") or "USD").strip().upper()
    if currency not in LIST_RATE:
        raise Rejected(f"prices are in {', '.join(LIST_RATE)}, not in {currency[:10]!r}", field="currency")
    return currency


def _prices(row: Mapping[str, object], field: str) -> dict[str, int]:
    base = _currency(row)
    price = _price(row.get("price"), field)
    return {currency: price if currency == base else _listed(row, price, base, currency) for currency in LIST_RATE}


def _decimal(amount: int) -> str:
    return f"{amount // 100}.{amount % 100:02d}"


def _text(row: Mapping[str, object], field: str, *, needed: bool = False) -> str:
    value = row.get(field)
    if value is None or value == "":
        if needed:
            raise Rejected("missing", field=field)
        return ""
    if not isinstance(value, (str, int, float)):
        raise Rejected("must be text", field=field)
    text = " ".join(str(value).split())
    if len(text) > TEXT_MAX[field] * (DEPTH_MAX if field == "category" else 1):
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


def _listed(row: Mapping[str, object], amount: int, base: str, currency: str) -> int:
    field = f"price_{currency.lower()}"
    if row.get(field) not in (None, ""):
        return _price(row[field], field)
    exact = int(amount / LIST_RATE[base] * LIST_RATE[currency])
    return exact // 100 * 100 + 99 if amount >= 100 else exact


def _was(row: Mapping[str, object], prices: Mapping[str, int]) -> dict[str, int]:
    if row.get("was") not in (None, ""):
        base = _currency(row)
        columns = {currency: f"was_{currency.lower()}" for currency in LIST_RATE} | {base: "was"}
        return {currency: _price(row[at], at) for currency, at in columns.items() if row.get(at) not in (None, "")}
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
    return sizes


def _list(value: object) -> list[object]:
    if isinstance(value, str):
        return list(value.split())
    return list(value) if isinstance(value, Iterable) else []


def _attributes(row: Mapping[str, object], text: str) -> dict[str, str]:
    given = row.get("attributes") or {}
    if not isinstance(given, dict):
        raise Rejected("attributes are names with a value", field="attributes")
    attributes = {str(name)[:30]: str(value)[:80] for name, value in given.items()}
    for column, value in row.items():
        if column.startswith("attribute_") and value not in (None, ""):
            attributes[column[10:][:30]] = str(value)[:80]
    found = _COLOR.search(text)
    if found and "color" not in attributes:
        color = found.group(1).lower()
        attributes["color"] = _SAME.get(color, color)
    if row.get("gender_affinity") in ("F", "M"):
        attributes["for"] = "women" if row["gender_affinity"] == "F" else "men"
    if len(attributes) > ATTRIBUTES_MAX:
        raise Rejected(f"at most {ATTRIBUTES_MAX} attributes", field="attributes")
    return attributes
