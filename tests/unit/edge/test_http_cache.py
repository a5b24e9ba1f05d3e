"""The rules of RFC 9111 as facts."""

import pytest

from fourplane.edge import http_cache as rules
from fourplane.edge.cache_fields import (
    parse_age,
    parse_content_range,
    parse_date,
    parse_directives,
    parse_range,
    parse_targeted,
    seconds_of,
)
from fourplane.edge.http_cache import Verdict

NOW = 1_784_548_800.0
DATE = (b"date", rules.format_date(int(NOW)))


def kept(*fields, request=(), status=200, method=b"GET", delay_s=0.0):
    return rules.evaluate(method, list(request), status, [DATE, *fields], asked_s=NOW - delay_s, now_s=NOW)


def cc(text):
    return (b"cache-control", text.encode())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        (b"Sun Nov  6 08:49:37 1994", 784_111_777),
        (b"SUN, 06 nov 1994 08:49:37 gmt", 784_111_777),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:61:37 GMT", None),
        (b"0", None),
        (b"", None),
    ],
)
def test_dates_are_strict(text, seconds):
    assert parse_date(text) == seconds


def test_directives_split_outside_quotes_and_the_first_wins():
    found = parse_directives([b'a="x, max-age=5", MAX-AGE="10"', b"max-age=20, no-store"])
    assert found == {"a": "x, max-age=5", "max-age": "10", "no-store": None}
    assert seconds_of(found, "max-age") == 10
    assert seconds_of({"max-age": "1.5"}, "max-age") == 0
    assert seconds_of({"max-age": "9" * 30}, "max-age") == 1 << 31
    assert seconds_of({}, "max-age") is None


def test_a_broken_targeted_field_is_as_if_absent():
    assert parse_targeted([b"max-age=10, no-cache"]) == {"max-age": "10", "no-cache": None}
    for broken in (b"max-age =10", b'max-age="10"', b"max-age=10,", b"MaX-aGe=10", b"", b"&", b"max-age=abc"):
        assert parse_targeted([broken]) is None


def test_age_is_the_first_number_or_nothing():
    assert parse_age([b"7, 9"]) == 7
    assert parse_age([b"-1"]) == parse_age([b"1.5"]) == parse_age([b"x"]) == parse_age([]) == 0


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        (b"bytes=0-1", (0, 2)),
        (b"bytes=5-", (5, 10)),
        (b"bytes=-3", (7, 10)),
        (b"bytes=-30", (0, 10)),
        (b"bytes=5-500", (5, 10)),
        (b"bytes=10-", False),
        (b"bytes=-0", False),
        (b"bytes=5-2", None),
        (b"bytes=0-1,4-5", None),
        (b"lines=0-1", None),
        (b"bytes=a-b", None),
        (None, None),
    ],
)
def test_ranges(asked, span):
    assert parse_range(asked, 10) == span


def test_content_ranges():
    assert parse_content_range(b"bytes 4-9/10") == (4, 10, 10)
    assert parse_content_range(b"bytes 4-9/*") == (4, 10, None)
    assert parse_content_range(b"bytes 9-4/10") is None


@pytest.mark.parametrize(
    ("fields", "lifetime"),
    [
        ([cc("max-age=60")], 60),
        ([cc("s-maxage=5, max-age=60")], 5),
        ([cc("max-age=60"), (b"cdn-cache-control", b"max-age=7")], 7),
        ([cc("max-age=60"), (b"cdn-cache-control", b"broken=")], 60),
        ([(b"expires", rules.format_date(int(NOW) + 30))], 30),
        ([(b"expires", b"0")], 0),
        ([cc("max-age=60"), (b"expires", b"0")], 60),
        ([(b"last-modified", rules.format_date(int(NOW) - 1_000))], 100),
        ([cc("max-age=abc")], 0),
    ],
)
def test_freshness(fields, lifetime):
    assert kept(*fields).lifetime_s == lifetime


@pytest.mark.parametrize(
    "fields",
    [
        [cc("no-store, max-age=60")],
        [cc("private, max-age=60")],
        [cc("max-age=60"), (b"vary", b"a, *")],
        [cc("max-age=60"), (b"cdn-cache-control", b"no-store")],
    ],
)
def test_what_is_never_stored(fields):
    assert kept(*fields) is None


def test_statuses_without_a_heuristic_need_explicit_freshness():
    assert kept((b"last-modified", rules.format_date(0)), status=500) is None
    assert kept(cc("max-age=5"), status=500).lifetime_s == 5
    assert kept(cc("max-age=5"), status=304) is None
    assert kept(cc("max-age=5"), method=b"PUT") is None


def test_authorised_responses_need_the_origins_word():
    request = [(b"authorization", b"x")]
    assert kept(cc("max-age=60"), request=request) is None
    for word in ("public", "must-revalidate", "s-maxage=60"):
        assert kept(cc(f"max-age=60, {word}"), request=request) is not None


def test_age_counts_the_way_and_the_wait():
    assert kept(cc("max-age=60"), (b"age", b"20"), delay_s=3).age(NOW + 5) == 28
    old = rules.evaluate(
        b"GET", [], 200, [(b"date", rules.format_date(int(NOW) - 50)), cc("max-age=60")], asked_s=NOW, now_s=NOW
    )
    assert old.left(NOW) == 10


