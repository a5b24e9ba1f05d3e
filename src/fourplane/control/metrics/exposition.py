"""Prometheus text in: what a target says becomes increments and values of series.

A target says the same lines with other numbers again and again. The first time each line is read with care; after that
the layout is known (which text precedes each number), so a scrape is three passes in C over the lines: same beginnings,
the rest of each, a number each. Cost: about 0.3 us a line, 3 us for a line never seen.

Prometheus counters are totals: the increment is the difference to the last scrape; a smaller total means that the
target started again and counts from zero. A series that appears at a target already known counts from zero, too; at
the first scrape nothing is counted, because nobody knows since when.
"""

import re
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from fourplane.control.metrics.series import Ids, Kind, SeriesTable
from fourplane.control.metrics.windows import Values
from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.foundation.telemetry import Labels

LINE = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
LABEL = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
LINES_MAX = 2_000_000
COUNTED_SUFFIXES = ("_total", "_bucket", "_count", "_sum")


class _Layout:
    """What precedes each number of a scrape, and whose number it is."""

    def __init__(self, prefixes: list[bytes], ids: list[int], table: SeriesTable) -> None:
        self.prefixes = prefixes
        self.lengths = [slice(len(prefix), None) for prefix in prefixes]
        numbers = np.array(ids, dtype=np.int64)
        self.told = numbers >= 0
        self.ids = numbers[self.told].astype(np.uint32)
        self.counter = table.is_counter[self.ids]
        self.last = np.full(len(self.ids), np.nan)


class TextReader:
    """Reads the scrapes of one target; `labels` are added to every series."""

    def __init__(self, table: SeriesTable, labels: Labels = ()) -> None:
        self._table = table
        self._labels = labels
        self._kinds: dict[str, str] = {}
        self._layout: _Layout | None = None
        self._known: dict[bytes, int] = {}
        self.bad_lines = 0

    def read(self, text: bytes) -> tuple[Ids, Values, Ids, Values]:
        """Counters' ids and increments, gauges' ids and values. Raises Rejected for what is no exposition at all."""
        lines = text.split(b"\n")
        if len(lines) > LINES_MAX:
            raise Rejected(f"a scrape has at most {LINES_MAX:,} lines", code="bad_exposition")
        layout = self._layout
        if layout is None or len(lines) != len(layout.prefixes) or not self._same(lines, layout):
            layout = self._learn(lines)
        try:
            rests = list(starmap(bytes.__getitem__, zip(lines, layout.lengths, strict=True)))
            told = [rest for rest, wanted in zip(rests, layout.told.tolist(), strict=True) if wanted]
            values = np.array(list(map(float, told)))
        except ValueError:  # a number followed by a time, or none: rare enough to be read with care each time
            self._layout = None
            values = np.array(
                [_number(line) for line, wanted in zip(lines, layout.told.tolist(), strict=True) if wanted]
            )
        return self._told(layout, values)

    def _same(self, lines: list[bytes], layout: _Layout) -> bool:
        return all(map(bytes.startswith, lines, layout.prefixes))

    def _told(self, layout: _Layout, values: NDArray[np.float64]) -> tuple[Ids, Values, Ids, Values]:
        counter = layout.counter
        totals, before = values[counter], layout.last[counter]
        with np.errstate(invalid="ignore"):
            grown = np.where(totals >= before, totals - before, np.where(np.isnan(before), 0.0, totals))
        layout.last = values
        moved = np.nan_to_num(grown) > 0
        return layout.ids[counter][moved], grown[moved], layout.ids[~counter], values[~counter]

    def _learn(self, lines: list[bytes]) -> _Layout:
        before = self._layout
        prefixes: list[bytes] = []
        ids: list[int] = []
        for line in lines:
            prefix = _prefix(line)
            number = self._known.get(prefix)
            if number is None:
                number = self._define(line, prefix)
            prefixes.append(prefix if number >= 0 else line if line.startswith(b"#") else b"")
            ids.append(number)
        if lines and max(ids) < 0:
            raise Rejected("no line of the answer is a metric", code="bad_exposition")
        layout = self._layout = _Layout(prefixes, ids, self._table)
        if before is not None:
            past = dict(zip(before.ids.tolist(), before.last.tolist(), strict=True))
            layout.last = np.array([past.get(number, 0.0) for number in layout.ids.tolist()])
        return layout

    def _define(self, line: bytes, prefix: bytes) -> int:
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("# TYPE "):
            words = text.split()
            if len(words) == 4:
                self._kinds[words[2]] = words[3]
        if not text or text.startswith("#"):
            return -1
        try:
            name, labels = parse_series(text)
            number = self._table.id_of(name, tuple(sorted((*labels, *self._labels))), self._kind(name))
            float(text.split()[-1])
        except (FourplaneError, ValueError):
            self.bad_lines += 1
            return -1
        if len(self._known) < LINES_MAX:
            self._known[prefix] = number
        return number

    def _kind(self, name: str) -> Kind:
        kind = self._kinds.get(name)
        if kind is None:
            family = next((name.removesuffix(end) for end in COUNTED_SUFFIXES if name.endswith(end)), name)
            kind = self._kinds.get(family, "")
            counted = kind in {"counter", "histogram", "summary"} or (not kind and name.endswith(COUNTED_SUFFIXES))
            return "counter" if counted else "gauge"
        return "counter" if kind == "counter" else "gauge"


def parse_series(text: str) -> tuple[str, Labels]:
    """The name and labels of one line of exposition. Raises Rejected."""
    match = LINE.fullmatch(text)
    if match is None:
        raise Rejected(f"{text[:60]!r} is no metric", code="bad_exposition")
    name, inside = match.group(1), match.group(2) or ""
    labels: list[tuple[str, str]] = []
    at = 0
    while at < len(inside):
        found = LABEL.match(inside, at)
        if found is None:
            raise Rejected(f"{inside[at : at + 40]!r} is no label", code="bad_exposition")
        labels.append((found.group(1), re.sub(r'\\[\\"n]', lambda escape: ESCAPES[escape.group()], found.group(2))))
        at = found.end()
    return name, tuple(labels)


def _prefix(line: bytes) -> bytes:
    """The line up to its value, with the blank before it."""
    end = line.rfind(b"}") + 1
    return line[: line.find(b" ", end) + 1]


def _number(line: bytes) -> float:
    words = line[line.rfind(b"}") + 1 :].split()
    return float(words[0] if line.rfind(b"}") >= 0 else words[1])
