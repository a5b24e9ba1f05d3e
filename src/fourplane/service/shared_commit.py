"""Many callers, one commit, few statements.

Callers that arrive while a commit is under way share the next one. What they write is given as rows of templates rather than as
finished statements: rows of one template become one statement with many rows (an INSERT of 16 rows costs about as much as
three of one row on SQLite). Counters that several callers change are
summed up first, so a hot row is written once. Fences are checked once.

A conflict says that some caller's expectation failed, not whose (and a refusal or a bug that something of somebody cannot be
written). Then every caller is tried alone, all at the same time, and
each hears its own answer; so sharing never makes one caller pay for another, it only costs a second try.

While a few callers share a commit, the next one begins when a turn of the loop has brought nobody new. While many do
(`pace_from`), it begins `pace_s` after the one before: a commit costs about as much as ten callers, whoever is in it, so under
load a few milliseconds of patience buy a third of the processor, and one caller or two never wait. Nor does a crowd: when as
many have come as lately came in a whole `pace_s` (the callers of another store's commit come all at once), waiting buys no more.
A commit on PostgreSQL costs twice as much, so its pace is `far_pace_s`.

Invariants: a caller's rows are in one commit, all or none; a caller hears nothing before its rows are durable; at most one
shared commit is under way. Bounds: `batch_max` callers a commit, `waiting_max` in line. Cost: 3 us a caller and 1 us a row.
Source: group commit (DeWitt et al. 1984), escrow-style summing (O'Neil 1986).
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.disk_sync import give_way
from fourplane.foundation.errors import Conflict, FourplaneError, Overloaded, Rejected, Unavailable
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.prompt_future import PromptFuture
from fourplane.state.arrays import KINDS, array, kind_of
from fourplane.state.contracts import Sql, SqlValue, Statement

SIZES = (64, 48, 32, 24, 20, *range(16, 0, -1))  # rows per statement: few texts, so that engines keep them prepared


class Template(msgspec.Struct, frozen=True, eq=False):
    """A statement over any number of rows: `head`, then `row` once per row (`{}` for each value), then `tail`.

    `summed`: rows with the same values but the last are written as one, the last values added up. `counted`: the statement must
    change as many rows as it is given (a row may stand for more, see `Rows.count`).
    """

    head: str
    row: str
    tail: str = ""
    summed: bool = False
    counted: bool = True
    label: str = ""

    @property
    def plain(self) -> bool:
        """An INSERT of just its rows: it writes all of them or fails."""
        return self.head.endswith(" VALUES ") and not self.tail


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of a template; `count` table rows are changed by it."""

    template: Template
    values: tuple[SqlValue, ...]
    count: int = 1


Work = Statement | Row


class SharedCommitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one line of callers."""

    batch_max: int = 128
    waiting_max: int = 20_000
    gather_from: int = 2
    gather_turns_max: int = 6
    pace_from: int = 4
    pace_s: float = 0.012
    far_pace_s: float = 0.02
    crowd_share: float = 0.75  # of those who lately came in `pace_s`


class SharedCommitStatistics(msgspec.Struct, frozen=True):
    """What was shared: callers per commit is `callers / commits`."""

    commits: int
    callers: int
    alone: int
    waiting: int


@runtime_checkable
class CommitsSoon(Protocol):
    """A store that begins a commit at once and tells of its end in the turn of the loop that learns of it.

    An order that is placed in a crowd waits for turns, not for the disk: each is full of the work of others. Awaiting a commit
    takes two of them more than this.
    """

    def commit_soon(self, statements: Sequence[Statement], told: Callable[[BaseException | None], None]) -> None:
        """`Sql.commit` of these; `told` hears None or the error."""


class _Caller:
    __slots__ = ("fences", "future", "works")

    def __init__(self, fences: Sequence[Statement], works: Sequence[Work], future: "asyncio.Future[None]") -> None:
        self.fences = fences
        self.works = works
        self.future = future


class SharedCommit:
    """The line in front of one store."""

    def __init__(self, sql: Sql, settings: SharedCommitSettings | None = None) -> None:
        self._sql = sql
        self._soon = sql if isinstance(sql, CommitsSoon) else None
        self._far = sql.dialect == "postgresql"
        self._settings = settings = settings or SharedCommitSettings()
        self._pace_s = settings.far_pace_s if self._far else settings.pace_s
        self._waiting: deque[_Caller] = deque()
        self._tasks: Tasks | None = None
        self._running = False
        self._commits = self._callers = self._alone = self._last = 0
        self._began_s = float("-inf")  # the first commit comes after a long silence, whatever the clock says
        self._came = self._span_s = 0.0
        self._crowd = 1 << 62  # with so many in line the next commit waits no longer
        self._patient: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: list[_Caller] = []
        self._beginning = False

    def open(self, tasks: Tasks) -> None:
        """From now on commits run among these tasks."""
        self._tasks = tasks
        if self._soon is not None:
            tasks.start(self._until_stopped(), "shared commits")

    def close(self) -> None:
        """Whoever still waits hears Unavailable: its rows may or may not be written."""
        self._tasks = None
        gone = Unavailable("the store's writer has stopped", code="writer_stopped")
        while self._waiting:
            _fail(self._waiting.popleft().future, gone)

    async def commit(self, works: Sequence[Work], *, fences: Sequence[Statement] = ()) -> None:
        """Write `works` in one commit with others, under the condition that all `fences` hold; durable when it returns.

        Raises Conflict when an expectation of these very works (or a fence) fails: nothing of them happened then.
        """
        if self._tasks is None:
            raise Unavailable("the store's writer is not running", code="writer_stopped")
        if len(self._waiting) >= self._settings.waiting_max:
            raise Overloaded(f"{len(self._waiting)} commits wait", retry_after_s=0.2)
        future: asyncio.Future[None] = PromptFuture()
        self._waiting.append(_Caller(fences, works, future))
        if self._soon is not None:
            self._arrived()
        elif not self._running:
            self._running = True
            self._tasks.start(self._run(), "shared commits")
        elif len(self._waiting) >= self._crowd:
            _wake(self._patient)
        await future

    def statistics(self) -> SharedCommitStatistics:
        """What was shared so far."""
        return SharedCommitStatistics(self._commits, self._callers, self._alone, len(self._waiting))

    async def _run(self) -> None:
        """Commit after commit until nobody waits."""
        batch: list[_Caller] = []
        settings = self._settings
        try:
            while self._waiting:
                if self._last >= settings.pace_from:
                    await self._patience()
                elif self._last >= settings.gather_from:
                    await self._gather()
                self._begins()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), settings.batch_max))]
                self._last = len(batch)
                await self._write(batch)
        finally:
            self._running = False
            stopped = Unavailable("the writer of this commit was stopped", code="writer_stopped")
            for caller in batch:
                _fail(caller.future, stopped)

    async def _patience(self) -> None:
        """Let more callers come, until the pace is over or a crowd has come."""
        left_s, crowd = self._pace()
        if left_s > 0.0:
            loop = asyncio.get_running_loop()
            self._patient, self._crowd = loop.create_future(), crowd
            timer = loop.call_later(left_s, _wake, self._patient)
            try:
                await self._patient
            finally:
                timer.cancel()
                self._patient, self._crowd = None, 1 << 62

    def _pace(self) -> tuple[float, int]:
        """How long the next commit may wait for more callers, and with how many it does not."""
        settings = self._settings
        lately = self._came * self._pace_s / self._span_s if self._span_s else 0.0
        crowd = max(settings.pace_from, int(settings.crowd_share * lately))
        left_s = self._began_s + self._pace_s - clock.monotonic_s()
        return (left_s if len(self._waiting) < crowd else 0.0), crowd

    def _begins(self) -> None:
        """Learn how many come in which time: the last ten commits count, a long silence no more than a short one."""
        now_s = clock.monotonic_s()
        span_s = min(now_s - self._began_s, 4 * self._pace_s)
        self._came += 0.1 * (len(self._waiting) - self._came)
        self._span_s += 0.1 * (span_s - self._span_s)
        self._began_s = now_s

    async def _gather(self) -> None:
        """Let more callers come, turn by turn, while each turn brings some."""
        seen, turns = 0, 0
        while seen < len(self._waiting) < self._settings.batch_max and turns < self._settings.gather_turns_max:
            seen, turns = len(self._waiting), turns + 1
            await clock.sleep(0)

    async def _write(self, batch: list[_Caller]) -> None:
        try:
            await self._sql.commit(self._statements(batch))
            _tell(batch)
        except Exception as error:  # noqa: BLE001 - also somebody's bug must not reach those who share with him
            if self._each_alone(batch, error):
                await asyncio.gather(*(self._write_alone(caller) for caller in batch))
                return
            for caller in batch:
                _fail(caller.future, error)

    def _statements(self, batch: list[_Caller]) -> list[Statement]:
        """What these callers write, the conditions first."""
        self._commits += 1
        self._callers += len(batch)
        fences: list[Statement] = []
        works: list[Work] = []
        for caller in batch:
            fences += [fence for fence in caller.fences if fence not in fences]
            works += caller.works
        return [*fences, *rendered(works, far=self._far)]

    def _each_alone(self, batch: list[_Caller], error: BaseException) -> bool:
        """Whether one of several may have spoiled it for the others; counts them."""
        if len(batch) == 1 or (isinstance(error, FourplaneError) and not isinstance(error, Conflict | Rejected)):
            return False
        self._alone += len(batch)
        return True

    # -- the same where the store begins at once: no task of the line's own, so no turn of the loop is spent on waking it

    def _arrived(self) -> None:
        """One more waits."""
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)
        elif self._timer is not None and len(self._waiting) >= self._crowd:
            self._timer.cancel()
            self._timer = None
            asyncio.get_running_loop().call_soon(self._begin)  # behind those who come in this very turn

    def _next(self) -> None:
        """Begin the next commit, or see when."""
        if not self._waiting:
            self._running = False
        elif self._last >= self._settings.pace_from:
            left_s, self._crowd = self._pace()
            if left_s > 0.0:
                self._timer = asyncio.get_running_loop().call_later(left_s, self._begin)
            else:
                self._begin()
        elif self._last >= self._settings.gather_from:
            self._gathered(0, 0)
        else:
            self._begin()

    def _gathered(self, seen: int, turns: int) -> None:
        """Let more callers come, turn by turn, while each turn brings some."""
        count = len(self._waiting)
        if seen < count < self._settings.batch_max and turns < self._settings.gather_turns_max:
            asyncio.get_running_loop().call_soon(self._gathered, count, turns + 1)
        else:
            self._begin()

    def _begin(self) -> None:
        self._timer = None
        if not self._waiting:  # the line was closed
            self._running = False
            return
        assert self._soon is not None
        self._begins()
        batch = self._writing = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.batch_max))
        ]
        self._last = len(batch)
        self._beginning = True
        try:
            self._soon.commit_soon(self._statements(batch), partial(self._written, batch))
        except Exception as error:  # noqa: BLE001 - as above
            self._written(batch, error)
        finally:
            self._beginning = False

    def _written(self, batch: list[_Caller], error: BaseException | None) -> None:
        """The store is through with these."""
        if batch is not self._writing:  # they were told that the line has stopped
            return
        if error is None:
            _tell(batch)
        elif self._tasks is not None and self._each_alone(batch, error):
            self._tasks.start(self._alone_then_next(batch), "commits alone")
            return
        else:
            for caller in batch:
                _fail(caller.future, error)
        self._writing = []
        if self._beginning:  # the store told of it in the call: others first
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._next()

    async def _alone_then_next(self, batch: list[_Caller]) -> None:
        await asyncio.gather(*(self._write_alone(caller) for caller in batch))
        self._writing = []
        self._next()

    async def _until_stopped(self) -> None:
        """The line's end: whoever it is writing for hears of it."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            batch, self._writing, self._running = self._writing, [], False
            stopped = Unavailable("the writer of this commit was stopped", code="writer_stopped")
            for caller in batch:
                _fail(caller.future, stopped)

    async def _write_alone(self, caller: _Caller) -> None:
        try:
            await self._sql.commit([*caller.fences, *rendered(caller.works, far=self._far)])
        except Exception as error:  # noqa: BLE001 - it belongs to this caller
            _fail(caller.future, error)
        else:
            if not caller.future.done():
                caller.future.set_result(None)


