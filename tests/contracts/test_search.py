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


def titles(opener, engine, names, *queries):
    """Which of the names each query finds, the same with and without counts; and how many of the queries were fuzzy."""

    async def body(search):
        await search.index([Document(name, {"title": name}, {"kind": ["thing"]}) for name in names])
        await search.refresh()
        found = []
        for words in queries:
            plain = await search.find(Query(words))
            counted = await search.find(Query(words, facets={"kind": ["thing"]}, count_facets=["kind"]))
            assert ids(counted) == ids(plain)
            assert sum(counted.facet_counts["kind"].values()) == plain.total
            found.append([name for name in names if name in ids(plain)])
        return found, search.statistics().fuzzy // 2

    return opener("search", engine)(body)


ENGINES = pytest.mark.parametrize("engine", ["embedded", "memory"])


@ENGINES
def test_words_that_exist_stay_as_they_are_beside_a_mistyped_one(opener, engine):
    names = ["linen timepiece", "line timepiece"]
    assert titles(opener, engine, names, "linen timepeice", "timepeice line") == ([names[:1], names], 2)


@ENGINES
def test_every_word_may_be_mistyped_where_nothing_else_is_found(opener, engine):
    names = ["liner timepiece", "linen shirt"]
    assert titles(opener, engine, names, "linen timepeice", "linen timepiece") == ([names[:1], names[:1]], 2)


@ENGINES
def test_the_beginning_of_a_word_is_no_mistake(opener, engine):
    names = ["walnut table", "wallet", "wall"]
    found, fuzzy = titles(opener, engine, names, "walnut tabl", "wall", "waln", "wa", "walnuts")
    assert found == [names[:1], names[1:], names[:1], names, names[:1]]
    assert fuzzy == 1


@ENGINES
def test_short_words_are_never_mistyped(opener, engine):
    assert titles(opener, engine, ["red pan"], "pin", "red pot") == ([[], []], 2)


@ENGINES
@pytest.mark.parametrize(
    ("titled", "typed", "total"),
    [
        (200, "w", 200),  # enough of them
        (199, "w", 399),
        (200, "thing w", 200),
        (200, "wi", 200),
        (200, "wid", 400),  # no longer short
        (200, "ye", 300),  # fewer have it there
        (0, "w", 200),
    ],
)
def test_a_letter_or_two_are_looked_for_where_they_weigh_most(opener, engine, titled, typed, total):
    first = [Document(f"a{n}", {"title": "Widget", "text": "a thing, ye know, w"}) for n in range(titled)]
    others = [Document(f"b{n}", {"title": f"thing {'ye' * (n % 2)}", "text": "for a wide wall w"}) for n in range(200)]

    async def body(search):
        await search.index([*first, *others])
        await search.refresh()
        found = await search.find(Query(typed, limit=400))
        assert (found.total, len(found.hits)) == (total, total)
        assert ids(await search.find(Query(typed, limit=10, offset=150))) == ids(found)[150:160]

    opener("search", engine)(body)


@ENGINES
@pytest.mark.parametrize(
    ("short", "typed", "total"),
    [
        (50, "7", 50),  # enough of them
        (49, "7", 109),
        (50, "70", 50),
        (50, "lamp 7", 50),
        (50, "700", 70),  # no longer short
        (50, "3", 110),  # a word like any other: it is one, and it begins one
        (50, "8", 0),
    ],
)
def test_a_digit_or_two_are_looked_for_in_shorter_numbers_first(opener, engine, short, typed, total):
    first = [Document(f"a{n}", {"title": f"Lamp {7000 + n} 3d"}) for n in range(short)]
    others = [Document(f"b{n}", {"title": f"Lamp {7000000 + n} 3"}) for n in range(60)]

    async def body(search):
        await search.index([*first, *others])
        await search.refresh()
        found = await search.find(Query(typed, limit=400))
        assert (found.total, len(found.hits)) == (total, total)
        assert ids(await search.find(Query(typed, limit=10, offset=20))) == ids(found)[20:30]

    opener("search", engine)(body)


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
