"""What studios really send: files that are cut off, empty, wrongly named, turned, silent, or of one picture."""

import asyncio
import itertools

import msgspec
import pytest
from tests.journeys.streaming.rig import QUICK

from fourplane.foundation.errors import Corrupt, Misconfigured, Rejected
from fourplane.streaming import ffmpeg, packaging
from fourplane.streaming.captions import CaptionFile
from fourplane.streaming.encoding import Encode
from fourplane.streaming.probe import check_file

WHOLE = msgspec.structs.replace(QUICK, rungs_max=1, duration_s_max=0.0, nice=0)
PICTURE = ("-f", "lavfi", "-i", "testsrc2=size=160x90:rate=24")
SOUND = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000")
FAST = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "24")


@pytest.fixture(scope="module")
def encoder():
    try:
        return asyncio.run(ffmpeg.find())
    except Misconfigured:
        pytest.skip("no ffmpeg on this machine")


def make(encoder, file, *arguments):
    asyncio.run(encoder.run([*arguments, str(file)]))
    return file


def encode(encoder, file, folder, settings=WHOLE):
    async def main():
        encoded = await Encode(encoder, file, folder / "work", settings).run()
        return packaging.index_title("t", "v", encoded), encoded

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_file_that_is_cut_off_is_named(encoder, tmp_path):
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "12", *FAST, "-movflags", "+faststart")
    content = film.read_bytes()
    film.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(Rejected, match="is cut off") as caught:
        encode(encoder, film, tmp_path)
    assert caught.value.reason == "truncated"


def test_a_file_without_its_index_is_named(encoder, tmp_path):
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "2", *FAST)
    film.write_bytes(film.read_bytes()[:-2_000])
    with pytest.raises(Rejected) as caught:
        encode(encoder, film, tmp_path)
    assert caught.value.reason == "truncated"


def test_an_empty_file_is_named(tmp_path):
    film = tmp_path / "film.mp4"
    film.touch()
    with pytest.raises(Rejected) as caught:
        check_file(film, bytes_max=1 << 30)
    assert caught.value.reason == "empty_file"


def test_a_film_under_a_wrong_name_is_encoded(encoder, tmp_path):
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "1", *FAST).rename(tmp_path / "film.txt")
    assert len(encode(encoder, film, tmp_path)[0].video) == 1


@pytest.mark.parametrize("content", [b"Dear studio, here is the film." * 40, bytes(range(256)) * 64])
def test_something_else_under_the_name_of_a_film_is_refused(encoder, tmp_path, content):
    film = tmp_path / "film.mp4"
    film.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        encode(encoder, film, tmp_path)
    assert caught.value.reason == "not_a_video"


def test_a_picture_is_no_film(encoder, tmp_path):
    picture = make(encoder, tmp_path / "film.png", *PICTURE, "-frames:v", "1")
    with pytest.raises(Rejected):
        encode(encoder, picture, tmp_path)


def test_a_variable_rate_becomes_a_constant_one(encoder, tmp_path):
    steps = ("-vf", "select='not(mod(n,2))+lt(n,24)',settb=1/1000", "-fps_mode", "vfr")
    film = make(encoder, tmp_path / "film.mkv", *PICTURE, "-t", "4", *steps, *FAST)
    track = encode(encoder, film, tmp_path)[0].video[0]
    assert track.duration_s() == pytest.approx(4.0, abs=0.3)
    assert {segment.duration for segment in track.segments[:-1]} == {track.segments[0].duration}


def test_a_turned_film_stands_upright(encoder, tmp_path):
    flat = make(encoder, tmp_path / "flat.mp4", *PICTURE, "-t", "1", *FAST)
    film = make(encoder, tmp_path / "film.mp4", "-display_rotation", "90", "-i", str(flat), "-c", "copy")
    track = encode(encoder, film, tmp_path)[0].video[0]
    assert (track.width, track.height) == (90, 160)


def test_surround_sound_is_mixed_for_two_ears(encoder, tmp_path):
    six = ("-filter_complex", "[1:a]pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0[a]", "-map", "0:v", "-map", "[a]")
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, *SOUND, *six, "-t", "1", *FAST, "-c:a", "aac")
    index, encoded = encode(encoder, film, tmp_path)
    assert encoded.plan.source.audio[0].channels == 6
    assert index.audio[0].channels == 2


def test_a_silent_film_has_no_sound(encoder, tmp_path):
    index, _ = encode(encoder, make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "1", *FAST), tmp_path)
    assert index.audio == []


def test_a_portrait_film_keeps_its_shape(encoder, tmp_path):
    tall = ("-f", "lavfi", "-i", "testsrc2=size=90x160:rate=24")
    index, _ = encode(encoder, make(encoder, tmp_path / "film.mp4", *tall, "-t", "1", *FAST), tmp_path)
    assert (index.video[0].width, index.video[0].height, index.video[0].name) == (90, 160, "90p")


