import asyncio

import pytest
from tests.unit.edge.serving import echo_app, serving

from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation.errors import DeadlineExceeded, Overloaded, Rejected, TooLarge, Unavailable


class Scripted(asyncio.Protocol):
    """A server that answers each piece it gets with the next line of a script; None closes."""

    def __init__(self, script, seen):
        self.script, self.seen = script, seen

    def connection_made(self, transport):
        self.transport = transport
        self.seen.append("open")

    def data_received(self, data):
        self.seen.append(data.split(b" ", 1)[0].decode())
        step = self.script.pop(0) if self.script else None
        if step is None:
            self.transport.close()
        elif step != b"":
            self.transport.write(step)
            if step.endswith(b"CLOSE"):
                self.transport.close()


def scripted(script, work, **bounds):
    async def main():
        seen = []
        server = await asyncio.get_running_loop().create_server(lambda: Scripted(script, seen), "127.0.0.1", 0)
        client = HttpClient("127.0.0.1", server.sockets[0].getsockname()[1], settings=HttpClientSettings(**bounds))
        try:
            return await work(client), seen
        finally:
            client.close()
            server.close()

    return asyncio.run(main())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nX-A: 2\r\n\r\nok"


def test_connections_are_kept_and_used_again():
    async def work(client):
        return [await client.request("GET", "/"), await client.request("POST", "/", body=b"x"), client.statistics()]

    (first, second, statistics), seen = scripted([OK, OK], work)
    assert (first.status, first.body, first.headers["x-a"]) == (200, b"ok", "1, 2")
    assert second.body == b"ok"
    assert seen == ["open", "GET", "POST"]
    assert (statistics.connects, statistics.idle, statistics.lent) == (1, 1, 0)


def test_an_idempotent_request_on_a_closed_kept_connection_is_sent_again():
    async def work(client):
        await client.request("GET", "/")
        return await client.request("GET", "/")

    answer, seen = scripted([OK, None, OK], work)
    assert answer.status == 200
    assert seen == ["open", "GET", "GET", "open", "GET"]


def test_a_post_is_never_sent_twice():
    async def work(client):
        await client.request("GET", "/")
        with pytest.raises(Unavailable) as caught:
            await client.request("POST", "/", body=b"x")
        return caught.value.reason

    reason, seen = scripted([OK, None, OK], work)
    assert reason == "no_answer"
    assert seen == ["open", "GET", "POST"]


def test_a_first_use_is_never_repeated():
    async def work(client):
        with pytest.raises(Unavailable):
            await client.request("GET", "/")

    assert scripted([None, OK], work)[1] == ["open", "GET"]


def test_a_cut_answer_is_told_even_on_a_kept_connection():
    async def work(client):
        await client.request("GET", "/")
        with pytest.raises(Unavailable) as caught:
            await client.request("GET", "/")
        return caught.value.reason

    assert scripted([OK, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nCLOSE"], work)[0] == "answer_cut"


def test_a_body_without_length_ends_with_the_connection():
    async def work(client):
        answer = await client.request("GET", "/")
        return answer.body, client.statistics().idle

    assert scripted([b"HTTP/1.1 200 OK\r\n\r\nabcCLOSE"], work)[0] == (b"abcCLOSE", 0)


def test_interim_answers_are_skipped_and_head_has_no_body():
    async def work(client):
        first = await client.request("GET", "/")
        head = await client.request("HEAD", "/")
        last = await client.request("GET", "/")
        return first.body, head.body, head.headers["content-length"], last.body

    script = [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", OK]
    result, seen = scripted(script, work)
    assert result == (b"ok", b"", "50", b"ok")
    assert seen.count("open") == 1


def test_bytes_nobody_asked_for_end_the_connection():
    async def work(client):
        await client.request("GET", "/")
        return (await client.request("GET", "/")).status

    status, seen = scripted([OK + OK, OK], work)
    assert status == 200
    assert seen.count("open") == 2


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n"])
def test_garbage_is_an_error_of_ours(garbage):
    async def work(client):
        with pytest.raises(Unavailable):
            await client.request("GET", "/")

    scripted([garbage], work)


def test_bounds_of_size_and_time():
    async def work(client):
        with pytest.raises(TooLarge):
            await client.request("GET", "/", body_max=1)
        with pytest.raises(DeadlineExceeded):
            await client.request("GET", "/", timeout_s=0.01)
        return client.statistics()

    statistics, _ = scripted([OK, b""], work)
    assert (statistics.lent, statistics.idle) == (0, 0)


def test_a_busy_pool_makes_callers_wait_in_order_and_no_more_than_allowed():
    async def work(client):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.request("GET", "/")) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await client.request("GET", "/")
        return [task.result().status for task in tasks], client.statistics().connects

    assert scripted([OK, OK, OK], work, connections_max=1, waiting_max=2)[0] == ([200, 200, 200], 1)


@pytest.mark.parametrize("path", ["x", "/a b", "/a\r\nX: y", "/ä"])
def test_a_path_cannot_carry_anything_else(path):
    async def work(client):
        with pytest.raises(Rejected):
            await client.request("GET", path)
        with pytest.raises(Rejected):
            await client.request("GET", "/", headers={"x": "a\r\nb: c"})

    scripted([], work)


def test_nobody_there_is_unavailable():
    async def main():
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        with pytest.raises(Unavailable) as caught:
            await HttpClient("127.0.0.1", port).request("GET", "/")
        return caught.value.reason

    assert asyncio.run(main()) == "unreachable"


def test_streams_come_in_pieces_and_may_be_left_early():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def main():
        async with serving(app) as server:
            client = HttpClient("127.0.0.1", server.port, settings=HttpClientSettings(buffer_bytes_max=200_000))
            async with client.stream("GET", "/") as stream:
                size = 0
                async for piece in stream:
                    size += len(piece)
            async with client.stream("GET", "/") as stream:
                async for _ in stream:
                    break
            statistics = client.statistics()
            client.close()
            return size, statistics

    size, statistics = asyncio.run(main())
    assert size == 10_000_000
    assert (statistics.lent, statistics.idle) == (0, 0)


def test_big_uploads_arrive():
    async def main():
        async with serving(echo_app) as server:
            client = HttpClient("127.0.0.1", server.port)
            answer = await client.request("PUT", "/x", body=b"y" * 3_000_000)
            client.close()
            return len(answer.body)

    assert asyncio.run(main()) == 3_000_000 + len("PUT /x? ")
