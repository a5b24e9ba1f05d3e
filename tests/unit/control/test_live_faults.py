"""Faults of a running worker, in virtual time: scope, leases that lapse, refusals, and an absence that ends."""

import asyncio

import pytest

from fourplane.control.fault_machine import Machine
from fourplane.control.live_faults import AWAY_S_MAX, FAULTS_MAX, FaultDesk, LiveFaults, away_file, stay_away
from fourplane.edge.http_server import HttpServer, HttpServerSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, NotFound, Overloaded, Rejected
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.simulator import loop as simulated


def lived(main, tmp_path):
    """Run `main(faults, ask)` with a started part; `ask(path, caller)` is a request through the gate."""

    async def whole(_world):
        lifecycle = Lifecycle(Registry())
        faults = LiveFaults(Registry(), data=tmp_path, slot=0)
        lifecycle.add("faults", faults)
        await lifecycle.start()

        async def app(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})

        gate = faults.gate(app)

        async def ask(path, caller="1"):
            """Status and the seconds it took."""
            seen, began = [], clock.monotonic_s()

            async def send(message):
                seen.append(message)

            scope = {"type": "http", "path": path, "headers": [(b"cookie", caller.encode())], "client": None}
            await gate(scope, None, send)
            return seen[0]["status"], round(clock.monotonic_s() - began, 3)

        try:
            return await main(faults, ask)
        finally:
            await lifecycle.drain()
            await lifecycle.stop()

    return simulated.run(whole, 1).result


def test_latency_meets_the_paths_of_its_system_and_no_others(tmp_path):
    async def main(faults, ask):
        faults.begin("latency", "commerce", {"latency_s": 0.5}, 5.0)
        slow, other = await ask("/commerce/api/products"), await ask("/dispatch/")
        state = faults.states()[0]
        return slow, other, state.touched

    assert lived(main, tmp_path) == ((200, 0.5), (200, 0.0), 1)


def test_a_hot_route_leaves_its_requests_to_the_gate_while_a_fault_lasts(tmp_path):
    async def main(faults, _ask):
        server, placed = HttpServer(HttpServerSettings(), None, registry=Registry()), {}

        def asked():
            return [placed[path](None) for path in ("/hot", "/below/*")], [
                server.hot_handler(b"GET", path)(None) for path in (b"/hot", b"/below/a")
            ]

        def put(method, path, handler, *, again=False):
            placed[path] = handler
            server.hot(method, path, handler, again=again)

        def own(_request):
            return b"hot"

        faults.hot(put, "GET", "/hot", own)
        faults.hot(put, "GET", "/below/*", own)
        assert placed["/hot"] is own  # nothing stands before it
        before = asked()
        fault, other = (faults.begin("latency", "commerce", {"latency_s": 0.5}, 5.0) for _ in range(2))
        during = asked()
        faults.undo(fault)
        still = asked()
        faults.undo(other)
        after = asked()
        faults.hold_back({"commerce": 0.1})
        return before, during, still, after, asked()

    hot, left = ([b"hot"] * 2,) * 2, ([None] * 2,) * 2
    assert lived(main, tmp_path) == (hot, left, left, hot, left)


def test_the_shorter_way_of_the_server_is_closed_while_a_fault_lasts(tmp_path):
    class App:
        def typed(self, _request):
            return "work"

        def __call__(self, _scope, _receive, _send):
            raise AssertionError("not asked")

    async def main(faults, _ask):
        gate = faults.gate(App())
        before = gate.typed(None)
        faults.begin("latency", "commerce", {"latency_s": 0.5}, 5.0)
        during = gate.typed(None)
        faults.undo_all()
        return before, during, gate.typed(None)

    assert lived(main, tmp_path) == ("work", None, "work")


def test_who_does_not_wait_for_http_is_slow_too_while_a_fault_of_the_whole_system_lasts(tmp_path):
    async def main(faults, _ask):
        told = []
        faults.beside_http("messaging", told.append)
        faults.begin("latency", "messaging", {"latency_s": 0.3, "jitter_s": 0.2, "duration_s": 3.0}, 5.0)
        faults.begin("latency", "messaging", {"latency_s": 9.0, "percent": 50}, 5.0)
        faults.begin("latency", "commerce", {"latency_s": 9.0}, 5.0)
        begun = told[-1]
        faults.hold_back({"messaging": 0.25, "commerce": 1.0})
        both = told[-1]
        await clock.sleep(4.0)
        lapsed = told[-1]
        faults.hold_back({})
        return begun, both, lapsed, told[-1]

    assert lived(main, tmp_path) == (0.4, 0.65, 0.25, 0.0)


def test_a_share_of_callers_fails_and_always_the_same_ones(tmp_path):
    async def main(faults, ask):
        faults.begin("errors", "commerce", {"share": 0.3, "status": 500}, 5.0)
        first = [(await ask("/commerce/", str(caller)))[0] for caller in range(400)]
        again = [(await ask("/commerce/", str(caller)))[0] for caller in range(400)]
        return first, again

    first, again = lived(main, tmp_path)
    assert first == again
    assert 80 < first.count(500) < 160


def test_nobody_answers_in_a_partition_until_it_ends(tmp_path):
    async def main(faults, ask):
        faults.begin("partition", "commerce", {"duration_s": 2.0}, 5.0)
        return await ask("/commerce/"), await ask("/commerce/")

    (status, took), after = lived(main, tmp_path)
    assert (status, 2.0 <= took <= 2.8) == (503, True)
    assert after == (200, 0.0)