def test_a_fresh_response_is_a_hit_until_the_second_it_is_stale():
    one = kept(cc("max-age=60"))
    assert rules.judge(one, [], NOW + 59) is Verdict.HIT
    assert rules.judge(one, [], NOW + 60) is Verdict.VALIDATE
    assert rules.judge(kept(cc("max-age=60, no-cache")), [], NOW) is Verdict.VALIDATE


def test_clients_may_ask_for_less_or_for_more():
    one = kept(cc("max-age=60"))
    assert rules.judge(one, [cc("no-cache")], NOW) is Verdict.VALIDATE
    assert rules.judge(one, [cc("no-cache")], NOW, obey_request=False) is Verdict.HIT
    assert rules.judge(one, [cc("max-age=10")], NOW + 11) is Verdict.VALIDATE
    assert rules.judge(one, [cc("min-fresh=10")], NOW + 55) is Verdict.VALIDATE
    assert rules.judge(one, [cc("max-stale=10")], NOW + 65) is Verdict.HIT
    assert rules.judge(one, [cc("only-if-cached")], NOW + 65) is Verdict.ONLY_IF_CACHED
    assert rules.judge(one, [(b"pragma", b"no-cache")], NOW) is Verdict.VALIDATE


def test_stale_while_revalidate_ends_with_its_window():
    one = kept(cc("max-age=1, stale-while-revalidate=10"))
    assert rules.judge(one, [], NOW + 5) is Verdict.STALE
    assert rules.judge(one, [], NOW + 12) is Verdict.VALIDATE
    strict = kept(cc("max-age=1, stale-while-revalidate=10, must-revalidate"))
    assert rules.judge(strict, [], NOW + 5) is Verdict.VALIDATE


def test_stale_stands_in_only_where_nothing_forbids_it():
    def stands(text, *, status, after_s):
        return rules.may_serve_stale(kept(cc(text)), NOW + after_s, status=status, unreachable_s=100)

    assert stands("max-age=1", status=None, after_s=50)
    assert not stands("max-age=1", status=None, after_s=150)
    assert not stands("max-age=1", status=503, after_s=50)
    assert stands("max-age=1, stale-if-error=60", status=503, after_s=50)
    assert not stands("max-age=1, stale-if-error=60", status=404, after_s=50)
    for word in ("must-revalidate", "proxy-revalidate", "s-maxage=1", "no-cache"):
        assert not stands(f"max-age=1, {word}", status=None, after_s=50)


def test_secondary_keys_ignore_space_and_the_order_of_languages():
    def key(**fields):
        return rules.secondary_key(
            (b"accept-language", b"foo"), [(k.encode().replace(b"_", b"-"), v) for k, v in fields.items()]
        )

    assert key(foo=b"1,2") == key(foo=b"1 , 2")
    assert key(foo=b"1, 2") != key(foo=b"2, 1")
    assert key(accept_language=b"de, EN;q=0.5") == key(accept_language=b"en;q=0.5 ,de")
    assert key() != key(foo=b"")


def test_conditions_are_answered_from_what_is_stored():
    one = kept(cc("max-age=60"), (b"etag", b'W/"a"'), (b"last-modified", rules.format_date(1_000)))
    assert rules.is_unmodified(one, [(b"if-none-match", b'"x", "a"')], status=200)
    assert not rules.is_unmodified(one, [(b"if-none-match", b'"x"'), (b"if-modified-since", DATE[1])], status=200)
    assert rules.is_unmodified(one, [(b"if-modified-since", rules.format_date(1_000))], status=200)
    assert not rules.is_unmodified(one, [(b"if-modified-since", rules.format_date(999))], status=200)
    assert not rules.range_holds(one, b'"a"'), "If-Range needs a strong tag"
    assert rules.range_holds(one, rules.format_date(1_000))


def test_a_304_replaces_fields_but_not_the_length():
    stored = [(b"etag", b'"a"'), (b"x", b"1"), (b"content-length", b"5"), (b"y", b"2")]
    fresh = rules.freshen(stored, [(b"x", b"9"), (b"content-length", b"0")])
    assert sorted(fresh) == [(b"content-length", b"5"), (b"etag", b'"a"'), (b"x", b"9"), (b"y", b"2")]
    assert not rules.matches_304(kept(cc("max-age=1"), (b"etag", b'"a"')), [(b"etag", b'"b"')])


def test_unsafe_methods_invalidate_their_own_host_only():
    def gone(method, status, *fields):
        return list(rules.invalidated(method, b"/a/b?c", b"here", status, list(fields)))

    assert gone(b"GET", 200) == []
    assert gone(b"POST", 500) == []
    assert gone(b"M-SEARCH", 200) == [b"/a/b?c"]
    assert gone(b"POST", 201, (b"location", b"/x"), (b"content-location", b"y")) == [b"/a/b?c", b"/x", b"/a/y"]
    assert gone(b"DELETE", 200, (b"location", b"http://other/x")) == [b"/a/b?c"]
    assert gone(b"DELETE", 200, (b"location", b"http://HERE/x")) == [b"/a/b?c", b"/x"]


def test_fields_of_one_connection_go_no_further():
    fields = [(b"connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"te", b"t"), (b"x", b"2")]
    assert rules.without_hop_by_hop(fields) == [(b"x", b"2")]
