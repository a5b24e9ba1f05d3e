import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.unit.service.running import started

from fourplane.foundation import clock, network, telemetry
from fourplane.foundation.errors import (
    Conflict,
    DeadlineExceeded,
    FourplaneError,
    Misconfigured,
    NotFound,
    Overloaded,
    Rejected,
    TooLarge,
    Unavailable,
)
from fourplane.foundation.telemetry import Registry
from fourplane.service import call_context
from fourplane.service.ownership import EpochGate
from fourplane.service.rpc import idempotent, local, remote
from fourplane.service.rpc_client import Peer, PeerSettings
from fourplane.service.rpc_frames import Ask, error_body, error_of
from fourplane.service.rpc_server import RpcServer, RpcServerSettings


class Item(msgspec.Struct):
    name: str
    tags: list[str] = []


class Stock:
    def __init__(self):
        self.kept = []
        self.begun = 0
        self.cancelled = 0
        self.sent = 0
        self.gate = asyncio.Event()

    @idempotent
    async def twice(self, item: Item, count: int = 2, *, suffix: str = "") -> list[Item]:
        return [Item(item.name + suffix, item.tags) for _ in range(count)]

    async def keep(self, item: Item) -> None:
        self.kept.append(item)

    async def refuse(self) -> None:
        raise Overloaded("busy", retry_after_s=7, code="too_busy", queue=3)

    async def conflict(self) -> None:
        raise Conflict("moved on", code="version", expected=4, seen="five")

    async def break_down(self) -> int:
        raise ZeroDivisionError("a secret")

    async def wait(self) -> str:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "over"

    async def carried(self) -> tuple[float, int, str]:
        return call_context.left_s(), call_context.priority(), telemetry.current_trace()

    async def count(self, to: int, *, fail_at: int = -1) -> AsyncIterator[int]:
        try:
            for number in range(to):
                if number == fail_at:
                    raise NotFound("no such number", code="no_number")
                self.sent += 1
                yield number
        finally:
            self.cancelled += self.sent < to

    async def large(self, size: int) -> bytes:
        return bytes(size)


def far(main, *, server=None, peer=None, gate=None):
    """Run `main(stock, far_stock, peer, server)` with a Unix socket between the two."""

    def test(tmp_path):
        async def body():
            stock, path = Stock(), str(tmp_path / "rpc")
            serving = RpcServer(Registry(), path=path, settings=server)
            serving.add("stock", Stock, stock, gate=gate)
            lifecycle = await started(serving)
            caller = Peer(path, settings=peer)
            try:
                async with asyncio.timeout(10):
                    await main(stock, remote(Stock, caller, "stock"), caller, serving)
            finally:
                caller.close()
                await lifecycle.stop()

        asyncio.run(body())

    return test


async def turns(count=30):
    for _ in range(count):
        await clock.sleep(0.001)


async def _same_near_and_far(stock, elsewhere, _peer, _server):
    for one in (stock, local(Stock, stock), elsewhere):
        item = Item("ball", ["red"])
        assert await one.twice(item) == [item, item]
        assert await one.twice(item, 1, suffix="s") == [Item("balls", ["red"])]
        assert await one.twice(item=item, count=0) == []
        assert [number async for number in one.count(3)] == [0, 1, 2]
        with pytest.raises(Overloaded) as busy:
            await one.refuse()
        assert (busy.value.reason, busy.value.retry_after_s, busy.value.fields) == ("too_busy", 7, {"queue": 3})


test_one_interface_near_and_far = far(_same_near_and_far)


async def _aliasing(stock, _elsewhere, _peer, _server):
    item = Item("ball")
    await local(Stock, stock).keep(item)
    item.tags.append("changed by the caller")
    assert stock.kept[0].tags == []


test_local_copies_at_the_border_so_that_aliasing_shows = far(_aliasing)


async def _errors(_stock, elsewhere, _peer, server):
    with pytest.raises(Conflict) as moved:
        await elsewhere.conflict()
    assert moved.value.fields == {"expected": 4, "seen": "five"}
    with pytest.raises(FourplaneError) as internal:
        await elsewhere.break_down()
    assert (internal.value.reason, "secret" in internal.value.message) == ("internal", False)
    assert server.statistics().failed == 1


test_errors_keep_class_code_and_fields_and_bugs_stay_private = far(_errors)


async def _context(_stock, elsewhere, _peer, _server):
    telemetry.set_trace(f"{'abc':0>32}-{1:016x}")
    with call_context.within(3.0, priority=3):
        left_s, priority, trace = await elsewhere.carried()
    assert 0 < left_s <= 3.1
    assert (priority, trace[:32]) == (3, f"{'abc':0>32}")
    assert trace[33:] != f"{1:016x}", "what it causes has the call as its caller"
    assert call_context.priority() == 1