def rendered(works: Sequence[Work], *, far: bool = False) -> list[Statement]:
    """Works as statements: plain ones first, in order, then the rows, template by template as they first appear.

    `far`: for PostgreSQL, where rows of one kind travel as arrays.
    """
    statements: list[Statement] = []
    groups: dict[Template, list[Row]] = {}
    for work in works:
        if type(work) is Row:
            group = groups.get(work.template)
            if group is None:
                groups[work.template] = [work]
            else:
                group.append(work)
        else:
            statements.append(work)  # type: ignore[arg-type]  # what is no Row is a Statement
    for template, rows in groups.items():
        together = _sums(rows) if template.summed and len(rows) > 1 else rows
        if far and len(together) > 1 and (whole := _whole(template, together)) is not None:
            statements.append(whole)
        else:
            _render(template, together, statements)
    return statements


def _render(template: Template, rows: Sequence[Row], statements: list[Statement]) -> None:
    at, left = 0, len(rows)
    counted, label, sure = template.counted, template.label, template.plain
    for size in SIZES:
        while left >= size:
            part = rows[at : at + size]
            at, left = at + size, left - size
            values: list[SqlValue] = []
            expected = 0
            for row in part:
                values += row.values
                expected += row.count
            text = _text(template.head, template.row, template.tail, size)
            statements.append(Statement(text, tuple(values), expected if counted else None, label, sure))


