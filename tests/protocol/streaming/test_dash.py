"""Our DASH manifests against the standard's own schema, where its files are at hand.

`FOURPLANE_TEST_DASH` names a folder with DASH-MPD.xsd and xlink.xsd (ISO/IEC 23009-1; DASH-IF publishes them); without it
only what the schema says about order and must-haves is looked at here.
"""

import os
from pathlib import Path

import pytest
from lxml import etree
from tests.unit.streaming import boxes

from fourplane.streaming import dash
from fourplane.streaming.packaging import Caption, TitleIndex, index_track

SPACE = "{urn:mpeg:dash:schema:mpd:2011}"
PLACES = (("EDGE1", "http://a/t/x&y/"), ("EDGE2", "http://b/t/x/"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracks")
    files = {"360p": boxes.video_file(), "720p": boxes.video_file(size=40_000), "audio_0": boxes.audio_file()}
    for name, content in files.items():
        (folder / f"{name}.mp4").write_bytes(content)
    tracks = tuple(index_track(folder / f"{name}.mp4", name, fps=24.0, language="deu") for name in files)
    return TitleIndex("t", "v", 8.0, tracks, captions=(Caption("captions_0_en", "en"),))


@pytest.fixture(scope="module")
def schema():
    folder = Path(os.environ.get("FOURPLANE_TEST_DASH", ""))
    file = folder / "DASH-MPD.xsd"
    if not os.environ.get("FOURPLANE_TEST_DASH") or not file.is_file():
        pytest.skip("the DASH schema is not at hand (FOURPLANE_TEST_DASH)")

    class Near(etree.Resolver):
        def resolve(self, url, _, context):
            return self.resolve_filename(str(folder / url.rpartition("/")[2]), context)

    parser = etree.XMLParser()
    parser.resolvers.add(Near())
    return etree.XMLSchema(etree.parse(str(file), parser))


def manifests(index):
    return [dash.manifest(index), dash.manifest(index, steering_uri="/s?a=1&b=2", pathways=PLACES)]


def test_the_standard_s_schema_finds_nothing(index, schema):
    for text in manifests(index):
        root = etree.fromstring(text.encode())
        for newer in root.findall(f"{SPACE}ContentSteering"):  # ETSI TS 103 998; the schema is of an edition before it
            root.remove(newer)
        schema.validate(root)
        assert [entry.message for entry in schema.error_log] == []


def test_the_schema_finds_what_is_broken(index, schema):
    broken = dash.manifest(index).replace(' bandwidth="', ' bandwith="', 1)
    assert not schema.validate(etree.fromstring(broken.encode()))


def test_every_node_is_a_place_and_steering_names_the_first(index):
    root = etree.fromstring(manifests(index)[1].encode())
    places = root.findall(f"{SPACE}BaseURL")
    assert [(place.get("serviceLocation"), place.text) for place in places] == list(PLACES)
    steering = root.find(f"{SPACE}ContentSteering")
    assert (steering.get("defaultServiceLocation"), steering.text) == ("EDGE1", "/s?a=1&b=2")
    assert [child.tag.removeprefix(SPACE) for child in root] == ["BaseURL", "BaseURL", "ContentSteering", "Period"]


def test_languages_are_short_and_texts_are_sets_of_their_own(index):
    sets = etree.fromstring(dash.manifest(index).encode()).findall(f".//{SPACE}AdaptationSet")
    assert [(one.get("contentType"), one.get("lang")) for one in sets] == [
        ("video", None),
        ("audio", "de"),
        ("text", "en"),
    ]
    assert sets[2].find(f".//{SPACE}BaseURL").text == "captions_0_en.vtt"
