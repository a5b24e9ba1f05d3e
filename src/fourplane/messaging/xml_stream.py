"""Where stanzas begin and end in a stream of bytes (RFC 6120, section 11), without ever building a tree.

Idea: expat runs over the bytes as they come and tells where a top-level element starts and ends; the stanza is the slice
between. It is forwarded as those bytes, so nothing is parsed into a tree and written out again. A parser costs 16 kB,
and nearly all streams stand between two stanzas at any moment; there a parser knows nothing that is theirs. So
parsers live in a stack: a stream borrows one for the bytes that came, and keeps it only if they end inside a stanza.

Invariants: a slice is handed out only after expat accepted all of it, end tag included; a parser returns to the stack
only at depth 1 with nothing pending; a parser is retired after `RETIRE_BYTES`, because expat keeps every name it ever saw.
Refused: DTDs, comments, processing instructions, foreign entities, more depth, attributes or bytes than allowed.
Cost: about 2.5 us for a chat message on one core of 2026.
"""

from pyexpat import ExpatError, ParserCreate, XMLParserType, errors
from sys import maxsize

import msgspec

from fourplane.foundation.errors import FourplaneError

CLIENT = "jabber:client"
STREAMS = "http://etherx.jabber.org/streams"
FRAMING = "urn:ietf:params:xml:ns:xmpp-framing"
PRIMER = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
RETIRE_BYTES = 8 << 20
SPARE_MAX = 64
TOKEN_MAX = 64 * 1024
HEADERS_REMEMBERED_MAX = 1_000
HEADER_REMEMBERED_BYTES = 500
SPACE = b" \t\r\n"

MESSAGE = "jabber:client message"
PRESENCE = "jabber:client presence"
IQ = "jabber:client iq"


class StreamError(FourplaneError):
    """The stream itself is wrong and ends; `condition` is RFC 6120's name for why."""

    code = "stream_error"

    def __init__(self, condition: str, text: str = "") -> None:
        super().__init__(text or condition)
        self.condition = condition
        self.text = text


class Stanza(msgspec.Struct, eq=False, gc=False):
    """One top-level element: qualified name, attributes, qualified names of its children, and its bytes."""

    name: str
    attributes: dict[str, str]
    children: list[str]
    raw: bytes
    end: int = 0  # its parser's index behind it

    @property
    def kind(self) -> str | None:
        """Its type, as it says itself."""
        return self.attributes.get("type")


