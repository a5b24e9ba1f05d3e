"""A connection that is gone leaves nothing for the garbage collector to look for."""

import asyncio
import gc

import pytest
from tests.unit.edge.serving import HOST, serving, talk

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"], ids=["plain", "parsed"])
def test_it_goes_with_its_last_deadline(extra):
    async def main():
        async with serving(None, hot=[("GET", "/hot", lambda _: ANSWER)]) as server:
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    assert b"200 OK" in await talk(server.port, b"GET /hot HTTP/1.1\r\n" + HOST + extra + b"\r\n")
                async with asyncio.timeout(10):
                    while server.statistics().connections:
                        await asyncio.sleep(0.01)
                server.deadlines.close()
                left = [type(one).__name__ for one in gc.get_objects()]
            finally:
                gc.enable()
            assert not {"HttpProtocol", "HttpRequestParser", "HttpRequest"} & set(left)

    asyncio.run(main())