test_deadline_priority_and_trace_travel = far(_context)


async def _cancelled(stock, elsewhere, peer, server):
    call = asyncio.ensure_future(elsewhere.wait())
    await turns(5)
    assert stock.begun == 1
    call.cancel()
    await turns()
    assert stock.cancelled == 1
    with pytest.raises(DeadlineExceeded), call_context.within(0.05):
        await elsewhere.wait()
    await turns()
    assert stock.cancelled == 2
    peer.close()
    assert server.statistics().running == 0


test_cancellation_and_a_passed_deadline_end_the_work_elsewhere = far(_cancelled)


async def _cancelled_in_the_queue(stock, elsewhere, _peer, server):
    first, second, third = (asyncio.ensure_future(elsewhere.wait()) for _ in range(3))
    await turns(5)
    assert (stock.begun, server.statistics().running, server.statistics().queued) == (1, 1, 2)
    second.cancel()
    await turns(5)
    stock.gate.set()
    assert (await first, await third) == ("over", "over")
    assert (stock.begun, server.statistics().cancelled) == (2, 1)


test_a_call_cancelled_in_the_queue_never_begins = far(_cancelled_in_the_queue, server=RpcServerSettings(calls_max=1))


def test_a_server_that_stops_cancels_the_call_that_waits(tmp_path):
    async def body():
        stock, path = Stock(), str(tmp_path / "rpc")
        server = RpcServer(Registry(), path=path)
        server.add("stock", Stock, stock)
        lifecycle = await started(server)
        peer = Peer(path)
        call = asyncio.ensure_future(remote(Stock, peer, "stock").wait())
        await turns(5)
        async with asyncio.timeout(5):
            await lifecycle.stop()
            with pytest.raises(Unavailable):
                await call
        assert (stock.begun, stock.cancelled) == (1, 1)
        peer.close()

    asyncio.run(body())


async def _lost_connection(stock, elsewhere, peer, server):
    call = asyncio.ensure_future(elsewhere.wait())
    await turns(5)
    for connection in list(server.connections):
        connection.close()
    with pytest.raises(Unavailable) as lost:
        await call
    assert lost.value.reason == "connection_lost"
    await turns(5)
    assert stock.cancelled == 1
    assert await elsewhere.twice(Item("again"), 1) == [Item("again")]
    assert peer.statistics().connects == 2


test_a_lost_call_is_told_and_the_next_connects_again = far(_lost_connection)


async def _flow(stock, elsewhere, _peer, _server):
    numbers = elsewhere.count(1_000)
    assert await anext(numbers) == 0
    await turns()
    assert stock.sent <= 11  # what credit was given for, and the one that waits
    assert [number async for number in numbers] == list(range(1, 1_000))
    numbers, stock.sent = elsewhere.count(1_000), 0
    await anext(numbers)
    await numbers.aclose()
    await turns()
    assert (stock.sent < 30, stock.cancelled) == (True, 1)
    with pytest.raises(NotFound):
        assert [number async for number in elsewhere.count(5, fail_at=2)] == []


test_a_stream_is_as_fast_as_its_reader_and_ends_with_it = far(_flow, peer=PeerSettings(credit=10))


async def _bounds(_stock, elsewhere, _peer, _server):
    assert len(await elsewhere.large(50_000)) == 50_000
    with pytest.raises(TooLarge):
        await elsewhere.large(200_000)
    with pytest.raises(TooLarge):
        await elsewhere.keep(Item("x" * 200_000))


test_frames_are_bounded_both_ways = far(
    _bounds, server=RpcServerSettings(frame_max=100_000), peer=PeerSettings(frame_max=100_000)
)


async def _shed(stock, elsewhere, _peer, _server):
    calls = [asyncio.ensure_future(elsewhere.wait()) for _ in range(6)]
    await turns(5)
    assert stock.begun == 2
    with pytest.raises(Overloaded), call_context.within(5, priority=3):
        await elsewhere.wait()
    with call_context.within(5, priority=0):
        calls.append(asyncio.ensure_future(elsewhere.wait()))
    await turns(5)
    stock.gate.set()
    assert await asyncio.gather(*calls) == ["over"] * 7


test_what_matters_less_is_refused_earlier = far(_shed, server=RpcServerSettings(calls_max=2, queue_max=8))


async def _epochs(stock, elsewhere, peer, _server):
    peer.epoch = 4
    await elsewhere.keep(Item("a"))
    peer.epoch = 3
    with pytest.raises(Conflict) as stale:
        await elsewhere.keep(Item("b"))
    assert (stale.value.reason, len(stock.kept)) == ("stale_epoch", 1)


test_a_call_of_an_older_epoch_is_refused = far(_epochs, gate=EpochGate())


class OlderItem(msgspec.Struct):
    name: str


