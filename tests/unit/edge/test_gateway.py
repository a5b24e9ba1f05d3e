import asyncio
import json

import msgspec
import pytest
from tests.unit.edge.serving import serving

from fourplane.control import exporters
from fourplane.edge.gateway import Gateway, GatewaySettings
from fourplane.edge.http_client import HttpClient
from fourplane.edge.routes import Priority, Reply, Route, SocketRoute, StaticFolder
from fourplane.foundation import telemetry
from fourplane.foundation.errors import Conflict, Misconfigured, Overloaded, Unavailable
from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry
from fourplane.service.accounts import Accounts
from fourplane.state.stores import Stores, StoresSettings


class Line(msgspec.Struct):
    product: str
    count: int


class Cart(msgspec.Struct):
    lines: list[Line]


class Echoed(msgspec.Struct):
    text: str


async def echo(call):
    return Echoed(f"{call.params} {call.query} {call.identity and call.identity.name} {call.request_id}")


async def put_cart(call):
    return call.body


async def raw(call):
    return Reply(call.body[::-1], status=201, media_type="application/octet-stream", headers={"x-own": "1"})


async def nothing(_call):
    return None


async def page(_call):
    return Reply(b"<h1>hi</h1>")


async def trace(_call):
    return {"trace": telemetry.current_trace()}


async def conflict(_call):
    raise Conflict("stock moved on", sku="a")


async def overloaded(_call):
    raise Overloaded("busy", retry_after_s=2.4)


async def unavailable(_call):
    raise Unavailable("gone")


async def bug(_call):
    return 1 // 0


async def hangs(_call):
    await asyncio.Event().wait()


async def stream(_call):
    async def pieces():
        yield b"a"
        yield b"b"

    return Reply(pieces(), media_type="text/plain")


DOORS = [
    Route("GET", "/t/api/echo/{one}/{two}", echo, "Echo", answer=Echoed),
    Route("GET", "/t/api/mine", echo, "Mine", access="user"),
    Route("GET", "/t/api/admin", echo, "Admin", access="operator"),
    Route("POST", "/t/api/cart", put_cart, "Cart", body=Cart, answer=Cart, priority=Priority.CRITICAL, body_max=200),
    Route("POST", "/t/api/raw", raw, "Raw", body=bytes, body_max=1_000),
    Route("DELETE", "/t/api/raw", nothing, "Nothing"),
    Route("GET", "/t/", page, "Page"),
    Route("GET", "/t/api/trace", trace, "Trace"),
    Route("GET", "/t/api/conflict", conflict, "Conflict"),
    Route("GET", "/t/api/overloaded", overloaded, "Overloaded"),
    Route("GET", "/t/api/unavailable", unavailable, "Unavailable"),
    Route("GET", "/t/api/bug", bug, "Bug"),
    Route("GET", "/t/api/hangs", hangs, "Hangs"),
    Route("GET", "/t/api/stream", stream, "Stream"),
    Route("GET", "/t/api/limited", nothing, "Limited", rate_per_s=1.0),
]


def ask(*requests, doors=(), **changes):
    """The answers to `(method, path, options)`, all over one gateway with a real account `ada` (operator) and `bob`."""

    async def main():
        registry = Registry()
        stores = Stores(StoresSettings(sql="memory://"))
        tasks = Tasks("test", asyncio.get_running_loop().create_future())
        accounts = Accounts(await stores.sql("accounts"), ids=IdGenerator())
        await accounts.start(tasks)
        tokens = {}
        for name, roles in (("ada", ["operator"]), ("bob", [])):
            tokens[name] = await accounts.open_session(await accounts.create(name, f"secret of {name}", roles=roles))
        tokens["link"] = await accounts.operator_link()
        every = [*DOORS, *doors, *exporters.doors(registry, lambda: True)]
        gateway = Gateway(every, accounts, registry=registry, settings=GatewaySettings(**changes))
        found = []
        async with serving(
            gateway, registry=registry, sockets=gateway.open_socket, classify=gateway.classify
        ) as server:
            client = HttpClient("127.0.0.1", server.port)
            for method, path, *rest in requests:
                options = dict(rest[0]) if rest else {}
                headers = {name: value.format(**tokens) for name, value in options.pop("headers", {}).items()}
                found.append(await client.request(method, path.format(**tokens), headers=headers, **options))
            client.close()
        gateway.close()
        await tasks.cancel()
        await accounts.stop()
        await stores.stop()
        return found

    return asyncio.run(main())


def error(answer):
    return json.loads(answer.body)["error"]


def test_parameters_query_and_request_id_reach_the_handler():
    [found] = ask(("GET", "/t/api/echo/a%2Fb/c%20d?q=1&e=%C3%A4&q2=", {"headers": {"X-Request-Id": "mine-7"}}))
    text = json.loads(found.body)["text"]
    assert text == "{'one': 'a/b', 'two': 'c d'} {'q': '1', 'e': 'ä', 'q2': ''} None mine-7"
    assert found.headers["x-request-id"] == "mine-7"
    assert found.headers["cache-control"] == "no-store"


