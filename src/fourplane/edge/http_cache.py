"""The rules of a shared HTTP cache (RFC 9111, 9213, 5861), without any connection, clock or disk.

A cache node asks four questions: may this response be stored (`evaluate`), may what is stored answer this request (`judge`),
what does a 304 change (`freshen`), what does an unsafe request make invalid (`invalidated`). Times are seconds as floats and
always arguments. The ideas that decide cases:

- a targeted field (CDN-Cache-Control) that parses replaces Cache-Control, Expires and Pragma altogether;
- freshness is s-maxage, else max-age, else Expires - Date, else a tenth of Date - Last-Modified; a directive that is there
  but invalid means no freshness at all;
- age starts at max(Date's apparent age, Age + the time the request took) and grows with the time the response is kept;
- a response to a request with Authorization is kept only when the origin says so;
- stale is served only where nothing forbids it, inside a window or when the origin cannot be reached.

Invariant: `judge` says HIT only for a response whose age is below its lifetime and whose secondary key equals the request's.
"""

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from fourplane.edge.cache_fields import (
    Directives,
    Fields,
    all_values,
    entity_tags,
    first_value,
    parse_age,
    parse_date,
    parse_directives,
    parse_targeted,
    seconds_of,
    split_list,
    weak_equal,
)

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
HEURISTIC_STATUS = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})
UNDERSTOOD_STATUS = HEURISTIC_STATUS | {302, 303, 307, 400, 401, 403, 500, 502, 503, 504}
HEURISTIC_SHARE = 0.1
HEURISTIC_S_MAX = 86_400.0 * 7
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
NOT_STORED = HOP_BY_HOP | {b"age"}
NOT_FRESHENED = frozenset({b"content-length"})


class Verdict(IntEnum):
    """What a cache does with a request for something it has stored."""

    HIT = 0
    STALE = 1  # serve, and revalidate behind the client's back
    VALIDATE = 2
    ONLY_IF_CACHED = 3  # the client wants nothing from the origin: 504


class Freshness(msgspec.Struct, gc=False):
    """What a stored response may be used for; times in seconds, `stored_s` when the age was `age_s`."""

    stored_s: float
    age_s: float
    lifetime_s: float
    must_validate: bool  # no-cache: never without asking
    forbids_stale: bool
    stale_while_s: float
    stale_error_s: float | None  # None: the origin said nothing
    vary: tuple[bytes, ...]
    etag: bytes | None
    modified_s: int | None
    date_s: int | None

    def age(self, now_s: float) -> float:
        """Seconds since the origin made it."""
        return self.age_s + now_s - self.stored_s

    def left(self, now_s: float) -> float:
        """Seconds of freshness left; negative when stale."""
        return self.lifetime_s - self.age(now_s)


def evaluate(
    method: bytes, request: Fields, status: int, response: Fields, *, asked_s: float, now_s: float
) -> Freshness | None:
    """What may be done with this response, or None when it must not be stored. `response` must be without hop-by-hop fields."""
    if method != b"GET" or status < 200 or status == 304:
        return None
    asked = parse_directives(all_values(request, b"cache-control"))
    plain = parse_directives(all_values(response, b"cache-control"))
    targeted = parse_targeted(all_values(response, b"cdn-cache-control"))
    said = plain if targeted is None else targeted
    if not _may_store(request, status, asked, said):
        return None
    vary = vary_names(response)
    if vary is None:
        return None
    date_s = parse_date(first_value(response, b"date"))
    modified_s = parse_date(first_value(response, b"last-modified"))
    explicit = _explicit_lifetime(response, said, date_s, now_s, targeted=targeted is not None)
    if explicit is not None:
        lifetime = explicit
    elif status in HEURISTIC_STATUS or "public" in said:
        lifetime = _heuristic(modified_s, now_s if date_s is None else date_s)
    else:
        return None
    no_cache = "no-cache" in said
    forbids = no_cache or "must-revalidate" in said or "proxy-revalidate" in said or "s-maxage" in said
    window = seconds_of(said, "stale-while-revalidate") or 0
    return Freshness(
        now_s,
        _initial_age(response, date_s, asked_s, now_s),
        lifetime,
        no_cache,
        forbids,
        float(window),
        None if (error := seconds_of(said, "stale-if-error")) is None else float(error),
        vary,
        first_value(response, b"etag"),
        modified_s,
        date_s,
    )


def _may_store(request: Fields, status: int, asked: Directives, said: Directives) -> bool:
    if "no-store" in asked or "private" in said:
        return False
    if "no-store" in said and not ("must-understand" in said and status in UNDERSTOOD_STATUS):
        return False
    if "must-understand" in said and status not in UNDERSTOOD_STATUS:
        return False
    if first_value(request, b"authorization") is not None:
        return "public" in said or "must-revalidate" in said or "s-maxage" in said
    return True