class OlderStock:
    """The interface one version before `count`, `suffix` and `tags` were appended."""

    async def twice(self, item: OlderItem) -> list[OlderItem]:
        return [item, OlderItem("older")]

    async def gone(self) -> None:
        """A method that was removed since."""


async def _versions(_stock, _elsewhere, peer, server):
    older = remote(OlderStock, peer, "stock")
    assert await older.twice(OlderItem("ball")) == [OlderItem("ball"), OlderItem("ball")]
    with pytest.raises(NotFound) as missing:
        await older.gone()
    assert missing.value.reason == "no_method"
    server.add("older", OlderStock, OlderStock())
    newer = remote(Stock, peer, "older", only=frozenset({"twice"}))
    assert await newer.twice(Item("ball", ["red"]), 5, suffix="s") == [Item("ball"), Item("older")]


test_version_n_and_n_minus_1_understand_each_other = far(_versions)


def test_messages_of_older_and_newer_versions_are_read():
    longer = msgspec.msgpack.encode([7, 0, "stock.keep", 1, 5, 1, "", 3, 0, "appended later"])
    assert msgspec.msgpack.decode(longer, type=Ask).epoch == 3
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([7]), type=Ask).priority == 1
    unknown = msgspec.msgpack.encode(["later_kind", "odd", "an error of a later version", {}, 0.0, "more"])
    told = error_of(unknown)
    assert (type(told), told.reason) == (FourplaneError, "odd")
    assert type(error_of(error_body(TooLarge("x")))) is TooLarge


async def _garbage(stock, elsewhere, peer, _server):
    path = peer._where[0]
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"4pl\x01\xff\xff\xff\xff", b"4pl\x01\x02\x00\x00\x00\xc1\xc1"):
        gone = asyncio.Event()

        class Stranger(asyncio.Protocol):
            def connection_lost(self, _exc, gone=gone):
                gone.set()

        transport, _ = await network.connect_unix(Stranger, path)
        transport.write(hello)
        await gone.wait()
    with pytest.raises(Rejected):
        await remote(Other, peer, "stock").twice("not an item")
    await elsewhere.keep(Item("still well"))
    assert len(stock.kept) == 1


class Other:
    async def twice(self, item: str) -> None: ...


test_strangers_are_cut_and_wrong_arguments_rejected = far(_garbage)


def test_callers_wait_for_a_restarting_peer_until_their_deadline(tmp_path):
    async def body():
        path = str(tmp_path / "rpc")
        peer = Peer(path)
        elsewhere = remote(Stock, peer, "stock")
        with pytest.raises(Unavailable) as unreachable, call_context.within(0.03):
            await elsewhere.keep(Item("a"))
        assert unreachable.value.reason == "unreachable"
        call = asyncio.ensure_future(elsewhere.twice(Item("b"), 1))
        await turns(10)
        server = RpcServer(Registry(), path=path)
        server.add("stock", Stock, Stock())
        lifecycle = await started(server)
        assert await call == [Item("b")]
        peer.close()
        await lifecycle.stop()

    asyncio.run(body())


def test_an_idempotent_call_is_repeated_when_its_connection_is_cut(tmp_path):
    async def body():
        path = str(tmp_path / "rpc")
        waiting = network.bind_unix(path)
        cut = []

        class Cutting(asyncio.Protocol):
            def connection_made(self, transport):
                cut.append(transport)

            def data_received(self, _data):
                cut[-1].abort()

        dying = await network.listen_unix(Cutting, path, inherited=waiting.dup())
        peer = Peer(path)
        call = asyncio.ensure_future(remote(Stock, peer, "stock").twice(Item("b"), 1))
        while not cut:
            await turns(1)
        dying.close()
        server = RpcServer(Registry(), path=path, inherited=waiting)
        server.add("stock", Stock, Stock())
        lifecycle = await started(server)
        assert await call == [Item("b")]
        assert peer.statistics().repeated >= 1
        peer.close()
        await lifecycle.stop()

    asyncio.run(body())


async def _many(stock, elsewhere, _peer, server):
    stock.gate.set()
    answers = await asyncio.gather(
        *(elsewhere.wait() for _ in range(2_000)), *(elsewhere.twice(Item("x"), 1) for _ in range(2_000))
    )
    assert len(answers) == 4_000
    statistics = server.statistics()
    assert (statistics.calls, statistics.running, statistics.queued) == (4_000, 0, 0)


test_thousands_of_calls_at_once_are_all_answered = far(_many)


def test_types_that_cannot_travel_are_named_when_the_interface_is_read():
    class Untyped:
        async def call(self, thing) -> None: ...

    class Callback:
        async def call(self, on_done: type) -> Peer: ...

    class Synchronous:
        def call(self) -> None: ...

    for source in (Untyped, Callback, Synchronous):
        with pytest.raises(Misconfigured):
            local(source, source())
