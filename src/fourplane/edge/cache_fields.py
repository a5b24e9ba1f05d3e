"""The header fields a cache reads: dates, directives, ages, ranges, entity tags, targeted cache control.

All parsers are pure, take bytes as they stood on the wire and never raise for what a peer may send: a field that breaks
its grammar counts as the specification says (an invalid date has passed, an invalid Age is ignored, an invalid targeted
field is as if absent). Sources: RFC 9110 5.6.7 (dates), 14 (ranges); RFC 9111 4.2, 5.1, 5.2; RFC 9213 and 8941 (targeted).
"""

import re
from calendar import timegm
from collections.abc import Iterable, Sequence

Fields = list[tuple[bytes, bytes]]
Directives = dict[str, str | None]

SECONDS_MAX = 1 << 31
KEPT_IN_304 = frozenset(
    b"cache-control cdn-cache-control content-location date etag expires vary last-modified".split()
)
_MONTHS = {name: number + 1 for number, name in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split())}
_DAYS = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAYS = rb"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTH = rb"(" + b"|".join(_MONTHS) + rb")"
_CLOCK = rb"(\d\d):(\d\d):(\d\d)"
_IMF = re.compile(_DAYS + rb", (\d\d) " + _MONTH + rb" (\d{4}) " + _CLOCK + rb" GMT", re.IGNORECASE)
_RFC850 = re.compile(_LONG_DAYS + rb", (\d\d)-" + _MONTH + rb"-(\d\d) " + _CLOCK + rb" GMT", re.IGNORECASE)
_ASCTIME = re.compile(_DAYS + rb" " + _MONTH + rb" ([ \d]\d) " + _CLOCK + rb" (\d{4})", re.IGNORECASE)
_RANGE = re.compile(rb"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE)
_CONTENT_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(\d+|\*)")
_TAG = re.compile(rb'(?:W/)?"[^"]*"|\*')

_INTEGER = re.compile(r"-?\d{1,15}")
_NUMBERS = frozenset({"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"})
_SF_MEMBER = re.compile(
    r"([a-z*][a-z0-9_.*-]*)"  # key
    r'(?:=(-?\d{1,12}\.\d{1,3}|-?\d{1,15}|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][!#$%&\x27*+.^_`|~0-9A-Za-z:/-]*|\?[01]))?'
    r'((?:;\s*[a-z*][a-z0-9_.*-]*(?:=(?:-?[\d.]+|"[^"]*"|[A-Za-z*][^\s;,"]*|\?[01]))?)*)'
)


def all_values(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Every value of a field, in order; `name` in lower case."""
    return [value for key, value in fields if key == name]


def first_value(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a field."""
    for key, value in fields:
        if key == name:
            return value
    return None


def parse_date(value: bytes | None) -> int | None:
    """Seconds since 1970 of an HTTP date in one of its three forms; None for anything else."""
    if value is None:
        return None
    if found := _IMF.fullmatch(value):
        day, month, year = int(found[1]), _MONTHS[found[2].lower()], int(found[3])
        clock = found[4], found[5], found[6]
    elif found := _RFC850.fullmatch(value):
        day, month, year = int(found[1]), _MONTHS[found[2].lower()], int(found[3])
        year += 2000 if year < 70 else 1900
        clock = found[4], found[5], found[6]
    elif found := _ASCTIME.fullmatch(value):
        month, day, year = _MONTHS[found[1].lower()], int(found[2]), int(found[6])
        clock = found[3], found[4], found[5]
    else:
        return None
    hour, minute, second = (int(part) for part in clock)
    if not (1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    return timegm((year, month, day, hour, minute, second, 0, 1, 0))


def split_list(values: Sequence[bytes]) -> list[str]:
    """Members of a comma-separated field over all its lines; commas inside quoted strings do not separate."""
    members: list[str] = []
    text = b",".join(values).decode("latin-1")
    start, quoted, at, size = 0, False, 0, len(text)
    while at < size:
        letter = text[at]
        if quoted:
            if letter == "\\":
                at += 1
            elif letter == '"':
                quoted = False
        elif letter == '"':
            quoted = True
        elif letter == ",":
            members.append(text[start:at].strip(" \t"))
            start = at + 1
        at += 1
    members.append(text[start:].strip(" \t"))
    return [member for member in members if member]


def parse_directives(values: Sequence[bytes]) -> Directives:
    """Cache-Control directives by lower-case name; the first of equal names wins."""
    directives: Directives = {}
    for member in split_list(values):
        name, equals, argument = member.partition("=")
        if equals and len(argument) > 1 and argument[0] == argument[-1] == '"':
            argument = argument[1:-1].replace("\\", "")
        directives.setdefault(name.lower(), argument if equals else None)
    return directives


def parse_targeted(values: Sequence[bytes]) -> Directives | None:
    """A targeted field such as CDN-Cache-Control (a structured dictionary); None when absent, empty or invalid."""
    text = b",".join(values).decode("latin-1").strip(" ")
    if not text:
        return None
    directives: Directives = {}
    at = 0
    while True:
        found = _SF_MEMBER.match(text, at)
        if found is None:
            return None
        argument = found[2]
        if found[1] in _NUMBERS and not _INTEGER.fullmatch(argument or ""):
            return None  # a known directive of the wrong type: nothing in this field can be trusted
        if argument is not None and argument.startswith('"'):
            argument = argument[1:-1].replace("\\", "")
        directives[found[1]] = None if argument == "?1" else argument
        if argument == "?0":
            del directives[found[1]]
        at = _skip_space(text, found.end())
        if at == len(text):
            return directives
        if text[at] != ",":
            return None
        at = _skip_space(text, at + 1)
        if at == len(text):
            return None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    return at


def seconds_of(directives: Directives, name: str) -> int | None:
    """A delta-seconds directive: None when absent, 0 when it is there but invalid."""
    if name not in directives:
        return None
    value = directives[name]
    if value is None or not value.isascii() or not value.isdigit():
        return 0
    return min(int(value), SECONDS_MAX) if len(value) < 20 else SECONDS_MAX


def parse_age(values: Sequence[bytes]) -> int:
    """The Age of a response: its first member when that is a number, else 0."""
    if not values:
        return 0
    first = values[0].partition(b",")[0].strip(b" \t")
    if not first.isdigit():
        return 0
    return min(int(first), SECONDS_MAX) if len(first) < 20 else SECONDS_MAX


def parse_range(value: bytes | None, size: int) -> tuple[int, int] | bool | None:
    """First and past-last byte of a single range; None: serve everything; False: not satisfiable."""
    if value is None:
        return None
    found = _RANGE.fullmatch(value)
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size) if length else False
    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None
    if first >= size:
        return False
    return first, min(last + 1, size)


def parse_content_range(value: bytes | None) -> tuple[int, int, int | None] | None:
    """First, past-last byte and whole size (None: unknown) of a Content-Range."""
    found = _CONTENT_RANGE.fullmatch(value) if value is not None else None
    if found is None or int(found[2]) < int(found[1]):
        return None
    return int(found[1]), int(found[2]) + 1, None if found[3] == b"*" else int(found[3])


def entity_tags(value: bytes) -> list[bytes]:
    """The tags of an If-None-Match or If-Match list."""
    return _TAG.findall(value)


def weak_equal(one: bytes, other: bytes) -> bool:
    """Weak comparison: the opaque parts are the same (RFC 9110 8.8.3.2)."""
    return one.removeprefix(b"W/") == other.removeprefix(b"W/")
