"""Turned away in the protocol: the rejection is whole, the connection stays in step, the class decides."""

import asyncio

from tests.unit.edge.serving import HOST, answers, echo_app, serving, talk

from fourplane.edge.routes import Priority


def classify(_method, path):
    return Priority.CRITICAL if path.startswith(b"/pay") else Priority.BULK


def said(message):
    async def main():
        async with serving(echo_app, classify=classify) as server:
            server.admission.close_from(Priority.USER)
            return await talk(server.port, message), server.statistics()

    data, statistics = asyncio.run(main())
    return answers(data), statistics


def test_the_connection_goes_on_after_a_rejection():
    plain = b"GET /crawl HTTP/1.1\r\n" + HOST + b"\r\n"
    other = b"GET /crawl HTTP/1.1\r\n" + HOST + b"Connection: te\r\n\r\n"
    pay = b"GET /pay HTTP/1.1\r\n" + HOST + b"\r\n"
    found, statistics = said(plain + pay + other + pay)
    assert [one.status for one in found] == [503, 200, 503, 200]
    assert found[0].headers["retry-after"] == "1"
    assert statistics.shed == 2
    assert [one.status for one in said(plain)[0]] == [503]


def test_a_rejected_body_is_never_read_as_a_request():
    hidden = b"GET /pay HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"POST /crawl HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(hidden)
    found, statistics = said(head + hidden)
    assert [one.status for one in found] == [503]
    assert statistics.requests == 0
    get = b"GET /crawl HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(hidden)
    assert [one.status for one in said(get + hidden)[0]] == [503]