def test_a_strange_request_id_is_replaced():
    [found] = ask(("GET", "/t/api/trace", {"headers": {"X-Request-Id": "a b<script>"}}))
    assert len(found.headers["x-request-id"]) == 16


def test_a_traceparent_names_the_trace():
    value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    [found] = ask(("GET", "/t/api/trace", {"headers": {"traceparent": value}}))
    trace, _, ours = json.loads(found.body)["trace"].partition("-")
    assert trace == "0af7651916cd43dd8448eb211c80319c"
    assert found.headers["traceresponse"] == f"00-{trace}-{ours}-01"
    assert ours != "b7ad6b7169203331", "a span of its own"


def test_bodies_are_decoded_and_wrong_fields_named():
    good, wrong, broken, big = ask(
        ("POST", "/t/api/cart", {"body": b'{"lines":[{"product":"a","count":2}]}'}),
        ("POST", "/t/api/cart", {"body": b'{"lines":[{"product":"a","count":"2"}]}'}),
        ("POST", "/t/api/cart", {"body": b'{"lines":['}),
        ("POST", "/t/api/cart", {"body": b" " * 201}),
    )
    assert json.loads(good.body) == {"lines": [{"product": "a", "count": 2}]}
    assert (wrong.status, error(wrong)["code"], error(wrong)["fields"]) == (400, "invalid", {"at": "$.lines[0].count"})
    assert (broken.status, error(broken)["code"]) == (400, "not_json")
    assert (big.status, error(big)["code"]) == (413, "too_large")


def test_raw_bodies_replies_streams_and_nothing():
    reply, none, streamed = ask(
        ("POST", "/t/api/raw", {"body": b"abc"}), ("DELETE", "/t/api/raw"), ("GET", "/t/api/stream")
    )
    assert (reply.status, reply.body, reply.headers["x-own"]) == (201, b"cba", "1")
    assert (none.status, none.body) == (204, b"")
    assert streamed.body == b"ab"


def test_pages_carry_security_headers():
    [found] = ask(("GET", "/t/"))
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-type"] == "text/html; charset=utf-8"


def test_errors_have_their_status_and_shape():
    found = ask(*[("GET", f"/t/api/{name}") for name in ("conflict", "overloaded", "unavailable", "bug", "nowhere")])
    assert [one.status for one in found] == [409, 503, 503, 500, 404]
    assert error(found[0]) == {"code": "conflict", "message": "stock moved on", "fields": {"sku": "a"}}
    assert found[1].headers["retry-after"] == "3"
    assert error(found[3])["code"] == "internal"
    assert "ZeroDivisionError" not in found[3].body.decode()


def test_a_browser_gets_a_page_for_an_error():
    [found] = ask(("GET", "/t/nowhere", {"headers": {"Accept": "text/html,*/*"}}))
    assert found.status == 404
    assert b"<!doctype html>" in found.body


def test_methods_head_and_options():
    wrong, head, options = ask(("PUT", "/t/api/raw"), ("HEAD", "/t/api/echo/a/b"), ("OPTIONS", "/t/api/raw"))
    assert (wrong.status, wrong.headers["allow"]) == (405, "DELETE, OPTIONS, POST")
    assert (head.status, head.body) == (200, b"")
    assert (options.status, options.headers["allow"]) == (204, "DELETE, OPTIONS, POST")


def test_a_handler_that_hangs_is_ended():
    [found] = ask(("GET", "/t/api/hangs"), handler_s_max=0.0)
    assert (found.status, error(found)["code"]) == (504, "deadline_exceeded")


def test_only_known_hosts_are_answered():
    found = ask(
        ("GET", "/t/", {"headers": {"Host": "evil.example:8000"}}),
        ("GET", "/t/", {"headers": {"Host": "LOCALHOST:1"}}),
        ("GET", "/t/", {"headers": {"Host": "[::1]:8000"}}),
    )
    assert [one.status for one in found] == [421, 200, 200]


def test_unsafe_requests_of_foreign_pages_are_refused():
    def origin(value):
        return ("DELETE", "/t/api/raw", {"headers": {"Origin": value, "Host": "localhost:8000"}})

    found = ask(
        origin("http://localhost:8000"),
        origin("http://localhost:9000"),
        origin("http://evil.example"),
        origin("null"),
        origin("https://shop.example"),
        ("GET", "/t/", {"headers": {"Origin": "http://evil.example"}}),
        origins=("https://shop.example",),
    )
    assert [one.status for one in found] == [204, 403, 403, 403, 204, 200]


