"""Road networks, the generated city, OpenStreetMap imports, and times on them."""

import asyncio
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from fourplane.dispatch import cells, compiled, osm_import
from fourplane.dispatch.city import make_city
from fourplane.dispatch.driver_index import IndexSettings, make_updates, open_index, to_e7
from fourplane.dispatch.eta import Eta, Space
from fourplane.dispatch.roads import EDGE_M_MAX, Roads, Turn, Way, build
from fourplane.dispatch.traffic import Traffic
from fourplane.foundation.errors import Corrupt, NotFound, Rejected

PORTO = Path(__file__).parents[4] / "shared/data/maps/porto.osm.pbf"
MONACO = PORTO.with_name("monaco.osm.pbf")
porto = pytest.mark.skipif(not PORTO.exists(), reason="no shared/data/maps/porto.osm.pbf here")
monaco = pytest.mark.skipif(not MONACO.exists(), reason="no shared/data/maps/monaco.osm.pbf here")


@pytest.fixture(scope="module")
def city() -> Roads:
    return make_city()


@pytest.fixture(params=["plain", "compiled"])
def eta(request: pytest.FixtureRequest, city: Roads) -> Eta:
    made = Eta(city)
    if request.param == "plain":
        made._kernels = None
    elif made._kernels is None and not (compiled.compile_all() and compiled.ready()):
        pytest.skip("no numba")
    else:
        made = Eta(city)
    return made


def oracle(roads: Roads, source: int, *, backwards: bool) -> np.ndarray:
    graph = csr_matrix((roads.seconds.astype(float), roads.heads, roads.starts), shape=(len(roads.lat),) * 2)
    return dijkstra(graph.T if backwards else graph, indices=source)


def test_the_city_is_the_same_for_the_same_seed_and_one_piece(city: Roads) -> None:
    assert make_city().to_bytes() == city.to_bytes()
    assert len(city.lat) > 5_000
    assert np.isfinite(oracle(city, 0, backwards=False)).all()
    assert np.isfinite(oracle(city, 0, backwards=True)).all()
    assert city.metres.max() <= EDGE_M_MAX + 1


def test_times_to_the_pickup_equal_an_independent_dijkstra(city: Roads, eta: Eta) -> None:
    rng = np.random.default_rng(3)
    for source in rng.choice(len(city.lat), 6):
        expected = oracle(city, int(source), backwards=True)
        near = rng.choice(np.flatnonzero(expected < 800), 20)
        found = eta.to_pickup(city.lat[source], city.lng[source], city.lat[near], city.lng[near], limit_s=900)
        assert np.allclose(found, expected[near], atol=0.01)


def test_a_batch_of_requests_gives_what_single_ones_give(city: Roads, eta: Eta) -> None:
    engine = "columns" if eta._kernels is None else "packed"
    index, rng = open_index(IndexSettings(engine=engine)), np.random.default_rng(8)
    nodes = rng.choice(len(city.lat), 400)
    numbers = np.arange(400, dtype=np.uint32)
    index.set_states(numbers, np.where(numbers % 4 == 0, 2, 1).astype(np.uint32))
    index.update(make_updates(numbers, city.lat[nodes], city.lng[nodes], np.ones(400, np.uint32)), 0)
    lats = np.append(city.lat[nodes[:12]], city.south - 1)
    lngs = np.append(city.lng[nodes[:12]], city.west)
    ranked = eta.rank_many(index, lats, lngs, radius_m=1_500, count=9, mask=15, wanted=1, limit_s=300)
    for lat, lng, one in zip(lats[:12], lngs[:12], ranked, strict=False):
        drivers, metres = index.nearest(lat, lng, radius_m=1_500, count=9)
        assert one.drivers.tolist() == drivers.tolist()
        assert np.allclose(one.metres, metres)
        expected = eta.to_pickup(lat, lng, *index.places(drivers), limit_s=300)
        assert np.allclose(one.etas, expected, atol=0.05)
    assert len(ranked[12].drivers) == 0