def _explicit_lifetime(
    response: Fields, said: Directives, date_s: int | None, now_s: float, *, targeted: bool
) -> float | None:
    shared = seconds_of(said, "s-maxage")
    if shared is not None:
        return float(shared)
    plain = seconds_of(said, "max-age")
    if plain is not None:
        return float(plain)
    if targeted:
        return None
    expires = all_values(response, b"expires")
    if not expires:
        return None
    until = parse_date(expires[0])
    return 0.0 if until is None else max(0.0, until - (now_s if date_s is None else date_s))


def _heuristic(modified_s: int | None, date_s: float) -> float:
    if modified_s is None or modified_s >= date_s:
        return 0.0
    return min(HEURISTIC_S_MAX, HEURISTIC_SHARE * (date_s - modified_s))


def _initial_age(response: Fields, date_s: int | None, asked_s: float, now_s: float) -> float:
    apparent = 0.0 if date_s is None else max(0.0, now_s - date_s)
    if apparent < 1.0:  # Date has whole seconds: less than one is no age
        apparent = 0.0
    return max(apparent, parse_age(all_values(response, b"age")) + now_s - asked_s)


def vary_names(response: Fields) -> tuple[bytes, ...] | None:
    """The lower-case names a response depends on; None for `*`, which nothing matches."""
    names = sorted({member.lower().encode("latin-1") for member in split_list(all_values(response, b"vary"))})
    return None if b"*" in names else tuple(names)


def secondary_key(names: tuple[bytes, ...], request: Fields) -> tuple[bytes | None, ...]:
    """The normalised values of the fields a response varies by (RFC 9111 4.1)."""
    return tuple([_normal(name, all_values(request, name)) for name in names])


def selects(names: tuple[bytes, ...], secondary: tuple[bytes | None, ...], request: Fields, response: Fields) -> bool:
    """Whether a stored response is the one `request` selects.

    Equal secondary keys do; so does a response in exactly the language that the client wants most, because an origin that
    negotiates languages and has this one would choose it.
    """
    wanted = secondary_key(names, request)
    if wanted == secondary:
        return True
    if b"accept-language" not in names:
        return False
    at = names.index(b"accept-language")
    if wanted[:at] + wanted[at + 1 :] != secondary[:at] + secondary[at + 1 :]:
        return False
    language = first_value(response, b"content-language")
    members = sorted(split_list([wanted[at] or b""]), key=_preference)
    if language is None or not members or _preference(members[0])[0] != -1.0:
        return False
    alone = len(members) == 1 or _preference(members[1])[0] > -1.0
    return alone and members[0].partition(";")[0].encode("latin-1") == language.strip().lower()


def answers_get(target: bytes, host: bytes, status: int, response: Fields) -> bool:
    """Whether the response to a POST may be stored for later GETs (RFC 9110 9.3.3): explicit freshness, same location."""
    location = first_value(response, b"content-location")
    if status != 200 or location is None or _same_host(location or target, target, host) != target:
        return False
    said = parse_directives(all_values(response, b"cache-control"))
    return "max-age" in said or "s-maxage" in said or first_value(response, b"expires") is not None


def _normal(name: bytes, values: list[bytes]) -> bytes | None:
    if not values:
        return None
    members = split_list(values)
    if name.startswith(b"accept") and name != b"accept":
        members = [member.lower().replace(" ", "").replace("\t", "") for member in members]
        members.sort(key=_preference)
    return ",".join(members).encode("latin-1")


def _preference(member: str) -> tuple[float, str]:
    what, _, weight = member.partition(";q=")
    try:
        return (-float(weight) if weight else -1.0, what)
    except ValueError:
        return (0.0, what)


def judge(kept: Freshness, request: Fields, now_s: float, *, obey_request: bool = True) -> Verdict:
    """Whether what is stored may answer `request` now. `obey_request` False ignores the client's Cache-Control."""
    left = kept.left(now_s)
    asked: Directives = {}
    if obey_request:
        values = all_values(request, b"cache-control")
        if values:
            asked = parse_directives(values)
        elif first_value(request, b"pragma") is not None:
            asked = parse_directives(all_values(request, b"pragma"))
    if not asked:
        if left > 0 and not kept.must_validate:
            return Verdict.HIT
        fits = left > -kept.stale_while_s and kept.stale_while_s > 0
        return Verdict.STALE if fits and not kept.forbids_stale else Verdict.VALIDATE
    return _judge_asked(kept, asked, now_s)


