"""Our DASH manifests against the standard's own schema and DASH-IF's schematron, where they are at hand (`judges`)."""

import pytest
from lxml import etree
from tests.protocol.streaming.judges import SPACE, NotAtHand, Schema, Schematron
from tests.unit.streaming import boxes

from fourplane.streaming import dash
from fourplane.streaming.packaging import Caption, TitleIndex, index_track

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
    try:
        return Schema()
    except NotAtHand as reason:
        pytest.skip(str(reason))


def manifests(index):
    return [dash.manifest(index), dash.manifest(index, steering_uri="/s?a=1&b=2", pathways=PLACES)]


def test_the_standard_s_schema_finds_nothing(index, schema):
    assert [schema.findings(text) for text in manifests(index)] == [[], []]


def test_the_schema_finds_what_is_broken(index, schema):
    assert schema.findings(dash.manifest(index).replace(' bandwidth="', ' bandwith="', 1))


@pytest.mark.slow
def test_the_schematron_finds_nothing_in_ours_and_a_fault_in_a_broken_one(index):
    try:
        judge = Schematron()
    except NotAtHand as reason:
        pytest.skip(str(reason))
    assert [judge.findings(text) for text in manifests(index)] == [[], []]
    assert judge.fired > 20
    assert judge.findings(dash.manifest(index).replace('type="static"', 'type="dynamic"', 1))


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
