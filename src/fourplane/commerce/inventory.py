"""Stock that cannot be sold twice.

Every sku lives in one shard; a shard is one sql store with one writer, so a hot sku costs no more than a cold one. Per sku and
warehouse there are two numbers, `on_hand` and `held`; a hold raises `held` only where `on_hand - held` allows it, inside the
statement itself, so any number of buyers may race. The life of a hold is that of a two-phase commit:

    prepare   held += n, a row in `holds`; refused when the transaction has already ended here (a late prepare cannot win)
    commit    on_hand -= n, held -= n, a line in the ledger                              may be repeated
    abort     held -= n, the end is remembered, also when there was nothing to release   may be repeated

Where the shard lies in the store of the coordinator's decisions, nothing need be promised (see "last agent" in
`service/two_phase_commit`): pieces are set aside in memory (`shelf`) and sold by one statement, on condition, in the
decision's commit. A crash forgets what was set aside, and with it the transaction.

A prepared hold never lapses by itself: it is in doubt, and the coordinator settles what is in doubt (at the latest its sweep);
`overdue` counts holds that wait longer than `hold_s`.
The writer opens the shard with a new epoch; every commit carries it, so an owner that was replaced
cannot write any more.

Invariants (`check`): the ledger's sum is `on_hand`; the holds' sum is `held`; 0 <= held <= on_hand.
Source: Gray and Reuter, Transaction Processing (1992), escrow; CASES.md C9. Cost: one grouped commit per step.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from fourplane.commerce.shelf import Piece, Shelf
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.service.participants import Draft, Transaction
from fourplane.service.shared_commit import Row, Template, Work, rendered
from fourplane.state.contracts import Sql, Statement

_CORRECT = Template(
    "INSERT INTO stock_ledger (id, sku, warehouse, delta, reason, reference, at_us) SELECT v.column1, v.column2, v.column3, "
    "v.column4 - COALESCE(stock.on_hand, 0), v.column5, '', v.column6 FROM (VALUES ",
    "(CAST({} AS BIGINT), CAST({} AS VARCHAR(200)), CAST({} AS VARCHAR(20)), CAST({} AS BIGINT), CAST({} AS VARCHAR(40)), "
    "CAST({} AS BIGINT))",
    ") AS v LEFT JOIN stock ON stock.sku = v.column2 AND stock.warehouse = v.column3",
)
_SET_STOCK = Template(
    "INSERT INTO stock (sku, warehouse, on_hand, held) VALUES ",
    "({}, {}, {}, 0)",
    " ON CONFLICT (sku, warehouse) DO UPDATE SET on_hand = excluded.on_hand",
)
_PIECES = "(CAST({} AS VARCHAR(200)), CAST({} AS VARCHAR(20)), CAST({} AS BIGINT))"
_THESE = ") AS v WHERE stock.sku = v.column1 AND stock.warehouse = v.column2"
_RESERVE = Template(
    "UPDATE stock SET held = held + v.column3 FROM (VALUES ",
    _PIECES,
    f"{_THESE} AND stock.on_hand - stock.held >= v.column3",
    summed=True,
    label="stock",
)
_PUT_HOLD = Template(
    "INSERT INTO holds (transaction_id, sku, warehouse, quantity, expires_us, coordinator, epoch) SELECT column1, column2, "
    "column3, column4, column5, column6, column7 FROM (VALUES ",
    "(CAST({} AS BIGINT), CAST({} AS VARCHAR(200)), CAST({} AS VARCHAR(20)), CAST({} AS BIGINT), CAST({} AS BIGINT), "
    "CAST({} AS VARCHAR(60)), CAST({} AS BIGINT))",
    ") AS v WHERE NOT EXISTS (SELECT 1 FROM hold_ends WHERE transaction_id = CAST(v.column1 AS VARCHAR(80)))",
    label="ended",
)
_SELL_FREE = Template(
    "UPDATE stock SET on_hand = on_hand - v.column3 FROM (VALUES ",
    _PIECES,
    f"{_THESE} AND stock.on_hand - stock.held >= v.column3",
    summed=True,
    label="stock",
)
_ENTER = Template(
    "INSERT INTO stock_ledger (id, sku, warehouse, delta, reason, reference, at_us) VALUES ",
    "({}, {}, {}, {}, {}, {}, {})",
    label="ledger",
)
_SELL = "UPDATE stock SET on_hand = on_hand - ?3, held = held - ?3 WHERE sku = ?1 AND warehouse = ?2"
_RELEASE = "UPDATE stock SET held = held - ?3 WHERE sku = ?1 AND warehouse = ?2"
_END = "INSERT INTO hold_ends (transaction_id, outcome, at_us) VALUES (?1, ?2, ?3)"
_DROP = "DELETE FROM holds WHERE transaction_id = ?1"


NEAR = {"us": ("newark", "reno", "rotterdam"), "europe": ("rotterdam", "newark", "reno")}


ADJUST_MAX = 100
ON_HAND_MAX = 10_000_000  # of one sku, as in a catalog file
AT_ONCE = 64


class InventorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where stock lies and how long a hold may stay undecided."""

    warehouses: tuple[str, ...] = ("newark", "reno", "rotterdam")
    near: dict[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: dict(NEAR))
    hold_s: float = 120.0
    attempts_max: int = 12
    ends_keep_s: float = 86_400.0
    shelf_max: int = 100_000


