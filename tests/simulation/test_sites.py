"""Several sites of one system: where they stand, what is theirs, and a store that lies on another host."""

import asyncio

import pytest

from fourplane.foundation.errors import Conflict, Rejected
from fourplane.service.rpc import local
from fourplane.simulator import faults, loop
from fourplane.simulator.far_sql import FarSql, SqlDesk
from fourplane.simulator.setting import Ours
from fourplane.simulator.stage import Stage
from fourplane.state.contracts import Statement
from fourplane.state.embedded.vfs import Disk
from fourplane.state.stores import Stores

SEA = ("eu-a", "us-a", "ap-a")


def on_a_stage(check, **ours):
    async def main(world):
        stage = Stage(world, Ours("messaging", people=6, sites=SEA, **ours), 3)
        try:
            return await check(world, stage)
        finally:
            await stage.close()

    return loop.run(main, 1).result


def test_each_site_stands_in_its_zone_and_has_what_is_its_own():
    async def check(world, stage):
        await stage.sites.start()
        places = world.network.places()
        folders = {site.platform.folder for site in stage.sites.all}
        accounts = {type(site.platform.accounts).__name__ for site in stage.sites.all[1:]}
        return [places[site.host][1] for site in stage.sites.all], len(folders), accounts

    assert on_a_stage(check) == (list(SEA), 3, {"RemoteAccounts"})


def test_copies_of_every_site_lie_in_the_other_zones():
    async def check(world, stage):
        places = world.network.places()
        return [[places[host][1] for host in site.replicas.hosts] for site in stage.sites.all]

    found = on_a_stage(check, replicas=SEA)
    assert [zones[0] for zones in found] == list(SEA)
    assert all(sorted(zones) == sorted(SEA) for zones in found)


def test_a_lost_region_takes_its_site_and_no_other():
    async def check(_world, stage):
        await stage.sites.start()
        faults.region_loss("us", 5.0)
        meanwhile = [site.is_up for site in stage.sites.all]
        await asyncio.sleep(8.0)
        return meanwhile, stage.sites.is_up

    assert on_a_stage(check) == ([True, False, True], True)


def test_sites_that_do_not_hear_each_other_are_heard_by_their_users():
    async def check(world, stage):
        faults.service_partition(region="eu")
        eu, us, ap = (site.host for site in stage.sites.all)
        cut = world.network.way
        user = stage.users[0].host
        return [cut(*way).cut for way in ((eu, us), (us, eu), (eu, ap), (us, ap), (user, eu), (user, us), (us, user))]

    assert on_a_stage(check) == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("sites", [("eu-a",), ("eu-a",) * 9])
def test_one_site_or_too_many_are_refused(sites):
    with pytest.raises(Rejected):
        Ours("messaging", sites=sites)


def test_a_store_elsewhere_keeps_values_and_errors(tmp_path):
    async def main():
        stores = Stores(data=tmp_path, disk=Disk())
        near = await stores.sql("far")
        far = FarSql(local(SqlDesk, SqlDesk(near)), near.dialect)
        row = (7, 1.5, "seven", b"\x00\xff", None)
        await far.commit(
            [Statement("CREATE TABLE t (a BIGINT PRIMARY KEY, b DOUBLE PRECISION, c TEXT, d BLOB, e TEXT)")]
        )
        found = await far.commit([Statement("INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5) RETURNING a, d", row)])
        assert found == [[(7, b"\x00\xff")]]
        assert await far.read("SELECT * FROM t WHERE a = ?1", 7) == [row]
        with pytest.raises(Conflict) as conflict:
            await far.commit([Statement("UPDATE t SET c = ?1 WHERE a = 8", ("x",), expect_rows=1, label="eight")])
        assert conflict.value.fields["label"] == "eight"
        await stores.stop()

    asyncio.run(main())