def test_the_answer_written_by_the_kernel_is_the_plain_one(city: Roads) -> None:
    eta, index, rng = Eta(city), open_index(IndexSettings()), np.random.default_rng(8)
    if eta.near_json(index, Space(1, 1), radius_m=1, mask=15, wanted=1) is None:
        pytest.skip("no numba")
    nodes, numbers = rng.choice(len(city.lat), 400), np.arange(400, dtype=np.uint32)
    index.set_states(numbers, np.ones(400, np.uint32))
    index.update(make_updates(numbers, city.lat[nodes], city.lng[nodes], np.ones(400, np.uint32)), 0)
    lats, lngs = np.append(city.lat[nodes[:12]], city.south - 1), np.append(city.lng[nodes[:12]], city.west)
    ranked = eta.rank_many(index, lats, lngs, radius_m=1_500, count=9, mask=15, wanted=1, limit_s=60)
    space = Space(13, 9)
    space.lats[:], space.lngs[:] = to_e7(lats), to_e7(lngs)
    written = eta.near_json(index, space, radius_m=1_500, mask=15, wanted=1, limit_s=60)
    assert written is not None
    told = msgspec.json.decode(b"[%b]" % written)
    assert space.counts.tolist() == [len(one.drivers) for one in ranked[:12]] + [-1]
    for one, row in zip(ranked, told, strict=True):
        there = index.places(one.drivers.astype(np.uint32))
        assert row == {
            "drivers": one.drivers.tolist(), "metres": one.metres.round(1).tolist(),
            "seconds": [None if np.isinf(eta_s) else eta_s for eta_s in one.etas.round(1).tolist()],
            "latitude": there[0].round(7).tolist(), "longitude": there[1].round(7).tolist(),
        }  # fmt: skip
    assert any(None in row["seconds"] for row in told)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0, 0, "0"),
        (4_294_967_295, 0, "4294967295"),
        (7, 1, "0.7"),
        (-5, 7, "-0.0000005"),
        (1_800_000_000, 7, "180.0000000"),
    ],
)
def test_numbers_are_written_as_json_reads_them(value: int, decimals: int, text: str) -> None:
    kernels = compiled.load("answer_kernels")
    if kernels is None:
        pytest.skip("no numba")
    out = np.zeros(40, np.uint8)
    end = kernels._number(out, 3, value, decimals)
    assert bytes(out[3:end]) == text.encode() + b","


def test_a_driver_past_the_limit_is_infinitely_far(city: Roads, eta: Eta) -> None:
    expected = oracle(city, 0, backwards=True)
    far = int(expected.argmax())
    found = eta.to_pickup(city.lat[0], city.lng[0], city.lat[[far, 0]], city.lng[[far, 0]], limit_s=60)
    assert np.isinf(found[0])
    assert found[1] == pytest.approx(0, abs=0.01)


def test_a_route_is_the_shortest_and_its_line_follows_the_roads(city: Roads, eta: Eta) -> None:
    rng = np.random.default_rng(4)
    for source, target in rng.choice(len(city.lat), (5, 2)):
        route = eta.route(city.lat[source], city.lng[source], city.lat[target], city.lng[target])
        assert route.seconds == pytest.approx(oracle(city, int(source), backwards=False)[target], rel=1e-5)
        line = np.array(route.line)
        steps = [cells.distance_m(*a, *b) for a, b in pairwise(line)]
        assert max(steps) <= EDGE_M_MAX + 1
        assert sum(steps) == pytest.approx(route.metres, rel=0.01)


def test_one_way_streets_are_driven_one_way() -> None:
    lat, lng = np.array([0.0, 0.0, 0.001, 0.001]), np.array([0.0, 0.001, 0.001, 0.0])
    ways = [Way([0, 1, 2, 3, 0], 6, one_way=True)]
    ring = Eta(build(lat, lng, ways, name="Ring"))
    assert ring.route(0.0, 0.0, 0.0, 0.001).metres == pytest.approx(111, abs=3)
    assert ring.route(0.0, 0.001, 0.0, 0.0).metres == pytest.approx(334, abs=6)


