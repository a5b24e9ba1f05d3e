"""How the engine reads a mistyped query."""

import asyncio

from fourplane.state.contracts import Document, Query
from fourplane.state.embedded.search import TantivySearch


def titles(folder, names, *queries):
    """Which of them are found by every query, and how many of the queries were fuzzy."""

    async def body():
        search = await TantivySearch(folder).open()
        await search.index([Document(name, {"title": name}, {"kind": ["thing"]}) for name in names])
        await search.refresh()
        found = []
        for words in queries:
            plain = await search.find(Query(words))
            counted = await search.find(Query(words, facets={"kind": ["thing"]}, count_facets=["kind"]))
            assert [hit.id for hit in counted.hits] == [hit.id for hit in plain.hits]
            assert sum(counted.facet_counts["kind"].values()) == plain.total
            hits = {hit.id for hit in plain.hits}
            found.append([name for name in names if name in hits])
        fuzzy = search.statistics().fuzzy // 2
        await search.close()
        return found, fuzzy

    return asyncio.run(body())


def test_words_that_exist_stay_as_they_are_beside_a_mistyped_one(tmp_path):
    names = ["linen timepiece", "line timepiece"]
    assert titles(tmp_path, names, "linen timepeice", "timepeice line") == ([names[:1], names], 2)


def test_every_word_may_be_mistyped_where_nothing_else_is_found(tmp_path):
    names = ["liner timepiece", "linen shirt"]
    assert titles(tmp_path, names, "linen timepeice", "linen timepiece") == ([names[:1], names[:1]], 2)


def test_the_beginning_of_a_word_is_no_mistake(tmp_path):
    names = ["walnut table", "wallet", "wall"]
    found, fuzzy = titles(tmp_path, names, "walnut tabl", "wall", "waln", "wa", "walnuts")
    assert found == [names[:1], names[1:], names[:1], names, names[:1]]
    assert fuzzy == 1


def test_short_words_are_never_mistyped(tmp_path):
    assert titles(tmp_path, ["red pan"], "pin", "red pot") == ([[], []], 2)
