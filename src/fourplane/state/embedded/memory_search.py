"""The plain twin of the search engine: the same answers in one thread and without a file, for the simulator and small sets.

An inverted index of dictionaries scored by BM25 (k1 1.2, b 0.75) per field, field weights multiplied in. The last word of a
query also matches as a prefix (a short one where it weighs most, a digit or two in shorter words, if that finds enough). A word
that no document has may be one or two edits away, and where nothing has all the words every word may. Cost: proportional to the
postings of the query's words; a prefix or a typo walks the vocabulary.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from fourplane.state.contracts import Document, Found, Hit, Query
from fourplane.state.embedded.words import (
    WEIGHTS,
    SearchStatistics,
    check_documents,
    check_query,
    heaviest,
    longest_first,
    may_be_short,
    typos_allowed,
    words_of,
)

K1, B = 1.2, 0.75
PREFIX_WORDS_MAX = 200


class MemorySearch:
    """`Search` in dictionaries; what was given is visible at once."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(WEIGHTS if weights is None else weights)
        self._documents: dict[str, Document] = {}
        self._postings: dict[str, dict[str, dict[str, int]]] = {}  # field -> word -> id -> times
        self._lengths: dict[str, dict[str, int]] = {}  # field -> id -> words
        self._totals: dict[str, int] = {}
        self._vocabulary: list[str] | None = None
        self._indexed = self._removed = self._queries = self._fuzzy = 0

    async def index(self, documents: Sequence[Document]) -> None:
        check_documents(documents)
        for document in documents:
            self._forget(document.id)
            self._documents[document.id] = document
            for field, text in document.text.items():
                self._post(field, document.id, words_of(text))
        self._indexed += len(documents)
        self._vocabulary = None

    async def remove(self, ids: Sequence[str]) -> None:
        for each in ids:
            self._removed += self._forget(each)
        self._vocabulary = None

    async def find(self, query: Query) -> Found:
        words = check_query(query)
        self._queries += 1
        fuzzy = self._absent(words)
        scores, found = self._matching(words, query, fuzzy)
        if not found and len(fuzzy) < len(set(words)):
            fuzzy = frozenset(words)
            scores, found = self._matching(words, query, fuzzy)
        self._fuzzy += bool(fuzzy)
        if query.sort:
            found = [each for each in found if query.sort in self._documents[each].numbers]
            found.sort(key=lambda each: (self._documents[each].numbers[query.sort], each), reverse=query.descending)
        else:
            found.sort(key=lambda each: (-scores[each], each))
        page = found[query.offset : query.offset + query.limit]
        hits = [Hit(each, scores[each], self._documents[each].payload) for each in page]
        return Found(hits, len(found), {name: self._count(name, found) for name in query.count_facets})

    async def refresh(self) -> None:
        """Everything is visible already."""

    def statistics(self) -> SearchStatistics:
        return SearchStatistics(
            len(self._documents), self._indexed, self._removed, self._queries, self._fuzzy, self._indexed
        )

    async def close(self) -> None:
        self._documents.clear()
        self._postings.clear()

    def _post(self, field: str, document: str, words: list[str]) -> None:
        postings = self._postings.setdefault(field, {})
        for word in words:
            times = postings.setdefault(word, {})
            times[document] = times.get(document, 0) + 1
        self._lengths.setdefault(field, {})[document] = len(words)
        self._totals[field] = self._totals.get(field, 0) + len(words)

    def _forget(self, document: str) -> int:
        before = self._documents.pop(document, None)
        if before is None:
            return 0
        for field, text in before.text.items():
            postings = self._postings[field]
            for word in dict.fromkeys(words_of(text)):
                times = postings[word]
                del times[document]
                if not times:
                    del postings[word]
            self._totals[field] -= self._lengths[field].pop(document)
        return 1

    def _absent(self, words: list[str]) -> frozenset[str]:
        """The words that no document has and that may be mistyped."""
        return frozenset(
            word
            for position, word in enumerate(words)
            if typos_allowed(word) and not self._beginning(word, only_itself=position < len(words) - 1)
        )

    def _matching(self, words: list[str], query: Query, fuzzy: frozenset[str]) -> tuple[dict[str, float], list[str]]:
        """The scores of documents with all the words, and those of them that pass the filters."""
        if may_be_short(words):
            heavy, (longest, enough) = heaviest(self._postings, self._weights), longest_first(words)
            scores = self._scored(words, fuzzy, last_in=heavy, longest=longest)
            found = self._filtered(scores, query)
            if len(found) >= enough:
                return scores, found
        scores = self._scored(words, fuzzy, last_in=frozenset(self._postings))
        return scores, self._filtered(scores, query)

    def _scored(
        self, words: list[str], fuzzy: frozenset[str], *, last_in: frozenset[str], longest: int | None = None
    ) -> dict[str, float]:
        """Every document that has all the words, with its score; the last word in these fields, begun words as long as this."""
        if not words:
            return dict.fromkeys(self._documents, 1.0)
        result: dict[str, float] | None = None
        for position, word in enumerate(words):
            last = position == len(words) - 1
            fields = [field for field in self._postings if not last or field in last_in]
            scores: dict[str, float] = {}
            for variant in self._variants(word, prefix=last, fuzzy=word in fuzzy, longest=longest if last else None):
                for field in fields:
                    self._add_scores(field, variant, scores)
            if result is None:
                result = scores
            else:
                result = {each: score + scores[each] for each, score in result.items() if each in scores}
        return result or {}

    def _add_scores(self, field: str, word: str, scores: dict[str, float]) -> None:
        times = self._postings[field].get(word)
        if not times:
            return
        lengths = self._lengths[field]
        average = self._totals[field] / len(lengths) or 1.0
        rarity = math.log(1 + (len(lengths) - len(times) + 0.5) / (len(times) + 0.5))
        weight = self._weights.get(field, 1.0) * rarity
        for document, count in times.items():
            share = count * (K1 + 1) / (count + K1 * (1 - B + B * lengths[document] / average))
            scores[document] = scores.get(document, 0.0) + weight * share

    def _variants(self, word: str, *, prefix: bool, fuzzy: bool, longest: int | None) -> Iterable[str]:
        if fuzzy:
            most = typos_allowed(word)
            return [
                known
                for known in self._words()
                if abs(len(known) - len(word)) <= most and _edits(word, known, most) <= most
            ]
        return self._beginning(word, only_itself=not prefix, longest=longest)

    def _beginning(self, word: str, *, only_itself: bool, longest: int | None = None) -> Sequence[str]:
        """The known words that begin like this (up to a length), or the word alone if it is known."""
        vocabulary = self._words()
        start = bisect_left(vocabulary, word)
        if only_itself:
            return vocabulary[start : start + 1] if vocabulary[start : start + 1] == [word] else []
        stop = bisect_left(vocabulary, word + "\U0010ffff", lo=start)
        if longest is None:
            return vocabulary[start : min(stop, start + PREFIX_WORDS_MAX)]
        short = (known for known in islice(vocabulary, start, stop) if len(known) <= longest)
        return list(islice(short, PREFIX_WORDS_MAX))

    def _words(self) -> list[str]:
        if self._vocabulary is None:
            self._vocabulary = sorted({word for postings in self._postings.values() for word in postings})
        return self._vocabulary

    def _filtered(self, scores: dict[str, float], query: Query) -> list[str]:
        return [each for each in scores if _passes(self._documents[each], query)]

    def _count(self, name: str, found: list[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for each in found:
            for value in dict.fromkeys(self._documents[each].facets.get(name, ())):
                counts[value] = counts.get(value, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _passes(document: Document, query: Query) -> bool:
    for name, wanted in query.facets.items():
        if not any(value in wanted for value in document.facets.get(name, ())):
            return False
    for name, (low, high) in query.ranges.items():
        number = document.numbers.get(name)
        if number is None or (low is not None and number < low) or (high is not None and number > high):
            return False
    return True


def _edits(left: str, right: str, most: int) -> int:
    """Insertions, deletions, replacements and swaps between two words, given up past `most`."""
    older: list[int] = []
    row = list(range(len(right) + 1))
    for i, letter in enumerate(left, 1):
        fresh = [i]
        for j, other in enumerate(right, 1):
            cost = min(row[j] + 1, fresh[j - 1] + 1, row[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == right[j - 2] and left[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            fresh.append(cost)
        if min(fresh) > most:
            return most + 1
        older, row = row, fresh
    return row[-1]
