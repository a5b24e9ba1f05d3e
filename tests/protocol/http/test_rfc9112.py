"""HTTP/1.1 as RFC 9112 wants it, over raw sockets: framing, order, refusals."""

import asyncio
import gc

import pytest
from tests.unit.edge.serving import HOST, answers, echo_app, serving, settings, talk

from fourplane.edge.http_answers import answer

HOT = answer(200, b"hot", media_type="text/plain", dated=False)
HOTS = [("GET", "/hot", lambda _request: HOT), ("POST", "/hot", lambda request: answer(200, request.body))]


def said(*pieces, half_close=True, **options):
    async def main():
        async with serving(echo_app, hot=HOTS, **options) as server:
            return await talk(server.port, *pieces, half_close=half_close)

    return asyncio.run(main())


def get(path=b"/", *lines):
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(body, *lines):
    head = b"POST /p HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return head + body


def length(body):
    return b"Content-Length: %d" % len(body)


CHUNKED = b"Transfer-Encoding: chunked"


def test_keep_alive_is_the_default_and_answers_come_in_order():
    found = answers(said(get(b"/1") + get(b"/hot") + get(b"/2") + get(b"/hot") + post(b"abc", length(b"abc"))))
    assert [one.body for one in found] == [b"GET /1? ", b"hot", b"GET /2? ", b"hot", b"POST /p? abc"]


def test_two_hundred_pipelined_requests_are_all_answered():
    found = answers(said(b"".join(get(b"/hot") + get(b"/%d" % number) for number in range(100))))
    assert [one.body for one in found[1::2]] == [b"GET /%d? " % number for number in range(100)]


def test_a_request_may_come_byte_by_byte():
    message = post(b"abc", length(b"abc")) + get(b"/hot")
    found = answers(said(*[message[place : place + 1] for place in range(len(message))]))
    assert [one.body for one in found] == [b"POST /p? abc", b"hot"]


def test_connection_close_ends_the_connection():
    found = answers(said(get(b"/", b"Connection: close"), half_close=False))
    assert len(found) == 1
    assert found[0].headers["connection"] == "close"


def test_http_1_0_closes_and_keeps_alive_only_when_asked():
    assert len(answers(said(b"GET / HTTP/1.0\r\n\r\n", half_close=False))) == 1
    twice = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2
    found = answers(said(twice))
    assert [one.headers.get("connection") for one in found] == ["keep-alive", "keep-alive"]


def test_chunked_bodies_are_joined_and_extensions_and_trailers_dropped():
    body = b'3;name="value"\r\nabc\r\nA\r\n0123\r\n\r\n67\r\n'
    trailers = b"0\r\nX-Trailer: one\r\nHost: evil\r\n\r\n"
    found = answers(said(post(body + trailers, CHUNKED) + get(b"/hot")))
    assert [one.body for one in found] == [b"POST /p? abc0123\r\n\r\n67", b"hot"]


