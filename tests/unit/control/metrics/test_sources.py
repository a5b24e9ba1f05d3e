"""What comes in: Prometheus text, a registry, OTLP, binary frames; and what goes out again."""

import asyncio

import msgspec
import numpy as np
import pytest

from fourplane.control.exporters import prometheus_text
from fourplane.control.metrics import otlp
from fourplane.control.metrics.exposition import TextReader, parse_series
from fourplane.control.metrics.query import Span, latest, run
from fourplane.control.metrics.readings import CELLS_AT_ONCE, RegistryReader
from fourplane.control.metrics.series import SeriesEntry, SeriesTable
from fourplane.control.metrics.windows import Windows
from fourplane.control.metrics.wire import ADD, PointsPort, define_frame, points_frame
from fourplane.foundation import network
from fourplane.foundation.errors import Overloaded, Rejected
from fourplane.foundation.telemetry import Registry

SCRAPE = """# HELP hits_total What was asked for
# TYPE hits_total counter
hits_total{{path="/a b",quote="say \\"x\\""}} {a}
hits_total{{path="/c"}} {b}
# TYPE heat gauge
heat {heat}
# TYPE wait_seconds histogram
wait_seconds_bucket{{le="0.1"}} {few}
wait_seconds_bucket{{le="+Inf"}} {all}
wait_seconds_sum 3.5
wait_seconds_count {all}
"""


def told(table, points):
    """Increments and values by name and label texts."""
    counters, grown, gauges, now = points
    pairs = [*zip(counters.tolist(), grown.tolist(), strict=True), *zip(gauges.tolist(), now.tolist(), strict=True)]
    return {(table.entries[n].name, *(text for _, text in table.entries[n].labels)): value for n, value in pairs}


def scrape(**numbers):
    return SCRAPE.format(**{"a": 1, "b": 2, "heat": 20.5, "few": 3, "all": 4, **numbers}).encode()


def test_totals_become_increments_and_gauges_stay():
    table = SeriesTable()
    reader = TextReader(table, (("instance", "x"),))
    first = told(table, reader.read(scrape()))
    assert first == {("heat", "x"): 20.5}
    second = told(table, reader.read(scrape(a=11, b=2, heat="-1e3", few=5, all=8)))
    assert second == {
        ("hits_total", "x", "/a b", 'say "x"'): 10,
        ("heat", "x"): -1000.0,
        ("wait_seconds_bucket", "x", "0.1"): 2,
        ("wait_seconds_bucket", "x", "+Inf"): 4,
        ("wait_seconds_count", "x"): 4,
    }


def test_a_target_that_started_again_counts_from_zero():
    table = SeriesTable()
    reader = TextReader(table)
    reader.read(scrape(a=100))
    assert told(table, reader.read(scrape(a=7)))["hits_total", "/a b", 'say "x"'] == 7


def test_new_lines_between_known_ones_are_learned_and_the_others_keep_their_totals():
    table = SeriesTable()
    reader = TextReader(table)
    reader.read(scrape(a=5, b=5))
    more = scrape(a=6, b=7).replace(b"# TYPE heat gauge\n", b'hits_total{path="/new"} 3\n# TYPE heat gauge\n')
    found = told(table, reader.read(more))
    assert (found["hits_total", "/a b", 'say "x"'], found["hits_total", "/c"], found["hits_total", "/new"]) == (1, 2, 3)


def test_times_after_the_numbers_are_accepted():
    table = SeriesTable()
    reader = TextReader(table)
    for _ in range(2):
        found = told(table, reader.read(b'# TYPE a gauge\na 4 1700000000000\nb{x="1 2"} 5 1700000000001\n'))
    assert found == {("a",): 4, ("b", "1 2"): 5}


def test_lines_that_are_no_metrics_are_counted_and_the_rest_is_taken():
    table = SeriesTable()
    reader = TextReader(table)
    assert told(table, reader.read(b"good 1\nbad{x=} 2\nworse one two three\n")) == {("good",): 1}
    assert reader.bad_lines == 2
    with pytest.raises(Rejected):
        TextReader(table).read(b"<html>no metrics here</html>")


def test_labels_with_escapes():
    assert parse_series(r'a{b="x\\y\nz\"q", c=""} 1') == ("a", (("b", 'x\\y\nz"q'), ("c", "")))


