"""Finding titles by name, people, genre and series: the search index beside the store, and the store where there is none.

The index is derived: it is given every title at the start and again whenever one changes. Without an index (a deployment
that wires none) words are looked for in the rows themselves, which is exact and slow enough for hundreds of titles.
"""

from collections.abc import Sequence

from fourplane.foundation import clock
from fourplane.state.contracts import Document, Query, Search
from fourplane.streaming.titles import Title, Titles

FOUND_MAX = 100
WORDS_MAX = 256


class TitleFinder:
    """Answers browse and search; keeps the index as new as the store."""

    def __init__(self, titles: Titles, search: Search | None) -> None:
        self._titles = titles
        self._search = search
        self.searches = 0

    @property
    def indexed(self) -> bool:
        """Whether a search index stands behind this."""
        return self._search is not None

    async def rebuild(self) -> None:
        """Give the index everything; at the start, because the index may have been lost."""
        if self._search is not None:
            await self._search.index([_document(title) for title in await self._titles.all()])
            await self._search.refresh()

    async def changed(self, title: Title) -> None:
        """A title was published or described anew."""
        if self._search is not None:
            await self._search.index([_document(title)])
            await self._search.refresh()

    async def removed(self, title_id: str) -> None:
        """A title is gone."""
        if self._search is not None:
            await self._search.remove([title_id])

    async def find(self, words: str, *, genre: str = "", region: str = "") -> list[Title]:
        """Titles for these words, the best first, or all titles, the newest first; only what a region may see."""
        titles = await self._titles.all()
        if words.strip():
            self.searches += 1
            titles = await self._by_words(words[:WORDS_MAX], titles)
        now_us = clock.now_us()
        return [
            title
            for title in titles
            if (not genre or genre in title.about.genres) and (not region or title.about.may_be_seen(region, now_us))
        ]

    async def _by_words(self, words: str, titles: Sequence[Title]) -> list[Title]:
        if self._search is None:
            asked = words.lower().split()
            return [one for one in titles if all(word in _everything(one) for word in asked)]
        known = {title.id: title for title in titles}
        found = await self._search.find(Query(words, limit=FOUND_MAX))
        return [known[hit.id] for hit in found.hits if hit.id in known]


def _everything(title: Title) -> str:
    about = title.about
    return " ".join([title.name, title.description, about.series, *about.genres, *about.cast]).lower()


def _document(title: Title) -> Document:
    about = title.about
    text = {
        "name": title.name,
        "series": about.series,
        "people": " ".join(about.cast),
        "genres": " ".join(about.genres),
    }
    text["description"] = title.description
    facets = {"genre": about.genres, "series": (about.series,) if about.series else ()}
    return Document(title.id, text, facets, {"published": title.published_us / 1e6, "year": float(about.year)})
