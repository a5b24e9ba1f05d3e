"""Borders of stanzas: whatever way the bytes are cut, the same slices come out, and abuse is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourplane.messaging.xml_stream import (
    IQ,
    MESSAGE,
    PRESENCE,
    Framer,
    FramerStack,
    StreamError,
    read_header,
    tag_end,
)

STANZAS = [
    b"<message to='a@b'><body>hi</body></message>",
    b"<presence/>",
    b'<presence to="x>y"/>',
    b"<message>/></message>",
    b"<iq id='1' type='get'><query xmlns='jabber:iq:roster'/></iq>",
    b"<message><body>\xc3\xa4 &lt; &#x41; <![CDATA[</message>]]></body></message  >",
    b"<message></message>",
    b"<r xmlns='urn:xmpp:sm:3'/>",
    b"<message\n to='b'\t><x><x><x/></x></x></message\n>",
]
LIMIT = 100_000


def framer():
    return Framer(16, 16)


def test_every_way_to_cut_the_bytes_gives_the_same_stanzas():
    whole = b" \n".join(STANZAS)
    for size in range(1, len(whole) + 1):
        parser = framer()
        found = []
        for begin in range(0, len(whole), size):
            found += parser.feed(whole[begin : begin + size], LIMIT)
        assert [stanza.raw for stanza in found] == STANZAS
        assert parser.idle


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(STANZAS), max_size=8), st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_streams_share_one_parser_between_stanzas(stanzas, cuts):
    stack = FramerStack(16, 16)
    whole = b"".join(stanzas)
    streams = [{"left": whole, "own": None, "found": []} for _ in range(3)]
    turn = 0
    while any(stream["left"] for stream in streams):
        stream = streams[turn % 3]
        size = cuts[turn % len(cuts)]
        turn += 1
        if not stream["left"]:
            continue
        data, stream["left"] = stream["left"][:size], stream["left"][size:]
        parser = stream["own"] or stack.borrow()
        stream["found"] += [stanza.raw for stanza in parser.feed(data, LIMIT)]
        stream["own"] = None if parser.idle else parser
        if parser.idle:
            stack.give_back(parser)
    assert all(stream["found"] == stanzas for stream in streams)
    assert stack.made <= 4


def test_name_attributes_and_children_are_qualified():
    (stanza,) = framer().feed(b"<message to='a' xml:lang='de'><body/><x xmlns='u:x'><deep/></x></message>", LIMIT)
    assert stanza.name == MESSAGE
    assert stanza.attributes == {"to": "a", "http://www.w3.org/XML/1998/namespace lang": "de"}
    assert stanza.children == ["jabber:client body", "u:x x"]
    assert [s.name for s in framer().feed(b"<presence/><iq/>", LIMIT)] == [PRESENCE, IQ]


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"<message><!-- x --></message>", "restricted-xml"),
        (b"<?php x?>", "restricted-xml"),
        (b"<message>&nbsp;</message>", "restricted-xml"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]>", "not-well-formed"),
        (b"<message></presence>", "not-well-formed"),
        (b"<message/></message>", "not-well-formed"),
        (b"hello", "not-well-formed"),
        (b"<message/>hello<message/>", "not-well-formed"),
        (b"<x:message/>", "bad-namespace-prefix"),
        (b"<message>\xff</message>", "not-well-formed"),
        (b"<message>" + b"<a>" * 20, "policy-violation"),
        (b"<message " + b" ".join(b"a%d='1'" % i for i in range(17)) + b"/>", "policy-violation"),
    ],
)
def test_what_xmpp_forbids_ends_the_stream(data, condition):
    with pytest.raises(StreamError) as caught:
        framer().feed(data, LIMIT)
    assert caught.value.condition == condition


def feed_in_chunks(data, chunk):
    parser = framer()
    for begin in range(0, len(data), chunk):
        parser.feed(data[begin : begin + chunk], LIMIT)


@pytest.mark.parametrize("chunk", [100, 7_000, 200_000])
def test_an_oversized_stanza_is_refused_however_it_arrives(chunk):
    with pytest.raises(StreamError) as caught:
        feed_in_chunks(b"<message><body>" + b"x" * 150_000, chunk)
    assert caught.value.condition == "policy-violation"


def test_stanzas_before_an_error_are_kept_and_the_wrong_one_is_not():
    parser = framer()
    with pytest.raises(StreamError):
        parser.feed(b"<message id='1'/><message id='2'></message><presence/></presence>", LIMIT)
    assert [stanza.raw for stanza in parser.accepted()] == [
        b"<message id='1'/>",
        b"<message id='2'></message>",
        b"<presence/>",
    ]


def test_the_end_of_the_stream_is_seen():
    parser = framer()
    assert len(parser.feed(b"<presence/></stream:stream>", LIMIT)) == 1
    assert parser.closed


def test_header_is_read_with_what_follows_it():
    data = (
        b"<?xml version='1.0'?>\n<stream:stream to='a>b' xmlns='jabber:client'"
        b" xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><presence/>"
    )
    for cut in range(1, data.index(b"version='1.0'>")):
        assert read_header(data[:cut], 8_192) is None
    header = read_header(data, 8_192)
    assert header.attributes["to"] == "a>b"
    assert header.rest == b"<presence/>"


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not-well-formed"),
        (b"\x16\x03\x01\x02\x00\x01", "not-well-formed"),
        (b"<stream xmlns='jabber:client'>", "invalid-namespace"),
        (b"<stream:stream xmlns='x' xmlns:stream='http://etherx.jabber.org/streams'>", "invalid-namespace"),
        (b"<hello/>", "bad-format"),
    ],
)
def test_what_is_no_stream_is_named(data, condition):
    with pytest.raises(StreamError) as caught:
        read_header(data, 8_192)
    assert caught.value.condition == condition


def test_tag_end_looks_past_quotes():
    assert tag_end(b"<a b='>' c=\">\">x", 0) == 15