def test_a_registry_counts_what_happened_since_the_last_look():
    registry, table = Registry(), SeriesTable()
    reader, windows = RegistryReader(table), Windows(table)
    requests = registry.counter("requests_total", route="/a")
    wait = registry.histogram("wait_seconds")
    registry.gauge("heat", read=lambda: 7.0)
    windows.advance(1_000)
    for second in range(3):
        requests.add(5)
        for _ in range(90):
            wait.record(0.001)
        for _ in range(10):
            wait.record(0.1)
        counters, grown, gauges, now = reader.read(registry)
        windows.add(counters, grown)
        windows.set(gauges, now)
        windows.advance(1_001 + second)
    span = Span(1_000, 1_003, 1)
    assert run(windows, "requests_total", span).values.tolist() == [[5, 5, 5]]
    assert run(windows, "heat", span).values.tolist() == [[7, 7, 7]]
    assert run(windows, "wait_seconds_count", span).values.tolist() == [[100, 100, 100]]
    [(_, median)] = latest(run(windows, "quantile(0.5, wait_seconds)", span))
    [(_, tail)] = latest(run(windows, "quantile(0.99, wait_seconds)", span))
    assert 0.0005 < median < 0.0021
    assert 0.06 < tail < 0.14
    assert reader.read(registry)[0].tolist() == []


def test_what_we_export_as_text_we_read_back():
    registry, table = Registry(), SeriesTable()
    counter = registry.counter("a_total", "what", way='"odd"\n')
    reader = TextReader(table)
    reader.read(prometheus_text(registry).encode())
    counter.add(3)
    assert told(table, reader.read(prometheus_text(registry).encode())) == {("a_total", '"odd"\n'): 3}


def test_what_we_export_as_otlp_we_read_back():
    registry, table = Registry(), SeriesTable()
    counter, wait = registry.counter("a_total", way="x"), registry.histogram("wait_seconds")
    registry.gauge("heat").value = 3.5
    reader = otlp.OtlpReader(table)

    def export():
        return otlp.export(registry, now_us=2_000_000, started_us=1_000_000, resource={"service.name": "fourplane"})

    reader.read(export())
    counter.add(4)
    wait.record(0.01)
    found = told(table, reader.read(export()))
    assert found["a_total", "fourplane", "x"] == 4
    assert found["heat", "fourplane"] == 3.5
    assert found["wait_seconds_count", "fourplane"] == 1
    assert found["wait_seconds_sum", "fourplane"] == pytest.approx(0.01)
    assert msgspec.json.decode(export())["resourceMetrics"][0]["scopeMetrics"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"resourceMetrics": 4}', b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{}]}]}]}']
)
def test_a_body_that_is_no_otlp_is_refused(body):
    with pytest.raises(Rejected):
        otlp.OtlpReader(SeriesTable()).read(body)


def test_past_the_bound_new_series_are_refused_and_old_ones_go_on():
    table = SeriesTable(series_max=2)
    reader = RegistryReader(table)
    registry = Registry()
    for number in range(4):
        registry.counter("c_total", n=str(number)).add(1)
    assert len(reader.read(registry)[0]) == 2
    assert (len(table), table.refused) == (2, 2)
    with pytest.raises(Overloaded):
        table.id_of("d", (), "gauge")


def test_frames_over_a_socket_become_points_and_garbage_ends_the_connection():
    async def main():
        windows = Windows(SeriesTable())
        windows.advance(1_000)
        server = await network.listen(lambda: PointsPort(windows), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", network.port_of(server))
        writer.write(
            define_frame([SeriesEntry("a_total", (("x", "1"),), "counter"), SeriesEntry("a_total", (), "counter")])
        )
        numbers = np.frombuffer(await reader.readexactly(8), dtype="<u4")
        whole = b"".join(points_frame(ADD, numbers, np.array([1.0, 2.0])) for _ in range(1_000))
        for at in range(0, len(whole), 997):  # borders of frames fall anywhere
            writer.write(whole[at : at + 997])
        await writer.drain()
        async with asyncio.timeout(10):
            while windows.points < 2_000:
                await asyncio.sleep(0)
        windows.advance(1_001)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            async with asyncio.timeout(10):
                await reader.readexactly(1)
        writer.close()
        server.close()
        return sorted(run(windows, "a_total", Span(1_000, 1_001, 1)).values[:, 0].tolist())

    assert asyncio.run(main()) == [1_000.0, 2_000.0]


def test_a_look_with_pauses_gives_the_same_points_and_never_takes_many_cells_at_once():
    registry, table = Registry(), SeriesTable()
    for number in range(3 * CELLS_AT_ONCE + 5):
        registry.counter("asked_total", route=f"/{number}").add(number)
    registry.histogram("took_seconds").record(0.25)
    pieces = list(RegistryReader(table).slices(registry))
    assert [piece is None for piece in pieces] == [True, True, True, False]
    whole = RegistryReader(table).read(registry)
    assert all((one == other).all() for one, other in zip(pieces[-1], whole, strict=True))
