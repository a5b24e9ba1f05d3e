"""Stock that cannot be sold twice.

Every sku lives in one shard; a shard is one sql store with one writer, so a hot sku costs no more than a cold one. Per sku and
warehouse there are two numbers, `on_hand` and `held`; a hold raises `held` only where `on_hand - held` allows it, inside the
statement itself, so any number of buyers may race. The life of a hold is that of a two-phase commit:

    prepare   held += n, a row in `holds`; refused when the transaction has already ended here (a late prepare cannot win)
    commit    on_hand -= n, held -= n, a line in the ledger                              may be repeated
    abort     held -= n, the end is remembered, also when there was nothing to release   may be repeated

A prepared hold never lapses by itself: it is in doubt, and the coordinator settles what is in doubt (at the latest its sweep);
`overdue` counts holds that wait longer than `hold_s`.
The writer opens the shard with a new epoch; every commit carries it, so an owner that was replaced
cannot write any more.

Invariants (`check`): the ledger's sum is `on_hand`; the holds' sum is `held`; 0 <= held <= on_hand.
Source: Gray and Reuter, Transaction Processing (1992), escrow; CASES.md C9. Cost: one grouped commit per step.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.service.shared_commit import Row, Template, rendered
from fourplane.service.two_phase_commit import Draft, Transaction
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
_SOLD = Template(
    "UPDATE stock SET on_hand = on_hand - v.column3, held = held - v.column3 FROM (VALUES ",
    _PIECES,
    _THESE,
    summed=True,
    label="sold",
)
_ENTER = Template(
    "INSERT INTO stock_ledger (id, sku, warehouse, delta, reason, reference, at_us) VALUES ",
    "({}, {}, {}, {}, {}, {}, {})",
    label="ledger",
)
_DROPPED = Template("DELETE FROM holds WHERE transaction_id IN (", "{}", ")", label="held")
_SELL = "UPDATE stock SET on_hand = on_hand - ?3, held = held - ?3 WHERE sku = ?1 AND warehouse = ?2"
_RELEASE = "UPDATE stock SET held = held - ?3 WHERE sku = ?1 AND warehouse = ?2"
_END = "INSERT INTO hold_ends (transaction_id, outcome, at_us) VALUES (?1, ?2, ?3)"
_DROP = "DELETE FROM holds WHERE transaction_id = ?1"


NEAR = {"us": ("newark", "reno", "rotterdam"), "europe": ("rotterdam", "newark", "reno")}


ADJUST_MAX = 100
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
    pieces: list["Piece"] = []


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """So much of a sku from one warehouse."""

    sku: str
    warehouse: str
    quantity: int


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


class Shelf:
    """What the one writer of a shard remembers of its rows, so that a checkout need not read them: a hint, never a verdict.

    It is too low between a hold and its refusal, and forgets a sku whenever something else than a hold happens to it; whether
    there is enough is always decided by the statement that holds.
    """

    __slots__ = ("_levels", "_most")

    def __init__(self, most: int) -> None:
        self._levels: dict[str, dict[str, int]] = {}
        self._most = most

    def find(self, sku: str) -> dict[str, int] | None:
        """Free pieces by warehouse as last known."""
        return self._levels.get(sku)

    def put(self, sku: str, levels: dict[str, int]) -> None:
        """Remember what the rows say."""
        if len(self._levels) >= self._most:
            self._levels.clear()
        self._levels[sku] = levels

    def take(self, pieces: "Sequence[Piece]") -> None:
        """These are being held."""
        for piece in pieces:
            levels = self._levels.get(piece.sku)
            if levels is not None and piece.warehouse in levels:
                levels[piece.warehouse] = max(0, levels[piece.warehouse] - piece.quantity)

    def forget(self, skus: Iterable[str]) -> None:
        """Look at the rows next time."""
        for sku in skus:
            self._levels.pop(sku, None)


class InventoryShard:
    """The one writer of one shard."""

    def __init__(self, settings: InventorySettings, *, sql: Sql, ids: IdGenerator) -> None:
        self._settings = settings
        self._sql = sql
        self._ids = ids
        self._epoch = 0
        self._pieces: dict[int, list[Piece]] = {}
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
            if adjustment.on_hand < 0:
                raise Rejected("stock cannot be negative", code="bad_quantity", sku=adjustment.sku)
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

    async def prepare(self, transaction: Transaction, work: object) -> list[Piece]:
        """Hold all of it or nothing, durably; where from. Raises OutOfStock, or Conflict when it has already ended."""
        assert isinstance(work, HoldRequest), "an inventory holds stock"
        for attempt in range(self._settings.attempts_max):
            draft = await self.draft(transaction, work, attempt)
            try:
                await self._sql.commit([*draft.fences, *rendered(draft.statements)])
            except Conflict as conflict:
                self._shelf.forget(piece.sku for piece in self._pieces.pop(transaction.id, ()))
                await self._explain(conflict, str(transaction.id))
                if held := await self._held(transaction.id):
                    self._pieces[transaction.id] = held
                    return held
                self.races += 1
                continue
            self.holds += 1
            return self._pieces[transaction.id]
        raise Conflict("too many buyers at once for this; try again", code="stock_busy")

    @property
    def store(self) -> Sql:
        """Where this shard lies."""
        return self._sql

    async def draft(self, transaction: Transaction, work: object, attempt: int) -> Draft:
        """The hold as statements; looks for pieces anew after a lost race. Raises OutOfStock."""
        assert isinstance(work, HoldRequest), "an inventory holds stock"
        pieces = work.pieces if work.pieces and attempt == 0 else await self.allocate(work.wanted, work.zone)
        number, who = transaction.id, (transaction.coordinator, transaction.epoch)
        expires = clock.now_us() + int(self._settings.hold_s * 1e6)
        rows: list[Row] = []
        for piece in pieces:
            sku, warehouse, quantity = piece.sku, piece.warehouse, piece.quantity
            rows.append(Row(_PUT_HOLD, (number, sku, warehouse, quantity, expires, *who)))
            rows.append(Row(_RESERVE, (sku, warehouse, quantity)))
        self._pieces[number] = pieces
        self._shelf.take(pieces)
        return Draft(rows, pieces, (self._fence(),))

    async def conflicted(self, transaction: Transaction, work: object, conflict: Conflict) -> bool:  # noqa: ARG002 - one shape
        """Raise unless it was a lost race for stock; then another draft may find other pieces."""
        self._shelf.forget(piece.sku for piece in self._pieces.pop(transaction.id, ()))
        await self._explain(conflict, str(transaction.id))
        lost = conflict.fields.get("label") == "stock"
        self.races += lost
        return lost

    def fulfil(self, transaction: Transaction) -> list[Row]:
        """The hold becomes a sale."""
        now, reference = clock.now_us(), str(transaction.id)
        pieces = self._pieces[transaction.id]
        rows = [Row(_DROPPED, (transaction.id,), len(pieces))]
        for piece in pieces:
            rows.append(Row(_SOLD, (piece.sku, piece.warehouse, piece.quantity)))
            values = (self._ids.next(), piece.sku, piece.warehouse, -piece.quantity, "sale", reference, now)
            rows.append(Row(_ENTER, values))
        return rows

    def fulfilled(self, transaction: Transaction) -> None:
        """Count what was sold."""
        self.holds += 1
        self.sold += sum(piece.quantity for piece in self._pieces.pop(transaction.id, ()))

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
        free: dict[str, dict[str, int]] = {}
        for want in wanted:
            levels = self._shelf.find(want.sku)
            if levels is None or sum(levels.values()) < want.quantity:  # only the rows may say no
                rows = await self._sql.read("SELECT warehouse, on_hand - held FROM stock WHERE sku = ?1", want.sku)
                levels = {str(warehouse): int(count or 0) for warehouse, count in rows}
                self._shelf.put(want.sku, levels)
            free[want.sku] = dict(levels)  # the shelf's own changes while another sku is read from a far store
            left = sum(levels.values())
            if left < want.quantity:
                self.refused += 1
                raise OutOfStock(f"only {left} left", sku=want.sku, wanted=want.quantity, available=left)
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