def test_hot_routes_take_bodies():
    body = b"x" * 1000
    head = b"POST /hot HTTP/1.1\r\n" + HOST
    found = answers(
        said(head + length(body) + b"\r\n\r\n" + body + head + CHUNKED + b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    )
    assert [one.body for one in found] == [body, b"abc"]


@pytest.mark.parametrize("path", [b"/p", b"/hot"])
def test_expect_100_continue_is_answered_before_the_body(path):
    async def main():
        async with serving(echo_app, hot=HOTS) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = b"POST " + path + b" HTTP/1.1\r\n" + HOST
            writer.write(head + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            interim = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"abc")
            writer.write_eof()
            rest = await reader.read(-1)
            writer.close()
            return interim, answers(rest)

    interim, found = asyncio.run(main())
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert found[0].body.endswith(b"abc")


def test_no_continue_when_the_body_is_already_there():
    found = answers(said(post(b"abc", length(b"abc"), b"Expect: 100-continue")))
    assert [one.status for one in found][-1] == 200


def test_head_has_the_length_but_no_body():
    found = answers(said(b"HEAD /abc HTTP/1.1\r\n" + HOST + b"\r\n"), head_only=True)
    assert [one.status for one in found] == [200]
    assert found[0].headers["content-length"] == str(len(b"HEAD /abc? "))


def test_absolute_form_and_its_host_win():
    found = answers(said(b"GET http://other:81/x?q=1 HTTP/1.1\r\nHost: first\r\n\r\n"))
    assert found[0].body == b"GET /x?q=1 "


def test_options_asterisk():
    assert answers(said(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"))[0].body == b"OPTIONS *? "


def test_empty_lines_before_a_request_are_skipped():
    assert answers(said(b"\r\n\r\n" + get(b"/hot")))[0].body == b"hot"


def test_empty_header_values_and_trailing_blanks():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(scope["headers"]).encode()})

    async def main():
        async with serving(app) as server:
            return await talk(server.port, get(b"/", b"X-Empty:", b"X-Blank:   ", b"X-Tail: a b \t "))

    text = answers(asyncio.run(main()))[0].body
    assert b"(b'x-empty', b''), (b'x-blank', b''), (b'x-tail', b'a b')" in text


def test_an_unknown_upgrade_is_ignored_and_the_next_request_is_read():
    found = answers(said(get(b"/1", b"Connection: upgrade", b"Upgrade: h2c") + get(b"/hot")))
    assert [one.body for one in found] == [b"GET /1? ", b"hot"]


def test_an_upgrade_field_without_connection_is_a_remark():
    found = answers(said(post(b"abc", b"Upgrade: websocket", length(b"abc")) + get(b"/hot")))
    assert [one.body for one in found] == [b"POST /p? abc", b"hot"]


SMUGGLED = {
    "content_length_and_chunked": post(b"0\r\n\r\n", length(b"0\r\n\r\n"), CHUNKED),
    "chunked_and_content_length": post(b"0\r\n\r\n", CHUNKED, b"Content-Length: 5"),
    "two_lengths": post(b"abc", b"Content-Length: 3", b"Content-Length: 4"),
    "two_equal_lengths": post(b"abc", b"Content-Length: 3", b"Content-Length: 3"),
    "a_list_of_lengths": post(b"abc", b"Content-Length: 3, 3"),
    "a_signed_length": post(b"abc", b"Content-Length: +3"),
    "a_negative_length": post(b"abc", b"Content-Length: -3"),
    "a_hex_length": post(b"abc", b"Content-Length: 0x3"),
    "an_empty_length": post(b"", b"Content-Length:"),
    "a_huge_length": post(b"", b"Content-Length: 99999999999999999999"),
    "chunked_not_last": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "an_unknown_coding": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "a_coding_before_chunked": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"),
    "chunked_twice": post(b"0\r\n\r\n", CHUNKED, CHUNKED),
    "a_quoted_coding": post(b"0\r\n\r\n", b'Transfer-Encoding: "chunked"'),
    "a_vertical_tab_coding": post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "chunked_in_http_1_0": b"POST / HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n0\r\n\r\n",
    "space_before_colon": get(b"/", b"Content-Length : 3"),
    "obs_fold": get(b"/", b"X-One: a\r\n b"),
    "space_before_first_header": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "bare_lf": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "bare_lf_in_headers": b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "bare_cr": b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "nul_in_a_value": get(b"/", b"X: a\0b"),
    "no_name": get(b"/", b": value"),
    "a_hex_prefix_in_a_chunk": post(b"0x3\r\nabc\r\n0\r\n\r\n", CHUNKED),
    "a_blank_in_a_chunk_size": post(b"3 \r\nabc\r\n0\r\n\r\n", CHUNKED),
    "a_signed_chunk": post(b"+3\r\nabc\r\n0\r\n\r\n", CHUNKED),
    "a_chunk_that_is_longer": post(b"3\r\nabcd\r\n0\r\n\r\n", CHUNKED),
    "a_chunk_past_64_bits": post(b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n", CHUNKED),
    "bare_lf_after_a_chunk_size": post(b"3\nabc\r\n0\r\n\r\n", CHUNKED),
    "no_host": b"GET / HTTP/1.1\r\n\r\n",
    "two_hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "a_host_with_a_path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "an_empty_host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a_body_on_an_upgrade": post(b"abc", b"Connection: upgrade", b"Upgrade: h2c", length(b"abc")),
    "http_2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http_1_9": b"GET / HTTP/1.9\r\n" + HOST + b"\r\n",
    "http_0_9": b"GET /\r\n\r\n",
    "a_blank_in_the_target": get(b"/a b"),
    "no_target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "an_unknown_scheme": get(b"ftp://host/"),
    "asterisk_for_get": get(b"*"),
    "a_tunnel": b"CONNECT host:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an_unknown_expectation": get(b"/", b"Expect: 200-ok"),
    "an_unknown_method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_refused_and_closed_without_reading_what_follows(name):
    seen = []

    async def app(scope, receive, send):
        await echo_app(scope, receive, send)
        seen.append(scope["path"])

    async def main():
        async with serving(app) as server:
            return await talk(server.port, SMUGGLED[name] + get(b"/smuggled"), half_close=False)

    found = answers(asyncio.run(main()))
    assert len(found) <= 1
    assert "/smuggled" not in seen
    assert 400 <= found[0].status < 600
    assert found[0].headers["connection"] == "close"
    assert found[0].body.startswith(b'{"error":{"code":"')


def test_statuses_of_refusals():
    assert answers(said(SMUGGLED["an_unknown_method"]))[0].status == 501
    assert answers(said(SMUGGLED["a_coding_before_chunked"]))[0].status == 501
    assert answers(said(SMUGGLED["an_unknown_expectation"]))[0].status == 417
    assert answers(said(b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"))[0].status == 505


def test_bounds_have_their_statuses():
    bounds = settings(
        target_bytes_max=100, head_bytes_max=1_000, header_count_max=5, body_bytes_max=10, hot_body_max=10
    )
    cases = {
        414: get(b"/" + b"a" * 101),
        431: get(b"/", b"X: " + b"a" * 1_000),
        413: post(b"x" * 11, length(b"x" * 11)),
    }
    for status, message in cases.items():
        assert answers(said(message, settings=bounds, half_close=False))[0].status == status
    many = get(b"/", *[b"X%d: y" % number for number in range(6)])
    assert answers(said(many, settings=bounds))[0].status == 431
    endless = b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000
    assert answers(said(endless, settings=bounds, half_close=False))[0].status == 431
    chunks = post(b"8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n", CHUNKED)
    assert answers(said(chunks, settings=bounds, half_close=False))[0].status == 413
    hot = b"POST /hot HTTP/1.1\r\n" + HOST + b"Content-Length: 11\r\n\r\n" + b"x" * 11
    assert answers(said(hot, settings=bounds, half_close=False))[0].status == 413


def test_a_refused_upload_is_still_told_why():
    bounds = settings(body_bytes_max=10)
    big = b"x" * 600_000
    found = answers(said(post(big, length(big)), settings=bounds, half_close=False))
    assert [one.status for one in found] == [413]


def test_an_answer_before_the_body_was_read_closes():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"early"})

    async def main():
        async with serving(app) as server:
            return await talk(server.port, post(b"ab", b"Content-Length: 5"), half_close=False)

    found = answers(asyncio.run(main()))
    assert [one.body for one in found] == [b"early"]
    assert found[0].headers["connection"] == "close"


def test_no_connection_leaves_garbage_behind():
    async def main():
        async with serving(echo_app) as server:
            for message in list(SMUGGLED.values())[:10]:
                await talk(server.port, message, half_close=False)
            await asyncio.sleep(0.01)
            return server.statistics()

    found = asyncio.run(main())
    gc.collect()
    assert found.connections == 0
    assert found.in_flight == 0
    assert sum(found.refused.values()) == 10