class Adjustment(msgspec.Struct, frozen=True):
    """Set what is on hand of a sku; without a warehouse it is spread over all of them."""

    sku: str
    on_hand: int
    reason: str
    warehouse: str = ""


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """So much of a sku."""

    sku: str
    quantity: int


class HoldRequest(msgspec.Struct, frozen=True):
    """One shard's part of an order: what, which zone it goes to, and where from, if somebody has just looked."""

    wanted: list[Wanted]
    zone: str
    pieces: list[Piece] = []


class OutOfStock(Conflict):
    """Not enough of a sku; `fields` say which and how many are left."""

    code = "out_of_stock"


class InventoryStatistics(msgspec.Struct, frozen=True):
    """What happened since the start."""

    holds: int
    sold: int
    released: int
    refused: int
    races: int


class InventoryShard:
    """The one writer of one shard."""

    def __init__(self, settings: InventorySettings, *, sql: Sql, ids: IdGenerator) -> None:
        self._settings = settings
        self._sql = sql
        self._ids = ids
        self._epoch = 0
        self._pieces: dict[int, list[Piece]] = {}
        self._settling: set[int] = set()
        self._shelf = Shelf(settings.shelf_max)
        self.holds = self.sold = self.released = self.refused = self.races = 0

    async def open(self) -> None:
        """Take the shard over with a new epoch; whoever had it before can no longer write."""
        await self._sql.commit(
            [Statement("INSERT INTO shard_epoch (id, epoch) VALUES (1, 0) ON CONFLICT (id) DO NOTHING")]
        )
        rows = await self._sql.commit(
            [Statement("UPDATE shard_epoch SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch")]
        )
        epoch = rows[0][0][0]
        assert isinstance(epoch, int)
        self._epoch = epoch

    async def set_stock(self, adjustments: Sequence[Adjustment]) -> None:
        """Make `on_hand` what each adjustment says and write the difference into the ledger; in batches.

        Raises Conflict (`stock_held`) for less than buyers hold at this moment; batches before it are done then.
        """
        for begin in range(0, len(adjustments), ADJUST_MAX):
            await self._adjust(adjustments[begin : begin + ADJUST_MAX])

    async def _adjust(self, adjustments: Sequence[Adjustment]) -> None:
        rows: list[Row] = []
        now = clock.now_us()
        for adjustment in adjustments:
            if not 0 <= adjustment.on_hand <= ON_HAND_MAX:
                told = f"stock is 0 to {ON_HAND_MAX:,}, not {adjustment.on_hand}"
                raise Rejected(told, code="bad_quantity", sku=adjustment.sku)
            for warehouse, count in self._spread(adjustment):
                values = (self._ids.next(), adjustment.sku, warehouse, count, adjustment.reason, now)
                rows.append(Row(_CORRECT, values))
                rows.append(Row(_SET_STOCK, (adjustment.sku, warehouse, count)))
        try:
            await self._sql.commit([self._fence(), *rendered(rows)])
        except Conflict as conflict:
            if conflict.fields.get("label") == "epoch":
                raise Conflict("this shard has a new owner", code="not_owner") from conflict
            raise Conflict("more is on hold than would be left", code="stock_held") from conflict
        self._shelf.forget(adjustment.sku for adjustment in adjustments)

    async def available(self, sku: str) -> int:
        """How many could be held now, over all warehouses."""
        rows = await self._sql.read("SELECT SUM(on_hand - held) FROM stock WHERE sku = ?1", sku)
        return int(rows[0][0] or 0) if rows else 0

    async def available_of(self, skus: Sequence[str]) -> dict[str, int]:
        """The same for many."""
        levels = dict.fromkeys(skus, 0)
        for begin in range(0, len(skus), AT_ONCE):
            part = skus[begin : begin + AT_ONCE]
            marks = ", ".join(f"?{number}" for number in range(1, len(part) + 1))
            rows = await self._sql.read(
                f"SELECT sku, SUM(on_hand - held) FROM stock WHERE sku IN ({marks}) GROUP BY sku",  # noqa: S608 - only marks
                *part,
            )
            levels |= {str(sku): int(count or 0) for sku, count in rows}
        return levels

    def plenty(self, sku: str, least: int) -> int | None:
        """How many could be held, where at least so many can without a look at the rows; else None."""
        free = self._shelf.find(sku)
        count = 0 if free is None else sum(free.values()) - self._shelf.undecided(sku)
        return count if count >= least else None

    async def prepare(self, transaction: Transaction, work: object) -> list[Piece]:
        """Hold all of it or nothing, durably; where from. Raises OutOfStock, or Conflict when it has already ended."""
        assert isinstance(work, HoldRequest), "an inventory holds stock"
        number = transaction.id
        for attempt in range(self._settings.attempts_max):
            pieces = work.pieces if work.pieces and attempt == 0 else await self.allocate(work.wanted, work.zone)
            self._pieces[number] = pieces
            self._shelf.take(pieces)
            try:
                await self._sql.commit([self._fence(), *rendered(self._holding(transaction, pieces))])
            except Conflict as conflict:
                self._shelf.forget(piece.sku for piece in self._pieces.pop(number, ()))
                await self._explain(conflict, str(number))
                if held := await self._held(number):
                    self._pieces[number] = held
                    return held
                self.races += 1
                continue
            self.holds += 1
            return pieces
        raise _busy()

    def _holding(self, transaction: Transaction, pieces: Sequence[Piece]) -> list[Row]:
        number, who = transaction.id, (transaction.coordinator, transaction.epoch)
        expires = clock.now_us() + int(self._settings.hold_s * 1e6)
        rows: list[Row] = []
        for piece in pieces:
            sku, warehouse, quantity = piece.sku, piece.warehouse, piece.quantity
            rows.append(Row(_PUT_HOLD, (number, sku, warehouse, quantity, expires, *who)))
            rows.append(Row(_RESERVE, (sku, warehouse, quantity)))
        return rows

    # -- as a last agent: nothing is promised, the sale is in the decision's commit

    @property
    def store(self) -> Sql:
        """Where this shard lies."""
        return self._sql

    async def enlist(self, transaction: Transaction, work: object, attempt: int) -> Sequence[Work]:
        """Set pieces aside for this buyer; looks for others after a lost race. Raises OutOfStock."""
        assert isinstance(work, HoldRequest), "an inventory holds stock"
        pieces = work.pieces
        if attempt or not pieces or not self._shelf.has(pieces):
            for _ in range(self._settings.attempts_max):
                pieces = await self.allocate(work.wanted, work.zone)
                if self._shelf.has(pieces):  # several skus are looked at one after the other
                    break
            else:
                raise _busy()
        self._shelf.set_aside(pieces)
        self._pieces[transaction.id] = pieces
        return ()

    def complete(self, transaction: Transaction, work: object) -> Draft:  # noqa: ARG002 - one shape for all
        """Sell what was set aside, while it is there."""
        number, now = transaction.id, clock.now_us()
        pieces, reference = self._pieces[number], str(number)
        rows: list[Row] = []
        for piece in pieces:
            sku, warehouse, quantity = piece.sku, piece.warehouse, piece.quantity
            rows.append(Row(_SELL_FREE, (sku, warehouse, quantity)))
            rows.append(Row(_ENTER, (self._ids.next(), sku, warehouse, -quantity, "sale", reference, now)))
        self._shelf.settle(pieces)
        self._settling.add(number)
        return Draft(rows, pieces, (self._fence(),))

    async def conflicted(self, transaction: Transaction, work: object, conflict: Conflict) -> bool:  # noqa: ARG002 - as above
        """Whether it was a lost race for stock; then other pieces may be found. Raises for a shard with a new owner."""
        label = conflict.fields.get("label")
        lost = label == "stock"
        if lost:
            self._shelf.forget(piece.sku for piece in self._pieces.get(transaction.id, ()))
            self.races += 1
        self.release(transaction)
        if label == "epoch":
            raise Conflict("this shard has a new owner", code="not_owner") from conflict
        return lost

    def completed(self, transaction: Transaction) -> None:
        """Sold: the rows have it."""
        pieces = self._pieces.get(transaction.id, ())
        self._shelf.take(pieces)
        self.release(transaction)
        self.holds += 1
        self.sold += sum(piece.quantity for piece in pieces)

    def release(self, transaction: Transaction) -> None:
        """What was set aside is free."""
        pieces = self._pieces.pop(transaction.id, None)
        if pieces is None:
            return
        self._shelf.put_back(pieces)
        if transaction.id in self._settling:
            self._settling.discard(transaction.id)
            self._shelf.settled(pieces)

    async def commit(self, transaction: Transaction) -> None:
        """Turn the hold into a sale; once."""
        pieces = await self._finish(transaction.id, "sold", _SELL)
        self.sold += sum(piece.quantity for piece in pieces)

    async def abort(self, transaction: Transaction) -> None:
        """Give the hold back and refuse it for ever."""
        self._shelf.forget(piece.sku for piece in self._pieces.get(transaction.id, ()))
        pieces = await self._finish(transaction.id, "released", _RELEASE)
        self._shelf.forget(piece.sku for piece in pieces)
        self.released += sum(piece.quantity for piece in pieces)

    async def in_doubt(self, coordinator: str) -> list[Transaction]:
        """Transactions of this coordinator that hold something here."""
        rows = await self._sql.read(
            "SELECT DISTINCT transaction_id, epoch FROM holds WHERE coordinator = ?1 ORDER BY transaction_id",
            coordinator,
        )
        return [Transaction(int(number or 0), coordinator, int(epoch or 0)) for number, epoch in rows]

    async def give_back(self, reference: str, pieces: Sequence[Piece], reason: str) -> None:
        """Put sold pieces back on the shelf once per reference: a cancelled order or a return."""
        now = clock.now_us()
        statements = [self._fence(), Statement(_END, (f"{reason}:{reference}", "returned", now))]
        for piece in pieces:
            statements += [
                Statement(
                    "UPDATE stock SET on_hand = on_hand + ?3 WHERE sku = ?1 AND warehouse = ?2",
                    (piece.sku, piece.warehouse, piece.quantity),
                    expect_rows=1,
                ),
                self._ledger(piece, piece.quantity, reason, reference, now),
            ]
        try:
            await self._sql.commit(statements)
        except Conflict:
            if not await self._outcome(f"{reason}:{reference}"):
                raise
        self._shelf.forget(piece.sku for piece in pieces)

    async def sold_in(self, transaction: int) -> list[Piece]:
        """What one transaction sold, by the ledger."""
        rows = await self._sql.read(
            "SELECT sku, warehouse, -delta FROM stock_ledger WHERE reference = ?1 AND reason = 'sale' ORDER BY id",
            str(transaction),
        )
        return [Piece(str(sku), str(warehouse), int(count or 0)) for sku, warehouse, count in rows]

    async def overdue(self) -> int:
        """Holds that have been undecided for longer than `hold_s`."""
        rows = await self._sql.read("SELECT COUNT(*) FROM holds WHERE expires_us < ?1", clock.now_us())
        return int(rows[0][0] or 0)

    async def forget_ends(self) -> None:
        """Drop remembered ends that are too old for a late prepare."""
        before = clock.now_us() - int(self._settings.ends_keep_s * 1e6)
        await self._sql.commit([self._fence(), Statement("DELETE FROM hold_ends WHERE at_us < ?1", (before,))])

    async def levels(self) -> dict[str, int]:
        """Availability of every sku of this shard."""
        levels: dict[str, int] = {}
        after = ""
        while rows := await self._sql.read(
            "SELECT sku, SUM(on_hand - held) FROM stock WHERE sku > ?1 GROUP BY sku ORDER BY sku LIMIT 5000", after
        ):
            levels |= {str(sku): int(count or 0) for sku, count in rows}
            after = str(rows[-1][0])
        return levels

    async def check(self) -> None:
        """Assert that ledger, holds and stock agree for every sku."""
        wrong = await self._sql.read(
            "SELECT s.sku, s.warehouse, s.on_hand, s.held, COALESCE(l.total, 0), COALESCE(h.total, 0) FROM stock s "
            "LEFT JOIN (SELECT sku, warehouse, SUM(delta) AS total FROM stock_ledger GROUP BY sku, warehouse) l "
            "ON l.sku = s.sku AND l.warehouse = s.warehouse "
            "LEFT JOIN (SELECT sku, warehouse, SUM(quantity) AS total FROM holds GROUP BY sku, warehouse) h "
            "ON h.sku = s.sku AND h.warehouse = s.warehouse "
            "WHERE s.on_hand <> COALESCE(l.total, 0) OR s.held <> COALESCE(h.total, 0) LIMIT 100"
        )
        for sku, warehouse, on_hand, held, ledger, holds in wrong:
            assert on_hand == ledger, f"{sku!r} in {warehouse!r}: {on_hand!r} on hand, the ledger says {ledger!r}"
            assert held == holds, f"{sku!r} in {warehouse!r}: {held!r} held, the holds say {holds!r}"

    def _fence(self) -> Statement:
        return Statement("SELECT 1 FROM shard_epoch WHERE epoch = ?1", (self._epoch,), expect_rows=1, label="epoch")

    def _spread(self, adjustment: Adjustment) -> list[tuple[str, int]]:
        warehouses = self._settings.warehouses
        if adjustment.warehouse:
            if adjustment.warehouse not in warehouses:
                raise Rejected(f"no warehouse {adjustment.warehouse[:20]!r}", code="no_such_warehouse")
            return [(adjustment.warehouse, adjustment.on_hand)]
        share, rest = divmod(adjustment.on_hand, len(warehouses))
        return [(warehouse, share + (index < rest)) for index, warehouse in enumerate(warehouses)]

    async def allocate(self, wanted: Sequence[Wanted], zone: str) -> list[Piece]:
        """One warehouse for everything where one has it, the nearest first; else each line from the nearest that have some."""
        free = {want.sku: await self._free(want) for want in wanted}
        near = self._settings.near.get(zone, self._settings.warehouses)
        for warehouse in near:
            if all(free[want.sku].get(warehouse, 0) >= want.quantity for want in wanted):
                return [Piece(want.sku, warehouse, want.quantity) for want in wanted]
        pieces = []
        for want in wanted:
            missing = want.quantity
            for warehouse in near:
                count = min(missing, free[want.sku].get(warehouse, 0))
                if count > 0:
                    pieces.append(Piece(want.sku, warehouse, count))
                    missing -= count
        return pieces

    async def _free(self, want: Wanted) -> dict[str, int]:
        """Free pieces by warehouse, enough of them; raises OutOfStock. Only the rows may say no."""
        sku, wanted, shelf = want.sku, want.quantity, self._shelf
        free = shelf.find(sku)
        for _ in range(self._settings.attempts_max):
            if free is not None and sum(free.values()) >= wanted:
                return free
            rows = await self._sql.read("SELECT warehouse, on_hand - held FROM stock WHERE sku = ?1", sku)
            shelf.put(sku, {str(warehouse): int(count or 0) for warehouse, count in rows})
            free = shelf.find(sku)
            assert free is not None, "it was put there"
            left = sum(free.values())
            if left >= wanted:
                return free
            if left + shelf.undecided(sku) < wanted:
                self.refused += 1
                left = max(0, left)
                raise OutOfStock(f"only {left} left", sku=sku, wanted=wanted, available=left)
            await shelf.until_settled(sku)
            free = None
        raise _busy()

    async def _held(self, transaction: int) -> list[Piece]:
        rows = await self._sql.read(
            "SELECT sku, warehouse, quantity FROM holds WHERE transaction_id = ?1 ORDER BY sku, warehouse", transaction
        )
        return [Piece(str(sku), str(warehouse), int(count or 0)) for sku, warehouse, count in rows]

    async def _outcome(self, transaction: str) -> str:
        rows = await self._sql.read("SELECT outcome FROM hold_ends WHERE transaction_id = ?1", transaction)
        return str(rows[0][0]) if rows else ""

    async def _explain(self, conflict: Conflict, transaction: str) -> None:
        """Raise unless the conflict was a lost race for stock."""
        if conflict.fields.get("label") == "epoch":
            raise Conflict("this shard has a new owner", code="not_owner") from conflict
        if await self._outcome(transaction):
            raise Conflict("this transaction has already ended", code="transaction_ended") from conflict

    async def _finish(self, number: int, outcome: str, change: str) -> list[Piece]:
        known = self._pieces.pop(number, None)
        pieces = known if known and outcome == "sold" else await self._held(number)
        transaction, now = str(number), clock.now_us()
        if not pieces and outcome == "sold":
            return []  # sold before
        statements = [self._fence()]
        if outcome == "released":
            statements.append(Statement(_END, (transaction, outcome, now), label="end"))
        for piece in pieces:
            statements.append(Statement(change, (piece.sku, piece.warehouse, piece.quantity), expect_rows=1))
            if outcome == "sold":
                statements.append(self._ledger(piece, -piece.quantity, "sale", transaction, now))
        if pieces:
            statements.append(Statement(_DROP, (number,), expect_rows=len(pieces), label="held"))
        try:
            await self._sql.commit(statements)
        except Conflict as conflict:
            if conflict.fields.get("label") == "epoch":
                raise Conflict("this shard has a new owner", code="not_owner") from conflict
            if await self._held(number):
                raise
            return []  # ended before
        return pieces

    def _ledger(self, piece: Piece, delta: int, reason: str, reference: str, now: int) -> Statement:
        values = (self._ids.next(), piece.sku, piece.warehouse, delta, reason, reference, now)
        return rendered([Row(_ENTER, values)])[0]