def _judge_asked(kept: Freshness, asked: Directives, now_s: float) -> Verdict:
    left, age = kept.left(now_s), kept.age(now_s)
    usable = not kept.must_validate and "no-cache" not in asked
    limit, reserve = seconds_of(asked, "max-age"), seconds_of(asked, "min-fresh")
    usable = usable and (limit is None or age < limit or (age == limit and limit > 0))
    usable = usable and (reserve is None or left >= reserve)
    if usable and left > 0:
        return Verdict.HIT
    if usable and "max-stale" in asked and not kept.forbids_stale:
        allowed = seconds_of(asked, "max-stale") if asked["max-stale"] is not None else None
        if allowed is None or -left <= allowed:
            return Verdict.HIT
    if "only-if-cached" in asked:
        return Verdict.ONLY_IF_CACHED
    if usable and kept.stale_while_s > 0 and left > -kept.stale_while_s and not kept.forbids_stale:
        return Verdict.STALE
    return Verdict.VALIDATE


def wants_only_cached(request: Fields) -> bool:
    """Whether the client wants nothing from the origin."""
    return "only-if-cached" in parse_directives(all_values(request, b"cache-control"))


def may_serve_stale(kept: Freshness, now_s: float, *, status: int | None, unreachable_s: float) -> bool:
    """Whether a stale response may stand in: `status` of the origin's error, None when it could not be reached."""
    if kept.forbids_stale or kept.must_validate:
        return False
    overdue = -kept.left(now_s)
    if kept.stale_error_s is not None:
        return overdue <= kept.stale_error_s and (status is None or status >= 500)
    return status is None and overdue <= unreachable_s


def is_unmodified(kept: Freshness, request: Fields, *, status: int) -> bool:
    """Whether the client's conditions hold on the stored response, so that 304 is the answer."""
    if status != 200:
        return False
    tags = all_values(request, b"if-none-match")
    if tags:
        asked = entity_tags(b",".join(tags))
        if b"*" in asked:
            return True
        return kept.etag is not None and any(weak_equal(kept.etag, tag) for tag in asked)
    since = first_value(request, b"if-modified-since")
    if since is None:
        return False
    asked_s = parse_date(since)
    known_s = kept.date_s if kept.modified_s is None else kept.modified_s
    return asked_s is not None and known_s is not None and known_s <= asked_s


def range_holds(kept: Freshness, condition: bytes | None) -> bool:
    """Whether If-Range lets a Range be answered from the stored response: strong tag or exact date."""
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return kept.etag == condition
    if condition.startswith(b"W/"):
        return False
    return kept.modified_s is not None and parse_date(condition) == kept.modified_s


def without_hop_by_hop(fields: Fields, *, drop: frozenset[bytes] = HOP_BY_HOP) -> Fields:
    """Fields that go further than one connection: no Connection, none it names."""
    named: set[bytes] = set()
    for name, value in fields:
        if name == b"connection":
            named.update(option.strip().lower() for option in value.split(b","))
    return [(name, value) for name, value in fields if name not in drop and name not in named]


def freshen(stored: Fields, update: Fields) -> Fields:
    """The stored fields after a 304: its fields replace those of the same name, except Content-Length (RFC 9111 3.2)."""
    newer = [(name, value) for name, value in update if name not in NOT_FRESHENED]
    names = {name for name, _ in newer}
    return [(name, value) for name, value in stored if name not in names] + newer


def matches_304(kept: Freshness, update: Fields) -> bool:
    """Whether a 304 speaks of what is stored: its strong validator, where it has one, is ours."""
    tag = first_value(update, b"etag")
    if tag is not None and kept.etag is not None and not tag.startswith(b"W/"):
        return tag == kept.etag
    return True


def conditions(kept: Freshness) -> Fields:
    """The fields that ask the origin whether the stored response still holds."""
    asked: Fields = []
    if kept.etag is not None:
        asked.append((b"if-none-match", kept.etag))
    if kept.modified_s is not None:
        asked.append((b"if-modified-since", format_date(kept.modified_s)))
    return asked


def format_date(seconds: int) -> bytes:
    """Seconds since 1970 as IMF-fixdate."""
    from email.utils import formatdate  # noqa: PLC0415 - rare, and the name is wanted nowhere else

    return formatdate(seconds, usegmt=True).encode()


def invalidated(method: bytes, target: bytes, host: bytes, status: int, response: Fields) -> Iterable[bytes]:
    """The targets whose stored responses an unsafe request made invalid; only of the same host."""
    if method in SAFE or not 200 <= status < 400:
        return
    yield target
    for name in (b"location", b"content-location"):
        value = first_value(response, name)
        if value is None:
            continue
        local = _same_host(value, target, host)
        if local is not None:
            yield local


def _same_host(value: bytes, base: bytes, host: bytes) -> bytes | None:
    scheme, separator, rest = value.partition(b"://")
    if separator and scheme.lower() in {b"http", b"https"}:
        authority, slash, path = rest.partition(b"/")
        return slash + path if authority.lower() == host.lower() and slash else None
    if value.startswith(b"//"):
        return None
    if value.startswith(b"/"):
        return value
    return base.partition(b"?")[0].rpartition(b"/")[0] + b"/" + value
