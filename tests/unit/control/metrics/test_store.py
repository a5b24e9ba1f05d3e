"""The store in a deployment, in virtual time: its doors, a scraped target, and curves that go on after a restart."""

import asyncio

import pytest

from fourplane.control.metrics.otlp import export
from fourplane.control.metrics.query import latest
from fourplane.control.metrics.store import MetricsSettings, MetricsStore
from fourplane.control.metrics.windows import TierSettings
from fourplane.edge.routes import Call
from fourplane.foundation import clock, network
from fourplane.foundation.errors import Misconfigured, Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import loop as simulated
from fourplane.state.embedded.blobs import EmbeddedBlobs

SMALL = MetricsSettings(tiers=(TierSettings(1, 30, stored=False), TierSettings(10, 12), TierSettings(60, 30)))


def call(body=None, headers=None, **query):
    return Call(
        params={}, query={name: str(value) for name, value in query.items()}, headers=headers or {}, body=body,
        identity=None, request_id="", peer="",
    )  # fmt: skip


def door(store, path):
    return next(one.handler for one in store.doors() if one.path == path)


async def living(registry, blobs, seconds, settings=SMALL, after=None):
    """A store that lives so many virtual seconds while a counter grows by two each second."""
    lifecycle = Lifecycle(Registry())
    store = MetricsStore(settings, registry=registry, blobs=blobs)
    lifecycle.add("metrics", store)
    hits = registry.counter("hits_total", route="/a")
    await lifecycle.start()
    for _ in range(seconds):
        hits.add(2)
        await clock.sleep(1.0)
    result = await after(store) if after is not None else store
    await lifecycle.drain()
    await lifecycle.stop()
    return result


def test_the_query_door_answers_what_happened(tmp_path):
    async def asked(store):
        query = door(store, "/control/api/metrics/query")
        answer = await query(call(q="sum(rate(hits_total[20s]))", seconds=30, step=10))
        assert [series.labels for series in answer.series] == [{}]
        assert answer.series[0].values[-1] == pytest.approx(2.0)
        assert "hits_total" in await door(store, "/control/api/metrics/names")(call())
        with pytest.raises(Rejected):
            await query(call(q="rate("))
        with pytest.raises(Rejected):
            await query(call(q="hits_total", seconds="soon"))

    async def main(_world):
        blobs = await EmbeddedBlobs(tmp_path).open()
        await living(Registry(), blobs, 60, after=asked)

    simulated.run(main, 1)


def test_a_restart_goes_on_with_the_curves_and_old_steps_are_deleted(tmp_path):
    async def hour(store):
        frame = store.run("hits_total", seconds=600, step_s=60)
        stored = await store._blobs.keys("control/metrics/10/")
        return frame.values[0].tolist(), len(stored)

    async def main(_world):
        blobs = await EmbeddedBlobs(tmp_path).open()
        await living(Registry(), blobs, 400)
        return await living(Registry(), blobs, 205, after=hour)

    values, stored = simulated.run(main, 1).result
    assert stored <= 13
    assert sum(value == pytest.approx(120.0) for value in values) >= 6
    assert sum(value for value in values if value == value) == pytest.approx(2 * 600, rel=0.15)  # noqa: PLR0124 - not NaN


def test_a_target_is_scraped_and_its_loss_is_told(tmp_path):
    counted = []

    class Target(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            counted.append(data)
            body = f"# TYPE jobs_total counter\njobs_total {10 * len(counted)}\n".encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def asked(store):
        frame = store.run("rate(jobs_total[1m])", seconds=120, step_s=10)
        ups = store.run("up", seconds=10, step_s=1)
        return latest(frame), latest(ups), store.statistics()

    async def main(_world):
        server = await network.listen(Target, "127.0.0.1", 0)
        port = network.port_of(server)
        targets = (f"http://127.0.0.1:{port}/metrics", "http://127.0.0.1:9/metrics")
        settings = MetricsSettings(tiers=SMALL.tiers, targets=targets, scrape_s=5.0)
        registry = Registry()
        found = await living(registry, await EmbeddedBlobs(tmp_path).open(), 90, settings, asked)
        server.close()
        return (*found, [event.text for event in registry.events])

    rates, ups, statistics, events = simulated.run(main, 1).result
    assert [value for _, value in rates] == [pytest.approx(2.0, rel=0.2)]
    assert sorted(value for _, value in ups) == [0.0, 1.0]
    assert (statistics.targets_up, statistics.targets_down) == (1, 1)
    assert sum("cannot be scraped" in text for text in events) == 1


def test_otlp_comes_in_through_its_door(tmp_path):
    async def asked(store):
        other = Registry()
        other.gauge("their_heat").value = 41.0
        body = export(other, now_us=clock.now_us(), started_us=0, resource={"service.name": "other"})
        await door(store, "/v1/metrics")(call(body))
        await clock.sleep(2.0)
        with pytest.raises(Rejected):
            await door(store, "/v1/metrics")(call(b"\x0a\x00", {"content-type": "application/x-protobuf"}))
        return latest(store.run("their_heat", seconds=10))

    async def main(_world):
        return await living(Registry(), await EmbeddedBlobs(tmp_path).open(), 3, after=asked)

    assert simulated.run(main, 1).result == [((("service_name", "other"),), 41.0)]


@pytest.mark.parametrize(
    "bad", [{"tiers": (TierSettings(10, 5), TierSettings(15, 5))}, {"tiers": ()}, {"targets": ("ftp://x/y",)}]
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(Misconfigured):
        MetricsSettings(**bad)
