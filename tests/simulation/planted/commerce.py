"""Bugs of a shop, planted one at a time."""

from fourplane.commerce import checkout
from fourplane.commerce.cart import Cart
from fourplane.commerce.cart_clearing import CartClearing
from fourplane.commerce.cart_store import CartStore
from fourplane.commerce.checkout import Checkout
from fourplane.commerce.inventory import InventoryShard
from fourplane.commerce.payment import Payments
from fourplane.commerce.shelf import Piece, Shelf
from fourplane.foundation import clock, ids
from fourplane.service.card_simulator import CardSimulator
from fourplane.service.two_phase_commit import Coordinator
from fourplane.state.embedded.vfs import Disk


def attempts_are_not_remembered(patch):
    """The key of idempotency and the claim on the cart are ignored: who asks again buys again."""
    place = Checkout.place

    async def anew(self, cart_id, attempt, request, *, account=0):
        return await place(self, cart_id, ids.capability(), request, account=account)

    async def commit(self, transaction):
        return None

    patch.setattr(Checkout, "place", anew)
    patch.setattr(CartClearing, "commit", commit)
    patch.setattr(CartClearing, "ordered", lambda self, number: None)
    patch.setattr(checkout, "_claim", lambda cart_id, cart: ids.capability())


def carts_are_written_over_an_old_copy(patch):
    """A node makes a change to a cart as it was before the last one, and calls it the newest version."""
    guess, before = CartStore._guess, {}

    def stale(self, cart_id):
        copy = guess(self, cart_id)
        entries = before.get(cart_id, {})
        before[cart_id] = dict(copy.cart.entries)
        return copy._replace(cart=Cart(entries=dict(entries)))

    patch.setattr(CartStore, "_guess", stale)


def carts_are_kept_in_memory(patch):
    """An addition to a cart is answered before it is written."""
    change = CartStore.change

    async def volatile(self, cart_id, edit, *, known=None):
        cart, _ = known or await self.load(cart_id)
        edit(cart, self._clock.tick(clock.now_us()))
        return cart if clock.random().random() < 0.1 else await change(self, cart_id, edit)

    patch.setattr(CartStore, "change", volatile)


def refused_orders_keep_their_pieces(patch):
    """An order that fails gives nothing back to the shelf."""

    async def abort(self, transaction):
        return None

    patch.setattr(InventoryShard, "abort", abort)
    patch.setattr(InventoryShard, "release", lambda self, transaction: None)


def a_hold_is_for_one_piece(patch):
    """Whatever is ordered, one piece of it is put aside, or leaves the shelf."""
    holding, complete = InventoryShard._holding, InventoryShard.complete

    def one(rows):
        return [row if len(row.values) != 3 else type(row)(row.template, (*row.values[:2], 1)) for row in rows]

    def less(self, transaction, work):
        told = complete(self, transaction, work)
        return type(told)(one(told.statements), told.result, told.fences)

    patch.setattr(InventoryShard, "_holding", lambda self, *what: one(holding(self, *what)))
    patch.setattr(InventoryShard, "complete", less)


def the_shelf_is_believed(patch):
    """What a buyer may have is decided by what was there at the start, and no row may say no."""

    async def allocate(self, wanted, zone):
        return [Piece(want.sku, self._settings.warehouses[0], want.quantity) for want in wanted]

    def complete(self, transaction, work):
        told = kept(self, transaction, work)
        return type(told)([], told.result, told.fences)

    kept = InventoryShard.complete
    patch.setattr(InventoryShard, "allocate", allocate)
    patch.setattr(InventoryShard, "_holding", lambda self, *what: [])
    patch.setattr(InventoryShard, "complete", complete)
    patch.setattr(Shelf, "has", lambda self, pieces: True)


def refused_orders_keep_their_money(patch):
    """An order that fails after its payment was authorised does not let go of it."""

    async def abort(self, transaction):
        return None

    patch.setattr(Payments, "abort", abort)


def payments_are_not_captured(patch):
    """An order is confirmed and its money stays on hold."""

    async def commit(self, transaction):
        return None

    async def commit_many(self, transactions):
        return ()

    patch.setattr(Payments, "commit", commit)
    patch.setattr(Payments, "commit_many", commit_many)


def orders_are_told_before_they_are_decided(patch):
    """The buyer hears of the order before the decision is written, and not every decision is."""
    decide = Coordinator._decide

    async def forget(self, transaction, others, agents, results):
        if clock.random().random() < 0.7:
            await decide(self, transaction, others, agents, results)

    patch.setattr(Coordinator, "_decide", forget)


def nobody_ends_what_a_crash_left(patch):
    """What was in doubt when the process died stays so."""

    async def none_doubted(self):
        return {}

    patch.setattr(Coordinator, "_doubted", none_doubted)


def captures_take_a_little_less(patch):
    """The card pays a cent less than the order costs."""
    capture = CardSimulator.capture

    async def less(self, key, authorisation_id, amount=None):
        paid = await self.find(authorisation_id)
        cent = type(paid.authorised)(1, paid.authorised.currency)
        return await capture(self, key, authorisation_id, (amount or paid.authorised) - cent)

    async def many(self, captures):
        return [one.key for one in captures]

    patch.setattr(CardSimulator, "capture", less)
    patch.setattr(CardSimulator, "capture_many", many)


def sync_lies(patch):
    """The disk says yes and makes nothing durable."""

    def sync(self, path):
        self.syncs += 1

    patch.setattr(Disk, "sync", sync)


PLANTS = {
    attempts_are_not_remembered: "commerce-lost-answers",
    carts_are_written_over_an_old_copy: "commerce-latency",
    carts_are_kept_in_memory: "commerce-latency",
    refused_orders_keep_their_pieces: "commerce-latency",
    a_hold_is_for_one_piece: "commerce-latency",
    the_shelf_is_believed: "commerce-latency",
    refused_orders_keep_their_money: "commerce-late-dependency",
    payments_are_not_captured: "commerce-latency",
    orders_are_told_before_they_are_decided: "commerce-instance-loss",
    nobody_ends_what_a_crash_left: "commerce-slow-then-dies",
    captures_take_a_little_less: "commerce-latency",
    sync_lies: "commerce-instance-loss",
}
