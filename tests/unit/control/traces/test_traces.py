"""Traces: kept in columns, gathered from all workers, found by id, slowest and failed, and told in OTLP."""

import asyncio
import json

import pytest

from fourplane.control.otlp_push import OtlpPush, OtlpSettings
from fourplane.control.traces import otlp
from fourplane.control.traces.collector import TraceCollector, TraceSettings
from fourplane.control.traces.columns import TraceColumns
from fourplane.control.traces.keeper import TraceDesk, TraceKeeper
from fourplane.control.traces.model import SpanRecord, TraceRecord
from fourplane.control.traces.stores import TracedStores
from fourplane.edge.routes import Call
from fourplane.foundation import clock, network, tracing
from fourplane.foundation.errors import Misconfigured, NotFound, Rejected, Unavailable
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.foundation.tracing import span
from fourplane.simulator import loop as simulated
from fourplane.state.contracts import Put
from fourplane.state.stores import StoresSettings


def record(number, *, took_us=100, failed=False, steps=3, name="GET /a"):
    trace = f"{number:032x}"
    spans = [
        SpanRecord(trace, f"{step:016x}", f"{max(0, step - 1):016x}", "step", "w0", 1_000 * number, took_us)
        for step in range(1, steps + 1)
    ]  # fmt: skip
    root = SpanRecord(trace, f"{1:016x}", "0" * 16, name, "w0", 1_000 * number, took_us, failed)
    return TraceRecord(trace, "error" if failed else "slow", root, [root, *spans[1:]])


def test_traces_are_found_by_id_slowest_and_failed():
    columns = TraceColumns(traces_max=100, spans_max=1_000)
    for number in range(1, 21):
        columns.add(
            record(number, took_us=(number * 7) % 20, failed=number == 5, name="GET /b" if number == 9 else "GET /a")
        )
    assert columns.find(f"{7:032x}") == record(7, took_us=(7 * 7) % 20)
    assert columns.find("f" * 32) is None
    assert [one.took_us for one in columns.search("slowest", limit=3)] == [19, 18, 17]
    assert [one.trace for one in columns.search("errors")] == [f"{5:032x}"]
    assert [one.trace for one in columns.search(limit=2)] == [f"{20:032x}", f"{19:032x}"]
    assert [one.name for one in columns.search(text="/B")] == ["GET /b"]
    assert all(one.took_us >= 15 for one in columns.search(least_us=15))


def test_columns_are_bounded_and_a_trace_goes_with_its_steps():
    columns = TraceColumns(traces_max=10, spans_max=50)
    before = columns.memory_bytes()
    for number in range(1, 60):
        columns.add(record(number, steps=2 + number % 9))
        columns.check()
    assert columns.memory_bytes() == before
    assert len(columns) <= 10
    assert columns.find(f"{1:032x}") is None
    assert columns.find(f"{59:032x}") is not None
    assert [one.trace for one in columns.since(57)] == [f"{58:032x}", f"{59:032x}"]


class Worker:
    """A process with a registry, that serves requests and does steps for others."""

    def __init__(self, name):
        self.registry = Registry()
        self.registry.tracer.slow_s = 0.05
        self.keeper = TraceKeeper(self.registry, process=name)

    async def serve(self, number, *, other=None, took_s=0.1):
        tracer = self.registry.tracer
        began_s = clock.monotonic_s()
        root = tracer.begin(None, f"{number:016x}")
        with span(tracer, "records.cart write"):
            await clock.sleep(took_s / 2)
        if other is not None:
            with span(other.registry.tracer, "payments.authorise"):
                await clock.sleep(took_s / 2)
        tracer.end(root, "POST /commerce/api/orders", began_s, clock.monotonic_s(), failed=False)


def test_a_waterfall_goes_over_processes():
    async def main(_world):
        home, shop, pay = Worker("worker 0"), Worker("worker 1"), Worker("worker 2")

        class Gone:
            async def kept(self, _after):
                raise Unavailable("away")

            async def steps(self, _traces):
                raise Unavailable("away")

        desks = {1: TraceDesk(shop.keeper), 2: TraceDesk(pay.keeper), 3: Gone()}
        collector = TraceCollector(TraceSettings(), home.keeper, lambda: desks)
        await home.serve(1)
        await shop.serve(2, other=pay)
        await shop.serve(3, took_s=0.001)  # quick: not kept
        shop.keeper.look()
        counts = [await collector.collect(), await collector.collect()]
        return counts, collector.find(f"{2:016x}"), collector

    counts, trace, collector = simulated.run(main, 1).result
    assert counts == [2, 0]
    assert [one.process for one in trace.spans] == ["worker 1", "worker 1", "worker 2"]
    assert trace.spans[0].name == trace.root.name == "POST /commerce/api/orders"
    assert trace.complete
    assert trace.reason == "slow"
    assert trace.spans[1].start_us + trace.spans[1].took_us <= trace.spans[2].start_us + 1
    assert collector.find("0" * 16 + f"{2:016x}") == trace
    with pytest.raises(NotFound):
        collector.find(f"{3:016x}")
    assert collector.statistics().traces == 2