def test_a_film_of_one_picture_is_a_film(encoder, tmp_path):
    index, encoded = encode(encoder, make(encoder, tmp_path / "film.mp4", *PICTURE, "-frames:v", "1", *FAST), tmp_path)
    assert len(index.video[0].segments) == 1
    assert encoded.poster is not None


def test_sound_that_goes_on_after_the_last_picture_is_no_fault(encoder, tmp_path):
    arguments = ("-t", "16", *PICTURE, "-t", "16.8", *SOUND, *FAST, "-c:a", "aac")
    index, encoded = encode(encoder, make(encoder, tmp_path / "film.mp4", *arguments), tmp_path)
    assert encoded.plan.chunks == 5  # of four seconds: the last one has no picture at all
    assert index.video[0].duration_s() == pytest.approx(16.0, abs=0.1)


def test_texts_inside_and_beside_a_film_become_its_captions(encoder, tmp_path):
    words = "1\n00:00:00,200 --> 00:00:00,900\n{}\n"
    (tmp_path / "inside.srt").write_text(words.format("Inside"))
    inside = ("-i", str(tmp_path / "inside.srt"), "-map", "0:v", "-map", "1", "-c:s", "mov_text")
    told = ("-metadata:s:s:0", "language=eng")
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, *inside, "-t", "1", *FAST, *told)
    (tmp_path / "film.de.srt").write_text(words.format("Daneben"))
    (tmp_path / "film.fr.vtt").write_text("this is no text track")
    index, encoded = encode(encoder, film, tmp_path)
    assert [caption.language for caption in index.captions] == ["en", "de"]
    assert "Inside" in encoded.captions[0].path.read_text()
    assert "Daneben" in encoded.captions[1].path.read_text()
    assert all(isinstance(one, CaptionFile) for one in encoded.captions)


def test_av1_and_opus_by_configuration(encoder, tmp_path):
    if not {"libsvtav1", "libopus"} <= encoder.encoders:
        pytest.skip("this ffmpeg has neither AV1 nor Opus")
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, *SOUND, "-t", "3", *FAST, "-c:a", "aac")
    settings = msgspec.structs.replace(WHOLE, video_codec="av1", audio_codec="opus")
    index, _ = encode(encoder, film, tmp_path, settings)
    assert index.video[0].codec.startswith("av01.0.")
    assert index.audio[0].codec == "opus"
    assert len(index.video[0].segments) == 2


@pytest.mark.slow
def test_a_film_of_2160_lines_gets_a_ladder_from_there(encoder, tmp_path):
    source = ("-f", "lavfi", "-i", "testsrc2=size=3840x2160:rate=24")
    film = make(encoder, tmp_path / "film.mp4", *source, "-t", "1", *FAST)
    settings = msgspec.structs.replace(WHOLE, rungs_max=5, height_max=2160)
    index, _ = encode(encoder, film, tmp_path, settings)
    assert [(track.name, track.width) for track in index.video] == [
        ("360p", 640),
        ("720p", 1280),
        ("1080p", 1920),
        ("1440p", 2560),
        ("2160p", 3840),
    ]
    assert index.video[-1].codec.startswith("avc1.")
    assert int(index.video[-1].codec[-2:], 16) >= 51  # the level: 5.1 carries 2160 lines


def test_a_codec_that_does_not_exist_is_a_mistake_of_the_settings(encoder, tmp_path):
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "1", *FAST)
    with pytest.raises(Misconfigured, match="one of h264, av1"):
        encode(encoder, film, tmp_path, msgspec.structs.replace(WHOLE, video_codec="h266"))


def test_a_ladder_of_its_own_is_searched_and_found_again(encoder, tmp_path):
    if "libvmaf" not in encoder.filters:
        pytest.skip("this ffmpeg has no VMAF")
    source = ("-f", "lavfi", "-i", "testsrc2=size=426x240:rate=24")
    film = make(encoder, tmp_path / "film.mp4", *source, "-t", "4", *FAST)
    settings = msgspec.structs.replace(WHOLE, rungs_max=3, per_title=True, per_title_from_s=2.0)
    index, encoded = encode(encoder, film, tmp_path, settings)
    assert all(track.vmaf > 20 for track in index.video)
    rates = [track.average_bps() for track in index.video]
    assert all(above > below for below, above in itertools.pairwise(rates))
    found = (tmp_path / "work" / "ladder.json").stat().st_mtime_ns
    assert encode(encoder, film, tmp_path, settings)[1].plan == encoded.plan
    assert (tmp_path / "work" / "ladder.json").stat().st_mtime_ns == found


def test_a_damaged_step_is_told_and_not_published(encoder, tmp_path):
    film = make(encoder, tmp_path / "film.mp4", *PICTURE, "-t", "1", *FAST)
    _, encoded = encode(encoder, film, tmp_path)
    path = encoded.video[0][1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Corrupt):
        packaging.index_title("t", "v", encoded)
