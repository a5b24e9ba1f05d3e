"""Changing and answering stanzas as bytes: stamp an address, wrap a copy, say what was wrong.

Nothing here builds a tree except `tree`, for the few stanzas the server itself must read. Every text that came from
outside passes `escape` before it enters bytes that leave.
"""

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

from fourplane.foundation.errors import (
    Conflict,
    Forbidden,
    FourplaneError,
    NotFound,
    Overloaded,
    Rejected,
    TooLarge,
    Unauthenticated,
)
from fourplane.messaging.xml_stream import IQ, MESSAGE, PRESENCE, Stanza, tag_end

STANZAS_NS = "urn:ietf:params:xml:ns:xmpp-stanzas"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KINDS = {MESSAGE: b"message", PRESENCE: b"presence", IQ: b"iq"}

ERROR_TYPES = {
    "bad-request": "modify",
    "conflict": "cancel",
    "feature-not-implemented": "cancel",
    "forbidden": "auth",
    "internal-server-error": "cancel",
    "item-not-found": "cancel",
    "jid-malformed": "modify",
    "not-acceptable": "modify",
    "not-allowed": "cancel",
    "not-authorized": "auth",
    "policy-violation": "modify",
    "recipient-unavailable": "wait",
    "registration-required": "auth",
    "remote-server-not-found": "cancel",
    "remote-server-timeout": "wait",
    "resource-constraint": "wait",
    "service-unavailable": "cancel",
    "subscription-required": "auth",
    "unexpected-request": "wait",
}