def _busy() -> Conflict:
    return Conflict("too many buyers at once for this; try again", code="stock_busy")


class Inventory:
    """All shards of this process; a sku always lands on the same one."""

    def __init__(self, settings: InventorySettings, *, shards: Sequence[Sql], ids: IdGenerator) -> None:
        assert shards, "an inventory needs at least one shard"
        self.shards = [InventoryShard(settings, sql=sql, ids=ids) for sql in shards]

    async def open(self) -> None:
        """Take every shard over."""
        for shard in self.shards:
            await shard.open()

    def shard_of(self, sku: str) -> int:
        """The number of the shard a sku lives in."""
        if len(self.shards) == 1:
            return 0
        return int.from_bytes(blake2b(sku.encode(), digest_size=4).digest(), "big") % len(self.shards)

    def by_shard(self, wanted: Sequence[Wanted]) -> Mapping[int, list[Wanted]]:
        """Lines grouped by the shard that decides about them."""
        if len(self.shards) == 1:
            return {0: list(wanted)}
        groups: dict[int, list[Wanted]] = {}
        for want in wanted:
            groups.setdefault(self.shard_of(want.sku), []).append(want)
        return groups

    async def requests(self, wanted: Sequence[Wanted], zone: str) -> dict[int, HoldRequest]:
        """What to hold in each shard and where from, as it looks now; raises OutOfStock."""
        return {
            number: HoldRequest(part, zone, await self.shards[number].allocate(part, zone))
            for number, part in self.by_shard(wanted).items()
        }

    async def set_stock(self, adjustments: Sequence[Adjustment]) -> None:
        """Make `on_hand` what each adjustment says."""
        groups: dict[int, list[Adjustment]] = {}
        for adjustment in adjustments:
            groups.setdefault(self.shard_of(adjustment.sku), []).append(adjustment)
        for number, group in groups.items():
            await self.shards[number].set_stock(group)

    async def available(self, sku: str) -> int:
        """How many of a sku could be held now."""
        return await self.shards[self.shard_of(sku)].available(sku)

    async def available_of(self, skus: Sequence[str]) -> dict[str, int]:
        """How many of each sku could be held now."""
        groups: dict[int, list[str]] = {}
        for sku in skus:
            groups.setdefault(self.shard_of(sku), []).append(sku)
        levels: dict[str, int] = {}
        for number, group in groups.items():
            levels |= await self.shards[number].available_of(group)
        return levels

    async def roughly_of(self, skus: Sequence[str], least: int) -> dict[str, int]:
        """The same; exact below `least`, else as last heard, which costs no look at the rows."""
        heard = {sku: self.shards[self.shard_of(sku)].plenty(sku, least) for sku in skus}
        levels = {sku: count for sku, count in heard.items() if count is not None}
        return levels | await self.available_of([sku for sku in skus if sku not in levels])

    async def levels(self) -> dict[str, int]:
        """Availability of every sku."""
        levels: dict[str, int] = {}
        for shard in self.shards:
            levels |= await shard.levels()
        return levels

    async def check(self) -> None:
        """Assert the invariants of every shard."""
        for shard in self.shards:
            await shard.check()

    def statistics(self) -> InventoryStatistics:
        """Sums over all shards."""
        return InventoryStatistics(
            holds=sum(shard.holds for shard in self.shards),
            sold=sum(shard.sold for shard in self.shards),
            released=sum(shard.released for shard in self.shards),
            refused=sum(shard.refused for shard in self.shards),
            races=sum(shard.races for shard in self.shards),
        )