@pytest.mark.parametrize("engine", ["plain", "compiled"])
def test_a_forbidden_turn_is_driven_around_and_its_junction_still_reached(engine: str) -> None:
    # A cross: west 0, middle 1, east 2, north 3, south 4; and a way round from east to north over 5.
    lat = np.array([0.0, 0.0, 0.0, 0.001, -0.001, 0.001])
    lng = np.array([-0.001, 0.0, 0.001, 0.0, 0.0, 0.001])
    ways = [Way([0, 1], 6), Way([1, 2], 6), Way([1, 3], 6), Way([1, 4], 6), Way([2, 5, 3], 6)]

    def city(*turns: Turn) -> Eta:
        made = Eta(build(lat, lng, ways, name="Cross", turns=turns))
        if engine == "plain":
            made._kernels = None
        return made

    free, no_left = city(), city(Turn(0, 1, 2))
    assert free.route(0.0, -0.001, 0.001, 0.0).metres == pytest.approx(222, abs=3)
    assert no_left.route(0.0, -0.001, 0.001, 0.0).metres == pytest.approx(4 * 111, abs=6)
    assert no_left.route(-0.001, 0.0, 0.001, 0.0).metres == pytest.approx(222, abs=3)  # from the south it is allowed
    assert no_left.route(0.0, -0.001, 0.0, 0.0).metres == pytest.approx(111, abs=3)  # the junction itself
    here = np.array([0.0]), np.array([-0.001])
    assert no_left.to_pickup(0.0, 0.0, *here)[0] == pytest.approx(free.to_pickup(0.0, 0.0, *here)[0], abs=0.01)
    assert no_left.to_pickup(0.001, 0.0, *here)[0] > 1.7 * free.to_pickup(0.001, 0.0, *here)[0]
    straight = city(Turn(0, 1, 1, only=True))
    assert straight.route(0.0, -0.001, -0.001, 0.0).metres > 400
    assert straight.route(0.0, -0.001, 0.0, 0.001).metres == pytest.approx(222, abs=3)
    closed = city(*(Turn(0, 1, to) for to in (0, 1, 2, 3)))  # a slip of the map: nothing would be left
    assert closed.route(0.0, -0.001, 0.001, 0.0).metres == pytest.approx(222, abs=3)
    again = Roads.from_bytes(no_left.roads.to_bytes())
    assert again.owners.tolist() == no_left.roads.owners.tolist()


def test_the_rush_hour_is_slower_and_every_hour_learns_for_itself(city: Roads, eta: Eta) -> None:
    way = (*city.center, float(city.lat[0]), float(city.lng[0]))
    eta.at_hour(3)
    night = eta.route(*way)
    eta.at_hour(18)
    rush = eta.route(*way)
    assert 1.15 < rush.seconds / night.seconds < 1.8
    source = np.flatnonzero((city.lat == city.lat[50]) & (city.lng == city.lng[50]))[:1]
    near = np.array([40, 60, 80])
    evening = eta.to_pickup(city.lat[source[0]], city.lng[source[0]], city.lat[near], city.lng[near])
    eta.at_hour(3)
    assert (eta.to_pickup(city.lat[source[0]], city.lng[source[0]], city.lat[near], city.lng[near]) < evening).all()
    for _ in range(100):
        eta.learn(300, 360)
    learned = eta.pace
    eta.at_hour(4)
    assert eta.pace == learned  # nobody drove at four yet
    for _ in range(100):
        eta.learn(300, 250)
    assert eta.pace < learned
    eta.at_hour(3)
    assert eta.pace == learned


def test_a_place_in_the_sea_is_refused(city: Roads, eta: Eta) -> None:
    with pytest.raises(Rejected, match="more than 500 m from any road"):
        eta.to_pickup(city.south - 0.5, city.west, city.lat[:1], city.lng[:1])
    with pytest.raises(Rejected, match="destination"):
        eta.route(city.lat[0], city.lng[0], city.north + 1, city.east)


