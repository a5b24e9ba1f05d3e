"""What ffmpeg says about files, and the names of what is wrong with them."""

import pytest

from fourplane.foundation.errors import NotFound, Rejected, TooLarge
from fourplane.streaming.probe import check_file, read_source

HEAD = "Input #0, mov,mp4, from 'film.mp4':\n  Duration: 01:02:03.50, start: 0.000000, bitrate: 1135 kb/s\n"
PICTURE = (
    "  Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(progressive), 1280x720, "
    "1007 kb/s, 23.98 fps, 23.98 tbr, 90k tbn (default)\n"
)
SOUND = "  Stream #0:1[0x2](deu): Audio: aac (LC) (mp4a / 0x6134706D), 48000 Hz, 5.1, fltp, 192 kb/s (default)\n"


def test_a_film_is_read():
    found = read_source(HEAD + PICTURE + SOUND, "film.mp4")
    assert (found.width, found.height, found.fps, found.codec) == (1280, 720, 23.98, "h264")
    assert found.duration_s == 3723.5
    assert (found.audio[0].channels, found.audio[0].language, found.audio[0].codec) == (6, "deu", "aac")
    assert not found.variable_rate


def test_rotation_and_pixel_shape_change_the_size():
    turned = read_source(HEAD + PICTURE + "      displaymatrix: rotation of -90.00 degrees\n", "x")
    assert (turned.width, turned.height) == (720, 1280)
    wide = read_source(HEAD + PICTURE.replace("1280x720", "720x576 [SAR 64:45 DAR 16:9]"), "x")
    assert (wide.width, wide.height) == (1024, 576)


def test_silence_is_allowed():
    assert read_source(HEAD + PICTURE, "x").audio == ()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("[in#0] moov atom not found\nError opening input", "truncated"),
        ("detected only with low score of 1\nmoov atom not found\nInvalid data found", "not_a_video"),
        ("x: Invalid data found when processing input", "not_a_video"),
        (HEAD + SOUND, "no_video"),
        (HEAD + "  Stream #0:0: Video: mjpeg, yuvj420p, 600x600, 90k tbr (attached pic)\n" + SOUND, "no_video"),
        (HEAD.replace("01:02:03.50", "N/A") + PICTURE, "no_duration"),
        ("", "not_a_video"),
    ],
)
def test_faults_have_names(said, code):
    with pytest.raises(Rejected) as caught:
        read_source(said, "film.mp4")
    assert caught.value.reason == code


def test_files_are_looked_at_before_ffmpeg_is(tmp_path):
    empty, large = tmp_path / "empty.mp4", tmp_path / "large.mp4"
    empty.touch()
    large.write_bytes(bytes(100))
    with pytest.raises(NotFound):
        check_file(tmp_path / "none.mp4", bytes_max=10)
    with pytest.raises(Rejected, match="0 bytes"):
        check_file(empty, bytes_max=10)
    with pytest.raises(TooLarge):
        check_file(large, bytes_max=10)
    assert check_file(large, bytes_max=1_000) == 100
