"""The storefront's pages from the cart on: cart, one-page checkout, order and tracking. Pure functions from data to HTML."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fourplane.commerce.checkout import CartLine, CartView
from fourplane.commerce.markup import Child, Markup, el
from fourplane.commerce.orders import Order, OrderEvent
from fourplane.commerce.pages import Frame, layout, path_of
from fourplane.commerce.pricing import MARKETS, Quote, amount_text
from fourplane.commerce.shipping import Rate, TrackingEvent

METHODS = {
    "card_ok": ("Test card", "authorised at once"),
    "card_declined": ("Test card without funds", "the bank says no"),
    "card_slow": ("Test card of a slow bank", "takes a moment"),
}
STEPS = ("paid", "packed", "shipped", "delivered")
STEP_NAMES = {"paid": "Paid", "packed": "Packed", "shipped": "On its way", "delivered": "Delivered"}
HEADLINES = {"paid": "Thank you, your order is placed.", "shipped": "Your order is on its way."}
TRACK_NAMES = {
    "label_created": "Label created",
    "picked_up": "Picked up",
    "departed": "Departed",
    "arrived": "Arrived",
    "out_for_delivery": "Out for delivery",
    "delivered": "Delivered",
}


def cart_page(frame: Frame, view: CartView, operation: str) -> bytes:
    """The cart: quantities, notices, a code, the sum."""
    if not view.lines:
        return layout(
            frame,
            "Your cart",
            _notices(view),
            el(
                "div",
                el("h1", "Your cart is empty"),
                el("p", "Things you add wait here for you, on every device.", class_="muted"),
                el("a", "Start shopping", href="/commerce/", class_="button"),
                class_="card empty",
            ),
            wide=False,
        )
    codes = el(
        "form",
        el("label", "Promotion code", el("input", name="code", maxlength=30, autocomplete="off", required=True)),
        el("button", "Apply", type="submit", class_="button quiet"),
        action="/commerce/cart/code", method="post", class_="code",
    )  # fmt: skip
    summary = el(
        "aside",
        el("h2", "Summary"),
        _totals(view.quote) if view.quote else None,
        _codes(view),
        codes,
        el("a", "Checkout", href="/commerce/checkout", class_="button big"),
        class_="card summary",
    )
    lines = [
        _cart_line(line, view.quote, frame.market.currency, f"{operation}{n}") for n, line in enumerate(view.lines)
    ]
    return layout(
        frame,
        "Your cart",
        el("h1", "Your cart"),
        _notices(view),
        el("div", el("section", lines, class_="lines", aria_label="Items"), summary, class_="with-summary"),
    )


def _cart_line(line: CartLine, quote_: Quote | None, currency: str, operation: str) -> Markup:
    priced = next((one for one in quote_.lines if one.sku == line.sku), None) if quote_ else None
    paid = priced.gross - priced.discount if priced else line.unit * line.quantity
    path = path_of(line.product)
    return el(
        "article",
        el("a", el("img", src=line.image, alt="", width=84, height=84), href=path, tabindex="-1", aria_hidden="true"),
        el(
            "div",
            el("h3", el("a", line.name, href=path)),
            el("p", " ".join(f"{key}: {value}" for key, value in line.options.items()), class_="muted") if line.options else None,
            el(
                "form",
                el("input", type="hidden", name="sku", value=line.sku),
                el("input", type="hidden", name="operation", value=operation),
                el("label", el("span", f"Quantity of {line.name}", class_="unseen"),
                   el("input", name="quantity", type="number", value=line.quantity, min=0, max=20, inputmode="numeric")),
                el("button", "Update", type="submit", class_="button quiet"),
                el("button", "Remove", type="submit", name="remove", value="1", class_="link"),
                action="/commerce/cart/set", method="post", class_="quantity", data_enhance="set",
            ),
        ),
        el("div",
           el("p", amount_text(paid, currency), class_="price"),
           el("s", amount_text(priced.gross, currency), class_="was") if priced and priced.discount else None,
           el("p", f"{amount_text(line.unit, currency)} each", class_="muted") if line.quantity > 1 else None,
           class_="line-price"),
        class_="line card",
    )  # fmt: skip


def _notices(view: CartView) -> Markup | None:
    refused = [f"{one.code}: {one.reason}" for one in view.quote.refused_codes] if view.quote else []
    texts = [notice.text for notice in view.notices] + refused
    return el("ul", [el("li", text) for text in texts], class_="banner", role="status") if texts else None


def _codes(view: CartView) -> Child:
    return [
        el(
            "form",
            el("span", code, class_="tag"),
            el("input", type="hidden", name="code", value=code),
            el(
                "button",
                "Remove",
                type="submit",
                name="off",
                value="1",
                class_="link",
                aria_label=f"Remove code {code}",
            ),
            action="/commerce/cart/code",
            method="post",
        )
        for code in view.codes
    ]


def _totals(quote_: Quote, *, explain: bool = True) -> Markup:
    currency = quote_.currency
    rows: list[tuple[str, str]] = [("Items", amount_text(quote_.goods, currency))]
    rows += [(one.name, amount_text(-one.amount, currency)) for one in quote_.discounts]
    shipping = quote_.shipping + quote_.shipping_discount
    rows.append(("Delivery", amount_text(shipping, currency) if shipping else "Free"))
    rows.append(("Tax included" if quote_.inclusive else "Tax", amount_text(quote_.tax, currency)))
    return el(
        "div",
        el("dl", [[el("dt", name), el("dd", value)] for name, value in rows], class_="totals"),
        el("dl", el("dt", "Total"), el("dd", amount_text(quote_.total, currency), id="total"), class_="totals grand"),
        _explanation(quote_) if explain else None,
    )


def _explanation(quote_: Quote) -> Markup:
    lines = [
        el("li", el("strong", line.name), el("ul", [el("li", why) for why in line.why]))
        for line in quote_.lines
    ]  # fmt: skip
    return el("details", el("summary", "How this was calculated"), el("ul", lines), class_="why muted")


def _mini(quote_: Quote) -> Markup:
    lines = [
        el("li", f"{one.quantity} x {one.name}", el("span", amount_text(one.gross - one.discount, quote_.currency)))
        for one in quote_.lines
    ]
    return el("ul", lines, class_="mini")


def checkout_page(
    frame: Frame,
    view: CartView,
    attempt: str,
    *,
    values: Mapping[str, str],
    problems: Mapping[str, str],
    error: str = "",
) -> bytes:
    """One page: address, delivery, payment, order."""
    assert view.quote is not None, "an empty cart has no checkout"
    country = el(
        "label", "Country",
        el("select", [el("option", m.name, value=c, selected=c == frame.market.country) for c, m in MARKETS.items()],
           name="country", autocomplete="country", data_reload="checkout"),
    )  # fmt: skip
    address = el(
        "fieldset",
        el("legend", "Where to?"),
        _field("name", "Full name", "name", values, problems),
        _field("email", "E-mail", "email", values, problems, kind="email"),
        _field("street", "Street and number", "street-address", values, problems),
        el("div", _field("postcode", "Postcode", "postal-code", values, problems),
           _field("city", "City", "address-level2", values, problems), class_="pair"),
        country,
        class_="card",
    )  # fmt: skip
    delivery = el(
        "fieldset",
        el("legend", "How fast?"),
        [_rate(rate, view.shipping) for rate in view.rates],
        class_="card options",
    )
    chosen = values.get("method", "card_ok")
    payment = el(
        "fieldset",
        el("legend", "How do you pay?"),
        [el("label", el("input", type="radio", name="method", value=key, checked=key == chosen),
            el("span", el("strong", name), el("span", text, class_="muted")), class_="option")
         for key, (name, text) in METHODS.items()],
        class_="card options",
    )  # fmt: skip
    summary = el(
        "aside",
        el("h2", "Your order"),
        _mini(view.quote),
        _totals(view.quote),
        el("button", f"Order and pay {amount_text(view.quote.total, view.quote.currency)}", type="submit",
           class_="button big", id="place"),
        class_="card summary",
    )  # fmt: skip
    return layout(
        frame,
        "Checkout",
        el("h1", "Checkout"),
        _notices(view),
        el("p", error, class_="banner bad", role="alert") if error else None,
        el(
            "form",
            el("input", type="hidden", name="attempt", value=attempt),
            el("input", type="hidden", name="expected_total", value=view.quote.total),
            el("div", address, delivery, payment),
            summary,
            action="/commerce/checkout", method="post", class_="with-summary checkout", data_enhance="checkout",
        ),
    )  # fmt: skip


def _field(
    name: str,
    label: str,
    autocomplete: str,
    values: Mapping[str, str],
    problems: Mapping[str, str],
    *,
    kind: str = "text",
) -> Markup:
    problem = problems.get(name)
    return el(
        "label",
        label,
        el("input", name=name, type=kind, value=values.get(name, ""), autocomplete=autocomplete, required=True,
           maxlength=120, aria_invalid="true" if problem else None, aria_describedby=f"{name}-problem" if problem else None),
        el("span", problem, class_="bad", id=f"{name}-problem") if problem else None,
    )  # fmt: skip


def _rate(rate: Rate, chosen: str) -> Markup:
    days = f"{rate.days_least} to {rate.days_most} days" if rate.days_most > rate.days_least else "tomorrow"
    amount = amount_text(rate.amount, rate.currency) if rate.amount else "Free"
    return el(
        "label",
        el("input", type="radio", name="shipping", value=rate.id, checked=rate.id == chosen, data_reload="checkout"),
        el("span", el("strong", rate.name), el("span", days, class_="muted")),
        el("span", amount, class_="price"),
        class_="option",
    )


def _moment(at_us: int) -> Markup:
    """A time for people (UTC, as the page does not know where they are) and for programs."""
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    return el("time", f"{moment:%d %b, %H:%M} UTC", datetime=moment.isoformat(timespec="seconds"), class_="muted")


def order_page(
    frame: Frame, order: Order, story: Sequence[OrderEvent], parcel: Sequence[TrackingEvent], number: str
) -> bytes:
    """Confirmation at first, tracking afterwards."""
    quote_ = order.body.quote
    reached = STEPS.index(order.state) if order.state in STEPS else -1
    steps = [
        el("li", STEP_NAMES[step], class_="done" if index <= reached else None,
           aria_current="step" if index == reached else None)
        for index, step in enumerate(STEPS)
    ]  # fmt: skip
    headline = HEADLINES.get(order.state, f"Your order is {order.state}.")
    address: Any = order.body.address
    where = [el("span", part) for part in (address.name, address.street, f"{address.postcode} {address.city}",
                                           MARKETS[address.country].name)]  # fmt: skip
    events = [(event.at_us, TRACK_NAMES.get(event.state, event.state), event.place) for event in parcel]
    for event in story:
        if event.state == "delivered" and parcel:
            continue  # the carrier has said it
        note = f"Parcel {number}" if event.state == "shipped" else event.note[:1].upper() + event.note[1:]
        events.append((event.at_us, STEP_NAMES.get(event.state, event.state.capitalize()), note))
    history = [
        el("li", el("strong", name), el("span", place, class_="muted"), _moment(at_us))
        for at_us, name, place in sorted(events, reverse=True)
    ]
    return layout(
        frame,
        f"Order {order.id}",
        el("h1", headline),
        el("p", "Order ", el("strong", order.id, id="order-id"), f", tracking number {number}" if number else "", class_="muted"),
        el("ol", steps, class_="steps") if reached >= 0 else el("p", order.reason, class_="banner bad"),
        el(
            "div",
            el("div",
               el("section", el("h2", "What happened"), el("ul", history, class_="history"), class_="card"),
               el("section", el("h2", "Delivery address"), el("address", where), class_="card")),
            el("aside", el("h2", "Your order"),
               _mini(quote_),
               _totals(quote_),
               el("form", el("button", "Cancel this order", type="submit", class_="button quiet"),
                  action=f"/commerce/orders/{order.id}/cancel", method="post")
               if order.state in ("paid", "packed") else None,
               class_="card summary"),
            class_="with-summary",
        ),
    )  # fmt: skip