def test_access_by_cookie_and_bearer():
    cookie = {"Cookie": "a=b; fourplane_session={bob}; c=d"}
    found = ask(
        ("GET", "/t/api/mine"),
        ("GET", "/t/api/mine", {"headers": cookie}),
        ("GET", "/t/api/mine", {"headers": {"Authorization": "Bearer {bob}"}}),
        ("GET", "/t/api/mine", {"headers": {"Authorization": "Bearer 0123"}}),
        ("GET", "/t/api/admin", {"headers": cookie}),
        ("GET", "/t/api/admin", {"headers": {"Authorization": "Bearer {ada}"}}),
    )
    assert [one.status for one in found] == [401, 200, 200, 401, 403, 200]
    assert " bob " in found[1].body.decode()


def test_log_in_and_out():
    body = msgspec.json.encode({"name": "Bob", "password": "secret of bob"})
    wrong = msgspec.json.encode({"name": "Bob", "password": "nope"})
    good, bad, visitor = ask(
        ("POST", "/api/session", {"body": body}), ("POST", "/api/session", {"body": wrong}), ("GET", "/api/session")
    )
    assert good.status == 200
    assert json.loads(good.body)["name"] == "bob"
    assert "HttpOnly; SameSite=Lax" in good.headers["set-cookie"]
    assert bad.status == 401
    assert json.loads(visitor.body)["logged_in"] is False
    bearer = {"headers": {"Authorization": "Bearer {bob}"}}
    out, after = ask(("DELETE", "/api/session", bearer), ("GET", "/t/api/mine", bearer))
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert after.status == 401


def test_the_operator_link_works_once():
    first, second = ask(("GET", "/api/operator?token={link}"), ("GET", "/api/operator?token={link}"))
    assert (first.status, first.headers["location"]) == (303, "/")
    assert "fourplane_session=" in first.headers["set-cookie"]
    assert second.status == 401


def test_callers_are_limited_by_route_and_in_all():
    found = ask(*[("GET", "/t/api/limited")] * 3)
    assert [one.status for one in found] == [204, 204, 429]
    assert int(found[2].headers["retry-after"]) >= 1
    assert found[0].headers["ratelimit-limit"] == "2"
    some = ask(*[("GET", "/t/api/trace")] * 4, rate_per_s=1.0, burst_s=3.0)
    assert [one.status for one in some] == [200, 200, 200, 429]


def test_static_folders_lie_behind_routes(tmp_path):
    (tmp_path / "app.js").write_text("1;" * 1000)
    (tmp_path / "index.html").write_text("<p>x</p>")
    folder = StaticFolder("/t/", tmp_path)
    script, page_route, missing, post = ask(
        ("GET", "/t/app.js"), ("GET", "/t/"), ("GET", "/t/no.js"), ("POST", "/t/app.js"), doors=[folder]
    )
    assert script.body == b"1;" * 1000
    assert page_route.body == b"<h1>hi</h1>"
    assert (missing.status, post.status) == (404, 405)


def test_metrics_and_health():
    found = ask(("GET", "/t/"), ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz"))
    text = found[1].body.decode()
    assert 'fourplane_edge_requests_total{route="GET /t/"} 1' in text
    assert "# TYPE fourplane_edge_request_seconds histogram" in text
    assert [one.status for one in found] == [200, 200, 200, 200]


def test_the_api_is_described_for_programs_and_people():
    described, listed, *again = ask(
        ("GET", "/openapi.json"), ("GET", "/api/"), ("GET", "/openapi.json"), ("GET", "/api/")
    )
    paths = json.loads(described.body)["paths"]
    assert "/t/api/cart" in paths
    assert "/openapi.json" not in paths
    assert b"/t/api/echo/{one}/{two}" in listed.body
    assert [one.body for one in again] == [described.body, listed.body]


def test_two_doors_on_one_path_are_refused():
    with pytest.raises(Misconfigured):
        ask(doors=[Route("GET", "/t/", page, "Again")])


def test_websocket_doors_check_origin_and_access():
    async def session(socket):
        socket.send(f"{socket.identity and socket.identity.name} {dict(socket.query)}")

    doors = [SocketRoute("/t/ws", session, "Socket"), SocketRoute("/t/mine", session, "Mine", access="user")]
    upgrade = {
        "Connection": "upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Host": "localhost",
    }
    found = ask(
        ("GET", "/t/ws", {"headers": {**upgrade, "Origin": "http://evil.example"}}),
        ("GET", "/t/mine", {"headers": upgrade}),
        ("GET", "/t/none", {"headers": upgrade}),
        ("GET", "/t/ws", {"headers": {**upgrade, "Sec-WebSocket-Version": "12"}}),
        ("GET", "/t/ws", {"headers": {**upgrade, "Host": "evil"}}),
        doors=doors,
    )
    assert [one.status for one in found] == [403, 401, 404, 426, 421]
