"""Carts kept in Records: one partition per cart, written with compare-and-set, merged instead of refused.

A change applies to the cart as it was last written here (a cart never seen is taken for a new one), and writes over that
version. When somebody else wrote meanwhile, the two copies
are merged and written again; after `attempts_max` lost races the caller hears Conflict. A cart that nobody
touches for `keep_days` is forgotten. What was ordered is gone from a cart at once (`ahead`), also before that is written.

Whoever knows a guest's cart may read and fill it, and see its orders. So its id is 128 random bits in the one form in which they
are given out: a short or speaking id ("cart-17", an address), which a stranger could guess, is refused.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from fourplane.commerce.cart import Cart, HybridClock, Stamp
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected
from fourplane.state.contracts import Put, Records

SORT = b"cart"
ACCOUNT = "account-"
GUEST_ID = re.compile(r"[0-9a-f]{32}")  # 128 random bits
CART_ID = re.compile(rf"{GUEST_ID.pattern}|{ACCOUNT}[0-9]{{12,19}}")


class CartSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a cart."""

    lines_max: int = 100
    entries_max: int = 2_000
    codes_max: int = 10
    gone_max: int = 500
    keep_days: int = 60
    seen_max: int = 20_000
    attempts_max: int = 8


class Copy(NamedTuple):
    """A cart as it was read, and its version."""

    cart: Cart
    version: int


class CartStore:
    """Read and change carts by their id; an id is a capability, whoever knows it may change the cart."""

    def __init__(self, settings: CartSettings, *, records: Records, replica: str) -> None:
        self._settings = settings
        self._records = records
        self._clock = HybridClock(replica)
        self._seen: dict[
            str, tuple[bytes, int]
        ] = {}  # as last written here, oldest first; a guess that the version settles
        self._ahead: dict[str, dict[str, None]] = {}  # operations by cart, gone but not written yet
        self._decoder = msgspec.msgpack.Decoder(Cart)
        self._encoder = msgspec.msgpack.Encoder()

    async def find(self, cart_id: str) -> Cart:
        """The cart, empty when nobody ever put anything in."""
        return (await self.load(cart_id)).cart

    async def load(self, cart_id: str) -> "Copy":
        """The cart and which version of it this is."""
        record = await self._records.get(_partition(cart_id), SORT)
        return Copy(Cart(), 0) if record is None else Copy(self._copy(cart_id, record.value), record.version)

    async def change(self, cart_id: str, edit: Callable[[Cart, Stamp], object], *, known: "Copy | None" = None) -> Cart:
        """Apply `edit` durably and return the cart; `edit` may run again on a newer copy than the one that is `known`."""
        partition = _partition(cart_id)
        for attempt in range(self._settings.attempts_max):
            cart, version = known or (self._guess(cart_id) if attempt == 0 else await self.load(cart_id))
            known = None
            self._clock.observe(cart.latest())
            edit(cart, self._clock.tick(clock.now_us()))
            self._bound(cart)
            stored = self._encoder.encode(cart)
            put = Put(SORT, stored, expect_version=version, ttl_s=self._settings.keep_days * 86_400.0)
            try:
                await self._records.write(partition, [put])
            except Conflict:
                self._seen.pop(cart_id, None)
                continue
            self._seen.pop(cart_id, None)
            if len(self._seen) >= self._settings.seen_max:
                del self._seen[next(iter(self._seen))]
            self._seen[cart_id] = (stored, version + 1)
            return cart
        raise Conflict("this cart is being changed from too many places at once", code="cart_busy")

    def ahead(self, cart_id: str, operations: Sequence[str]) -> None:
        """Whoever looks sees the cart without these operations; they are about to be taken out of it."""
        self._ahead.setdefault(cart_id, {}).update(dict.fromkeys(operations))

    def caught_up(self, cart_id: str, operations: Sequence[str]) -> None:
        """It is written now."""
        left = self._ahead.get(cart_id)
        if left is None:
            return
        for operation in operations:
            left.pop(operation, None)
        if not left:
            del self._ahead[cart_id]

    async def absorb(self, cart_id: str, other: Cart) -> Cart:
        """Merge another copy (a guest's cart at login, another region's) into this one."""

        def edit(cart: Cart, _: Stamp) -> None:
            both = cart.merge(other)
            cart.entries, cart.gone, cart.codes = both.entries, both.gone, both.codes

        return await self.change(cart_id, edit)

    def _guess(self, cart_id: str) -> "Copy":
        """The cart as last written here, or a new one: not read, so whoever uses it must expect its version."""
        stored, version = self._seen.get(cart_id, (b"", 0))
        return Copy(self._copy(cart_id, stored), version) if version else Copy(Cart(), 0)

    def _copy(self, cart_id: str, stored: bytes) -> Cart:
        cart = self._decoder.decode(stored)
        assert cart.schema == 1, "a cart of a newer schema"
        if cart_id in self._ahead:
            cart.clear(self._ahead[cart_id], stamp=self._clock.tick(clock.now_us()))
        return cart

    def _bound(self, cart: Cart) -> None:
        settings = self._settings
        cart.compact(settings.gone_max)
        if len(cart.entries) > settings.entries_max or len({e.sku for e in cart.entries.values()}) > settings.lines_max:
            raise Rejected(f"a cart holds at most {settings.lines_max} lines", code="cart_full")
        if len(cart.codes) > settings.codes_max:
            raise Rejected(f"at most {settings.codes_max} codes are tried per cart", code="too_many_codes")


def _partition(cart_id: str) -> bytes:
    if CART_ID.fullmatch(cart_id) is None:
        raise Rejected(
            "a cart's id is 32 hexadecimal digits in lower case, as POST /commerce/api/carts gives them",
            code="bad_cart_id",
        )
    return b"cart:" + cart_id.encode()
