"""What the one writer of a shard knows in memory: free pieces by its rows, and what buyers have set aside but not bought yet.

A hint, never a verdict: whether there is enough is decided by the statement that sells. But it is kept so that nobody is sent
to pay for a piece that somebody else is about to buy. While a sale is being written nobody knows whether the rows have it
already; who is refused only for that reason waits until it is settled (`settled`), a commit later.

Pure but for that wait. Bounds: `most` skus are remembered; what is set aside is bounded by the transactions under way.
"""

import asyncio
from collections.abc import Iterable, Sequence

import msgspec


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """So much of a sku from one warehouse."""

    sku: str
    warehouse: str
    quantity: int


class Shelf:
    """Free pieces of the skus of one shard."""

    __slots__ = ("_aside", "_levels", "_most", "_settling", "_waiting")

    def __init__(self, most: int) -> None:
        self._levels: dict[str, dict[str, int]] = {}
        self._aside: dict[str, dict[str, int]] = {}
        self._settling: dict[str, int] = {}  # pieces whose sale is being written
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._most = most

    def find(self, sku: str) -> dict[str, int] | None:
        """Free pieces by warehouse as far as known."""
        levels = self._levels.get(sku)
        if levels is None:
            return None
        aside = self._aside.get(sku)
        if aside is None:
            return dict(levels)
        return {warehouse: count - aside.get(warehouse, 0) for warehouse, count in levels.items()}

    def has(self, pieces: Sequence[Piece]) -> bool:
        """Whether these are free, as far as known."""
        for piece in pieces:
            levels, aside = self._levels.get(piece.sku), self._aside.get(piece.sku)
            if levels is None:
                return False
            taken = aside.get(piece.warehouse, 0) if aside is not None else 0
            if levels.get(piece.warehouse, 0) - taken < piece.quantity:
                return False
        return True

    def put(self, sku: str, levels: dict[str, int]) -> None:
        """Remember what the rows say."""
        if len(self._levels) >= self._most:
            self._levels.clear()
        self._levels[sku] = levels

    def take(self, pieces: Sequence[Piece]) -> None:
        """These are fewer in the rows now, or soon."""
        for piece in pieces:
            levels = self._levels.get(piece.sku)
            if levels is not None and piece.warehouse in levels:
                levels[piece.warehouse] = max(0, levels[piece.warehouse] - piece.quantity)

    def forget(self, skus: Iterable[str]) -> None:
        """Look at the rows next time."""
        for sku in skus:
            self._levels.pop(sku, None)

    # -- between being chosen and being sold

    def set_aside(self, pieces: Sequence[Piece]) -> None:
        """Somebody is about to buy these."""
        for piece in pieces:
            aside = self._aside.setdefault(piece.sku, {})
            aside[piece.warehouse] = aside.get(piece.warehouse, 0) + piece.quantity

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """It was bought, or will not be."""
        for piece in pieces:
            aside = self._aside[piece.sku]
            aside[piece.warehouse] -= piece.quantity
            if not any(aside.values()):
                del self._aside[piece.sku]

    def settle(self, pieces: Sequence[Piece]) -> None:
        """The sale of these is being written."""
        for piece in pieces:
            self._settling[piece.sku] = self._settling.get(piece.sku, 0) + piece.quantity

    def settled(self, pieces: Sequence[Piece]) -> None:
        """It was written, or refused."""
        for piece in pieces:
            left = self._settling[piece.sku] - piece.quantity
            if left:
                self._settling[piece.sku] = left
            else:
                del self._settling[piece.sku]
            waiting = self._waiting.pop(piece.sku, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def undecided(self, sku: str) -> int:
        """How many more may be free than `find` says: those whose sale the rows may or may not have."""
        return self._settling.get(sku, 0)

    async def until_settled(self, sku: str) -> None:
        """Wait until a sale of it that is being written is settled."""
        if sku not in self._settling:
            return
        waiting = self._waiting.get(sku)
        if waiting is None:
            waiting = self._waiting[sku] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)