def test_the_doors_answer_and_refuse():
    async def main(_world):
        worker = Worker("w")
        collector = TraceCollector(TraceSettings(), worker.keeper, dict)
        await worker.serve(9, took_s=0.2)
        await collector.collect()
        listing, one = (door.handler for door in collector.doors())

        def call(params=None, **query):
            return Call(params=params or {}, query=query, headers={}, body=None, identity=None, request_id="", peer="")

        found = await listing(call(order="slowest", q="orders", least_ms="20", limit="5"))
        answer = await one(call({"trace": f"{9:016x}"}))
        for query in ({"order": "best"}, {"limit": "many"}):
            with pytest.raises(Rejected):
                await listing(call(**query))
        return found, answer

    found, answer = simulated.run(main, 1).result
    assert [len(found), found[0].spans, answer.spans[1].name, answer.complete] == [1, 2, "records.cart write", True]
    with pytest.raises(Misconfigured):
        TraceSettings(one_in=0)


def test_calls_of_stores_are_steps_inside_a_trace_and_untouched_outside(tmp_path):
    async def main():
        registry = Registry()
        stores = TracedStores(StoresSettings(records="memory://"), data=tmp_path)
        stores.tracer = tracer = registry.tracer
        records = await stores.records("cart")
        assert await stores.records("cart") is records
        await records.write(b"p", [Put(b"s", b"1")])
        outside = len(tracer.parts)
        root = tracer.begin(None, "00000000000000aa")
        await records.write(b"p", [Put(b"t", b"2")])
        assert (await records.get(b"p", b"t")).value == b"2"
        tracer.end(root, "GET /a", 0.0, 1.0, failed=False)
        await stores.stop()
        return outside, TraceKeeper(registry, process="w").steps_of([f"{0xAA:032x}"])

    outside, steps = asyncio.run(main())
    assert outside == 0
    (found,) = steps.values()
    assert [one.name for one in found] == ["GET /a", "records.cart write", "records.cart get"]
    assert {one.parent for one in found[1:]} == {found[0].span}
    assert len({one.span for one in found}) == len(found)


def test_otlp_names_ids_times_and_errors():
    told = json.loads(otlp.export([record(3, failed=True)]))
    (resource,) = told["resourceSpans"]
    assert {"key": "service.instance.id", "value": {"stringValue": "w0"}} in resource["resource"]["attributes"]
    root, step, _ = resource["scopeSpans"][0]["spans"]
    assert (root["traceId"], root["kind"], root["status"]) == (f"{3:032x}", 2, {"code": 2})
    assert "parentSpanId" not in root
    assert (step["parentSpanId"], step["startTimeUnixNano"], step["endTimeUnixNano"]) == (
        root["spanId"],
        "3000000",
        "3100000",
    )


def test_a_collector_hears_metrics_and_each_trace_once(tmp_path):
    (tmp_path / "collector").write_text("Bearer s3cret\n", encoding="ascii")

    async def main(_world):
        got = []

        class Collector(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, data):
                head, _, body = data.partition(b"\r\n\r\n")
                assert b"\r\nx-api-key: Bearer s3cret\r\n" in head + b"\r\n"
                got.append((head.split(b" ")[1].decode(), json.loads(body)))
                self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        server = await network.listen(Collector, "127.0.0.1", 0)
        registry, columns = Registry(), TraceColumns()
        registry.counter("hits_total").add(3)

        async def cells():
            return registry

        url = f"http://127.0.0.1:{network.port_of(server)}/otlp"
        settings = OtlpSettings(url, header="x-api-key", secret_file="collector")
        push = OtlpPush(settings, registry=registry, collect=cells, traces=columns, secrets=tmp_path)
        columns.add(record(1))
        await push.push()
        await push.push()
        columns.add(record(2))
        await push.push()
        await push.stop()
        server.close()
        return got

    got = simulated.run(main, 1).result
    assert [path for path, _ in got] == [
        "/otlp/v1/metrics", "/otlp/v1/traces", "/otlp/v1/metrics", "/otlp/v1/metrics", "/otlp/v1/traces",
    ]  # fmt: skip
    spans = [one["traceId"] for _, body in got if "resourceSpans" in body
             for resource in body["resourceSpans"] for scope in resource["scopeSpans"] for one in scope["spans"]]  # fmt: skip
    assert set(spans) == {f"{1:032x}", f"{2:032x}"}
    assert len(spans) == 6
    tracing.set_trace("")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x"},
        {"url": "http://robin:secret@x"},
        {"header": "content-length"},
        {"header": "a\r\nb"},
        {"secret_file": "../passwd"},
    ],
)
def test_what_a_push_cannot_be_is_refused(wrong):
    with pytest.raises(Misconfigured):
        OtlpSettings(**wrong)


@pytest.mark.parametrize("content", [None, "", "two\nlines", "x" * 5_000])
def test_a_secret_that_cannot_be_sent_stops_the_push_and_is_in_no_event(tmp_path, content):
    if content is not None:
        (tmp_path / "collector").write_text(content, encoding="ascii")

    async def main(_world):
        registry = Registry()

        async def cells():
            return registry

        settings = OtlpSettings("http://127.0.0.1:9", every_s=0.5, secret_file="collector")
        push = OtlpPush(settings, registry=registry, collect=cells, traces=None, secrets=tmp_path)
        lifecycle = Lifecycle(Registry())
        lifecycle.add("otlp", push)
        await lifecycle.start()
        await clock.sleep(2.0)
        await lifecycle.stop()
        return [event.text for event in registry.events], push.statistics().failed

    events, failed = simulated.run(main, 1).result
    assert failed >= 2
    assert len(events) == 1
    assert "data/secrets/collector" in events[0]
    assert "two" not in events[0]