class Framer:
    """One parser at depth 1 of a stream; `feed` may be given any stream's bytes as long as it is `idle`."""

    __slots__ = (
        "_attributes",
        "_attributes_max",
        "_begin",
        "_buffer",
        "_children",
        "_depth",
        "_depth_max",
        "_end",
        "_fed",
        "_name",
        "_origin",
        "_out",
        "_parser",
        "closed",
        "idle",
    )

    def __init__(self, depth_max: int, attributes_max: int) -> None:
        parser: XMLParserType = ParserCreate("UTF-8", " ")
        self._parser = parser
        self._depth_max = depth_max
        self._attributes_max = attributes_max
        self._depth = 0
        self._fed = 0  # bytes given to expat
        self._origin = 0  # expat's index of the first byte of _buffer
        self._buffer = b""  # the unfinished stanza, then the newest bytes
        self._begin = self._end = 0
        self._name = ""
        self._attributes: dict[str, str] = {}
        self._children: list[str] = []
        self._out: list[Stanza] = []
        self.closed = False  # the stream's end tag was seen
        self.idle = True
        parser.StartElementHandler = self._start_element
        parser.EndElementHandler = self._end_element
        parser.CommentHandler = _refuse_comment
        parser.ProcessingInstructionHandler = _refuse_instruction
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.Parse(PRIMER, False)
        self._fed = self._end = len(PRIMER)

    @property
    def worn(self) -> bool:
        """Whether it has seen so much that a new one is due."""
        return self._fed > RETIRE_BYTES

    def feed(self, data: bytes, size_max: int) -> list[Stanza]:
        """The stanzas completed by `data`; raises StreamError, after which complete ones are in `accepted()`."""
        self._out = []
        if self.idle:
            self._buffer = data
            self._origin = self._fed
            self._end = self._fed
        else:
            if len(self._buffer) + len(data) > size_max and b">" not in data:
                raise StreamError("policy-violation", f"a stanza may have {size_max} bytes")
            self._buffer += data
        self._fed += len(data)
        try:
            self._parser.Parse(data, False)
        except ExpatError as error:
            raise self._refused(error) from None
        rest = self._end - self._origin
        buffer = self._buffer
        if rest == len(buffer) or (self._depth == 1 and not buffer[rest:].strip(b" \t\n")):
            self.idle = True
            self._buffer = b""
        else:
            self.idle = False
            self._keep_rest(rest, size_max)
        return self._out

    @property
    def unfinished(self) -> bytes:
        """The bytes of a stanza that is not complete yet."""
        return b"" if self.idle else self._buffer

    def accepted(self) -> list[Stanza]:
        """Stanzas that were complete and right before the error that `feed` raised."""
        place = self._parser.ErrorByteIndex if self._parser.ErrorByteIndex >= 0 else self._fed
        return [stanza for stanza in self._out if stanza.end <= place]

    def _keep_rest(self, rest: int, size_max: int) -> None:
        if self.closed:
            return
        if self._depth == 1:
            text = self._buffer[rest:].lstrip(SPACE)
            if text and not text.startswith(b"<"):
                raise StreamError("not-well-formed", "text between stanzas")
        if rest:
            self._buffer = self._buffer[rest:]
            self._origin += rest
        if len(self._buffer) > size_max:
            raise StreamError("policy-violation", f"a stanza may have {size_max} bytes")
        if self._fed - self._parser.CurrentByteIndex > TOKEN_MAX:
            raise StreamError("policy-violation", f"a tag may have {TOKEN_MAX} bytes")

    def _start_element(self, name: str, attributes: dict[str, str]) -> None:
        depth = self._depth
        self._depth = depth + 1
        if len(attributes) > self._attributes_max:
            raise StreamError("policy-violation", f"an element may have {self._attributes_max} attributes")
        if depth == 2:
            self._children.append(name)
        elif depth == 1:
            begin = self._parser.CurrentByteIndex
            if begin != self._end and self._buffer[self._end - self._origin : begin - self._origin].strip(SPACE):
                raise StreamError("not-well-formed", "text between stanzas")
            self._begin = begin
            self._name = name
            self._attributes = attributes
            self._children = []
        elif depth >= self._depth_max:
            raise StreamError("policy-violation", f"elements may be {self._depth_max} deep")

    def _end_element(self, name: str) -> None:
        depth = self._depth = self._depth - 1
        if depth > 1:
            return
        if depth == 0:
            self.closed = True
            self._end = self._origin + len(self._buffer)
            return
        buffer, origin = self._buffer, self._origin
        begin, at = self._begin - origin, self._parser.CurrentByteIndex - origin
        if self._children or not self._is_empty_tag(begin, at):
            at = buffer.index(b">", at) + 1
        end = self._end = at + origin
        self._out.append(Stanza(name, self._attributes, self._children, buffer[begin:at], end))

    def _is_empty_tag(self, begin: int, at: int) -> bool:
        """Whether the element without children that starts at `begin` is `<a/>`; then expat stands behind it."""
        buffer = self._buffer
        if buffer[at - 2 : at] != b"/>":
            return False
        return buffer[at : at + 2] != b"</" or tag_end(buffer, begin) == at

    def _refused(self, error: ExpatError) -> StreamError:
        if errors.messages.get(error.code) == errors.XML_ERROR_UNDEFINED_ENTITY:
            return StreamError("restricted-xml", "entities are not allowed")
        if errors.messages.get(error.code) == errors.XML_ERROR_UNBOUND_PREFIX:
            return StreamError("bad-namespace-prefix")
        return StreamError("not-well-formed")


def attributes_of(raw: bytes) -> dict[str, str]:
    """The attributes of a stanza that a framer has accepted before, read from its bytes again; about 15 us."""
    return Framer(maxsize, maxsize).feed(raw, len(raw))[0].attributes


