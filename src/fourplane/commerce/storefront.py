"""The doors of the storefront: what a browser asks for, with and without JavaScript.

A visitor is a cart cookie (a capability) and a country cookie. Forms post and are redirected (303), so going back or
reloading repeats nothing; every form that changes something carries an operation id or an attempt key, so that
sending it twice does it once. When a dependency is away the page still answers: without search the departments come from the
catalog, without the cart the shop is still open, and a line says what is missing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from fourplane.commerce import pages, pages_checkout
from fourplane.commerce.cart_store import GUEST_ID
from fourplane.commerce.catalog import FACETS, SORTS, Product
from fourplane.commerce.checkout import PlaceOrder
from fourplane.commerce.media import Media
from fourplane.commerce.orders import Address
from fourplane.commerce.page_cache import PageCache
from fourplane.commerce.pricing import MARKETS, market_of
from fourplane.commerce.sitemap import Sitemap
from fourplane.commerce.store import Store
from fourplane.commerce.tiles import tile
from fourplane.edge.routes import Call, Door, Priority, Reply, Route, StaticFolder
from fourplane.foundation import clock, ids
from fourplane.foundation.errors import Conflict, FourplaneError, NotFound, Overloaded, Rejected, Unavailable
from fourplane.state.contracts import Query

PAGE = 24
CRAWLER_S = 10
COOKIE_S = 60 * 86_400
FIELD_MAX = 200
Page = Callable[[Call[bytes]], Awaitable[Reply]]


class Storefront:
    """Pages over one `Store`."""

    def __init__(self, store: Store, kept: PageCache, media: Media) -> None:
        self._store = store
        self._media = media
        self.kept = kept
        self._sitemap = Sitemap(store.catalog.ids)
        self._rendering: dict[str, asyncio.Future[bytes | None]] = {}
        self.shown = self.degraded = self.shared = 0

    def doors(self) -> list[Door]:
        """All pages, forms, pictures and files of the storefront."""
        get = [
            ("/commerce", self.home, "The shop's home page", Priority.USER),
            ("/commerce/", self.home, "The shop's home page", Priority.USER),
            ("/commerce/search", self.search, "Search and browse", Priority.DEGRADED),
            ("/commerce/p/{product_id}", self.product, "One product", Priority.USER),
            ("/commerce/cart", self.cart, "The cart", Priority.USER),
            ("/commerce/checkout", self.checkout, "The one-page checkout", Priority.CRITICAL),
            ("/commerce/orders/{order_id}", self.order, "An order and its parcel", Priority.USER),
            ("/commerce/image/{department}/{name}", self.image, "A product's picture", Priority.DEGRADED),
            ("/commerce/media/{name}/{file}", self.picture, "An uploaded picture in one size", Priority.DEGRADED),
            ("/commerce/sitemap.txt", self.sitemap, "Addresses of all products, for crawlers", Priority.BULK),
        ]
        post = [
            ("/commerce/cart/add", self.add, "Put something into the cart", Priority.USER),
            ("/commerce/cart/set", self.set_quantity, "Change or remove a line", Priority.USER),
            ("/commerce/cart/code", self.code, "Enter or withdraw a promotion code", Priority.USER),
            ("/commerce/country", self.country, "Choose where to deliver", Priority.USER),
            ("/commerce/checkout", self.place, "Order and pay", Priority.CRITICAL),
            ("/commerce/orders/{order_id}/cancel", self.cancel, "Cancel an order", Priority.USER),
        ]
        doors: list[Door] = [Route("GET", path, self._kindly(h), text, priority=p) for path, h, text, p in get]
        doors += [
            Route("POST", path, self._kindly(h), text, body=bytes, body_max=32_768, priority=p)
            for path, h, text, p in post
        ]
        doors.append(StaticFolder("/commerce/static/", Path(__file__).parent / "static", cache_s=300))
        return doors

    async def render(self, path: str) -> bool:
        """Render a page for visitors without a cart and keep it; False for a page that is not kept, or not whole now."""
        if path == "/commerce/":
            return await self._plain_home() is not None
        head, _, product_id = path.rpartition("/")
        return head == "/commerce/p" and await self._plain_product(unquote(product_id)) is not None

    async def warm(self, count: int) -> int:
        """Keep the home page and the most popular products' before anybody asks; how many."""
        await self.render("/commerce/")
        done = 0
        while done < count:
            query = Query(
                sort="popularity", descending=True, offset=done, limit=min(60, count - done), count_facets=("in_stock",)
            )
            products, _ = await self._store.catalog.find(query)
            for product in products:
                await self._plain_product(product.id)
                await clock.sleep(0)  # a page is 1 ms; others are served between two
            done += len(products)
            if not products:
                break
        return done

    async def _plain_home(self) -> bytes | None:
        """The home page of somebody we know nothing of, kept; None while something is missing."""
        popular, offers, missing = await self._store.home_shelves()
        if missing:
            return None
        frame = pages.Frame(market=MARKETS["US"], departments=self._store.departments())
        page = pages.home_page(frame, popular, offers, self._sold_out([*popular, *offers]))
        self.kept.keep("/commerce/", page)
        return page

    async def _plain_product(self, product_id: str) -> bytes | None:
        """The same of a product. Whoever asks while it is being rendered waits for that one."""
        running = self._rendering.get(product_id)
        if running is not None:
            self.shared += 1
            return await asyncio.shield(running)
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._rendering[product_id] = future
        try:
            product = await self._store.product(product_id)
            stock, related, missing = await self._store.around(product)
            page = None
            if not missing:
                frame = pages.Frame(market=MARKETS["US"], departments=self._store.departments())
                page = pages.product_page(frame, product, stock, related, "")
                self.kept.keep(pages.product_path(product), page)
            future.set_result(page)
            return page
        except BaseException as error:
            future.set_exception(error if isinstance(error, FourplaneError) else Unavailable("interrupted; ask again"))
            future.exception()  # perhaps nobody else waits
            raise
        finally:
            del self._rendering[product_id]

    async def home(self, call: Call[bytes]) -> Reply:
        """Departments, what is popular, what is on sale."""
        popular, offers, missing = await self._store.home_shelves()
        frame = await self._frame(call, degraded=missing)
        page = pages.home_page(frame, popular, offers, self._sold_out([*popular, *offers]))
        if not call.headers.get("cookie") and call.identity is None and not missing:
            self.kept.keep("/commerce/", page)
        return self._show(call, frame, page)

    async def sitemap(self, call: Call[bytes]) -> Reply:
        """One address a line, a thousand at a time; `?after=` an id goes on."""
        found = await self._sitemap.find(call.query.get("after", ""), call.headers.get("host", ""))
        headers = {"etag": found.tag, "cache-control": f"public, max-age={CRAWLER_S}"}
        if found.tag in call.headers.get("if-none-match", ""):
            return Reply(status=304, headers=headers)
        return Reply(found.body, media_type="text/plain; charset=utf-8", headers=headers)

    async def search(self, call: Call[bytes]) -> Reply:
        """Words, facets, sort, pages; every combination is a plain address."""
        words = call.query.get("q", "").strip()[:FIELD_MAX]
        chosen = _chosen(call.query)
        sort = call.query.get("sort", "relevance" if words else "popular")
        if sort not in SORTS:
            sort = "relevance"
        number = _whole(call.query.get("page", "1"), 1, 40)
        field, descending = SORTS[sort]
        query = Query(
            words=words,
            facets=chosen,
            sort=field,
            descending=descending,
            offset=(number - 1) * PAGE,
            limit=PAGE,
            count_facets=FACETS,
        )
        products, total, counts, missing = await self._store.browse(query)
        frame = await self._frame(call, degraded=missing, words=words)
        title = f"“{words}”" if words else " · ".join(v.capitalize() for values in chosen.values() for v in values)
        listing = pages.Listing(
            title=title or "Everything",
            products=products,
            total=total,
            sold_out=self._sold_out(products),
            counts=counts,
            chosen=chosen,
            sort=sort,
            offset=query.offset,
            limit=PAGE,
            path="/commerce/search",
            words=words,
        )
        return self._show(call, frame, pages.listing_page(frame, listing))

    async def product(self, call: Call[bytes]) -> Reply:
        """One product."""
        if not call.headers.get("cookie") and call.identity is None:
            kept = await self._plain_product(call.params["product_id"])
            if kept is not None:
                return Reply(kept, headers={"cache-control": "no-store"})
        product = await self._store.product(call.params["product_id"])
        stock, related, missing = await self._store.around(product)
        frame = await self._frame(call, degraded=missing)
        return self._show(call, frame, pages.product_page(frame, product, stock, related, _operation()))

    async def image(self, call: Call[bytes]) -> Reply:
        """The drawn tile of a product or department: the address says everything, so it never changes."""
        name, _, rest = unquote(call.params["name"])[:FIELD_MAX].rpartition(".")
        if rest != "svg":
            raise NotFound("no such picture")
        product, style, color = (*name.rsplit(".", 2), "", "")[:3]
        drawn = tile(product, call.params["department"][:60], style, color)
        headers = {"cache-control": "public, max-age=604800, immutable"}
        return Reply(drawn, media_type="image/svg+xml", headers=headers)

    async def picture(self, call: Call[bytes]) -> Reply:
        """An uploaded picture; its address is made of its content, so it never changes."""
        width, _, kind = call.params["file"].partition(".")
        if kind != "jpg" or not width.isdigit() or len(width) > 5:
            raise NotFound("no such picture")
        content, media_type = await self._media.find(call.params["name"], int(width))
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Reply(content, media_type=media_type, headers=headers)

    async def cart(self, call: Call[bytes]) -> Reply:
        """The cart with its notices and sums."""
        view = await self._store.view(await self._cart_id(call) or ids.capability(), self._country(call))
        frame = await self._frame(call)
        return self._show(call, frame, pages_checkout.cart_page(frame, view, _operation()))

    async def add(self, call: Call[bytes]) -> Reply:
        """Put something in, then show the cart."""
        form = _form(call.body)
        cart_id = await self._cart_id(call, new=True)
        quantity = _quantity(form.get("quantity", "1"), least=1)
        await self._store.add(
            cart_id,
            form.get("sku", ""),
            quantity,
            operation=form.get("operation") or _operation(),
            country=self._country(call),
        )
        return self._to("/commerce/cart", call, cart_id)

    async def set_quantity(self, call: Call[bytes]) -> Reply:
        """Make a line so many, or remove it."""
        form = _form(call.body)
        cart_id = await self._cart_id(call, new=True)
        quantity = 0 if form.get("remove") else _quantity(form.get("quantity", ""), least=0)
        await self._store.set_quantity(
            cart_id,
            form.get("sku", ""),
            quantity,
            operation=form.get("operation") or _operation(),
            country=self._country(call),
        )
        return self._to("/commerce/cart", call, cart_id)

    async def code(self, call: Call[bytes]) -> Reply:
        """Enter or withdraw a code."""
        form = _form(call.body)
        cart_id = await self._cart_id(call, new=True)
        await self._store.code(cart_id, form.get("code", ""), on="off" not in form)
        return self._to("/commerce/cart", call, cart_id)

    async def country(self, call: Call[bytes]) -> Reply:
        """Remember where to deliver."""
        form = _form(call.body)
        market = market_of(form.get("country", ""))
        back = form.get("back", "/commerce/")
        if not back.startswith("/commerce") or any(ord(letter) < 33 or letter == "\\" for letter in back):
            back = "/commerce/"
        cookie = f"fp_country={market.country}; Path=/commerce; Max-Age={COOKIE_S}; SameSite=Lax"
        return Reply(status=303, headers={"location": back, "set-cookie": cookie})

    async def checkout(self, call: Call[bytes]) -> Reply:
        """Address, delivery and payment on one page."""
        country = call.query.get("country", "") or self._country(call)
        return await self._checkout_page(call, country, values=call.query, problems={})

    async def place(self, call: Call[bytes]) -> Reply:
        """Order and pay; on a problem the same page with everything still filled in."""
        form = _form(call.body)
        cart_id = await self._cart_id(call)
        address = Address(
            *(
                form.get(field, "").strip()[:FIELD_MAX]
                for field in ("name", "street", "city", "postcode", "country", "email")
            )
        )
        if problems := address.problems():
            return await self._checkout_page(call, address.country, values=form, problems=problems, status=422)
        expected = form.get("expected_total", "")
        request = PlaceOrder(
            address=address,
            method=form.get("method", "card_ok")[:60],
            shipping=form.get("shipping", "standard")[:20],
            expected_total=int(expected) if expected.isdigit() and len(expected) < 12 else None,
        )
        try:
            order = await self._store.place(
                cart_id, form.get("attempt", ""), request, account=call.identity.account_id if call.identity else 0
            )
        except Conflict as conflict:
            if conflict.reason == "already_ordered":
                return self._to(f"/commerce/orders/{conflict.fields['order']}", call, cart_id)
            return await self._again(call, address.country, form, conflict)
        except (Rejected, Unavailable, Overloaded) as error:
            return await self._again(call, address.country, form, error)
        return self._to(f"/commerce/orders/{order.id}", call, cart_id)

    async def order(self, call: Call[bytes]) -> Reply:
        """Confirmation and tracking; the order's number is hard to guess and the cart or account must fit."""
        order, story, parcel, number = await self._store.order_story(
            call.params["order_id"], await self._cart_id(call), call.identity
        )
        frame = await self._frame(call)
        return self._show(call, frame, pages_checkout.order_page(frame, order, story, parcel, number))

    async def cancel(self, call: Call[bytes]) -> Reply:
        """Cancel, refund, restock."""
        cart_id = await self._cart_id(call)
        order = await self._store.cancel(call.params["order_id"], cart_id, call.identity)
        return self._to(f"/commerce/orders/{order.id}", call, cart_id)

    # -- what pages share

    def _kindly(self, handler: Page) -> Page:
        """Turn an error into a page of the shop where a person is looking."""

        async def kind(call: Call[bytes]) -> Reply:
            try:
                self.shown += 1
                return await handler(call)
            except FourplaneError as error:
                if isinstance(error, Unavailable) and (page := self._stale(call)) is not None:
                    self.degraded += 1
                    return Reply(page, headers={"cache-control": "no-store", "warning": '110 - "Response is Stale"'})
                if isinstance(error, Overloaded) or "text/html" not in call.headers.get("accept", ""):
                    raise
                title = {404: "We could not find that", 503: "One moment, please"}.get(
                    error.http_status, "That did not work"
                )
                message = error.public[:1].upper() + error.public[1:]
                page = pages.message_page(self._bare_frame(call), title, f"{message}.")
                return Reply(page, status=error.http_status, headers={"cache-control": "no-store"})

        return kind

    def _stale(self, call: Call[bytes]) -> bytes | None:
        """A kept copy of the product's page, better than an error: a static fallback."""
        product_id = call.params.get("product_id")
        return self.kept.find_stale(pages.path_of(product_id)) if product_id else None

    async def _again(self, call: Call[bytes], country: str, form: Mapping[str, str], error: FourplaneError) -> Reply:
        message = error.public[:1].upper() + error.public[1:] + "."
        if not error.reason.startswith("price_changed"):
            message += " Nothing was charged."
        return await self._checkout_page(
            call, country, values=form, problems={}, error=message, status=error.http_status
        )

    async def _checkout_page(
        self,
        call: Call[bytes],
        country: str,
        *,
        values: Mapping[str, str],
        problems: Mapping[str, str],
        error: str = "",
        status: int = 200,
    ) -> Reply:
        country = country if country in MARKETS else self._country(call)
        cart_id = await self._cart_id(call)
        view = await self._store.view(cart_id or ids.capability(), country, shipping=values.get("shipping", "standard"))
        if view.quote is None:
            return self._to("/commerce/cart", call, cart_id)
        frame = await self._frame(call, country=country)
        page = pages_checkout.checkout_page(
            frame, view, ids.capability(), values=values, problems=problems, error=error
        )
        reply = self._show(call, frame, page)
        reply.status = status
        return reply

    async def _frame(self, call: Call[bytes], *, degraded: str = "", words: str = "", country: str = "") -> pages.Frame:
        cart_id, count = await self._cart_id(call), 0
        try:
            if cart_id:
                count = sum((await self._store.cart(cart_id)).quantities().values())
        except Unavailable:
            degraded = degraded or "Carts are away for a moment; you can go on browsing."
        if degraded:
            self.degraded += 1
        return pages.Frame(
            market=MARKETS[country or self._country(call)],
            departments=self._store.departments(),
            cart_id=cart_id,
            cart_count=count,
            words=words,
            degraded=degraded,
        )

    def _bare_frame(self, call: Call[bytes]) -> pages.Frame:
        return pages.Frame(market=MARKETS[self._country(call)], departments=self._store.departments())

    def _show(self, call: Call[bytes], frame: pages.Frame, page: bytes) -> Reply:
        headers = {"cache-control": "no-store"}
        if frame.cart_id and _cookies(call).get("fp_cart") != frame.cart_id:
            headers["set-cookie"] = _cart_cookie(frame.cart_id)
        return Reply(page, headers=headers)

    def _to(self, where: str, call: Call[bytes], cart_id: str) -> Reply:
        headers = {"location": where}
        if cart_id and _cookies(call).get("fp_cart") != cart_id:
            headers["set-cookie"] = _cart_cookie(cart_id)
        return Reply(status=303, headers=headers)

    async def _cart_id(self, call: Call[bytes], *, new: bool = False) -> str:
        """The visitor's cart: the account's when logged in (a guest's is merged in), else the cookie's, else new or none."""
        known = _cookies(call).get("fp_cart", "")
        if GUEST_ID.fullmatch(known) is None:
            known = ""
        if call.identity is not None:
            return await self._store.account_cart(call.identity.account_id, known)
        return known or (ids.capability() if new else "")

    def _country(self, call: Call[bytes]) -> str:
        country = _cookies(call).get("fp_country", "US")
        return country if country in MARKETS else "US"

    def _sold_out(self, products: Sequence[Product]) -> frozenset[str]:
        return frozenset(product.id for product in products if not self._store.in_stock(product))


