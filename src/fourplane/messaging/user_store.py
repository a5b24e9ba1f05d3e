"""What is kept of each user, in one partition of Records per bare address.

    sort key            value
    c/<jid>             a contact (roster.encode)
    m/version           the roster's version
    o/<8 byte id>       one offline message: schema, stored_us, stanza
    b/<jid>             a blocked address
    v                   the vCard
    x/<namespace name>  private XML
    p/<node>, q/<node>/<item>  what the user publishes (personal_nodes.py)
    f/<client>          a token for quick logins
    a/<8 byte id>       one archived message: schema, when, with whom, stanza
    room                a room: configuration, affiliations, subject
    h/<8 byte id>       one message of a room: schema, when, stanza
    k/o<origin>         a message of another worker was stored here; for `ORIGIN_S`
    n/<address>         (in an index partition) a room that can be found

Writes of one user happen in order; those of different users share the engine's group commit through `WRITERS` concurrent
writers. They begin together: what comes while a commit is under way could not be in it, so it gathers, and a user has one write
a commit however often something comes (5 to 7 % less CPU a message than if each began at once). What waits is bounded by the
sessions, each of which stops reading while too many of its own writes wait.
"""

import asyncio
import contextlib
import hashlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.lifecycle import Tasks
from fourplane.messaging import roster
from fourplane.messaging.roster import Contact
from fourplane.state.contracts import Change, Delete, Put, Record, Records

WRITERS = 64
BATCH_MAX = 100
BATCH_SOFT = 90  # from here on only what belongs to the change before it
PAGE = 1_000
NOBODY: frozenset[str] = frozenset()  # one for all who have blocked nobody
SCHEMA = 1
ORIGIN_S = 600.0  # longer than another worker tries to tell something again
STORED = b"k/o"
Done = Callable[[FourplaneError | None], None]


class StoredUser(msgspec.Struct):
    """What is read when a user becomes active; everything else is read when asked for."""

    contacts: dict[str, Contact]
    version: int
    blocked: frozenset[str]
    offline_count: int
    last_id: int  # the largest of its messages, waiting or archived


class OfflineMessage(msgspec.Struct, frozen=True):
    """One stored stanza."""

    id: int
    stored_us: int
    raw: bytes


class Unless(msgspec.Struct, frozen=True):
    """Changes that are left out when something is found when their turn comes; then that is told instead."""

    find: Callable[[], Awaitable[bytes | None]]
    count: int
    left_out: Callable[[bytes], None]


Waiting = tuple[Change | None, Done | None, Unless | None]  # the last of what was given together has the `Done`


class _NotWritten(Exception):
    """Changes that failed."""

    def __init__(self, batch: list[Waiting], failure: FourplaneError) -> None:
        self.batch = batch
        self.failure = failure


