"""Which time series there are: a number for every name with its labels, and columns of codes to select and group by.

A series is known by a dense integer, so that points are columns (`ids`, `values`) and a step of all series is one array.
Every label is a column of small integers over all series: a selection or a grouping is a comparison of columns, about
1 ms for a million series. The name is the label `__name__`. What is asked every second anew, selections, groupings and what
queries plan over them, is kept until a series is added.

Bounded: `series_max` series, `LABELS_MAX` labels each, `TEXT_MAX` characters a label; what is over is refused and counted.
KEPT_MAX selections of up to KEPT_SERIES series are kept.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from fourplane.foundation.errors import Overloaded, Rejected
from fourplane.foundation.telemetry import Labels

LABELS_MAX = 24
TEXT_MAX = 512
NAME = "__name__"
GROWTH_MIN = 1_024
KEPT_MAX = 200
KEPT_SERIES = 20_000

Kind = Literal["counter", "gauge"]
Ids = NDArray[np.uint32]
T = TypeVar("T")


class Matcher(msgspec.Struct, frozen=True):
    """One condition on a label; `~` forms match the whole text of a regular expression."""

    label: str
    operator: Literal["=", "!=", "=~", "!~"]
    text: str


class SeriesEntry(msgspec.Struct, frozen=True, array_like=True):
    """A series as it is stored and told."""

    name: str
    labels: Labels
    kind: Kind


class _Column:
    """One label over all series: the code of each series' text, -1 where it has none."""

    __slots__ = ("code_of", "codes", "texts")

    def __init__(self, capacity: int) -> None:
        self.codes = np.full(capacity, -1, dtype=np.int32)
        self.code_of: dict[str, int] = {}
        self.texts: list[str] = []

    def set(self, series: int, text: str) -> None:
        code = self.code_of.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        self.codes[series] = code


class SeriesTable:
    """All series; an id never changes and is never used again."""

    def __init__(self, series_max: int = 2_000_000) -> None:
        self.series_max = series_max
        self.entries: list[SeriesEntry] = []
        self.refused = 0
        self._ids: dict[tuple[str, Labels], int] = {}
        self._columns: dict[str, _Column] = {}
        self._kept: dict[Hashable, object] = {}
        self._kept_for = 0  # series there were
        self._capacity = GROWTH_MIN
        self.is_counter = np.zeros(GROWTH_MIN, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.entries)

    def id_of(self, name: str, labels: Labels, kind: Kind) -> int:
        """The number of this series, new on first sight. Raises Overloaded past `series_max`, Rejected past a bound."""
        found = self._ids.get((name, labels))
        if found is not None:
            return found
        if len(self.entries) >= self.series_max:
            self.refused += 1
            raise Overloaded(f"{self.series_max:,} time series are known already", code="too_many_series")
        if len(labels) > LABELS_MAX or any(len(text) > TEXT_MAX for pair in labels for text in pair):
            self.refused += 1
            raise Rejected(f"{name[:TEXT_MAX]} has too many or too long labels", code="bad_labels")
        number = len(self.entries)
        if number == self._capacity:
            self._grow()
        self.entries.append(SeriesEntry(name, labels, kind))
        self._ids[name, labels] = number
        self.is_counter[number] = kind == "counter"
        for label, text in ((NAME, name), *labels):
            column = self._columns.get(label)
            if column is None:
                column = self._columns[label] = _Column(self._capacity)
            column.set(number, text)
        return number

    def select(self, name: str, matchers: Sequence[Matcher] = ()) -> Ids:
        """The ids of all series of this name that meet every condition, ascending; not to be written to."""
        return self.kept(("select", name, tuple(matchers)), lambda: self._select(name, matchers), size=len)

    def kept(self, key: Hashable, make: Callable[[], T], *, size: Callable[[T], int]) -> T:
        """`make()`, which depends on `key` and on which series there are; made anew once one was added."""
        if self._kept_for != len(self.entries) or len(self._kept) > KEPT_MAX:
            self._kept.clear()
            self._kept_for = len(self.entries)
        found = self._kept.get(key)
        if found is None:
            found = make()
            if size(found) <= KEPT_SERIES:
                self._kept[key] = found
        return cast("T", found)

    def names(self) -> list[str]:
        """Every name there is, sorted."""
        column = self._columns.get(NAME)
        return sorted(column.texts) if column is not None else []

    def texts(self, ids: Ids, label: str) -> list[str]:
        """The text of a label for each of these series, empty where a series has none."""
        column = self._columns.get(label)
        if column is None:
            return [""] * len(ids)
        return [column.texts[code] if code >= 0 else "" for code in column.codes[ids].tolist()]

    def groups(self, ids: Ids, by: Sequence[str]) -> tuple[NDArray[np.int64], list[Labels]]:
        """For each series the number of its group, and what the groups are called."""
        if not by or not len(ids):
            return np.zeros(len(ids), dtype=np.int64), [()]
        combined = np.zeros(len(ids), dtype=np.int64)  # the codes of all labels as one number
        for label in by:
            codes = self._codes(label)[ids].astype(np.int64) + 1
            combined = np.unique(combined, return_inverse=True)[1] if len(by) > 1 else combined
            combined = combined * (int(codes.max()) + 1) + codes
        _, first, group = np.unique(combined, return_index=True, return_inverse=True)
        texts = [self.texts(ids[first], label) for label in by]
        names = [
            tuple((label, text) for label, text in zip(by, each, strict=True) if text)
            for each in zip(*texts, strict=True)
        ]
        return group.reshape(-1), names

    def _select(self, name: str, matchers: Sequence[Matcher]) -> Ids:
        chosen = self._codes(NAME)[: len(self)] == self._code(NAME, name)
        for matcher in matchers:
            chosen &= self._matching(matcher)
        return np.flatnonzero(chosen).astype(np.uint32)

    def _matching(self, matcher: Matcher) -> NDArray[np.bool_]:
        codes = self._codes(matcher.label)[: len(self)]
        if matcher.operator in {"=", "!="}:
            # An absent label counts as an empty text, as Prometheus has it.
            same = codes == self._code(matcher.label, matcher.text)
            if matcher.text == "":
                same |= codes < 0
            chosen: NDArray[np.bool_] = same if matcher.operator == "=" else ~same
            return chosen
        column = self._columns.get(matcher.label)
        try:
            pattern = re.compile(matcher.text)
        except re.error as error:
            raise Rejected(f"{matcher.text!r} is no regular expression: {error}", code="bad_query") from None
        texts = column.texts if column is not None else []
        hits = np.array([pattern.fullmatch(text) is not None for text in (*texts, "")], dtype=np.bool_)
        matched: NDArray[np.bool_] = hits[codes]  # code -1 is the last: the empty text
        return matched if matcher.operator == "=~" else ~matched

    def _codes(self, label: str) -> NDArray[np.int32]:
        column = self._columns.get(label)
        return column.codes if column is not None else np.full(self._capacity, -1, dtype=np.int32)

    def _code(self, label: str, text: str) -> int:
        column = self._columns.get(label)
        return -2 if column is None else column.code_of.get(text, -2)

    def _grow(self) -> None:
        self._capacity *= 2
        self.is_counter = np.concatenate([self.is_counter, np.zeros(self._capacity // 2, dtype=np.bool_)])
        for column in self._columns.values():
            more = np.full(self._capacity - len(column.codes), -1, dtype=np.int32)
            column.codes = np.concatenate([column.codes, more])