def _chosen(query: Mapping[str, str]) -> dict[str, list[str]]:
    """Facet values: `color=red`, or `color.red=1` as the check boxes send several of one facet."""
    chosen: dict[str, list[str]] = {}
    for key, value in query.items():
        facet, _, picked = key.partition(".")
        if facet in FACETS and len(chosen.setdefault(facet, [])) < 10:
            chosen[facet].append((picked or value)[:60])
    return {facet: values for facet, values in chosen.items() if any(values)}


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=40)
    except (UnicodeDecodeError, ValueError):
        raise Rejected("the form could not be read", code="bad_form") from None
    return {name: values[-1] for name, values in fields.items()}


def _cookies(call: Call[bytes]) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in call.headers.get("cookie", "").split(";")[:50])
    return {name: value for name, _, value in pairs}


def _cart_cookie(cart_id: str) -> str:
    return f"fp_cart={quote(cart_id)}; Path=/commerce; Max-Age={COOKIE_S}; HttpOnly; SameSite=Lax"


def _quantity(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) >= least):
        raise Rejected(f"a quantity is a whole number from {least}", code="bad_quantity", quantity=text[:20])
    return int(text)


def _whole(text: str, least: int, most: int) -> int:
    return min(max(int(text), least), most) if text.isascii() and text.isdigit() and len(text) < 6 else least


def _operation() -> str:
    return ids.capability(8)
