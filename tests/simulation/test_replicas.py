"""A volume with copies in several zones: what a majority costs, who leads, and what is never lost."""

import asyncio

import pytest

from fourplane.foundation import blocking, clock
from fourplane.simulator import loop
from fourplane.simulator.links import Disturbance
from fourplane.simulator.replicas import Replicas

PLACES = {"a": ("eu-a", "eu"), "b": ("eu-b", "eu"), "c": ("us-a", "us")}


def copies(world, hosts="abc"):
    for host in hosts:
        zone, region = PLACES[host]
        world.network.place(host, zone=zone, region=region)
    return Replicas(world, list(hosts))


def cut(world, one, rest):
    for pair in ((frozenset(one), frozenset(rest)), (frozenset(rest), frozenset(one))):
        world.network.disturb(Disturbance(*pair, cut=True))


def in_a_world(check):
    async def main(world):
        result = check(world)
        return await result if asyncio.iscoroutine(result) else result

    return loop.run(main, 1).result


def test_a_write_waits_for_the_nearest_majority():
    near = in_a_world(lambda world: copies(world).quorum_s("a"))
    far = in_a_world(lambda world: copies(world).quorum_s("c"))
    assert 0.002 <= near < 0.003, "one round trip to the other zone"
    assert far >= 0.08, "the other copies are across the sea"


def test_a_single_copy_waits_for_nobody():
    assert in_a_world(lambda world: copies(world, "a").quorum_s("a")) == 0.0


def test_without_a_majority_there_is_no_leader():
    def check(world):
        replicas = copies(world)
        cut(world, "ab", "c")
        assert replicas.next_leader() == "a"
        replicas.lost.add("a")
        return replicas.next_leader()

    assert in_a_world(check) is None


def test_the_next_copy_in_order_takes_over():
    def check(world):
        replicas = copies(world)
        replicas.lost.add("a")
        return replicas.next_leader()

    assert in_a_world(check) == "b"


def test_writes_wait_in_line_until_a_majority_answers():
    async def check(world):
        replicas, done = copies(world), []
        world.replicate("a", replicas.volume("a"))
        with world.on("a"):
            disk, other = blocking.Worker("database of a"), blocking.Worker("hashing")
            cut(world, "a", "bc")
            writes = [disk.submit(done.append, number) for number in range(3)]
            await other.submit(done.append, "other work")
            await clock.sleep(5)
            assert done == ["other work"], "only what is written waits"
            world.network.calm_all()
            await asyncio.gather(*writes)
        return done

    assert in_a_world(check) == ["other work", 0, 1, 2]


@pytest.mark.parametrize("spread", [("ab", 0.000_5), ("abc", 0.002)])
def test_a_replicated_write_takes_longer_than_a_local_one(spread):
    async def check(world):
        replicas = copies(world, spread[0])
        world.replicate("a", replicas.volume("a"))
        with world.on("a"):
            began = clock.monotonic_s()
            await blocking.Worker("frames of a").submit(list)
        return clock.monotonic_s() - began

    assert in_a_world(check) > spread[1]