def test_what_is_not_renewed_lapses_and_what_is_renewed_stays(tmp_path):
    async def main(faults, _ask):
        renewed = faults.begin("latency", "commerce", {"duration_s": 60}, 2.0)
        for _ in range(40):
            faults.begin("errors", "commerce", {"duration_s": 60}, 2.0)
        for _ in range(5):
            await clock.sleep(1.0)
            assert faults.renew([renewed, "gone"], 2.0) == 1
        left = [state.kind for state in faults.states()]
        await clock.sleep(3.0)
        return left, faults.states()

    assert lived(main, tmp_path) == (["latency"], [])


def test_two_hundred_runners_that_died_leave_nothing(tmp_path):
    async def main(faults, ask):
        for number in range(200):
            faults.begin(("latency", "errors", "partition")[number % 3], "commerce", {"duration_s": 600}, 5.0)
            if number % 20 == 19:
                await clock.sleep(6.0)
        await clock.sleep(6.0)
        return faults.states(), await ask("/commerce/")

    assert lived(main, tmp_path) == ([], (200, 0.0))


def test_a_worker_that_is_away_comes_back_when_its_time_is_over(tmp_path):
    async def main(_faults, _ask):
        file = away_file(tmp_path, 3)
        file.parent.mkdir()
        file.write_text(str(clock.now_us() + 2_500_000))
        began = clock.monotonic_s()
        await stay_away(tmp_path, 3)
        first = clock.monotonic_s() - began
        await stay_away(tmp_path, 3)
        file.write_text("9" * 30)
        await stay_away(tmp_path, 3)
        return round(first, 3), round(clock.monotonic_s() - began, 3), file.exists()

    assert lived(main, tmp_path) == (2.5, 2.5 + AWAY_S_MAX, False)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("packet_loss", {}),
        ("disk_stall", {}),
        ("zone_loss", {}),
        ("errors", {"percent": 0}),
        ("latency", {"nothing": 1}),
        ("latency", {"latency_s": "long"}),
        ("latency", {"duration_s": 0}),
        ("errors", {"status": 200}),
        ("errors", {"share": 0}),
    ],
)
def test_a_fault_there_is_none_of_is_refused(kind, arguments, tmp_path):
    async def main(faults, _ask):
        with pytest.raises(Rejected):
            faults.begin(kind, "commerce", arguments, 5.0)
        return faults.states()

    assert lived(main, tmp_path) == []


def test_orders_reach_the_faults_and_their_number_is_bounded(tmp_path):
    async def main(faults, ask):
        desk = FaultDesk(faults)
        begun = await desk.order("begin", {"kind": "errors", "system": "commerce", "arguments": {}, "lease_s": 5})
        assert (await ask("/commerce/"))[0] == 503
        assert await desk.order("renew", {"ids": [begun["ids"][0]]}) == {"renewed": 1}
        for _ in range(FAULTS_MAX - 1):
            faults.begin("latency", "commerce", {}, 5.0)
        with pytest.raises(Overloaded):
            faults.begin("latency", "commerce", {}, 5.0)
        assert await desk.order("undo_all", {}) == {"ended": FAULTS_MAX}
        with pytest.raises(NotFound):
            faults.undo(begun["ids"][0])
        with pytest.raises(NotFound):
            await desk.order("explode", {})
        return (await desk.order("states", {}))["faults"]

    assert lived(main, tmp_path) == []


def test_a_gate_without_faults_calls_the_application_itself(tmp_path):
    async def app(*_):
        return None

    faults = LiveFaults(Registry(), data=tmp_path, slot=0)
    called = faults.gate(app)({"type": "http", "path": "/"}, None, None)
    assert called.cr_code is app.__code__
    asyncio.run(called)


def test_who_has_no_session_is_drawn_each_time_and_both_groups_are_counted(tmp_path):
    async def main(faults, ask):
        faults.begin("errors", "commerce", {"percent": 25, "status": 503, "route": "/commerce/api"}, 60.0)
        for number in range(400):
            await ask("/commerce/api/products", str(number))
            await ask("/commerce/p/1", str(number))
        state = faults.states()[0]
        return state.experiment, state.control

    experiment, control = lived(main, tmp_path)
    assert experiment.requests + control.requests == 400
    assert 60 < experiment.requests < 140
    assert (experiment.errors, control.errors) == (experiment.requests, 0)


def test_sick_disks_wrong_clocks_and_dark_regions_are_whole_again(tmp_path):
    class Part:
        def __init__(self):
            self.told = []

        def part(self, *, parted):
            self.told.append(parted)

        def vanish(self, *, gone):
            self.told.append(gone)

        def spoil(self, *, free_bytes=None, stall_s=0.0):
            self.told.append((free_bytes, stall_s))

        def heal(self):
            self.told.append("healed")

    async def main(_faults, _ask):
        peer, node, disk = Part(), Part(), Part()
        machine = Machine(disk=disk, peers={1: peer}, regions=lambda: {"us": [node]})
        faults = LiveFaults(Registry(), data=tmp_path, slot=0, zone="eu-a", machine=machine)
        before_us = clock.now_us()
        faults.begin("clock_skew", "commerce", {"skew_s": -3600}, 5.0)
        assert clock.now_us() < before_us
        for kind, arguments in (("disk_full", {}), ("region_loss", {"region": "us"})):
            faults.begin(kind, "commerce", arguments, 5.0)
        faults.begin("service_partition", "commerce", {}, 5.0, parted=[1])
        for kind in ("disk_full", "disk_stall", "clock_skew"):
            with pytest.raises(Conflict):
                faults.begin(kind, "commerce", {}, 5.0)
        assert faults.undo_all() == 4
        assert clock.now_us() >= before_us
        return peer.told, node.told, disk.told

    assert lived(main, tmp_path) == ([True, False], [True, False], [(0, 0.0), "healed"])
