"""The rule checker finds nothing in what we write, and the fault in each playlist broken on purpose."""

import msgspec
import pytest
from tests.unit.streaming import boxes

from fourplane.streaming import hls
from fourplane.streaming.hls_rules import findings
from fourplane.streaming.packaging import Caption, TitleIndex, index_track


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracks")
    files = {"360p": boxes.video_file(), "720p": boxes.video_file(size=40_000), "audio_0": boxes.audio_file()}
    for name, content in files.items():
        (folder / f"{name}.mp4").write_bytes(content)
    return TitleIndex("t", "v", 8.0, tuple(index_track(folder / f"{name}.mp4", name, fps=24.0) for name in files))


def test_nothing_is_wrong_with_ours(index):
    pathways = (("A", "http://a/"), ("B", "http://b/"))
    texts = [hls.master(index), hls.master(index, steering_uri="/s", pathways=pathways)]
    texts += [hls.media(index, track) for track in index.tracks] + [
        hls.key_frames(index, track) for track in index.video
    ]
    assert [findings(text) for text in texts] == [[]] * len(texts)


def test_nothing_is_wrong_with_texts_and_two_sounds_of_one_language(index):
    sounds = tuple(msgspec.structs.replace(index.audio[0], name=f"audio_{n}", language="eng") for n in range(2))
    texts = (Caption("captions_0_en", "en"), Caption("captions_1_en", "en"))
    more = msgspec.structs.replace(index, tracks=(*index.video, *sounds), captions=texts)
    pathways = (("A", "http://a/"), ("B", "http://b/"))
    written = [hls.master(more), hls.master(more, steering_uri="/s", pathways=pathways), hls.captions(more, texts[0])]
    assert [findings(text) for text in written] == [[], [], []]
    assert 'NAME="English (2)",LANGUAGE="en"' in written[0]
    assert 'SUBTITLES="text-A"' in written[1]


@pytest.mark.parametrize(
    ("wanted", "break_it"),
    [
        ("#EXTM3U", lambda text: text.replace("#EXTM3U\n", "", 1)),
        ("byte order mark", lambda text: "\ufeff" + text),
        ("control character", lambda text: text.replace("Sound", "So\x07und")),
        ("more than once", lambda text: text + "#EXT-X-VERSION:7\n"),
        ("mixed", lambda text: text + "#EXT-X-TARGETDURATION:2\n"),
        ("BANDWIDTH is missing", lambda text: text.replace(":BANDWIDTH=", ":X-BANDWIDTH=", 1)),
        ("no integer", lambda text: text.replace("BANDWIDTH=", "BANDWIDTH=1.5e", 1)),
        ("average is above", lambda text: text.replace("AVERAGE-BANDWIDTH=", "AVERAGE-BANDWIDTH=9999", 1)),
        ("not quoted", lambda text: text.replace('AUDIO="sound"', "AUDIO=sound", 1)),
        ("does not exist", lambda text: text.replace('GROUP-ID="sound"', 'GROUP-ID="other"')),
        ("GROUP-ID is missing", lambda text: text.replace('GROUP-ID="sound",', "")),
        ("no URI follows", lambda text: text.replace("\n360p.m3u8\n", "\n", 1)),
        ("URI is missing", lambda text: text.replace(',URI="360p.iframes.m3u8"', "")),
        ("stands twice", lambda text: text.replace("BANDWIDTH=", "BANDWIDTH=1,BANDWIDTH=", 1)),
        ("resolution", lambda text: text.replace("RESOLUTION=640x360", "RESOLUTION=640", 1)),
        ("malformed", lambda text: text.replace('CODECS="', "CODECS=", 1)),
        ("selected automatically", lambda text: text.replace("AUTOSELECT=YES", "AUTOSELECT=NO")),
    ],
)
def test_a_broken_multivariant_playlist(index, wanted, break_it):
    assert any(wanted in finding for finding in findings(break_it(hls.master(index))))


@pytest.mark.parametrize(
    ("wanted", "break_it"),
    [
        ("TARGETDURATION is missing", lambda text: text.replace("#EXT-X-TARGETDURATION:2\n", "")),
        ("longer than the target", lambda text: text.replace("TARGETDURATION:2", "TARGETDURATION:1")),
        ("segment without EXTINF", lambda text: text.replace("#EXTINF:2.000000,\n", "", 1)),
        ("EXTINF without a segment", lambda text: text.replace("360p/3.m4s\n", "")),
        ("no comma", lambda text: text.replace("2.000000,", "2.000000", 1)),
        ("no duration", lambda text: text.replace("2.000000,", "two,", 1)),
        ("no EXT-X-ENDLIST", lambda text: text.replace("#EXT-X-ENDLIST\n", "")),
        ("EXT-X-MAP needs", lambda text: text.replace("VERSION:7", "VERSION:5")),
        ("fractional", lambda text: text.replace("VERSION:7", "VERSION:2")),
        ("URI is missing", lambda text: text.replace('URI="360p/init.mp4"', 'X="y"')),
        ("neither", lambda _: "#EXTM3U\n"),
    ],
)
def test_a_broken_media_playlist(index, wanted, break_it):
    assert any(wanted in finding for finding in findings(break_it(hls.media(index, index.track("360p")))))


def test_a_broken_key_frame_playlist(index):
    text = hls.key_frames(index, index.track("360p"))
    assert any("byte range" in one for one in findings(text.replace("@0", "@x", 1)))
    assert any("BYTERANGE needs" in one for one in findings(text.replace("VERSION:7", "VERSION:3")))