_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&apos;"}
_NEEDS_ESCAPE = re.compile(r"[&<>\"'\r\n\t]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_ATTRIBUTE = re.compile(rb"\s+([A-Za-z_:][\w:.\-]*)\s*=\s*(\"[^\"]*\"|'[^']*')")


def escape(text: str) -> str:
    """`text` as it may stand in an attribute or between tags; characters XML cannot hold are dropped."""
    if not _NEEDS_ESCAPE.search(text) and text.isprintable():
        return text
    return (
        _CONTROL.sub("", text).translate(_ESCAPES).replace("\r", "&#13;").replace("\n", "&#10;").replace("\t", "&#9;")
    )


def attribute(name: str, value: str) -> bytes:
    """` name='value'`, ready to be spliced behind a tag's name."""
    return f" {name}='{escape(value)}'".encode()


def stamped(stanza: Stanza, addition: bytes) -> bytes:
    """The stanza with its `from` replaced by `addition` (prepared by `attribute`), everything else byte for byte."""
    raw = stanza.raw
    name = KINDS[stanza.name]
    at = len(name) + 1
    if "from" in stanza.attributes or raw[1:at] != name:
        return _rewritten(raw, {b"from"}, addition)
    return raw[:at] + addition + raw[at:]


def readdressed(raw: bytes, addition: bytes) -> bytes:
    """`raw` with `to` and `from` taken out and `addition` put in: for copies the server addresses itself."""
    return _rewritten(raw, {b"to", b"from"}, addition)


def with_attribute(raw: bytes, addition: bytes) -> bytes:
    """`raw` with one more attribute on its root; the caller knows that it is not there yet."""
    at = 1
    while raw[at] not in b" \t\r\n/>":
        at += 1
    return raw[:at] + addition + raw[at:]


def with_child(raw: bytes, child: bytes) -> bytes:
    """`raw` with one more child element at its end."""
    if raw.endswith(b"/>") and tag_end(raw, 0) == len(raw):
        name_end = next(at for at in range(1, len(raw)) if raw[at] in b" \t\r\n/>")
        return raw[:-2] + b">" + child + b"</" + raw[1:name_end] + b">"
    at = raw.rindex(b"</")
    return raw[:at] + child + raw[at:]


def inner(raw: bytes) -> bytes:
    """What stands between the root's tags."""
    begin = tag_end(raw, 0)
    return b"" if begin == len(raw) else raw[begin : raw.rindex(b"</")]


def tree(stanza: Stanza) -> ET.Element:
    """The stanza as a tree, for what the server answers itself; tags carry their namespace except jabber:client's."""
    whole = root(stanza)
    for element in whole.iter():
        element.tag = element.tag.removeprefix("{jabber:client}")
    return whole


def root(stanza: Stanza) -> ET.Element:
    """The same with every tag carrying its namespace."""
    try:
        return ET.fromstring(stanza.raw)  # noqa: S314 - expat accepted these bytes without DTD and entities
    except ET.ParseError as error:
        raise Rejected(f"a stanza that cannot stand alone: {error}", code="bad_request") from None


def text_of(element: ET.Element) -> bytes:
    """An element as bytes with its namespaces declared where they are used."""
    return ET.tostring(element, encoding="unicode").encode()


def payload(stanza: Stanza) -> tuple[str, ET.Element]:
    """The only child of an iq request: its qualified name (`namespace name`) and its tree; raises Rejected otherwise."""
    if len(stanza.children) != 1:
        raise Rejected("an iq request has exactly one child", code="bad_request")
    return stanza.children[0], tree(stanza)[0]


def reply_attributes(stanza: Stanza) -> bytes:
    """Addresses and id of an answer: to whom it came from, from whom it was for."""
    attributes = stanza.attributes
    out = b""
    if "from" in attributes:
        out += attribute("to", attributes["from"])
    if "to" in attributes:
        out += attribute("from", attributes["to"])
    if "id" in attributes:
        out += attribute("id", attributes["id"])
    return out


def result(stanza: Stanza, content: bytes = b"") -> bytes:
    """The iq result for a request."""
    attributes = reply_attributes(stanza)
    if not content:
        return b"<iq type='result'" + attributes + b"/>"
    return b"<iq type='result'" + attributes + b">" + content + b"</iq>"


def error_reply(stanza: Stanza, condition: str, text: str = "", *, extra: bytes = b"", by: str = "") -> bytes:
    """The same kind of stanza with type error; the caller has made sure that the original is no error itself."""
    kind = KINDS[stanza.name]
    what = error_element(condition, text, extra=extra, by=by)
    content = b"" if kind == b"iq" else inner(stanza.raw)[:4_096] if _closed_fragment(stanza.raw) else b""
    head = b"<" + kind + b" type='error'" + reply_attributes(stanza) + b">"
    return head + content + what + b"</" + kind + b">"


def error_element(condition: str, text: str = "", *, extra: bytes = b"", by: str = "") -> bytes:
    """`<error/>` with its condition and, for a person, one sentence."""
    says = f"<text xmlns='{STANZAS_NS}' xml:lang='en'>{escape(text)}</text>" if text else ""
    who = f" by='{escape(by)}'" if by else ""
    opening = f"<error type='{ERROR_TYPES[condition]}'{who}><{condition} xmlns='{STANZAS_NS}'/>{says}"
    return opening.encode() + extra + b"</error>"


def condition_of(error: FourplaneError) -> str:
    """The stanza error for one of our errors."""
    if error.reason.replace("_", "-") in ERROR_TYPES:
        return error.reason.replace("_", "-")
    match error:
        case Unauthenticated():
            return "not-authorized"
        case Forbidden():
            return "forbidden"
        case TooLarge():
            return "policy-violation"
        case Rejected():
            return "bad-request"
        case NotFound():
            return "item-not-found"
        case Conflict():
            return "conflict"
        case Overloaded():
            return "resource-constraint"
        case _:
            return "service-unavailable"


def delay(at_us: int, by: str) -> bytes:
    """`<delay/>` (XEP-0203): when something was first received, and who kept it."""
    return f"<delay xmlns='urn:xmpp:delay' from='{escape(by)}' stamp='{timestamp(at_us)}'/>".encode()


def timestamp(at_us: int) -> str:
    """A moment as XEP-0082 writes it, in UTC with milliseconds."""
    moment = EPOCH + timedelta(microseconds=at_us)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1_000:03d}Z"


def parse_timestamp(text: str) -> int:
    """UTC microseconds of an XEP-0082 date-time; raises Rejected."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Rejected(f"not a time: {text[:40]!r}", code="bad_request") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1)


def _closed_fragment(raw: bytes) -> bool:
    return len(raw) <= 4_096


def _rewritten(raw: bytes, without: set[bytes], addition: bytes) -> bytes:
    end = tag_end(raw, 0)
    at = 1
    while raw[at] not in b" \t\r\n/>":
        at += 1
    kept = raw[:at] + addition
    for found in _ATTRIBUTE.finditer(raw, at, end):
        if found.group(1) not in without:
            kept += b" " + found.group(1) + b"=" + found.group(2)
    return kept + (b"/>" if raw[end - 2 : end] == b"/>" else b">") + raw[end:]