class UserStore:
    """Reads and writes of all users; `start` before the first write."""

    def __init__(self, records: Records, offline_s: float) -> None:
        self.records = records
        self._offline_s = offline_s
        self._waiting: dict[str, deque[Waiting]] = {}  # of each owner
        self._ready: deque[str] = deque()  # whose turn it is; bounded by the number of owners with waiting writes
        self._idle: list[asyncio.Future[str]] = []  # writers with nothing to do
        self._called = False  # they will be at the end of this tick
        self._under_way = False  # writes that began together, and none of them has ended
        self.waiting_count = 0
        self.failed_count = 0
        self.dropped_count = 0  # told again by another worker, and here already

    def start(self, tasks: Tasks) -> None:
        """Start the writers."""
        for number in range(WRITERS):
            tasks.start(self._write_loop(), f"user-writer-{number}")

    async def wait_written(self) -> None:
        """Wait until everything given so far is durable or has failed."""
        while self.waiting_count:
            await clock.sleep(0.005)

    async def wait_behind(self, bare: str) -> None:
        """Wait until what was given for this owner before is durable or has failed, so that reading tells the truth."""
        with contextlib.suppress(FourplaneError):  # whoever wrote it was told
            await self.written(bare, ())

    async def load(self, bare: str) -> StoredUser:
        """Everything a user needs to be active, behind what is being written for it."""
        await self.wait_behind(bare)
        partition = partition_of(bare)
        contacts: dict[str, Contact] = {}
        blocked: list[str] = []
        for record in await self._between(partition, b"b/", b"c0"):
            if record.sort.startswith(b"b/"):
                blocked.append(record.sort[2:].decode())
            else:
                contact = roster.decode(record.value)
                contacts[contact.jid] = contact
        number = offline_count = last_id = 0
        for record in await self._between(partition, b"m/", b"o0"):
            if record.sort == b"m/version":
                number = struct.unpack(">Q", record.value[1:9])[0]
            elif record.sort.startswith(b"o/"):
                offline_count += 1
                last_id = _id_of(record.sort)
        for record in await self.records.scan(partition, start=b"a/", end=b"a0", limit=1, reverse=True):
            last_id = max(last_id, _id_of(record.sort))
        return StoredUser(contacts, number, frozenset(blocked) if blocked else NOBODY, offline_count, last_id)

    async def offline(self, bare: str, limit: int) -> list[OfflineMessage]:
        """The oldest stored messages of a user."""
        found = await self.records.scan(partition_of(bare), start=b"o/", end=b"o0", limit=limit)
        return [_offline_message(record.sort, record.value) for record in found]

    def put_offline(
        self, bare: str, message_id: int, raw: bytes, done: Done, *, origin: bytes = b"", again: bool = False
    ) -> None:
        """Store one message; `done` is called when it is durable or failed.

        One that comes from another worker has an `origin`; what is told `again`, because a process before this one may have
        died between storing it and saying so, is stored only if it was not.
        """
        value = bytes([SCHEMA]) + struct.pack(">Q", clock.now_us()) + raw
        changes: list[Change] = [Put(_offline_key(message_id), value, ttl_s=self._offline_s)]
        if origin:
            changes.append(Put(STORED + origin, bytes([SCHEMA]), ttl_s=ORIGIN_S))
        find = partial(self.value, bare, STORED + origin)
        unless = Unless(find, len(changes), lambda _: done(None)) if origin and again else None
        self.write(bare, changes, done, unless=unless)

    async def value(self, bare: str, sort: bytes) -> bytes | None:
        """One stored value of a user or a room."""
        record = await self.records.get(partition_of(bare), sort)
        return record.value if record is not None else None

    async def names(self, index: str) -> list[str]:
        """What is listed in an index partition."""
        return [record.value[1:].decode() for record in await self._between(partition_of(index), b"n/", b"n0")]

    async def archived(
        self, bare: str, first: int, last: int, limit: int, *, backwards: bool
    ) -> list[tuple[bytes, bytes]]:
        """Archive records with first <= id <= last, key and value."""
        start, end = b"a/" + struct.pack(">Q", first), b"a/" + struct.pack(">Q", last) + b"\0"
        found = await self.records.scan(partition_of(bare), start=start, end=end, limit=limit, reverse=backwards)
        return [(record.sort, record.value) for record in found]

    async def room_history(self, bare: str, limit: int) -> list[tuple[int, int, bytes]]:
        """The newest messages of a room, oldest first: id, when, and the stanza."""
        found = await self.records.scan(partition_of(bare), start=b"h/", end=b"h0", limit=limit, reverse=True)
        times = [struct.unpack(">Q", record.value[1:9])[0] for record in found]
        return [
            (_id_of(record.sort), at_us, record.value[9:])
            for record, at_us in zip(reversed(found), reversed(times), strict=True)
        ]

    async def forget_room_history(self, bare: str, last: int) -> None:
        """Remove what was said in a room up to an id; gone for good when this returns."""
        end = b"h/" + struct.pack(">Q", last) + b"\0"
        while True:
            found = await self.records.scan(partition_of(bare), start=b"h/", end=end, limit=BATCH_MAX)
            if not found:
                return
            await self.written(bare, [Delete(record.sort) for record in found])

    def delete_offline(self, bare: str, ids: Sequence[int]) -> None:
        """Remove messages that were delivered, some time soon."""
        self.write(bare, [Delete(_offline_key(message_id)) for message_id in ids])

    async def forget_offline(self, bare: str, ids: Sequence[int]) -> None:
        """Remove messages that were delivered; gone for good when this returns."""
        await self.written(bare, [Delete(_offline_key(message_id)) for message_id in ids])

    async def written(self, bare: str, changes: Sequence[Change]) -> None:
        """Write changes of one user behind what it already has waiting; durable when this returns, raises what failed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(failure: FourplaneError | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

        self.write(bare, changes, done)
        await future

    def put_contact(self, bare: str, contact: Contact, version: int, done: Done | None = None) -> None:
        """Store or, when nothing is left of it, remove one contact together with the roster's version."""
        key = b"c/" + contact.jid.encode()[:500]
        change: Change = Delete(key) if contact.empty else Put(key, roster.encode(contact))
        number = Put(b"m/version", bytes([SCHEMA]) + struct.pack(">Q", version))
        self.write(bare, [change, number], done)

    def write(
        self, bare: str, changes: Sequence[Change], done: Done | None = None, *, unless: Unless | None = None
    ) -> None:
        """Queue changes of one user in order; `done` after the last of them, and after all earlier ones."""
        waiting = self._waiting.get(bare)
        if not changes:
            if waiting is not None:
                waiting.append((None, done, None))
                self.waiting_count += 1
            elif done is not None:
                done(None)
            return
        if waiting is None:
            waiting = self._waiting[bare] = deque()
            self._call_writer(bare)
        count = len(changes)
        self.waiting_count += count
        if count == 1:
            waiting.append((changes[0], done, unless))
            return
        part, last = _in_parts(done) if done is not None and count > BATCH_MAX - BATCH_SOFT else (None, done)
        for index, change in enumerate(changes, 1):
            waiting.append((change, last if index == count else part, unless if index == 1 else None))

    def _call_writer(self, bare: str) -> None:
        """It is an owner's turn: at the end of this tick, or as soon as what is under way has been written."""
        self._ready.append(bare)
        if not self._under_way:
            self._begin_soon()

    def _begin_soon(self) -> None:
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """A writer for everybody whose turn it is: stores write together what comes together."""
        self._called = False
        count = min(len(self._ready), len(self._idle))
        self._under_way = count > 0
        for _ in range(count):
            called = self._idle.pop()
            if not called.done():
                called.set_result(self._ready.popleft())

    async def _write_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            called = loop.create_future()
            self._idle.append(called)
            if self._ready and not self._under_way:
                self._begin_soon()
            bare = await called
            waiting = self._waiting[bare]
            try:
                batch, failure = await self._write_next(partition_of(bare), waiting), None
            except _NotWritten as error:
                batch, failure = error.batch, error.failure
                self.failed_count += 1
            self._under_way = False
            if waiting:
                self._ready.append(bare)
            else:
                del self._waiting[bare]
            self.waiting_count -= len(batch)
            for _, done, _ in batch:
                if done is not None:
                    done(failure)

    async def _write_next(self, partition: bytes, waiting: deque[Waiting]) -> list[Waiting]:
        """Write the next of what waits; those whose turn is over. Raises _NotWritten."""
        unless, batch = waiting[0][2], None
        try:
            there = await unless.find() if unless is not None else None
            if unless is not None and there is not None:
                *changes, (last, _, _) = [waiting.popleft() for _ in range(unless.count)]
                self.dropped_count += 1
                left_out, found = unless.left_out, there
                return [*changes, (last, lambda _: left_out(found), None)]
            batch = _next_batch(waiting)
            changed = [change for change, _, _ in batch if change is not None]
            if changed:
                await self.records.write(partition, changed)
        except FourplaneError as error:
            raise _NotWritten(batch or _next_batch(waiting), error) from None
        return batch

    async def _between(self, partition: bytes, start: bytes, end: bytes) -> list[Record]:
        found: list[Record] = []
        while True:
            page = await self.records.scan(partition, start=start, end=end, limit=PAGE)
            found += page
            if len(page) < PAGE:
                return found
            start = page[-1].sort + b"\0"


