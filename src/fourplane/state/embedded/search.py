"""Documents found by words: the `Search` contract on tantivy, one index per folder.

Tantivy wants its fields declared once, documents here name theirs freely. So the index is made with numbered slots (8 texts, 16
facets, 16 numbers), and `fields.json` remembers which name has which slot; a slot nobody uses costs nothing. Texts are folded
to plain lower-case words by our own rule first, so that queries and the simulator's twin read words alike and no query
string is ever syntax.

Words must all occur (in any field, weighted); the last one also as a prefix. Half of all documents may have a word that begins
with one letter or two: so few at the end are looked for in the fields that weigh most, as long as enough is found there. Where
names hold numbers, a digit begins as many words as there are documents, each of them read on its own: so a digit or two are
looked for among the shorter numbers first, again as long as enough is found. A word that no document has may be one or two
edits away, and where nothing has all the words every word may. Facets count by
aggregation, which is a second pass; so passes are kept small: a field without the word is left out, and so is a prefix that
only the word itself begins with.

Writes gather and are committed by a thread `commit_s` after the first of them or on `refresh`; queries run inline (0.1 to
1 ms), those that count facets, are fuzzy or end with a letter or two on the thread. The index is derived data: a folder that
cannot be opened is emptied, and `rebuilt` says so.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import tantivy

from fourplane.foundation.blocking import Worker
from fourplane.foundation.errors import Rejected
from fourplane.state.contracts import Document, Found, Hit, Query
from fourplane.state.embedded.words import (
    SHORT_PREFIX,
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

TEXT_SLOTS, FACET_SLOTS, NUMBER_SLOTS = 8, 16, 16
FACET_COUNT_MAX = 1_000
FORMAT = 1


class SearchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an index behaves; `weights` multiply the score of a text field (1.0 where absent)."""

    weights: dict[str, float] = msgspec.field(default_factory=lambda: dict(WEIGHTS))
    commit_s: float = 0.3
    heap_bytes: int = 64 << 20
    waiting_max: int = 50_000


class _Fields(msgspec.Struct):
    """Which name has which slot."""

    format: int = FORMAT
    text: dict[str, int] = {}
    facets: dict[str, int] = {}
    numbers: dict[str, int] = {}


class _Last(NamedTuple):
    """Where the last word of a query is looked for as a beginning, and how long a word may be that begins so."""

    fields: frozenset[str]
    longest: int | None = None


