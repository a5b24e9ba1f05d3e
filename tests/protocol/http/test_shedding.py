"""Turned away in the protocol: the rejection is whole, the connection stays in step, the class decides."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from tests.unit.edge.serving import HOST, answers, echo_app, serving, settings, talk

from fourplane.edge.admission import AdmissionSettings
from fourplane.edge.gateway import Gateway
from fourplane.edge.resting import RestingSettings
from fourplane.edge.routes import Priority, Reply, Route
from fourplane.foundation.telemetry import Registry


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


def test_requests_that_wait_behind_each_other_are_answered_in_their_order():
    order = b"POST /pay HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}"
    cart = b"POST /cart HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nX: y\r\n\r\nabc"
    page = b"GET /page HTTP/1.1\r\n" + HOST + b"\r\n"
    found, statistics = said(cart * 40 + page * 40 + order + cart + page + order + page)
    assert [one.status for one in found] == [503] * 80 + [200, 503, 503, 200, 503]
    assert found[80].body == b"POST /pay? {}"
    assert statistics.shed == 83
    assert statistics.requests == 2


@pytest.mark.parametrize("empty", [b"Content-Length:", b"content-length: \t"])
def test_a_length_that_says_nothing_is_refused_in_a_run_too(empty):
    cart = b"POST /cart HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\na"
    bad = b"POST /pay HTTP/1.1\r\n" + HOST + empty + b"\r\n\r\n"
    found, statistics = said(cart + cart + bad + cart)
    assert [one.status for one in found] == [503, 503, 400]
    assert statistics.requests == 0


@asynccontextmanager
async def crowded():
    """A server where others stand in line and only orders are let in, and a connection to it."""
    later = AdmissionSettings(retry_after_s=3_600.0)
    unread = RestingSettings(rest_s_min=3_600.0, rest_s_max=7_200.0)
    async with serving(echo_app, classify=classify, settings=settings(resting=unread, admission=later)) as server:
        server.admission.close_from(Priority.USER)
        server.admission.waiting = 1
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        yield server, reader, writer
        writer.close()


def rested(*fields):
    """Refused twice while others stand in line, then an order; who rested, and all answers."""

    async def main():
        async with crowded() as (server, reader, writer):
            said, counts = b"", []
            for path in (b"/crawl", b"/crawl", b"/pay"):
                writer.write(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"".join(fields) + b"\r\n")
                if path == b"/pay":
                    writer.write_eof()
                    server.resting.close()
                    server.admission.waiting = 0
                    said += await reader.read(-1)
                else:
                    said += await reader.readuntil(b"}}}")
                counts.append(server.statistics().resting)
            return [one.status for one in answers(said)], counts

    return asyncio.run(main())


def test_who_comes_back_before_the_time_it_was_told_is_left_unread_for_a_while():
    assert rested() == ([503, 503, 200], [0, 1, 0])


@pytest.mark.parametrize("field", [b"X-Forwarded-For: 10.0.0.1\r\n", b"via: 1.1 front\r\n", b"Forwarded: for=a\r\n"])
def test_a_line_that_carries_others_never_rests(field):
    assert rested(field) == ([503, 503, 200], [0, 0, 0])


def test_of_what_came_while_a_connection_rested_only_the_last_has_a_chance_and_orders_pass():
    crawl, pay = (b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" for path in (b"/crawl", b"/pay"))
    meanwhile = crawl * 100 + pay + crawl * 300 + pay

    async def main():
        async with crowded() as (server, reader, writer):
            for _ in range(2):
                writer.write(crawl)
                await reader.readuntil(b"}}}")
            assert server.statistics().resting == 1
            writer.write(meanwhile)
            await writer.drain()
            server.admission.close_from(None)
            server.admission.waiting = 0
            server.resting.close()
            found = answers(await reader.readuntil(b"GET /pay? ") + await reader.readuntil(b"GET /pay? "))
            writer.write(crawl * 100)
            writer.write_eof()
            after = answers(await reader.read(-1))
            return [one.status for one in found], [one.status for one in after]

    found, after = asyncio.run(main())
    assert found.index(200) == 100, "the first order"
    assert found[:100] == [503] * 100
    assert found.count(503) > 300
    assert found[-1] == 200
    assert set(after) == {200}, "what comes now is not late"


async def ordered(call):
    return Reply(call.params["cart"].encode() + call.body, status=201)


def shop():
    """A gateway with carts, orders of them, and pages."""
    paths = [("POST", "/carts/{cart}/lines", 1), ("POST", "/carts/{cart}/orders", 0), ("PUT", "/carts/{cart}", 1)]
    paths.append(("GET", "/p/{cart}", 1))
    doors = [Route(method, path, ordered, path, body=None if method == "GET" else bytes, priority=Priority(number))
             for method, path, number in paths]  # fmt: skip
    return Gateway(doors, None, registry=Registry())


def posted(method, path, body=b""):
    return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (method, path, HOST, len(body), body)


@pytest.mark.parametrize("known", [True, False])
def test_in_a_run_each_first_line_says_who_goes_again(known):
    hidden = posted(b"POST", b"/carts/0/orders")
    line = [posted(b"POST", b"/carts/%d/lines?country=PT" % number, hidden) for number in range(30)]
    order = posted(b"POST", b"/carts/7/orders?a=/lines", b"!")
    strange = posted(b"POST", b"/carts/%37/orders", b"?")  # the table has to look
    put, page = posted(b"PUT", b"/carts/1", b"x"), b"GET /p/1 HTTP/1.1\r\n" + HOST + b"\r\n"
    nowhere = posted(b"DELETE", b"/carts/1")

    async def main():
        gateway = shop()
        lines = gateway.first_lines if known else None
        async with serving(gateway, classify=gateway.classify, first_lines=lines) as server:
            server.admission.close_from(Priority.USER)
            message = b"".join(line) + order + put + page + strange + nowhere + order + line[0]
            found = answers(await talk(server.port, message))
            statistics = server.admission.statistics()
            assert server.statistics().shed == sum(statistics.shed)
        gateway.close()
        return found, statistics

    found, statistics = asyncio.run(main())
    assert [one.status for one in found] == [503] * 30 + [201, 503, 503, 201, 503, 201, 503]
    assert [one.body for one in found if one.status == 201] == [b"7!", b"7?", b"7!"]
    assert statistics.shed == (0, 34, 0, 0)


def test_a_hot_route_of_a_method_is_asked_though_its_class_is_closed():
    async def main():
        gateway = shop()
        hot = [
            ("POST", "/carts/*", lambda request: b"HTTP/1.1 204 No Content\r\n\r\n" if b"hot" in request.path else None)
        ]
        async with serving(gateway, classify=gateway.classify, first_lines=gateway.first_lines, hot=hot) as server:
            server.admission.close_from(Priority.USER)
            cold, warm = posted(b"POST", b"/carts/1/lines"), posted(b"POST", b"/carts/hot/lines")
            found = answers(await talk(server.port, cold + warm + cold + warm))
        gateway.close()
        return [one.status for one in found]

    assert asyncio.run(main()) == [503, 204, 503, 204]


def test_what_a_hot_route_leaves_to_the_application_is_refused_with_the_others_and_rests():
    async def main():
        async with crowded() as (server, reader, writer):
            server.hot("GET", "/crawl", lambda _request: None)
            writer.write((b"GET /crawl HTTP/1.1\r\n" + HOST + b"\r\n") * 40)
            said = b""
            for _ in range(40):
                said += await reader.readuntil(b"}}}")
            resting = server.statistics().resting
            server.resting.close()
            return [one.status for one in answers(said)], resting

    assert asyncio.run(main()) == ([503] * 40, 1)


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        (b"GETS/crawl HTTP/1.1", b"", 501),
        (b"GET /crawl HTTP/1.0", b"", 503),
        (b"GET /crawl HTTP/9.1", b"", 400),
        (b"GET /crawl HTTP/1.1", b"Content-Length: 3\r\n", 503),
    ],
)
def test_what_only_resembles_a_line_that_was_seen_before_is_looked_at_and_ends_the_connection(line, fields, status):
    crawl, pay = (b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" for path in (b"/crawl", b"/pay"))
    found, _ = said(crawl * 2 + line + b"\r\n" + HOST + fields + b"\r\n" + b"a=b" * bool(fields) + pay)
    assert [one.status for one in found] == [503, 503, status]