def partition_of(bare: str) -> bytes:
    """The partition of one bare address; a very long one is replaced by its digest."""
    raw = bare.encode()
    return b"xmpp/" + raw if len(raw) <= 480 else b"xmpp#" + hashlib.sha256(raw).digest()


def _in_parts(done: Done) -> tuple[Done, Done]:
    """For changes that may need two writes: what hears of all but the last, and of the last; `done` hears the first failure."""
    failures: list[FourplaneError] = []

    def part(failure: FourplaneError | None) -> None:
        if failure is not None:
            failures.append(failure)

    return part, lambda failure: done(failures[0] if failures else failure)


def _next_batch(waiting: deque[Waiting]) -> list[Waiting]:
    if len(waiting) <= BATCH_SOFT:  # nearly always all of it: changes of different keys, and nothing to look for
        batch = list(waiting)
        if len({change.sort for change, _, unless in batch if unless is None and change is not None}) == len(batch):
            waiting.clear()
            return batch
    batch = []
    seen: set[bytes] = set()
    while waiting and (len(batch) < BATCH_SOFT or (batch[-1][1] is None and len(batch) < BATCH_MAX)):
        change, _, unless = waiting[0]
        if unless is not None and batch:
            break
        if change is not None:
            if change.sort in seen:
                break
            seen.add(change.sort)
        batch.append(waiting.popleft())
    return batch


def _offline_key(message_id: int) -> bytes:
    return b"o/" + struct.pack(">Q", message_id)


def _id_of(sort: bytes) -> int:
    return int.from_bytes(sort[2:], "big")


def _offline_message(sort: bytes, value: bytes) -> OfflineMessage:
    assert value[0] == SCHEMA, f"offline schema {value[0]}"
    return OfflineMessage(_id_of(sort), struct.unpack(">Q", value[1:9])[0], value[9:])