class TantivySearch:
    """`Search` on one folder."""

    def __init__(self, folder: Path, settings: SearchSettings | None = None) -> None:
        self.rebuilt = False
        self._folder = folder
        self._settings = settings or SearchSettings()
        self._worker = Worker(f"search {folder.name}", queue_max=1_000)
        self._fields = _Fields()
        self._waiting = 0
        self._commit_due = self._ended = False
        self._indexed = self._removed = self._queries = self._fuzzy = self._commits = 0
        self._index: tantivy.Index
        self._schema: tantivy.Schema
        self._writer: tantivy.IndexWriter
        self._searcher: tantivy.Searcher

    async def open(self) -> "TantivySearch":
        """Open the index, or make it anew where it cannot be read."""
        await self._worker.submit(self._open)
        return self

    async def index(self, documents: Sequence[Document]) -> None:
        check_documents(documents)
        for document in documents:
            self._name_fields(document)
        await self._worker.submit(self._add, tuple(documents))
        self._indexed += len(documents)
        await self._gathered(len(documents))

    async def remove(self, ids: Sequence[str]) -> None:
        await self._worker.submit(self._delete, tuple(ids))
        self._removed += len(ids)
        await self._gathered(len(ids))

    async def find(self, query: Query) -> Found:
        words = check_query(query)
        self._queries += 1
        fuzzy = self._absent(words)
        if query.count_facets or fuzzy or may_be_short(words):
            found = await self._worker.submit(self._search, words, query, fuzzy)
        else:
            found = self._search(words, query, fuzzy)
        if not found.total and len(fuzzy) < len(set(words)):
            fuzzy = frozenset(words)
            found = await self._worker.submit(self._search, words, query, fuzzy)
        self._fuzzy += bool(fuzzy)
        return found

    async def refresh(self) -> None:
        await self._worker.submit(self._commit)

    def statistics(self) -> SearchStatistics:
        return SearchStatistics(
            self._searcher.num_docs, self._indexed, self._removed, self._queries, self._fuzzy, self._commits
        )

    async def close(self) -> None:
        self._ended = True
        await self._worker.submit(self._close)
        self._worker.close()

    # ---- writing, on the worker ----

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._schema = _schema()
        try:
            content = self._fields_path.read_bytes() if self._fields_path.exists() else b"{}"
            self._fields = msgspec.json.decode(content, type=_Fields)
            if self._fields.format != FORMAT:
                raise ValueError(f"format {self._fields.format}")
            self._index = tantivy.Index(self._schema, path=str(self._folder / "index"))
        except (OSError, ValueError):
            self.rebuilt = True
            shutil.rmtree(self._folder / "index", ignore_errors=True)
            self._fields = _Fields()
        (self._folder / "index").mkdir(exist_ok=True)
        if self.rebuilt or not hasattr(self, "_index"):
            self._index = tantivy.Index(self._schema, path=str(self._folder / "index"))
        self._writer = self._index.writer(heap_size=self._settings.heap_bytes, num_threads=1)
        self._searcher = self._index.searcher()

    @property
    def _fields_path(self) -> Path:
        return self._folder / "fields.json"

    def _add(self, documents: tuple[Document, ...]) -> None:
        fields = self._fields
        for document in documents:
            made = tantivy.Document()
            made.add_text("id", document.id)
            made.add_bytes("payload", document.payload)
            for name, text in document.text.items():
                made.add_text(f"text_{fields.text[name]}", " ".join(words_of(text)))
            for name, values in document.facets.items():
                for value in dict.fromkeys(values):
                    made.add_text(f"facet_{fields.facets[name]}", value)
            for name, number in document.numbers.items():
                made.add_float(f"number_{fields.numbers[name]}", float(number))
            self._writer.delete_documents_by_term("id", document.id)
            self._writer.add_document(made)

    def _delete(self, ids: tuple[str, ...]) -> None:
        for each in ids:
            self._writer.delete_documents_by_term("id", each)

    def _commit(self) -> None:
        self._waiting = 0
        self._writer.commit()
        self._index.reload()
        self._searcher = self._index.searcher()
        self._commits += 1

    def _close(self) -> None:
        self._commit()
        self._writer.wait_merging_threads()

    def _name_fields(self, document: Document) -> None:
        """Give every new name a slot and remember it before the first document uses it."""
        fields, changed = self._fields, False
        given: tuple[tuple[Mapping[str, object], dict[str, int], int], ...] = (
            (document.text, fields.text, TEXT_SLOTS),
            (document.facets, fields.facets, FACET_SLOTS),
            (document.numbers, fields.numbers, NUMBER_SLOTS),
        )
        for names, slots, most in given:
            for name in names:
                if name not in slots:
                    if len(slots) >= most:
                        raise Rejected(
                            f"no room for field {name}: {', '.join(slots)} are taken", code="too_many_fields"
                        )
                    slots[name] = len(slots)
                    changed = True
        if changed:
            fresh = self._fields_path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(fields))
            fresh.rename(self._fields_path)

    async def _gathered(self, count: int) -> None:
        """Commit a little later, or now when much has gathered."""
        self._waiting += count
        if self._waiting >= self._settings.waiting_max:
            await self.refresh()
        elif not self._commit_due:
            self._commit_due = True
            asyncio.get_running_loop().call_later(self._settings.commit_s, self._commit_later)

    def _commit_later(self) -> None:
        self._commit_due = False
        if self._waiting and not self._ended:
            self._worker.submit(self._commit)

    # ---- reading ----

    def _absent(self, words: list[str]) -> frozenset[str]:
        """The words that no document has and that may be mistyped: 10 us each."""
        searcher, fields = self._searcher, [f"text_{slot}" for slot in self._fields.text.values()]
        return frozenset(
            word
            for position, word in enumerate(words)
            if typos_allowed(word)
            and not any(searcher.doc_freq(field, word) for field in fields)
            and (
                position < len(words) - 1
                or not any(searcher.terms_with_prefix(field, word, limit=1) for field in fields)
            )
        )

    def _search(self, words: list[str], query: Query, fuzzy: frozenset[str]) -> Found:
        every = frozenset(self._fields.text)
        if may_be_short(words):
            heavy, (longest, enough) = heaviest(every, self._settings.weights), longest_first(words)
            if heavy != every or longest is not None:
                found = self._found(words, query, fuzzy, _Last(heavy, longest))
                if found.total >= enough:
                    return found
        return self._found(words, query, fuzzy, _Last(every))

    def _found(self, words: list[str], query: Query, fuzzy: frozenset[str], last: "_Last") -> Found:
        """The answer, the last word looked for like this."""
        searcher = self._searcher
        wanted = self._query(searcher, words, query, fuzzy, last)
        if wanted is None:
            return Found((), 0, {name: {} for name in query.count_facets})
        order: dict[str, Any] = {}
        if query.sort:
            slot = self._fields.numbers.get(query.sort)
            if slot is None:
                raise Rejected(f"nothing is sorted by {query.sort}", code="bad_sort")
            order = {
                "order_by_field": f"number_{slot}",
                "order": tantivy.Order.Desc if query.descending else tantivy.Order.Asc,
            }
        result: Any = searcher.search(wanted, max(1, query.limit), count=True, offset=query.offset, **order)
        hits = []
        for key, address in result.hits[: query.limit]:
            document = searcher.doc(address)
            score = key if isinstance(key, float) and not query.sort else 1.0
            hits.append(Hit(str(document.get_first("id")), score, bytes(document.get_first("payload") or b"")))
        return Found(hits, int(result.count or 0), self._counts(searcher, wanted, query))

    def _query(
        self,
        searcher: tantivy.Searcher,
        words: list[str],
        query: Query,
        fuzzy: frozenset[str],
        last: "_Last",
    ) -> tantivy.Query | None:
        """The whole query, None when it names a field that no document has."""
        must, fields = tantivy.Occur.Must, self._fields
        parts = []
        for position, word in enumerate(words):
            ends = last if position == len(words) - 1 else None
            variants = [
                (tantivy.Occur.Should, tantivy.Query.boost_query(either, weight))
                for name, slot in fields.text.items()
                if (weight := self._settings.weights.get(name, 1.0)) > 0
                and (ends is None or name in ends.fields)
                and (either := self._word(searcher, f"text_{slot}", word, ends, fuzzy=word in fuzzy)) is not None
            ]
            if not variants:
                return None
            parts.append((must, tantivy.Query.boolean_query(variants)))
        for name, values in query.facets.items():
            if name not in fields.facets:
                return None
            parts.append((must, tantivy.Query.const_score_query(self._among(fields.facets[name], values), 0.0)))
        for name, (low, high) in query.ranges.items():
            if name not in fields.numbers:
                return None
            field = f"number_{fields.numbers[name]}"
            between = tantivy.Query.range_query(self._schema, field, tantivy.FieldType.Float, low, high)
            parts.append((must, tantivy.Query.const_score_query(between, 0.0)))
        if not words:
            parts.append((must, tantivy.Query.all_query()))
        return tantivy.Query.boolean_query(parts)

    def _among(self, slot: int, values: Sequence[str]) -> tantivy.Query:
        """One of these values. A single one is read where it lies; a set is gathered first, three times the work."""
        if len(values) == 1:
            return tantivy.Query.term_query(self._schema, f"facet_{slot}", values[0])
        return tantivy.Query.term_set_query(self._schema, f"facet_{slot}", list(values))

    def _word(
        self,
        searcher: tantivy.Searcher,
        field: str,
        word: str,
        last: "_Last | None",
        *,
        fuzzy: bool,
    ) -> tantivy.Query | None:
        """The documents with this word in a field, the last one as a beginning too; None where that has none."""
        if fuzzy:
            return tantivy.Query.fuzzy_term_query(self._schema, field, word, distance=typos_allowed(word))
        exact = tantivy.Query.term_query(self._schema, field, word) if searcher.doc_freq(field, word) else None
        if last is None:
            return exact
        if len(word) > SHORT_PREFIX and len(searcher.terms_with_prefix(field, word, limit=2)) <= (exact is not None):
            return exact
        if last.longest is None:
            prefix = tantivy.Query.fuzzy_term_query(self._schema, field, word, distance=0, prefix=True)
        else:  # decimal digits, so nothing in it is syntax
            prefix = tantivy.Query.regex_query(self._schema, field, f"{word}.{{0,{last.longest - len(word)}}}")
        beginning = tantivy.Query.const_score_query(prefix, 0.3)
        if exact is None:
            return beginning
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, exact), (tantivy.Occur.Should, beginning)])

    def _counts(self, searcher: tantivy.Searcher, wanted: tantivy.Query, query: Query) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {name: {} for name in query.count_facets}
        asked = {name: self._fields.facets[name] for name in query.count_facets if name in self._fields.facets}
        if not asked:
            return counts
        terms = {name: {"terms": {"field": f"facet_{slot}", "size": FACET_COUNT_MAX}} for name, slot in asked.items()}
        answer = cast("dict[str, dict[str, list[dict[str, object]]]]", searcher.aggregate(wanted, terms))
        for name in asked:
            pairs = [(str(bucket["key"]), int(str(bucket["doc_count"]))) for bucket in answer[name]["buckets"]]
            counts[name] = dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return counts


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("payload", stored=True)
    for slot in range(TEXT_SLOTS):
        builder.add_text_field(f"text_{slot}", tokenizer_name="whitespace", index_option="freq")
    for slot in range(FACET_SLOTS):
        builder.add_text_field(f"facet_{slot}", fast=True, tokenizer_name="raw", index_option="basic")
    for slot in range(NUMBER_SLOTS):
        builder.add_float_field(f"number_{slot}", indexed=True, fast=True)
    return builder.build()
