"""The short way for hot GETs accepts nothing that the parser would refuse or read differently."""

import httptools
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fourplane.edge.http_request import PLAIN_BLOCK, PLAIN_GET, PLAIN_HEAD, PLAIN_LINE, plain_request

LINES = st.sampled_from(
    [
        b"Host: localhost",
        b"host:a:80",
        b"HOST:\tb ",
        b"Host: a/b",
        b"X: y",
        b"X:",
        b"X-Long: " + b"v" * 50,
        b"X : y",
        b" folded",
        b"X: \x01",
        b"X: \x7f",
        b"X: \xc3\xa4",
        b"X: a\rb",
        b"X: a\nb",
        b": y",
        b"X",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection:keep-alive",
        b"Content-Length: 3",
        b"CONTENT-LENGTH:0",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"\xff: y",
    ]
)
TARGETS = st.sampled_from([b"/", b"/a?b=c", b"/a b", b"/\xc3\xa4", b"/%20", b'/"', b"/#x", b"/\x7f", b"/a?b?c"])


class Seen:
    def __init__(self):
        self.url, self.fields, self.whole = b"", [], 0

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_message_complete(self):
        self.whole += 1


@settings(max_examples=600, deadline=None)
@given(TARGETS, st.lists(LINES, max_size=6))
@example(b"/", [b"Host: localhost", b"X: y"])
def test_what_is_taken_is_what_the_parser_reads(target, lines):
    data = b"GET " + target + b" HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    request = plain_request(data, "peer")
    if request is None:
        return
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(data)
    assert seen.whole == 1
    assert seen.url == request.target
    assert seen.fields == request.headers
    assert parser.should_keep_alive()
    names = [name for name, _ in seen.fields]
    assert names.count(b"host") == 1
    assert not {b"content-length", b"transfer-encoding", b"expect", b"upgrade"} & set(names)


def test_common_requests_are_taken():
    browser = b"GET /hot?x=1 HTTP/1.1\r\nHost: localhost:8000\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n"
    request = plain_request(browser, "peer")
    assert (request.path, request.query, request.header(b"host")) == (b"/hot", b"x=1", b"localhost:8000")
    assert request.header(b"accept") == b"*/*"


def test_an_empty_length_is_not_plain():
    for field in (b"Content-Length:", b"Content-Length: "):
        assert PLAIN_HEAD.match(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + field + b"\r\n\r\nGET /b") is None


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([b"GET", b"POST", b"PUT", b"get", b"GETS"]), TARGETS, st.lists(LINES, max_size=6))
@example(b"POST", b"/", [b"Host: localhost", b"Content-Length: 3"])
def test_line_and_fields_by_themselves_are_as_strict_as_the_whole_head(method, target, lines):
    line = method + b" " + target + b" HTTP/1.1"
    block = b"".join(b"\r\n" + line for line in lines) + b"\r\n\r\n"
    first, fields = PLAIN_LINE.fullmatch(line), PLAIN_BLOCK.fullmatch(block)
    whole = PLAIN_GET.fullmatch(line + block) or PLAIN_HEAD.fullmatch(line + block)
    if method == b"GET" and fields is not None and (fields[2] or fields[3]) is not None:
        fields = None  # a GET with a length is for the parser
    assert (first is not None and fields is not None) == (whole is not None)
    if whole is not None:
        assert first[2] == target
        if method != b"GET":
            assert (whole[4] or whole[5]) == (fields[2] or fields[3])
