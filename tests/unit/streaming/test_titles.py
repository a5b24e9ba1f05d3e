"""Titles are described, found by what is said of them, and kept from whom the licence leaves out."""

import asyncio
import contextlib

import msgspec
import pytest

from fourplane.foundation import clock
from fourplane.foundation.errors import Forbidden, NotFound, Rejected
from fourplane.foundation.ids import IdGenerator
from fourplane.state.contracts import Statement
from fourplane.state.schema import ensure
from fourplane.state.stores import Stores, StoresSettings
from fourplane.streaming.about import About, decode
from fourplane.streaming.finding import TitleFinder
from fourplane.streaming.positions import Positions, resume_at
from fourplane.streaming.schema import METADATA, MIGRATIONS
from fourplane.streaming.titles import Titles

BUNNY = About(genres=("Animation", "Comedy"), cast=("Sacha Goedegebure",), year=2008, series="Open films", season=1)


@contextlib.asynccontextmanager
async def catalog(folder, *, search=True):
    stores = Stores(StoresSettings(), data=folder)
    sql = await stores.sql("streaming")
    await ensure(sql, "streaming", METADATA, MIGRATIONS)
    titles = Titles(sql, IdGenerator())
    try:
        yield titles, TitleFinder(titles, await stores.search("streaming") if search else None), sql
    finally:
        await stores.stop()


def run(main):
    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("search", [True, False])
def test_a_title_is_found_by_name_person_genre_and_series(tmp_path, search):
    async def main():
        async with catalog(tmp_path, search=search) as (titles, finder, _):
            bunny = await titles.create("Big Buck Bunny", "A rabbit takes revenge")
            await titles.create("Elephants Dream")
            await finder.rebuild()
            await finder.changed(await titles.describe(bunny.id, bunny.name, bunny.description, BUNNY))
            for words in ("bunny", "sacha", "comedy", "open films", "revenge rabbit"):
                assert [title.name for title in await finder.find(words)] == ["Big Buck Bunny"], words
            assert await finder.find("nothing of the kind") == []
            assert [title.name for title in await finder.find("", genre="Comedy")] == ["Big Buck Bunny"]
            assert len(await finder.find("")) == 2

    run(main)


def test_what_a_region_may_not_see_is_not_listed_there(tmp_path):
    async def main():
        async with catalog(tmp_path) as (titles, finder, _):
            title = await titles.create("A film")
            later = clock.now_us() + 3_600_000_000
            await titles.describe(title.id, title.name, "", About(regions=("eu",)))
            assert [one.id for one in await finder.find("", region="eu")] == [title.id]
            assert await finder.find("", region="us") == []
            await titles.describe(title.id, title.name, "", About(from_us=later))
            assert await finder.find("", region="eu") == []
            assert len(await finder.find("")) == 1

    run(main)


@pytest.mark.parametrize(
    ("about", "code"),
    [
        (About(regions=("eu",)), "not_in_region"),
        (About(from_us=2_000), "not_yet"),
        (About(until_us=500), "no_longer"),
    ],
)
def test_a_licence_names_its_reason(about, code):
    with pytest.raises(Forbidden) as caught:
        about.admit("us", 1_000)
    assert caught.value.reason == code
    assert not about.may_be_seen("us", 1_000)
    About().admit("us", 1_000)


@pytest.mark.parametrize(
    "about",
    [
        About(year=1066),
        About(season=-1),
        About(genres=("x" * 200,)),
        About(cast=tuple(f"n{number}" for number in range(99))),
        About(from_us=5, until_us=5),
        About(series="s" * 200),
    ],
)
def test_what_cannot_be_true_is_refused(about):
    with pytest.raises(Rejected):
        about.check()


def test_words_are_tidied():
    assert About(genres=(" Short  film ", "Short film", " "), rating=" 12 ").check() == About(
        genres=("Short film",), rating="12"
    )


def test_a_title_nobody_described_is_read(tmp_path):
    async def main():
        async with catalog(tmp_path) as (titles, _, sql):
            title = await titles.create("A film")
            assert (await titles.get(title.id)).about == About()
            await sql.commit([Statement("UPDATE titles SET about = ?2 WHERE id = ?1", (title.id, ""))])
            assert (await titles.get(title.id)).about == About()
            with pytest.raises(NotFound):
                await titles.describe("title_none", "x", "", About())

    run(main)
    assert decode(msgspec.json.encode(BUNNY).decode()) == BUNNY


def test_a_viewer_goes_on_where_another_screen_stopped(tmp_path):
    async def main():
        async with catalog(tmp_path) as (_, _, sql):
            first = Positions(sql)
            first.note(7, "title_a", 31.5)
            first.note(7, "title_b", 8.0)
            first.note(8, "title_a", 99.0)
            assert await first.of(7, "title_a") == 31.5
            await first.store()
            second = Positions(sql)
            second.note(7, "title_b", 12.0)
            assert await second.of(7, "title_a") == 31.5
            assert await second.of(8, "title_b") == 0.0
            assert [(one.title, one.at_s) for one in await second.recent(7)] == [("title_b", 12.0), ("title_a", 31.5)]

    run(main)


@pytest.mark.parametrize(("at_s", "wanted"), [(0.0, 0.0), (4.0, 0.0), (30.0, 30.0), (97.0, 0.0)])
def test_what_is_hardly_begun_or_as_good_as_seen_begins_anew(at_s, wanted):
    assert resume_at(at_s, 100.0) == wanted


def test_an_older_store_gets_what_is_new(tmp_path):
    async def main():
        stores = Stores(StoresSettings(), data=tmp_path)
        sql = await stores.sql("streaming")
        old = (
            "CREATE TABLE titles (id TEXT PRIMARY KEY, name TEXT, description TEXT, version TEXT, duration_s REAL,"
            " height INTEGER, rungs INTEGER, bytes BIGINT, plays BIGINT, created_us BIGINT, published_us BIGINT)"
        )
        versions = (
            "CREATE TABLE fourplane_schema (name TEXT, version BIGINT, title TEXT, applied_us BIGINT,"
            " PRIMARY KEY (name, version))"
        )
        done = "INSERT INTO fourplane_schema VALUES ('streaming', 1, 'tables', 0)"
        row = "INSERT INTO titles VALUES ('title_x', 'Old film', '', '', 0, 0, 0, 0, 3, 1, 0)"
        await sql.commit([Statement(text) for text in (old, versions, done, row)])
        assert await ensure(sql, "streaming", METADATA, MIGRATIONS) == 3
        title = await Titles(sql, IdGenerator()).get("title_x")
        assert (title.name, title.plays, title.about) == ("Old film", 3, About())
        Positions(sql).note(1, "title_x", 1.0)
        await stores.stop()

    run(main)