class FramerStack:
    """The parsers of one event loop; streams borrow them, see the module's essay."""

    __slots__ = ("_limits", "_shared", "_spare", "made")

    def __init__(self, depth_max: int, attributes_max: int) -> None:
        self._limits = (depth_max, attributes_max)
        self._shared: Framer | None = None
        self._spare: list[Framer] = []
        self.made = 0

    def shared(self) -> Framer:
        """An idle parser for one `feed`; call `taken` when it is not idle afterwards."""
        framer = self._shared
        if framer is None or framer.worn or framer.closed:
            framer = self._shared = self.borrow()
        return framer

    def taken(self, framer: Framer) -> None:
        """`framer` belongs to one stream from now on."""
        if framer is self._shared:
            self._shared = None

    def borrow(self) -> Framer:
        """An idle parser."""
        if self._spare:
            return self._spare.pop()
        self.made += 1
        return Framer(*self._limits)

    def give_back(self, framer: Framer) -> None:
        """Return an idle parser; a worn or a superfluous one is dropped."""
        if framer.idle and not framer.closed and not framer.worn and len(self._spare) < SPARE_MAX:
            self._spare.append(framer)


class Header:
    """What a stream begins with: its root element's attributes, and the bytes behind it."""

    __slots__ = ("attributes", "rest")

    def __init__(self, attributes: dict[str, str], rest: bytes) -> None:
        self.attributes = attributes
        self.rest = rest


class _RootSeenError(Exception):
    """Stops expat at the root element."""


_known_headers: dict[bytes, dict[str, str]] = {}  # clients of one kind all send the same


def read_header(data: bytes, size_max: int) -> Header | None:
    """The stream's opening tag in `data`, or None while it is incomplete; raises StreamError when it is no XMPP stream."""
    end = data.find(b">", data.find(b"<stream")) + 1
    known = _known_headers.get(data[:end])
    if known is not None:
        return Header(known, data[end:])
    found = _read_header(data, size_max)
    if found is not None and found.rest == data[end:] and end <= HEADER_REMEMBERED_BYTES:
        if len(_known_headers) >= HEADERS_REMEMBERED_MAX:
            _known_headers.clear()
        _known_headers[data[:end]] = found.attributes
    return found


def _read_header(data: bytes, size_max: int) -> Header | None:
    parser = ParserCreate("UTF-8", " ")
    found: list[tuple[str, dict[str, str], int]] = []
    declared: dict[str | None, str] = {}

    def start(name: str, attributes: dict[str, str]) -> None:
        found.append((name, attributes, parser.CurrentByteIndex))
        raise _RootSeenError

    def declare(prefix: str | None, uri: str) -> None:
        declared[prefix] = uri

    parser.StartElementHandler = start
    parser.StartNamespaceDeclHandler = declare
    parser.CommentHandler = _refuse_comment
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data.lstrip(SPACE), False)
    except _RootSeenError:
        pass
    except ExpatError:
        raise StreamError("not-well-formed") from None
    if not found:
        if len(data) > size_max:
            raise StreamError("policy-violation", "the stream's opening is too long")
        return None
    name, attributes, begin = found[0]
    if name != f"{STREAMS} stream":
        wrong_namespace = name.endswith(" stream") or name == "stream"
        raise StreamError("invalid-namespace" if wrong_namespace else "bad-format", "an XMPP stream was expected")
    if declared.get(None) != CLIENT:
        raise StreamError("invalid-namespace", "the content namespace is jabber:client")
    if declared.get("stream") != STREAMS:
        raise StreamError("bad-namespace-prefix", "the prefix of streams is stream")
    data = data.lstrip(SPACE)
    return Header(attributes, data[tag_end(data, begin) :])


def tag_end(data: bytes, begin: int) -> int:
    """The index behind the tag that starts at `begin`; quotes may hide a `>`."""
    at = begin
    while True:
        close = data.index(b">", at)
        part = data[at:close]
        single, double = part.find(b"'"), part.find(b'"')
        if single < 0 and double < 0:
            return close + 1
        first = min(place for place in (single, double) if place >= 0)
        quote = part[first : first + 1]
        at = data.index(quote, at + first + 1) + 1


def _refuse_comment(_data: str) -> None:
    raise StreamError("restricted-xml", "comments are not allowed")


def _refuse_instruction(_target: str, _data: str) -> None:
    raise StreamError("restricted-xml", "processing instructions are not allowed")


def _refuse_doctype(_name: str, _system: str | None, _public: str | None, _subset: bool) -> None:  # noqa: FBT001 - expat's
    raise StreamError("restricted-xml", "document types are not allowed")
