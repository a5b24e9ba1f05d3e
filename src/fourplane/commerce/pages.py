"""The storefront's pages before the cart: pure functions from data to HTML.

Everything works without JavaScript (links and forms); `store.js` improves what it finds. One `Frame` carries what every page
shows. Nothing here waits, so a page costs what its markup costs: about 0.4 ms for 24 products.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec

from fourplane.commerce.catalog import Product
from fourplane.commerce.markup import Child, Markup, el, page
from fourplane.commerce.media import WIDTHS
from fourplane.commerce.pricing import MARKETS, Market, amount_text

SHOP = "Fourplane Market"
FACET_NAMES = {
    "department": "Department",
    "style": "Style",
    "color": "Colour",
    "in_stock": "Availability",
    "on_sale": "Offers",
}
SORT_NAMES = {
    "relevance": "Best match",
    "popular": "Most popular",
    "price": "Price: low to high",
    "price-desc": "Price: high to low",
}
VALUE_NAMES = {("in_stock", "yes"): "In stock", ("in_stock", "no"): "Sold out", ("on_sale", "yes"): "On sale"}


class Frame(msgspec.Struct, frozen=True):
    """What every page shows around its own content."""

    market: Market
    departments: Mapping[str, Mapping[str, int]]
    cart_id: str = ""
    cart_count: int = 0
    words: str = ""
    path: str = "/commerce/"
    notice: str = ""
    degraded: str = ""


class Listing(msgspec.Struct, frozen=True):
    """One page of search results and how to ask for others."""

    title: str
    products: Sequence[Product]
    total: int
    sold_out: frozenset[str]
    counts: Mapping[str, Mapping[str, int]]
    chosen: Mapping[str, Sequence[str]]
    sort: str
    offset: int
    limit: int
    path: str
    words: str = ""


def layout(frame: Frame, title: str, *content: Child, wide: bool = True) -> bytes:
    """A whole page."""
    head = [
        el("link", rel="stylesheet", href="/console/style.css"),
        el("link", rel="stylesheet", href="/commerce/static/store.css"),
        el("link", rel="icon", href="/commerce/static/icon.svg", type="image/svg+xml"),
        el("script", src="/commerce/static/store.js", type="module"),
    ]
    body = el(
        "body",
        el("a", "Skip to the content", href="#main", class_="skip"),
        _header(frame),
        el("p", frame.degraded, class_="banner", role="status") if frame.degraded else None,
        el("p", frame.notice, class_="banner good", role="status") if frame.notice else None,
        el("main", content, id="main", class_="wide" if wide else "narrow"),
        _footer(frame),
        el("div", id="drawer", hidden=True),
        data_cart=frame.cart_id or None,
        data_country=frame.market.country,
        class_="store",
    )
    return page(f"{title} · {SHOP}" if title != SHOP else SHOP, head=head, body=body)


def _header(frame: Frame) -> Markup:
    names = sorted(frame.departments, key=lambda name: -sum(frame.departments[name].values()))[:12]
    search = el(
        "form",
        el("label", "Search the store", for_="q", class_="unseen"),
        el("input", id="q", name="q", type="search", value=frame.words, placeholder="Search products", autocomplete="off",
           maxlength=200, aria_controls="suggestions", aria_autocomplete="list"),
        el("button", _icon("search"), el("span", "Search", class_="unseen"), type="submit"),
        el("div", id="suggestions", role="listbox", hidden=True),
        action="/commerce/search", role="search", class_="search",
    )  # fmt: skip
    cart = el(
        "a",
        _icon("bag"),
        el("span", "Cart", class_="label"),
        el("span", frame.cart_count, id="cart-count", class_="count", data_empty=not frame.cart_count),
        href="/commerce/cart", class_="cart-link", aria_label=f"Cart, {frame.cart_count} items",
    )  # fmt: skip
    return el(
        "header",
        el(
            "div",
            el("a", el("span", class_="mark", aria_hidden="true"), SHOP, href="/commerce/", class_="logo"),
            search,
            cart,
            class_="shop-bar",
        ),
        el(
            "nav",
            [el("a", _title(name), href=category_path(name)) for name in names],
            aria_label="Departments",
            class_="departments",
        ),
        class_="shop",
    )


def _footer(frame: Frame) -> Markup:
    options = [
        el("option", f"{market.name} ({market.currency})", value=code, selected=code == frame.market.country)
        for code, market in MARKETS.items()
    ]
    return el(
        "footer",
        el(
            "form",
            el("label", "Deliver to ", for_="country"),
            el("select", options, id="country", name="country"),
            el("input", type="hidden", name="back", value=frame.path),
            el("button", "Change", type="submit", class_="button quiet"),
            action="/commerce/country",
            method="post",
            class_="country",
        ),
        el("p", el("a", "All systems", href="/"), " · ", el("a", "API", href="/openapi.json"), class_="muted"),
        el("p", "A demonstration store: nothing is sold, no card is charged.", class_="muted"),
        class_="shop",
    )


def card(product: Product, market: Market, *, sold_out: bool = False, eager: bool = False) -> Markup:
    """One product in a grid."""
    least = product.least_price(market.currency)
    many = len({variant.prices.get(market.currency) for variant in product.variants}) > 1
    was = product.variants[0].was.get(market.currency, 0)
    return el(
        "article",
        el(
            "a",
            el("img", src=product.image(), alt="", width=240, height=240,
               loading="eager" if eager else "lazy", decoding="async"),
            href=product_path(product), class_="picture", tabindex="-1", aria_hidden="true",
        ),
        el("h3", el("a", product.name, href=product_path(product))),
        el(
            "p",
            el("span", "from " if many else "", amount_text(least, market.currency), class_="price"),
            el("s", amount_text(was, market.currency), class_="was") if was > least else None,
            el("span", "Sold out", class_="tag bad") if sold_out else None,
            el("span", "Sale", class_="tag sale") if was > least and not sold_out else None,
        ),
        class_="product",
    )  # fmt: skip


def grid(products: Sequence[Product], market: Market, sold_out: frozenset[str] = frozenset()) -> Markup:
    """Products side by side."""
    return el(
        "div",
        [card(p, market, sold_out=p.id in sold_out, eager=index < 6) for index, p in enumerate(products)],
        class_="grid",
    )


def home_page(frame: Frame, popular: Sequence[Product], offers: Sequence[Product], sold_out: frozenset[str]) -> bytes:
    """Where a visit starts."""
    departments = sorted(frame.departments.items(), key=lambda item: -sum(item[1].values()))[:8]
    hero = el(
        "section",
        el(
            "div",
            el("h1", "Good things, always in stock when we say so."),
            el("p", f"{sum(sum(s.values()) for s in frame.departments.values()):,} products in "
               f"{len(frame.departments)} departments, delivered to {frame.market.name}."),
            el("p", el("a", "Shop the offers", href="/commerce/search?on_sale=yes&sort=popular", class_="button"),
               el("a", "Browse everything", href="/commerce/search?sort=popular", class_="button quiet")),
            class_="hero-text",
        ),
        el("div", [el("img", src=p.image(), alt="", width=150, height=150) for p in popular[:4]],
           class_="hero-tiles", aria_hidden="true"),
        class_="hero",
    )  # fmt: skip
    tiles = [
        el("a", el("img", src=f"/commerce/image/{quote(name)}/department.svg", alt="", width=96, height=96, loading="lazy"),
           el("span", _title(name), class_="name"), el("span", f"{sum(styles.values())} products", class_="muted"),
           href=category_path(name), class_="department card")
        for name, styles in departments
    ]  # fmt: skip
    return layout(
        frame,
        SHOP,
        hero,
        el("section", el("h2", "Departments"), el("div", tiles, class_="tiles")),
        el("section", el("h2", "Popular now"), grid(popular, frame.market, sold_out)) if popular else None,
        el("section", el("h2", "On sale"), grid(offers, frame.market, sold_out)) if offers else None,
    )


def listing_page(frame: Frame, listing: Listing) -> bytes:
    """Search results or a category, with facets."""
    if listing.products:
        results: Child = [grid(listing.products, frame.market, listing.sold_out), _pager(listing)]
    else:
        results = el(
            "div",
            el("h2", "Nothing found"),
            el("p", "Try fewer words or fewer filters, or ", el("a", "see everything", href="/commerce/search"), "."),
            class_="card empty",
        )
    return layout(
        frame,
        listing.title,
        el("div", el("h1", listing.title), el("p", f"{listing.total:,} products", class_="muted"), class_="heading"),
        el("div", _facets(listing), el("section", results, aria_label="Products"), class_="results"),
    )


def _facets(listing: Listing) -> Markup:
    groups: list[Markup] = []
    for facet, label in FACET_NAMES.items():
        counts = listing.counts.get(facet, {})
        chosen = listing.chosen.get(facet, ())
        values = sorted({*counts, *chosen}, key=lambda value: (-counts.get(value, 0), value))[:14]
        if not values:
            continue
        items = [_facet_value(facet, value, counts.get(value, 0), checked=value in chosen) for value in values]
        opened = bool(chosen) or facet in ("department", "style", "color")
        groups.append(el("details", el("summary", label), items, open=opened, class_="facet"))
    sort = el(
        "label",
        "Sort by ",
        el("select", [el("option", text, value=key, selected=key == listing.sort) for key, text in SORT_NAMES.items()],
           name="sort"),
        class_="sort",
    )  # fmt: skip
    return el(
        "form",
        el("input", type="hidden", name="q", value=listing.words) if listing.words else None,
        sort,
        el("details", el("summary", "Filters"), groups, class_="filters", open=True),
        el("button", "Show results", type="submit", class_="button quiet apply"),
        action="/commerce/search", class_="facets", aria_label="Filters",
    )  # fmt: skip


def _facet_value(facet: str, value: str, count: int, *, checked: bool) -> Markup:
    name = VALUE_NAMES.get((facet, value), _title(value))
    box = el("input", type="checkbox", name=f"{facet}.{value}", value="1", checked=checked)
    return el("label", box, el("span", name), el("span", count, class_="muted"))


def _pager(listing: Listing) -> Markup | None:
    if listing.total <= listing.limit:
        return None
    current = listing.offset // listing.limit + 1
    last = min(-(-listing.total // listing.limit), 40)
    near = list(range(max(1, current - 2), min(last, current + 2) + 1))

    def link(number: int, text: str, rel: Literal["prev", "next", ""] = "") -> Markup:
        pairs = [(f"{facet}.{value}", "1") for facet, values in listing.chosen.items() for value in values]
        if listing.words:
            pairs.append(("q", listing.words))
        pairs += [("sort", listing.sort), ("page", str(number))]
        return el("a", text, href=f"{listing.path}?{urlencode(pairs)}", rel=rel or None,
                  aria_current="page" if number == current and not rel else None)  # fmt: skip

    return el(
        "nav",
        link(current - 1, "Previous", "prev") if current > 1 else None,
        [link(number, str(number)) for number in near],
        link(current + 1, "Next", "next") if current < last else None,
        class_="pager",
        aria_label="Pages",
    )


def product_page(
    frame: Frame, product: Product, stock: Mapping[str, int], related: Sequence[Product], operation: str
) -> bytes:
    """One product with its options; the button adds it to the cart."""
    market = frame.market
    total = sum(max(0, stock.get(variant.sku, 0)) for variant in product.variants)
    least = product.least_price(market.currency)
    was = product.variants[0].was.get(market.currency, 0)
    crumbs = el(
        "nav",
        el("a", "Home", href="/commerce/"), _path(product),
        aria_label="Breadcrumb", class_="crumbs muted",
    )  # fmt: skip
    buy = el(
        "form",
        _options(product, stock, market.currency),
        el("input", type="hidden", name="operation", value=operation) if operation else None,
        el("div",
           el("label", "Quantity", el("input", name="quantity", type="number", value=1, min=1, max=20, inputmode="numeric")),
           el("button", "Add to cart" if total else "Sold out", type="submit", class_="button big", disabled=not total),
           class_="buy-row"),
        action="/commerce/cart/add", method="post", class_="buy", data_enhance="add",
    )  # fmt: skip
    facts = [("Department", _title(product.department)), ("Style", _title(product.style))]
    facts += [(_title(key), _title(value)) for key, value in product.attributes.items()]
    info = el(
        "div",
        crumbs,
        el("h1", product.name),
        el("p", el("span", amount_text(least, market.currency), class_="price big"),
           el("s", amount_text(was, market.currency), class_="was") if was > least else None,
           el("span", "tax included" if market.inclusive else "plus tax", class_="muted"), class_="price-row"),
        el("p", _stock_text(total), class_="stock " + ("good" if total > 5 else "warn" if total else "bad")),
        buy,
        el("p", product.description),
        el("dl", [[el("dt", key), el("dd", value)] for key, value in facts], class_="facts"),
        class_="info",
    )  # fmt: skip
    picture = el("img", src=product.image(), alt=product.name, width=480, height=480, class_="hero-picture")
    if product.images:
        picture = el("div", [_photo(name, product.name if number == 0 else "") for number, name in enumerate(product.images)],
                     class_="gallery")  # fmt: skip
    return layout(
        frame,
        product.name,
        el("article", picture, info, class_="detail"),
        el("section", el("h2", "You may also like"), grid(related, market)) if related else None,
    )


def _photo(name: str, alt: str) -> Markup:
    """An uploaded picture in the size the window needs; only the first one is fetched at once."""
    sizes = ", ".join(f"/commerce/media/{name}/{width}.jpg {width}w" for width in WIDTHS)
    return el("img", src=f"/commerce/media/{name}/480.jpg", srcset=sizes, sizes="(max-width: 700px) 100vw, 480px", alt=alt,
              width=480, loading=None if alt else "lazy", class_="hero-picture")  # fmt: skip


def _path(product: Product) -> list[Markup | str]:
    """Where the product stands, as links from the department down."""
    links: list[Markup | str] = []
    if len(product.categories) > 1:
        for depth, name in enumerate(product.categories, start=1):
            query = urlencode([("category", " > ".join(product.categories[:depth])), ("sort", "popular")])
            links += [" / ", el("a", _title(name), href=f"/commerce/search?{query}")]
        return links
    links += [" / ", el("a", _title(product.department), href=category_path(product.department))]
    return [*links, " / ", el("a", _title(product.style), href=category_path(product.department, product.style))]


def _option(value: str) -> str:
    return value.upper() if len(value) <= 3 else _title(value)


def _options(product: Product, stock: Mapping[str, int], currency: str) -> Markup:
    if len(product.variants) == 1:
        return el("input", type="hidden", name="sku", value=product.variants[0].sku)
    chosen = next((v.sku for v in product.variants if stock.get(v.sku, 0) > 0), product.variants[0].sku)
    prices = {variant.prices.get(currency, 0) for variant in product.variants}
    choices = [
        el("label",
           el("input", type="radio", name="sku", value=v.sku, checked=v.sku == chosen, disabled=stock.get(v.sku, 0) <= 0),
           el("span", " / ".join(_option(value) for value in v.options.values()) or v.sku,
              el("small", f" {amount_text(v.prices[currency], currency)}") if len(prices) > 1 and currency in v.prices else None),
           class_="choice")
        for v in product.variants
    ]  # fmt: skip
    return el("fieldset", el("legend", _title(", ".join(product.variants[0].options))), choices, class_="choices")


def _stock_text(total: int) -> str:
    if total <= 0:
        return "Sold out"
    return f"Only {total} left" if total <= 5 else "In stock, ships today"


def message_page(
    frame: Frame, title: str, text: str, *, action: tuple[str, str] = ("/commerce/", "Back to the store")
) -> bytes:
    """Something went otherwise than hoped, said plainly."""
    content = el(
        "div", el("h1", title), el("p", text), el("a", action[1], href=action[0], class_="button"), class_="card empty"
    )
    return layout(frame, title, content, wide=False)


def product_path(product: Product) -> str:
    """Where a product's page is."""
    return path_of(product.id)


@lru_cache(maxsize=16_384)
def path_of(product_id: str) -> str:
    """The same by its id; remembered, because a page of tiles asks for many."""
    return f"/commerce/p/{quote(product_id)}"


def category_path(department: str, style: str = "") -> str:
    """Where a department's (or a style's) page is."""
    query = urlencode([("department", department), *([("style", style)] if style else []), ("sort", "popular")])
    return f"/commerce/search?{query}"


def _title(text: str) -> str:
    return text.replace("-", " ").replace("homedecor", "home decor").capitalize()


def _icon(name: str) -> Markup:
    return el("span", class_=f"icon icon-{name}", aria_hidden="true")
