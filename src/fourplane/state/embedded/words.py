"""What both search engines agree on: bounds, words, and how a query is read. Nothing here waits."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fourplane.foundation.errors import Rejected, TooLarge
from fourplane.state.contracts import Document, Query

QUERY_CHARS_MAX = 256
WORDS_MAX = 16
WORD_CHARS_MAX = 40
ID_BYTES_MAX = 512
DOCUMENT_CHARS_MAX = 1 << 20
DOCUMENTS_MAX = 10_000
RESULTS_MAX = 1_000
FACET_VALUES_MAX = 100
SHORT_PREFIX = 2  # letters; what begins with so few is looked for where it weighs most,
SHORT_PREFIX_ENOUGH = 200  # unless fewer than these are found there
# A digit or two: of the 111,111 numbers below a million that begin with 1, those with so many digits more,
NUMBER_MORE = 3
NUMBER_ENOUGH = 50  # unless fewer than these are found so
WEIGHTS = {"title": 4.0, "name": 4.0, "brand": 2.0}
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


class SearchStatistics(msgspec.Struct, frozen=True):
    """One index since it was opened."""

    documents: int
    indexed: int
    removed: int
    queries: int
    fuzzy: int
    commits: int


def words_of(text: str) -> list[str]:
    """Letters and digits in lower case, accents folded, in order."""
    plain = unicodedata.normalize("NFKD", text)
    folded = "".join(letter for letter in plain if not unicodedata.combining(letter)).lower()
    return [word[:WORD_CHARS_MAX] for word in _WORD.findall(folded)]


def typos_allowed(word: str) -> int:
    """How many edits a word may be away where nothing matches exactly."""
    return 0 if len(word) < 4 else 1 if len(word) < 8 else 2


def may_be_short(words: Sequence[str]) -> bool:
    """Whether a query ends with so few letters that half of everything may begin with them."""
    return bool(words) and len(words[-1]) <= SHORT_PREFIX


def longest_first(words: Sequence[str]) -> tuple[int | None, int]:
    """How long a word may be that begins like a short last one while it is looked for where it weighs most (None: as long as it
    likes), and how many documents are enough then.
    """
    last = words[-1]
    return (len(last) + NUMBER_MORE, NUMBER_ENOUGH) if last.isdecimal() else (None, SHORT_PREFIX_ENOUGH)


def heaviest(fields: Iterable[str], weights: Mapping[str, float]) -> frozenset[str]:
    """The fields that weigh most: where a short prefix is looked for first."""
    known = {field: weights.get(field, 1.0) for field in fields}
    most = max(known.values(), default=0.0)
    return frozenset(field for field, weight in known.items() if weight == most)


def check_documents(documents: Sequence[Document]) -> None:
    """Raise Rejected or TooLarge for what no engine takes."""
    if len(documents) > DOCUMENTS_MAX:
        raise TooLarge(f"{len(documents)} documents at once, {DOCUMENTS_MAX} are allowed")
    for document in documents:
        if not 0 < len(document.id.encode()) <= ID_BYTES_MAX:
            raise Rejected("a document id has 1 to 512 bytes", code="bad_id")
        if sum(map(len, document.text.values())) + len(document.payload) > DOCUMENT_CHARS_MAX:
            raise TooLarge(f"document {document.id} is larger than {DOCUMENT_CHARS_MAX} characters")
        for names in (document.text, document.facets, document.numbers):
            _check_names(names)


def check_query(query: Query) -> list[str]:
    """The words of a query, or Rejected past its limits."""
    if len(query.words) > QUERY_CHARS_MAX:
        raise Rejected(f"a query has at most {QUERY_CHARS_MAX} characters", code="query_too_long")
    if not 0 <= query.limit <= RESULTS_MAX or not 0 <= query.offset <= RESULTS_MAX * 10:
        raise Rejected(
            f"a query returns up to {RESULTS_MAX} hits from offset {RESULTS_MAX * 10} at most", code="bad_limit"
        )
    for names in (query.facets, query.ranges):
        _check_names(names)
    for values in query.facets.values():
        if len(values) > FACET_VALUES_MAX:
            raise Rejected(f"a facet is asked for at most {FACET_VALUES_MAX} values", code="bad_facet")
    return words_of(query.words)[:WORDS_MAX]


def _check_names(names: Mapping[str, object]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise Rejected(f"not a field name: {name[:50]!r}", code="bad_field")
