"""Where viewers stopped: a title begun on one screen goes on at the same place on another.

Players tell where they are with every beacon; what is told is kept in memory and written every few seconds, so a beacon
waits for no disk, and after a crash a viewer goes on a few seconds earlier. A title that was seen to its end begins anew.
"""

import contextlib

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.state.contracts import Sql, Statement

STORE_S = 2.0
WAITING_MAX = 20_000
BEGUN_S = 5.0  # seen so far is not begun
END_SHARE = 0.95
LISTED = 20
BATCH = 200
_UPSERT = (
    "INSERT INTO positions (account, title, at_s, changed_us) VALUES (?1, ?2, ?3, ?4)"
    " ON CONFLICT (account, title) DO UPDATE SET at_s = excluded.at_s, changed_us = excluded.changed_us"
)


class Position(msgspec.Struct, frozen=True):
    """Where an account stopped in a title."""

    title: str
    at_s: float
    changed_us: int


class Positions:
    """The places of all accounts."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._waiting: dict[tuple[int, str], tuple[float, int]] = {}

    def note(self, account: int, title: str, at_s: float) -> None:
        """Remember where this viewer is now; past the bound new viewers wait for the next writing."""
        key = (account, title)
        if key in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[key] = (max(0.0, at_s), clock.now_us())

    async def of(self, account: int, title: str) -> float:
        """The second at which this title goes on; 0 when it was never begun."""
        waiting = self._waiting.get((account, title))
        if waiting is not None:
            return waiting[0]
        rows = await self._sql.read("SELECT at_s FROM positions WHERE account = ?1 AND title = ?2", account, title)
        return float(rows[0][0] or 0.0) if rows else 0.0

    async def recent(self, account: int) -> list[Position]:
        """What this account watched last, the latest first."""
        rows = await self._sql.read(
            "SELECT title, at_s, changed_us FROM positions WHERE account = ?1 ORDER BY changed_us DESC LIMIT ?2",
            account,
            LISTED,
        )
        found = {str(title): Position(str(title), float(at or 0.0), int(us or 0)) for title, at, us in rows}
        for (owner, title), (at_s, us) in self._waiting.items():
            if owner == account:
                found[title] = Position(title, at_s, us)
        return sorted(found.values(), key=lambda one: -one.changed_us)[:LISTED]

    async def store(self) -> None:
        """Write what was noted since the last time."""
        noted, self._waiting = self._waiting, {}
        rows = [Statement(_UPSERT, (account, title, at_s, us)) for (account, title), (at_s, us) in noted.items()]
        try:
            for first in range(0, len(rows), BATCH):
                await self._sql.commit(rows[first : first + BATCH])
        except FourplaneError:
            self._waiting = {**noted, **self._waiting}
            raise

    async def keep(self) -> None:
        """Store every few seconds until cancelled."""
        while True:
            await clock.sleep(STORE_S)
            with contextlib.suppress(FourplaneError):  # they are kept and written the next time
                await self.store()


def resume_at(at_s: float, duration_s: float) -> float:
    """Where to begin a title that was left at `at_s`: at its beginning when that is hardly begun or as good as seen."""
    return at_s if BEGUN_S <= at_s < END_SHARE * duration_s else 0.0