def _whole(template: Template, rows: Sequence[Row]) -> Statement | None:
    """One statement for any number of rows, each column one array: a text per template is prepared once, whatever comes.

    None where a column has values of different kinds, or none at all.
    """
    columns = list(zip(*[row.values for row in rows], strict=True))
    kinds = tuple(kind for column in columns if (kind := kind_of(column)) is not None)
    if not columns or len(kinds) < len(columns):
        return None
    text = _far_text(template.head, template.row, template.tail, kinds)
    values = tuple(array(column, kind) for column, kind in zip(columns, kinds, strict=True))
    expected = sum(row.count for row in rows) if template.counted else None
    return Statement(text, values, expected, template.label, template.plain)


_ITEM = re.compile(r"(?:[^,()]|\((?:[^()]|\([^()]*\))*\))+")


@lru_cache(maxsize=1_000)
def _far_text(head: str, row: str, tail: str, kinds: tuple[type, ...]) -> str:
    """The statement over the rows of arrays of equal length; a list of keys is one array."""
    if head.endswith(" IN (") and (row, tail) == ("{}", ")"):
        return f"{head.removesuffix('IN (')}= ANY(CAST(?1 AS {KINDS[kinds[0]]}[]))"
    places = iter(range(len(kinds)))
    filled = re.sub(re.escape("{}"), lambda _: f"r.place{next(places)}", row)
    items = _ITEM.findall(filled[1:-1] if row.startswith("(") else filled)
    taken = ", ".join(f"{item.strip()} AS column{number}" for number, item in enumerate(items, 1))
    arrays = ", ".join(f"CAST(?{at} AS {KINDS[kind]}[])" for at, kind in enumerate(kinds, 1))
    names = ", ".join(f"place{at}" for at in range(len(kinds)))
    return f"{head.removesuffix('VALUES ')}SELECT {taken} FROM unnest({arrays}) AS r({names}){tail}"  # noqa: S608 - texts of templates only


def _sums(rows: Sequence[Row]) -> list[Row]:
    sums: dict[tuple[SqlValue, ...], int] = {}
    for row in rows:
        *key, amount = row.values
        assert isinstance(amount, int), "the last value of a summed row is a number"
        sums[tuple(key)] = sums.get(tuple(key), 0) + amount
    return [Row(rows[0].template, (*key, amount)) for key, amount in sums.items()]


@lru_cache(maxsize=1_000)
def _text(head: str, row: str, tail: str, count: int) -> str:
    """The statement for so many rows, its places numbered through."""
    pieces = row.split("{}")
    places = iter(range(1, (len(pieces) - 1) * count + 1))
    rows = []
    for _ in range(count):
        text = pieces[0]
        for piece in pieces[1:]:
            text += f"?{next(places)}{piece}"
        rows.append(text)
    return head + ", ".join(rows) + tail


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _tell(batch: Sequence[_Caller]) -> None:
    """What they wrote is durable."""
    for caller in batch:
        if not caller.future.done():
            caller.future.set_result(None)
            give_way()


def _fail(future: "asyncio.Future[None]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # the caller may have gone