def test_finished_trips_correct_the_pace(city: Roads) -> None:
    learner = Eta(city)
    before = learner.route(*city.center, city.lat[0], city.lng[0]).seconds
    for _ in range(200):
        learner.learn(300, 450)
    assert learner.route(*city.center, city.lat[0], city.lng[0]).seconds > 1.4 * before
    learner.learn(300, 1e9)
    learner.learn(0, 0)
    assert learner.pace <= 3


def test_a_network_comes_back_from_its_file_and_damage_is_noticed(city: Roads) -> None:
    content = city.to_bytes()
    again = Roads.from_bytes(content)
    assert (again.heads == city.heads).all()
    assert again.name == city.name
    for broken in (b"", b"not a file", content[: len(content) // 2]):
        with pytest.raises(Corrupt):
            Roads.from_bytes(broken)


def test_ways_without_roads_are_refused() -> None:
    with pytest.raises(Rejected, match="no roads"):
        build(np.zeros(2), np.zeros(2), [], name="Nowhere")
    with pytest.raises(Rejected, match="lead nowhere"):
        build(np.array([0.0, 0.001]), np.array([0.0, 0.0]), [Way([0, 1], 6, one_way=True)], name="Dead End")


@porto
def test_porto_imports_and_its_centre_is_porto() -> None:
    pytest.importorskip("osmium")
    roads = osm_import.read_roads(PORTO, lambda _share, _text: None)
    assert len(roads.lat) > 60_000
    assert 200 < len(roads.owners) - roads.junctions < 600  # forbidden turns
    assert cells.distance_m(*roads.center, 41.152, -8.615) < 3_000
    assert roads.attribution == "© OpenStreetMap contributors"
    took = Eta(roads).route(41.1456, -8.6109, 41.1579, -8.6291)  # from the station to the concert hall
    assert 1_800 < took.metres < 4_500
    assert 240 < took.seconds < 900


@monaco
def test_an_import_in_a_child_process_and_what_it_refuses(tmp_path: Path) -> None:
    pytest.importorskip("osmium")
    cut, junk = tmp_path / "cut.osm.pbf", tmp_path / "junk.osm.pbf"
    cut.write_bytes(MONACO.read_bytes()[:400_000])
    junk.write_bytes(b"not a map at all")
    told: list[float] = []

    async def main() -> None:
        await osm_import.import_map(MONACO, tmp_path / "m.npz", lambda share, _: told.append(share))
        for bad in (cut, junk):
            with pytest.raises(Rejected, match="not a whole OpenStreetMap file"):
                await osm_import.import_map(bad, tmp_path / "x.npz", lambda _s, _t: None)
        with pytest.raises(NotFound):
            await osm_import.import_map(tmp_path / "none.osm.pbf", tmp_path / "x.npz", lambda _s, _t: None)

    asyncio.run(main())
    assert len(Roads.from_bytes((tmp_path / "m.npz").read_bytes()).lat) > 1_000
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert not (tmp_path / "x.npz").exists()


def test_cars_stay_on_the_roads_and_reach_where_they_are_sent(city: Roads) -> None:
    traffic = Traffic(city, 200, np.random.default_rng(1), pace=1.0)
    for _ in range(60):
        before = np.array(traffic.places())
        traffic.step(1.0)
        after = np.array(traffic.places())
        moved = np.hypot((after[0] - before[0]) * city.y_scale, (after[1] - before[1]) * city.x_scale)
        assert moved.max() < 40
    lats, lngs = traffic.places()
    assert all(city.find_node(a, b, metres_max=EDGE_M_MAX / 2 + 10) for a, b in zip(lats, lngs, strict=True))
    start, goal = traffic.next_node(7), 100
    route = Eta(city).route(city.lat[start], city.lng[start], city.lat[goal], city.lng[goal])
    traffic.send(7, route.edges)
    arrived: list[int] = []
    for _ in range(3_000):
        arrived += traffic.step(1.0)
        if 7 in arrived:
            break
    lats, lngs = traffic.places()
    assert cells.distance_m(lats[7], lngs[7], city.lat[goal], city.lng[goal]) < 5
