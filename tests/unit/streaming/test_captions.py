"""Text tracks: found beside a film, named in their own tongue, and cut into pieces without losing a cue."""

import pytest

from fourplane.streaming.captions import language_name, language_tag, piece, read_cues, sidecars

TEXT = """WEBVTT

NOTE written by hand

00:58.000 --> 01:02.500 line:90%
Across the border

intro
00:00:03.000 --> 00:00:04.000
- Hello
- there

01:00:00.000 --> 01:00:01.000
late

00:05.000 --> 00:04.000
backwards
"""


def test_cues_are_read_with_their_text():
    found = read_cues(TEXT)
    assert [(cue.start_s, cue.end_s) for cue in found] == [(58.0, 62.5), (3.0, 4.0), (3600.0, 3601.0)]
    assert found[1].block == "intro\n00:00:03.000 --> 00:00:04.000\n- Hello\n- there"


def test_a_cue_across_a_border_stands_in_both_pieces():
    first, second, third = (piece(TEXT, number) for number in range(3))
    assert "Across" in first
    assert "Across" in second
    assert "Hello" in first
    assert "Hello" not in second
    assert third.count("-->") == 0
    assert all(text.startswith("WEBVTT\nX-TIMESTAMP-MAP=") for text in (first, second, third))


def test_carriage_returns_are_line_ends():
    assert len(read_cues(TEXT.replace("\n", "\r\n"))) == 3
    assert len(read_cues(TEXT.replace("\n", "\r"))) == 3


@pytest.mark.parametrize(
    ("asked", "tag", "name"),
    [
        ("eng", "en", "English"),
        ("ger", "de", "Deutsch"),
        ("fr", "fr", "Français"),
        ("", "und", "Unknown"),
        ("tlh", "tlh", "tlh"),
    ],
)
def test_languages_have_tags_and_names(asked, tag, name):
    assert (language_tag(asked), language_name(asked)) == (tag, name)


def test_files_named_like_the_film_are_its_captions(tmp_path):
    film = tmp_path / "The film.mp4"
    for name in (
        "The film.mp4",
        "The film.en.vtt",
        "The film.de.srt",
        "The film.srt",
        "The film 2.vtt",
        "Other.en.vtt",
        "The film.notes.vtt",
    ):
        (tmp_path / name).write_text("x")
    assert [(language, path.name) for language, path in sidecars(film)] == [
        ("de", "The film.de.srt"),
        ("en", "The film.en.vtt"),
        ("", "The film.srt"),
    ]
