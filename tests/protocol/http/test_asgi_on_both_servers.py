"""One suite of ASGI behaviour on our server and on uvicorn: what an application may rely on is the same."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from tests.unit.edge.serving import serving, talk


@asynccontextmanager
async def on_ours(app):
    async with serving(app) as server:
        yield server.port


@asynccontextmanager
async def on_uvicorn(app):
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.get_running_loop().create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@pytest.fixture(params=[on_ours, on_uvicorn], ids=["ours", "uvicorn"])
def on(request):
    return request.param


def with_client(on, app, work):
    async def main():
        async with on(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            return await work(client, port)

    return asyncio.run(main())


async def echo(request: Request):
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "raw": request.scope["raw_path"].decode(),
            "query": dict(request.query_params),
            "header": request.headers.get("x-one"),
            "body": body.decode(),
            "scheme": request.scope["scheme"],
            "version": request.scope["http_version"],
        }
    )


async def stream(_request):
    async def pieces():
        for number in range(5):
            yield f"{number},"

    return StreamingResponse(pieces(), media_type="text/plain")


async def empty(_request):
    return PlainTextResponse(status_code=204)


async def fails(_request):
    raise ValueError("a bug")


APP = Starlette(
    routes=[
        Route("/echo/{rest:path}", echo, methods=["GET", "POST"]),
        Route("/stream", stream),
        Route("/empty", empty),
        Route("/fails", fails),
    ]
)


def test_scope_and_body_arrive(on):
    async def work(client, _port):
        answer = await client.post("/echo/a%20b/c?x=1&y=%C3%A4", content=b"hello", headers={"X-One": "two"})
        return answer.json()

    assert with_client(on, APP, work) == {
        "method": "POST",
        "path": "/echo/a b/c",
        "raw": "/echo/a%20b/c",
        "query": {"x": "1", "y": "ä"},
        "header": "two",
        "body": "hello",
        "scheme": "http",
        "version": "1.1",
    }


def test_streams_are_chunked_and_whole(on):
    async def work(client, _port):
        answer = await client.get("/stream")
        return answer.headers.get("transfer-encoding"), answer.text

    assert with_client(on, APP, work) == ("chunked", "0,1,2,3,4,")


def test_a_big_body_goes_up_in_pieces_and_comes_back(on):
    async def work(client, _port):
        async def pieces():
            for _ in range(40):
                yield b"x" * 50_000

        answer = await client.post("/echo/big", content=pieces())
        return len(answer.json()["body"])

    assert with_client(on, APP, work) == 2_000_000


def test_204_has_no_body_and_the_connection_goes_on(on):
    async def work(client, _port):
        first = await client.get("/empty")
        second = await client.get("/stream")
        return first.status_code, first.content, second.text

    assert with_client(on, APP, work) == (204, b"", "0,1,2,3,4,")


def test_head_has_headers_only(on):
    async def work(client, _port):
        answer = await client.head("/echo/x")
        return answer.status_code, answer.content

    status, body = with_client(on, APP, work)
    assert (status, body) == (200, b"")


def test_a_bug_is_a_500_and_the_server_goes_on(on):
    async def work(client, _port):
        return [(await client.get("/fails")).status_code, (await client.get("/stream")).status_code]

    assert with_client(on, APP, work) == [500, 200]


def test_an_application_that_says_nothing_is_a_500(on):
    async def silent(scope, receive, send):
        pass

    async def work(client, _port):
        return (await client.get("/")).status_code

    assert with_client(on, silent, work) == 500


def test_receive_tells_of_a_disconnect(on):
    seen = []

    async def app(scope, receive, send):
        left = asyncio.Event()
        seen.append(left)
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def work(_client, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        while not seen:
            await asyncio.sleep(0.001)
        writer.transport.abort()
        async with asyncio.timeout(5):
            await seen[0].wait()
        return True

    assert with_client(on, app, work)


def test_receive_after_the_answer_is_a_disconnect(on):
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        seen.append((await receive())["type"])

    async def work(client, _port):
        await client.get("/")
        return seen

    assert with_client(on, app, work) == ["http.disconnect"]


def test_headers_are_bytes_in_lower_case_and_repeated_fields_stay(on):
    seen = []

    async def app(scope, receive, send):
        seen.append([field for field in scope["headers"] if field[0].startswith(b"x-")])
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
            }
        )
        await send({"type": "http.response.body", "body": b""})

    async def work(client, _port):
        answer = await client.get("/", headers=[("X-A", "1"), ("X-A", "2")])
        return answer.headers.get_list("set-cookie")

    assert with_client(on, app, work) == ["a=1", "b=2"]
    assert seen == [[(b"x-a", b"1"), (b"x-a", b"2")]]


def test_a_slow_reader_holds_the_sender_back(on):
    state = {"sent": 0, "done": False}

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            state["sent"] += 1
        await send({"type": "http.response.body", "body": b""})
        state["done"] = True

    async def work(_client, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        before = -1
        while before != state["sent"] or not before:
            before = state["sent"]
            await asyncio.sleep(0.05)
        held = state["sent"]
        data = await reader.read(-1)
        writer.close()
        return held, len(data)

    held, size = with_client(on, app, work)
    assert held < 200
    assert size > 40_000_000
    assert state["done"]


def test_pipelined_requests_are_answered_in_order(on):
    async def work(_client, port):
        one = b"GET /echo/%d HTTP/1.1\r\nHost: a\r\n\r\n"
        last = b"GET /echo/last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        return await talk(port, b"".join(one % number for number in range(5)) + last, half_close=False)

    text = with_client(on, APP, work)
    places = [text.index(b'"/echo/%d"' % number) for number in range(5)] + [text.index(b'"/echo/last"')]
    assert places == sorted(places)
