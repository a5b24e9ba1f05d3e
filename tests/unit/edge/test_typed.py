"""A plain request of a route is answered without ASGI, and nobody can tell: both ways say the same."""

import asyncio

import msgspec
from tests.unit.edge.serving import answers, serving, talk

from fourplane.edge.exchange import TypedApp
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.routes import Priority, Reply, Route
from fourplane.foundation.errors import Conflict, Overloaded
from fourplane.foundation.telemetry import Registry


class Add(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sku: str
    quantity: int = 1


class Told(msgspec.Struct):
    text: str


async def told(call):
    await asyncio.sleep(0)
    return Told(f"{call.params} {call.query} {call.peer} {call.headers.get('x-one')} {call.body}")


async def made(call):
    return Reply(call.body, status=201, media_type="application/json", headers={"Location": "/t/1", "etag": '"1"'})


async def nothing(_call):
    return None


async def unchanged(_call):
    return Reply(status=304, headers={"etag": '"1"'})


async def page(_call):
    return Reply(b"<h1>hi</h1>")


async def sized(_call):
    return Reply(b"abc", headers={"content-length": "3", "connection": "close"})


async def stream(_call):
    async def pieces():
        yield b"a"
        await asyncio.sleep(0)
        yield b"b"

    return Reply(pieces(), media_type="text/plain")


async def conflict(_call):
    raise Conflict("stock moved on", sku="a")


async def busy(_call):
    raise Overloaded("busy", retry_after_s=2.4)


async def bug(_call):
    return 1 // 0


async def splits(call):
    return Reply(b"x", headers={"x-own": call.query["value"]})


async def breaks(_call):
    async def pieces():
        yield b"a"
        raise ValueError("a bug behind the head")

    return Reply(pieces(), media_type="text/plain")


DOORS = [
    Route("GET", "/t/api/told/{one}", told, "Told", answer=Told),
    Route("POST", "/t/api/told/{one}", told, "Told", body=Add, body_max=100, priority=Priority.CRITICAL),
    Route("PUT", "/t/api/made", made, "Made", body=bytes),
    Route("DELETE", "/t/api/nothing", nothing, "Nothing"),
    Route("GET", "/t/api/unchanged", unchanged, "Unchanged"),
    Route("GET", "/t/page", page, "Page"),
    Route("GET", "/t/sized", sized, "Says its length itself"),
    Route("GET", "/t/api/stream", stream, "Stream"),
    Route("GET", "/t/conflict", conflict, "Conflict"),
    Route("GET", "/t/api/busy", busy, "Busy"),
    Route("GET", "/t/api/bug", bug, "Bug"),
    Route("GET", "/t/api/splits", splits, "Splits"),
    Route("GET", "/t/api/breaks", breaks, "Breaks"),
    Route("GET", "/t/api/limited", nothing, "Limited", rate_per_s=0.001),
    Route("GET", "/t/api/mine", nothing, "Mine", access="user"),
]


def request(line, *fields, body=None):
    head = [line + " HTTP/1.1", "Host: localhost", "X-Request-Id: id-1", *fields]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


HTML = "Accept: text/html"
REQUESTS = [
    request("GET /t/api/told/a?q=1&empty=&twice=a&twice=b", "X-One:  yes\t", "Traceparent: 00-zz"),
    request("GET /t/api/told/a%2Fb?q=%C3%A4&p=a+b"),
    request("GET /t/api/told/a", "Cookie: a=b", "X-One: 1", "X-One: 2"),
    request("POST /t/api/told/a", body=b'{"sku":"x","quantity":2}'),
    request("POST /t/api/told/a", body=b'{"sku":"x","quantity":"2"}'),
    request("POST /t/api/told/a", body=b"{"),
    request("POST /t/api/told/a", body=b'{"sku":"' + b"x" * 100 + b'"}'),
    request("POST /t/api/told/a", "Origin: http://evil.example", body=b'{"sku":"x"}'),
    request("PUT /t/api/made", body=b"raw"),
    request("DELETE /t/api/nothing"),
    request("PATCH /t/api/nothing"),
    request("GET /t/api/unchanged"),
    request("GET /t/page", HTML),
    request("GET /t/api/stream"),
    request("GET /t/conflict"),
    request("GET /t/conflict", HTML),
    request("GET /t/api/busy"),
    request("GET /t/api/splits?value=a%0D%0Ax-evil:%201"),
    request("GET /t/api/mine"),
    request("GET /t/nowhere", HTML),
    request("GET /t/page").replace(b"localhost", b"evil.example"),
    request("GET /t/api/limited"),
    request("GET /t/api/limited"),
    request("GET /t/api/limited", HTML),
    request("GET /t/api/bug"),
]


async def both_ways(work):
    """What `work` finds of one gateway with the shorter way, and of one without it."""
    found = []
    for short in (True, False):
        registry = Registry()
        gateway = Gateway(DOORS, None, registry=registry, settings=GatewaySettings())
        assert isinstance(gateway, TypedApp)
        taken = []

        def app(scope, receive, send, gateway=gateway, taken=taken):
            taken.append(scope["path"])
            return gateway(scope, receive, send)

        if short:
            app.typed = gateway.typed
        async with serving(app, registry=registry, classify=gateway.classify) as server:
            found.append((await work(server), taken, registry))
        gateway.close()
    return found


CHANGING = {"traceresponse", "ratelimit-remaining", "retry-after"}  # with time and chance


def seen(data):
    found = answers(data)
    for one in found:
        assert one.headers.pop("date")
        for changing in CHANGING & one.headers.keys():
            one.headers[changing] = ""
    return [(one.status, sorted(one.headers.items()), one.body) for one in found]


def test_both_ways_say_the_same():
    async def work(server):  # the second request of each connection ends it
        return [await talk(server.port, one + request("GET /t/sized"), half_close=False) for one in REQUESTS]

    (short, by_asgi, _), (long, all_by_asgi, _) = asyncio.run(both_ways(work))
    for asked, one, other in zip(REQUESTS, short, long, strict=True):
        assert seen(one) == seen(other), asked
        assert len(seen(one)) == 2
    assert len(all_by_asgi) == 2 * len(REQUESTS)
    assert len(by_asgi) == 3, "an encoded path, a verb that is not there, a path that is not there"


def test_pipelined_requests_are_answered_in_their_order():
    async def work(server):
        names = "abcdef"
        data = await talk(server.port, b"".join(request(f"GET /t/api/told/{name}") for name in names))
        return [one.body[:30] for one in answers(data)]

    (short, by_asgi, _), (long, _, _) = asyncio.run(both_ways(work))
    assert short == long
    assert len(short) == 6
    assert not by_asgi


def test_a_stream_that_breaks_is_cut():
    async def work(server):
        return await talk(server.port, request("GET /t/api/breaks"), half_close=False)

    for data, _, registry in asyncio.run(both_ways(work)):
        assert b"200 OK" in data
        assert not data.endswith(b"0\r\n\r\n"), "never ended as if it were whole"
        assert any("a bug behind the head" in event.text for event in registry.events)


def waiting(registry):
    """A gateway whose one route says that it has begun and answers when it may go on."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def waits(_call):
        entered.set()
        await go_on.wait()
        return Told("done")

    return Gateway([Route("GET", "/t/waits", waits, "Waits")], None, registry=registry), entered, go_on


def test_who_left_gets_no_answer_and_is_counted():
    async def main():
        registry = Registry()
        gateway, entered, go_on = waiting(registry)
        async with serving(gateway, registry=registry, classify=gateway.classify) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("GET /t/waits"))
            await entered.wait()
            assert server.statistics().in_flight == 1
            next(iter(server._connections)).transport.abort()  # as a reset would
            while server.statistics().connections:
                await asyncio.sleep(0)
            go_on.set()
            while server.statistics().in_flight:
                await asyncio.sleep(0)
            writer.close()
            errors = registry.counter("fourplane_edge_errors_total", route="GET /t/waits").value
            asked = registry.counter("fourplane_edge_requests_total", route="GET /t/waits").value
        gateway.close()
        return asked, errors

    assert asyncio.run(main()) == (1, 0)


def test_a_drain_ends_the_connection_with_the_answer():
    async def main():
        registry = Registry()
        gateway, entered, go_on = waiting(registry)
        async with serving(gateway, registry=registry, classify=gateway.classify) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("GET /t/waits"))
            await entered.wait()
            async with asyncio.TaskGroup() as group:
                group.create_task(server.drain())
                await asyncio.sleep(0)
                go_on.set()
                data = await reader.read(-1)
            writer.close()
        gateway.close()
        return answers(data)

    [answer] = asyncio.run(main())
    assert answer.headers["connection"] == "close"
    assert answer.body == b'{"text":"done"}'
