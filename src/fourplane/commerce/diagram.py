"""The Amazon study's boxes as they exist here: what each one is, its figures, its switch; hollow where nothing is built."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fourplane.commerce.store import Meter
from fourplane.control.nodes import Figures, Node, Plane, hollow
from fourplane.edge.admission import AdmissionStatistics
from fourplane.edge.routes import Priority
from fourplane.foundation import clock

if TYPE_CHECKING:
    from fourplane.commerce.app import Commerce

JOURNEY = "journeys/commerce.md"
HOLLOW: tuple[tuple[str, Plane, str], ...] = (
    (
        "CF",
        "edge",
        "A delivery network in front of the shop comes with the edge nodes; pictures already carry year-long validators.",
    ),
    ("ALB", "edge", "One listener shares connections among workers; a balancer between machines comes with placement."),
    ("WAF", "edge", "Host and origin checks and limits are in the gateway; a rule engine is not built yet."),
    ("ROUTE53", "edge", "Answers by region and health come with the DNS server."),
    ("REDSHIFT", "state", "The warehouse of sales events is not built yet."),
    ("CONFIG", "control", "Compliance rules over the running configuration are not built yet."),
    ("AUTOSCALING", "control", "Scaling groups are not built yet."),
    ("FORECAST", "control", "The traffic forecast is not built yet."),
    ("CAPACITY", "control", "The capacity plan is not built yet."),
    ("PRESCALE", "control", "Scaling before an event is not built yet."),
    ("SESSION", "service", "Session affinity between regions is not built yet; one region needs none."),
    ("BACKUP", "state", "The copy of carts in another region is not built yet; carts already merge."),
    ("CLICK", "edge", "Click events are not collected yet."),
    ("VIEW", "edge", "Page views are not collected yet."),
    ("PURCHASE", "edge", "Purchases are not fed to recommendations yet."),
    ("KINESIS", "state", "The event stream of recommendations is not built yet."),
    ("SPARK", "service", "Streaming features are not built yet."),
    ("SAGEMAKER", "service", "Model training is not built yet."),
    ("LAMBDA", "service", "Inference is not built yet."),
    ("ELASTICACHE", "state", "The cache of hot recommendations is not built yet."),
    ("PERSONALIZE", "service", "Personal recommendations are not built yet."),
    ("AB_TEST", "control", "Experiments are not built yet."),
)


def boxes_of(shop: "Commerce") -> list[Node]:
    """All boxes with live figures, then the hollow ones."""
    return [
        *_services(shop),
        *_stores(shop),
        *_cart(shop),
        *_load(shop),
        *_kept(shop),
        *(hollow(*one) for one in HOLLOW),
    ]


def _services(shop: "Commerce") -> list[Node]:
    boxes = shop.store.boxes

    def gateway() -> Figures:
        page = shop.storefront
        return Figures(page.shown, facts={"pages": page.shown, "degraded pages": page.degraded})

    def order() -> Figures:
        checkout = shop.checkout.statistics()
        facts: dict[str, float | int | str] = {"placed": checkout.placed, "repeated": checkout.repeated}
        facts |= {f"refused {code}": count for code, count in sorted(checkout.refused.items())[:6]}
        return Figures(boxes.order.requests, boxes.order.errors, checkout.open / 5_000, checkout.seconds, facts)

    def inventory() -> Figures:
        s = shop.inventory.statistics()
        return boxes.inventory.figures(
            holds=s.holds, sold=s.sold, released=s.released, refused=s.refused, races=s.races
        )

    def payment() -> Figures:
        pay = shop.payments
        return boxes.payment.figures(
            captured=pay.captured, declined=pay.declined, voided=pay.voided, notices=pay.noticed_count
        )

    def shipping() -> Figures:
        work = shop.fulfilment
        return boxes.shipping.figures(packed=work.packed, shipped=work.shipped, delivered=work.delivered)

    def catalog() -> Figures:
        s = shop.catalog.statistics()
        return boxes.catalog.figures(
            products=shop.catalog.products_count,
            decoded=s.decoded,
            hit_ratio=round(s.hits / max(1, s.hits + s.misses), 4),
        )

    return [
        _node("GATEWAY", "service", "The shop's pages and API behind the platform's gateway", "storefront.py", gateway),
        _node(
            "CATALOG",
            "service",
            "Products, variants, prices; decoded once and kept",
            "catalog.py",
            catalog,
            boxes.catalog,
        ),
        _node("CART", "service", "Carts that converge whatever happens", "cart.py", boxes.cart.figures, boxes.cart),
        _node("ORDER", "service", "One request places an order, exactly once", "checkout.py", order, boxes.order),
        _node(
            "INVENTORY",
            "service",
            "Stock with holds; it is never sold twice",
            "inventory.py",
            inventory,
            boxes.inventory,
        ),
        _node("PAYMENT", "service", "Authorise, capture, void, refund", "payment.py", payment, boxes.payment),
        _node("SHIPPING", "service", "Rates, parcels, tracking", "shipping.py", shipping, boxes.shipping),
    ]


def _stores(shop: "Commerce") -> list[Node]:
    boxes = shop.store.boxes

    def search() -> Figures:
        s = shop.catalog.index.statistics()
        state = "whole" if s.whole else ("the last one, renewed behind" if s.ready else "being prepared")
        return boxes.search.figures(asked=s.asked, kept=s.kept, index=state)

    def pictures() -> Figures:
        return Figures(
            shop.media.kept, shop.media.refused, facts={"kept": shop.media.kept, "refused": shop.media.refused}
        )

    def rows() -> Figures:
        stats = shop.coordinator.statistics()
        return Figures(
            stats.committed, stats.aborted, latency=stats.seconds,
            facts={"epoch": stats.epoch, "committed": stats.committed, "aborted": stats.aborted, "recovered": stats.recovered,
                   "decision writes": stats.decision_writes},
        )  # fmt: skip

    return [
        _node("DYNAMODB", "state", "Carts as records with compare-and-set", "cart_store.py", boxes.cart.figures),
        _node("RDS", "state", "Orders, stock and the decisions of the two-phase commit in Sql", "orders.py", rows),
        _node(
            "ELASTICSEARCH", "state", "The search index, fed by catalog and stock", "catalog.py", search, boxes.search
        ),
        _node(
            "S3_CATALOG", "state", "Product pictures in three sizes, drawn where there are none", "media.py", pictures
        ),
        _node("CLOUDWATCH", "control", "Figures of every box, read by the console", "diagram.py", Figures),
        _node("XRAY", "control", "The steps of a transaction: Coordinator.story", "checkout.py", rows),
    ]


def _cart(shop: "Commerce") -> list[Node]:
    boxes = shop.store.boxes

    def catalog() -> Figures:
        s = shop.catalog.statistics()
        asked = s.hits + s.shared_hits + s.misses
        facts: dict[str, float | int | str] = {"hit_ratio": round((asked - s.misses) / max(1, asked), 4)}
        return Figures(asked, facts=facts | {"from the shared table": s.shared_hits, "decoded": s.decoded})

    def packed() -> Figures:
        s = shop.pages.statistics()
        return Figures(s.hits, facts={"pages": s.pages, "with a twin": s.packed})

    def together() -> Figures:
        shared = shop.coordinator.sharing()
        ratio = round(shared.callers / max(1, shared.commits), 1)
        return Figures(
            shared.callers, facts={"commits": shared.commits, "callers per commit": ratio, "alone": shared.alone}
        )

    return [
        _node("ADD", "service", "A counter entry under the client's operation id", "cart.py", boxes.cart.figures),
        _node("UPDATE", "service", "The last write on a hybrid logical clock counts", "cart.py", boxes.cart.figures),
        _node("REMOVE", "service", "Takes away what it has seen; again changes nothing", "cart.py", boxes.cart.figures),
        _node("CHECKOUT", "service", "Two-phase commit over order, stock and card", "checkout.py", boxes.order.figures),
        _node("EVENTUAL", "state", "Copies of a cart merge in any order", "cart.py", boxes.cart.figures),
        _node(
            "CONFLICT", "service", "Limits, new prices and lost lines after a merge", "checkout.py", boxes.cart.figures
        ),
        _node(
            "CACHE", "state", "Decoded products, and a table that the machine's processes share", "snapshot.py", catalog
        ),
        _node("BATCH", "state", "Buyers who meet share commits and statements", "checkout.py", together),
        _node("COMPRESS", "edge", "Kept pages and files have a gzip twin, made once", "page_cache.py", packed),
        _node("PRELOAD", "service", "Related products come with the page", "store.py", boxes.catalog.figures),
    ]


def _load(shop: "Commerce") -> list[Node]:
    boxes = shop.store.boxes

    def door() -> AdmissionStatistics | None:
        return shop.admission.statistics() if shop.admission is not None else None

    def priority() -> Figures:
        s = door()
        if s is None:
            return Figures()
        shares = {f"let in, {one.name.lower()}": round(s.shares[one], 3) for one in Priority}
        return Figures(s.admitted, facts={**shares, "rate": round(s.rate, 1)})

    def shed() -> Figures:
        s = door()
        if s is None:
            return Figures()
        facts: dict[str, float | int | str] = {"turned away": sum(s.shed) + s.stale}
        facts |= {f"shed, {one.name.lower()}": s.shed[one] for one in Priority}
        return Figures(sum(s.shed) + s.stale, facts=facts)

    def queue() -> Figures:
        s = door()
        if s is None:
            return Figures()
        return _queue(shop, s)

    def circuit() -> Figures:
        pay, now_s = shop.payments.breaker.statistics(), clock.monotonic_s()
        facts: dict[str, float | int | str] = {"card network": pay.state, "trips": pay.trips, "refused": pay.refused}
        for one in (shop.catalog.index.calls, shop.store.counting):
            s = one.statistics()
            facts |= {one.name: s.breaker, f"{one.name} refused": s.refused + s.limited}
        asked = shop.payments.captured + shop.payments.declined
        return Figures(asked, boxes.payment.errors, float(shop.payments.breaker.retry_after_s(now_s) > 0), facts=facts)

    return [
        _node(
            "PRIORITY",
            "edge",
            "Checkout first, then cart and pages, then search, crawlers last",
            "edge/admission.py",
            priority,
        ),
        _node(
            "SHED", "edge", "The platform's admission turns away the least important first", "edge/admission.py", shed
        ),
        _node(
            "QUEUE",
            "edge",
            "Bounded lines by class, and a waiting room with fair places in front",
            "edge/waiting_room.py",
            queue,
        ),
        _node("CIRCUIT", "service", "A breaker each in front of card network, search and stock", "payment.py", circuit),
    ]


def _queue(shop: "Commerce", s: AdmissionStatistics) -> Figures:
    """The lines of the door and the room in front of it; while the room is open its people are told first."""
    facts: dict[str, float | int | str] = {
        "in line": s.waiting,
        "oldest ms": round(s.delay_s * 1e3, 1),
        "stale": s.stale,
        "in flight": s.in_flight,
    }
    if shop.room is None:
        return Figures(s.admitted, s.stale, min(1.0, s.waiting / 256), facts=facts)
    room = shop.room.statistics()
    first: dict[str, float | int | str] = (
        {"people waiting": room.waiting} if room.active else {"waiting room": "closed"}
    )
    more: dict[str, float | int | str] = {
        "waiting room": "open" if room.active else "closed",
        "took a place": room.joined,
        "let in so far": room.entered,
        "let in per s": room.entries_per_s,
        "opened": room.openings,
    }
    return Figures(room.joined, 0, min(1.0, max(s.waiting, room.waiting) / 256), facts=first | facts | more)


def _kept(shop: "Commerce") -> list[Node]:
    page = shop.storefront

    def kept() -> Figures:
        s = shop.pages.statistics()
        share = s.hits / max(1, s.hits + s.misses)
        return Figures(s.hits + s.misses, facts={"pages": s.pages, "hit_ratio": round(share, 4), "stale": s.stale})

    def degraded() -> Figures:
        return Figures(page.degraded, facts={"degraded pages": page.degraded})

    return [
        _node("WARMUP", "service", "Popular pages are rendered before anybody asks", "page_cache.py", kept),
        _node(
            "STALE", "service", "Kept pages while one renews them, or while nothing else answers", "page_cache.py", kept
        ),
        _node("DEGRADE", "service", "Pages answer without search, stock or carts, and say so", "store.py", degraded),
        _node("STATIC", "edge", "Whole pages as bytes, answered inside the protocol", "page_cache.py", kept),
        _node("FALLBACK", "service", "Popular products where nothing personal is known", "store.py", Figures),
    ]


def _node(  # noqa: PLR0917 - a table is read by columns
    name: str, plane: Plane, what: str, source: str, figures: Callable[[], Figures], meter: Meter | None = None
) -> Node:
    return Node(
        id=name,
        plane=plane,
        what=what,
        source=source if "/" in source else f"commerce/{source}",
        figures=figures,
        switch=meter.switch if meter else None,
        journey=JOURNEY,
        page="/commerce/",
    )
