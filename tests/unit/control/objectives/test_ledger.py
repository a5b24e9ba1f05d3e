"""Objectives and probes in virtual time: counted once, alerting, kept over a restart; probes say what a user feels."""

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest

from fourplane.control.metrics.query import Span, run
from fourplane.control.metrics.readings import RegistryReader
from fourplane.control.metrics.series import SeriesTable
from fourplane.control.metrics.store import MetricsSettings, MetricsStore
from fourplane.control.metrics.windows import Windows
from fourplane.control.objectives.ledger import Ledger
from fourplane.control.objectives.probes import Doors, Guest, Probes, ProbeSettings
from fourplane.control.objectives.settings import Objective, ObjectiveSettings, chosen
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Misconfigured, Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import loop as simulated
from fourplane.state.embedded.blobs import EmbeddedBlobs

SHOP = Objective("shop", "commerce", total="sum(asked_total)", bad="sum(failed_total)", target=0.99)


@asynccontextmanager
async def ledger(registry, blobs, settings, objectives=(SHOP,)):
    """A store and a ledger beside it, living."""
    lifecycle = Lifecycle(Registry())
    store = MetricsStore(MetricsSettings(), registry=registry)
    made = Ledger(settings, objectives, store=store, registry=registry, blobs=blobs)
    lifecycle.add("metrics", store)
    lifecycle.add("objectives", made)
    await lifecycle.start()
    try:
        yield made
    finally:
        await lifecycle.drain()
        await lifecycle.stop()


def test_events_are_counted_once_and_a_restart_remembers(tmp_path):
    async def main(_world):
        registry, blobs = Registry(), await EmbeddedBlobs(tmp_path).open()
        asked, failed = registry.counter("asked_total"), registry.counter("failed_total")
        settings = ObjectiveSettings(period_s=3_600.0)
        async with ledger(registry, blobs, settings) as made:
            for second in range(40):
                asked.add(20)
                failed.add(second == 10)
                await clock.sleep(1.0)
            await clock.sleep(3.0)
            before = made.spent()["shop"]
            gauge = registry.gauge("fourplane_control_budget_remaining_ratio", objective="shop", service="commerce")
            left = gauge.current()
        async with ledger(Registry(), blobs, settings) as made:
            return before, made.spent()["shop"], left

    before, after, left = simulated.run(main, 1).result
    assert before == after == (1.0, 800.0)
    assert left == pytest.approx(1 - 1 / 8)


def test_a_burning_objective_is_a_condition_and_one_that_cannot_be_read_says_so(tmp_path):
    odd = Objective("odd", "commerce", total="rate(heat)", bad="sum(failed_total)")

    async def main(_world):
        registry = Registry()
        asked, failed = registry.counter("asked_total"), registry.counter("failed_total")
        registry.gauge("heat").value = 1.0
        async with ledger(registry, None, ObjectiveSettings(period_s=3_600.0), (SHOP, odd)) as made:
            for second in range(40):
                asked.add(20)
                failed.add(20 * (second > 30))
                await clock.sleep(1.0)
            return list(made.conditions(clock.now_us() / 1e6)), [view.error for view in made.views()], made.statistics()

    conditions, errors, statistics = simulated.run(main, 1).result
    assert [(one.name, one.service, one.severity, one.labels["objective"]) for one in conditions] == [
        ("BudgetBurn", "commerce", "page", "shop")
    ]
    assert errors[0] == ""
    assert "gauge" in errors[1]
    assert (statistics.objectives, statistics.burning) == (2, 1)


def test_over_counts_what_lies_above_an_edge_though_nobody_fell_into_it():
    registry, table = Registry(), SeriesTable()
    windows, reader = Windows(table), RegistryReader(table)
    windows.advance(1_000.0)
    for route, times in (("/a", (0.001, 0.1, 3.0, 9.0)), ("/b", (0.2, 0.7))):
        for seconds in times:
            registry.histogram("took_seconds", route=route).record(seconds)
    ids, values, _, _ = reader.read(registry)
    windows.add(ids, values)
    windows.advance(1_001.0)
    frame = run(windows, "over(0.524288, took_seconds) by (route)", Span(1_000, 1_001, 1))
    assert {labels[0][1]: values[-1] for labels, values in zip(frame.labels, frame.values.tolist(), strict=True)} == {
        "/a": 2.0, "/b": 1.0,
    }  # fmt: skip
    assert run(windows, "over(100, took_seconds)", Span(1_000, 1_001, 1)).values.tolist() == [[0.0]]


def test_usual_objectives_are_those_of_the_systems_and_may_be_replaced():
    own = Objective("commerce-answers", "commerce", total="a_total", bad="b_total", target=0.9999)
    found = {one.name: one for one in chosen(ObjectiveSettings(declared=(own,)), ("commerce", "messaging"))}
    assert found["commerce-answers"] is own
    assert {one.service for one in found.values()} == {"commerce", "messaging"}
    with pytest.raises(Misconfigured):
        ObjectiveSettings(period_s=1.0)
    with pytest.raises(Rejected):
        Objective("x", "y", total="rate(", bad="b")


class Shop(asyncio.Protocol):
    """A shop with one product; `broken` answers 503, `silent` never."""

    state = ""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if Shop.state == "silent":
            return
        body = b'{"products":[{"id":"p1"}]}' if b"limit=1" in data else b"{}"
        status = b"503 No" if Shop.state == "broken" else b"200 OK"
        self.transport.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))


def test_a_probe_fails_as_a_user_does_and_recovers():
    async def main(_world):
        registry = Registry()
        server = await network.listen(Shop, "127.0.0.1", 0)

        async def guest():
            return Guest("probe", "secret", "token")

        settings = ProbeSettings(every_s=1.0, deadline_s=0.5, first_after_s=0.0)
        probes = Probes(
            settings, ("commerce",), registry=registry, doors=lambda: Doors(http_port=network.port_of(server)),
            ready=lambda: True, guest=guest, tls=lambda: None,
        )  # fmt: skip
        lifecycle = Lifecycle(Registry())
        lifecycle.add("probes", probes)
        await lifecycle.start()
        seen = []
        for state in ("", "broken", "silent", ""):
            Shop.state = state
            await clock.sleep(5.0)
            seen.append([one.summary for one in probes.conditions(0.0)])
        missed = probes.count_outage(7.0)
        view = probes.views()[0]
        await lifecycle.drain()
        await lifecycle.stop()
        server.close()
        return seen, missed, view, probes.statistics()

    seen, missed, view, statistics = simulated.run(main, 1).result
    assert [len(one) for one in seen] == [0, 1, 1, 0]
    assert "503" in seen[1][0]
    assert "nothing within" in seen[2][0]
    assert missed == 7
    assert (statistics.sent, statistics.failed, statistics.failing) == (view.served + view.failed, view.failed, 0)
    assert view.failed >= 9 + missed
    assert view.served >= 9
    assert msgspec.to_builtins(view)["recent"][0]["error"] == ""
