"""What `Search` promises, on every engine."""

import asyncio

import pytest

from fourplane.foundation.errors import Rejected
from fourplane.state.contracts import Document, Query
from fourplane.state.embedded.search import TantivySearch

SHOES = Document(
    "1",
    {"title": "Red running shoes", "text": "fast and light"},
    {"colour": ["red"], "tag": ["a", "b"]},
    {"price": 50},
    b"one",
)
BLUE = Document(
    "2", {"title": "Blue shoes", "text": "made for running"}, {"colour": ["blue"], "tag": ["a"]}, {"price": 30.5}
)
CAFE = Document(
    "3", {"title": "Café machine", "text": "coffee, twice"}, {"colour": ["red"]}, {"price": 200, "power": 1_000}
)


@pytest.fixture(params=["embedded", "memory", "simulated"])
def on(request, opener):
    run = opener("search", "memory" if request.param == "simulated" else request.param)

    def filled(body):
        async def prepared(search):
            await search.index([SHOES, BLUE, CAFE])
            await search.refresh()
            return await body(search)

        return run(prepared)

    return filled


def ids(found):
    return [hit.id for hit in found.hits]


def test_all_words_must_occur_and_the_better_field_wins(on):
    async def body(search):
        found = await search.find(Query("running SHOES"))
        assert (ids(found), found.total) == (["1", "2"], 2)
        assert found.hits[0].score > found.hits[1].score
        assert found.hits[0].payload == b"one"
        assert ids(await search.find(Query("running coffee"))) == []

    on(body)


def test_the_last_word_is_a_prefix_and_accents_do_not_matter(on):
    async def body(search):
        assert sorted(ids(await search.find(Query("sho")))) == ["1", "2"]
        assert ids(await search.find(Query("cafe mach"))) == ["3"]
        assert ids(await search.find(Query("CAFÉ"))) == ["3"]
        assert ids(await search.find(Query("mach cafe"))) == []

    on(body)


def test_typos_find_where_nothing_matches_exactly(on):
    async def body(search):
        assert sorted(ids(await search.find(Query("runing shoes")))) == ["1", "2"]
        assert ids(await search.find(Query("mahcine"))) == ["3"]
        assert ids(await search.find(Query("rex"))) == []

    on(body)


def test_facets_filter_and_count(on):
    async def body(search):
        assert sorted(ids(await search.find(Query(facets={"colour": ["red"]})))) == ["1", "3"]
        assert ids(await search.find(Query(facets={"colour": ["red", "blue"], "tag": ["b"]}))) == ["1"]
        found = await search.find(Query("shoes", count_facets=["colour", "tag", "none"], limit=1))
        assert found.total == 2
        assert found.facet_counts == {"colour": {"blue": 1, "red": 1}, "tag": {"a": 2, "b": 1}, "none": {}}
        assert (await search.find(Query(facets={"none": ["x"]}))).total == 0

    on(body)


def test_numbers_filter_and_sort(on):
    async def body(search):
        assert ids(await search.find(Query(ranges={"price": (30.5, 50)}, sort="price"))) == ["2", "1"]
        assert ids(await search.find(Query(ranges={"price": (None, 199.9)}, sort="price", descending=True))) == [
            "1",
            "2",
        ]
        assert ids(await search.find(Query(ranges={"power": (1, None)}))) == ["3"]
        assert ids(await search.find(Query("", sort="price", offset=1, limit=1))) == ["1"]
        assert (await search.find(Query(limit=0))).total == 3

    on(body)


def test_replacing_and_removing(on):
    async def body(search):
        await search.index([Document("1", {"title": "hat"}, {}, {"price": 1})])
        await search.remove(["2", "never there"])
        await search.refresh()
        assert ids(await search.find(Query("shoes"))) == []
        assert ids(await search.find(Query("hat"))) == ["1"]
        assert (await search.find(Query())).total == 2

    on(body)


@pytest.mark.parametrize("words", ['" OR (*', "title:red", "+ - ^ ~2 \\", "price:[1 TO", "a:b:c'); DROP"])
def test_hostile_queries_are_only_words(on, words):
    async def body(search):
        assert (await search.find(Query(words, count_facets=["colour"]))).total in {0, 3}

    on(body)


def test_limits_are_told(on):
    async def body(search):
        for query in (Query("x" * 257), Query(limit=1_001), Query(offset=-1), Query(facets={"a b": ["x"]})):
            with pytest.raises(Rejected):
                await search.find(query)
        with pytest.raises(Rejected):
            await search.index([Document("", {"title": "x"})])
        with pytest.raises(Rejected):
            await search.index([Document("9", {"bad name": "x"})])

    on(body)


def test_an_index_is_there_after_reopening_and_rebuilt_when_broken(tmp_path):
    async def body():
        search = await TantivySearch(tmp_path / "i").open()
        await search.index([SHOES])
        await search.close()
        search = await TantivySearch(tmp_path / "i").open()
        assert ids(await search.find(Query("red"))) == ["1"]
        await search.close()
        (tmp_path / "i" / "index" / "meta.json").write_text("{")
        search = await TantivySearch(tmp_path / "i").open()
        assert search.rebuilt
        assert (await search.find(Query())).total == 0
        await search.index([SHOES])
        await search.refresh()
        assert ids(await search.find(Query("red"))) == ["1"]
        await search.close()

    asyncio.run(body())
