"""The promotions of the shop: stored, counted, handed to the checkout.

A limited code has a row in `code_uses`; the order's prepare raises its count under the condition that one is left, in the same
commit that claims the order, so a code of 100 uses is used 100 times however many buyers race for it. Writing a promotion again
keeps the count.
"""

from collections.abc import Sequence

import msgspec

from fourplane.commerce.checkout import Checkout
from fourplane.commerce.promotions import Promotion
from fourplane.foundation.errors import Rejected
from fourplane.state.contracts import Sql, Statement

PROMOTIONS_MAX = 1_000
STANDING = (
    Promotion("welcome", "10 % off your first order", "order_percent", percent=10, code="WELCOME10", rank=200,
              uses_per_buyer=1),
    Promotion("books", "3 for 2 on books", "buy_x_get_y", buy=2, free=1, categories=frozenset({"books"})),
    Promotion("ship", "Free delivery", "free_shipping", code="SHIPFREE"),
    Promotion(
        "first100", "20 off for the first hundred", "order_fixed", code="FIRST100", uses_max=100,
        amounts={"USD": 2_000, "EUR": 2_000, "GBP": 2_000}, least={"USD": 5_000, "EUR": 5_000, "GBP": 5_000},
    ),
)  # fmt: skip


class PromotionBook:
    """The owner of promotions."""

    def __init__(self, *, sql: Sql, checkout: Checkout) -> None:
        self._sql = sql
        self._checkout = checkout
        self._decoder = msgspec.msgpack.Decoder(Promotion)

    async def open(self, standing: Sequence[Promotion] = ()) -> None:
        """Read what is stored; a new shop starts with `standing`."""
        rows = await self._sql.read("SELECT body FROM promotions ORDER BY id LIMIT 1000")
        if not rows and standing:
            for promotion in standing:
                await self.put(promotion)
            return
        self._checkout.promotions = [self._decode(row[0]) for row in rows]

    async def put(self, promotion: Promotion) -> None:
        """Add or replace a rule; raises Rejected for one that makes no sense."""
        if not 0 <= promotion.percent <= 100 or any(amount < 0 for amount in promotion.amounts.values()):
            raise Rejected("a discount is 0 to 100 percent, or an amount", code="bad_promotion")
        if promotion.code != promotion.code.strip().upper() or len(promotion.code) > 30:
            raise Rejected("a code is up to 30 capital letters and digits", code="bad_promotion")
        if promotion.kind == "buy_x_get_y" and (promotion.buy < 1 or promotion.free < 1):
            raise Rejected("buy how many, get how many free?", code="bad_promotion")
        if len(self._checkout.promotions) >= PROMOTIONS_MAX:
            raise Rejected(f"at most {PROMOTIONS_MAX} promotions", code="too_many_promotions")
        statements = [
            Statement(
                "INSERT INTO promotions (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (promotion.id, msgspec.msgpack.encode(promotion)),
            )
        ]
        if promotion.code and promotion.uses_max:
            statements.append(
                Statement(
                    "INSERT INTO code_uses (code, used, uses_max) VALUES (?1, 0, ?2) "
                    "ON CONFLICT (code) DO UPDATE SET uses_max = excluded.uses_max",
                    (promotion.code, promotion.uses_max),
                )
            )
        await self._sql.commit(statements)
        others = [one for one in self._checkout.promotions if one.id != promotion.id]
        self._checkout.promotions = [*others, promotion]

    async def uses(self, code: str) -> int:
        """How often a limited code has been used."""
        rows = await self._sql.read("SELECT used FROM code_uses WHERE code = ?1", code)
        return int(rows[0][0] or 0) if rows else 0

    def _decode(self, body: object) -> Promotion:
        assert isinstance(body, bytes), "a promotion is stored as msgpack"
        return self._decoder.decode(body)
