"""From boxes to an index, from an index to HLS and DASH."""

import io
import re
from xml.etree import ElementTree as ET

import pytest
from tests.unit.streaming import boxes

from fourplane.foundation.errors import Corrupt
from fourplane.streaming import dash, hls
from fourplane.streaming.mp4_boxes import index_file
from fourplane.streaming.packaging import MediaSegment, TitleIndex, Track, index_track


@pytest.fixture
def index(tmp_path):
    for name, content in {
        "360p": boxes.video_file(),
        "720p": boxes.video_file(size=40_000, width=1280, height=720),
        "audio_0": boxes.audio_file(),
    }.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    tracks = (
        index_track(tmp_path / "720p.mp4", "720p", fps=24.0),
        index_track(tmp_path / "360p.mp4", "360p", fps=24.0),
        index_track(tmp_path / "audio_0.mp4", "audio_0", language="en"),
    )
    return TitleIndex("title_x", "v_x", 8.0, tracks)


def test_segments_lie_where_the_index_says(tmp_path):
    content = boxes.video_file(segments=3)
    init, fragments = index_file(io.BytesIO(content))
    assert (init.kind, init.codec, init.width, init.height, init.timescale) == ("video", "avc1.64001f", 640, 360, 24)
    assert content[: init.size] == boxes.init(boxes.video_entry(640, 360), 24)
    for number, fragment in enumerate(fragments):
        assert content[fragment.offset + 4 : fragment.offset + 8] == b"moof"
        assert (fragment.start, fragment.duration, fragment.samples) == (48 * number, 48, 48)
        assert fragment.starts_with_key
    assert fragments[-1].offset + fragments[-1].size == len(content)


def test_sound_states_its_codec_from_the_decoder_configuration():
    init, fragments = index_file(io.BytesIO(boxes.audio_file(segments=1)))
    assert (init.codec, init.channels, init.sample_rate) == ("mp4a.40.2", 2, 48_000)
    assert fragments[0].duration == 94 * 1_024


@pytest.mark.parametrize("cut", [1, 100, 5_000])
def test_a_cut_file_is_corrupt_with_its_place(cut):
    content = boxes.video_file(segments=2)
    with pytest.raises(Corrupt) as caught:
        index_file(io.BytesIO(content[:-cut]))
    assert caught.value.fields["place"] > 0


def test_garbage_is_corrupt_not_a_crash():
    for content in (b"", b"hello", b"\0\0\0\x08free" * 3, bytes(64), b"\xff" * 200):
        with pytest.raises(Corrupt):
            index_file(io.BytesIO(content))


def test_a_segment_without_key_frame_is_refused(tmp_path):
    file = tmp_path / "x.mp4"
    file.write_bytes(boxes.init(boxes.video_entry(640, 360), 24) + boxes.fragment(1, 0, [10] * 48, 1, key=False))
    with pytest.raises(Corrupt, match="key frame"):
        index_track(file, "x")


def test_a_hole_in_the_times_is_refused(tmp_path):
    file = tmp_path / "x.mp4"
    head = boxes.init(boxes.video_entry(640, 360), 24)
    file.write_bytes(head + boxes.fragment(1, 0, [10] * 48, 1) + boxes.fragment(2, 96, [10] * 48, 1))
    with pytest.raises(Corrupt, match="hole"):
        index_track(file, "x")


def test_peak_is_the_fastest_run_of_half_to_one_and_a_half_targets():
    segments = tuple(MediaSegment(0, size, 2, 0) for size in (1_000, 8_000, 1_000))
    track = Track("x", "video", "avc1", 1, 0, segments)
    assert track.peak_bps(2) == pytest.approx(8 * 8_000 / 2, abs=2)
    assert track.average_bps() == round(8 * 10_000 / 6)
    short = Track("x", "video", "avc1", 10, 0, (MediaSegment(0, 1_000, 20, 0), MediaSegment(0, 5_000, 1, 0)))
    assert short.peak_bps(2) == pytest.approx(8 * 6_000 / 2.1, abs=2), "a tenth of a second alone is no peak"


def test_master_states_measured_rates_and_lists_the_smallest_first(index):
    text = hls.master(index)
    found = re.findall(r"BANDWIDTH=(\d+),AVERAGE-BANDWIDTH=(\d+),CODECS=\"([^\"]+)\",RESOLUTION=(\S+?),", text)
    streams = [line for line in text.splitlines() if line.startswith("#EXT-X-STREAM-INF")]
    assert len(streams) == 2
    assert [resolution for *_, resolution in found[:2]] == ["640x360", "1280x720"]
    low = index.video[0]
    sound = index.audio[0]
    assert int(found[0][0]) == low.peak_bps(2) + sound.peak_bps(2)
    assert int(found[0][1]) == low.average_bps() + sound.average_bps()
    assert found[0][2] == "avc1.64001f,mp4a.40.2"
    assert "#EXT-X-INDEPENDENT-SEGMENTS" in text
    assert text.count("#EXT-X-I-FRAME-STREAM-INF") == 2
    assert 'LANGUAGE="en"' in text


def test_media_playlist_adds_up_to_the_film(index):
    text = hls.media(index, index.video[0])
    assert sum(float(found) for found in re.findall(r"#EXTINF:([\d.]+),", text)) == pytest.approx(8.0)
    assert re.search(r"#EXT-X-TARGETDURATION:2\n", text)
    assert text.endswith("#EXT-X-ENDLIST\n")
    assert re.findall(r"\n(360p/\d+\.m4s)", text) == [f"360p/{number}.m4s" for number in range(4)]


def test_key_frame_playlist_ranges_hold_the_first_picture(index):
    text = hls.key_frames(index, index.video[0])
    segment = index.video[0].segments[0]
    assert f"#EXT-X-BYTERANGE:{segment.key_size}@0" in text
    assert 5_000 < segment.key_size < segment.size


def test_silent_films_have_no_sound_group(index):
    silent = TitleIndex("t", "v", 8.0, tuple(index.video))
    text = hls.master(silent)
    assert "AUDIO" not in text
    assert 'CODECS="avc1.64001f"' in text


def test_pathways_carry_every_rung_on_every_node(index):
    text = hls.master(index, steering_uri="/steer", pathways=(("A", "http://a/"), ("B", "http://b/")))
    assert '#EXT-X-CONTENT-STEERING:SERVER-URI="/steer",PATHWAY-ID="A"' in text
    assert text.count('PATHWAY-ID="B"\nhttp://b/') == 2
    assert 'AUDIO="sound-B"' in text


def test_dash_timeline_is_the_same_film(index):
    root = ET.fromstring(dash.manifest(index))
    space = {"d": "urn:mpeg:dash:schema:mpd:2011"}
    rungs = root.findall(".//d:AdaptationSet[@contentType='video']/d:Representation", space)
    assert [rung.get("id") for rung in rungs] == ["360p", "720p"]
    for rung in root.findall(".//d:Representation", space):
        timescale = int(rung.find("d:SegmentTemplate", space).get("timescale"))
        total = sum(int(s.get("d")) * (1 + int(s.get("r", "0"))) for s in rung.findall(".//d:S", space))
        assert total / timescale == pytest.approx(index.track(rung.get("id")).duration_s())
