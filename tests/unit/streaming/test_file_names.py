"""What the names of files and folders say of films."""

from pathlib import Path

import pytest

from fourplane.foundation.errors import Rejected
from fourplane.streaming.about import About
from fourplane.streaming.file_names import Named, films, named

ROOT = Path("/films")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("holiday_in_porto.mp4", Named("Holiday In Porto")),
        ("big_buck_bunny_480p_30s.mp4", Named("Big Buck Bunny 480p 30s")),
        ("Metropolis (1927).mp4", Named("Metropolis", About(year=1927))),
        ("2001.mp4", Named("2001")),
        ("Blade Runner 2049.mkv", Named("Blade Runner 2049")),
        ("Dark.S02E07.The White Devil.mkv", Named("The White Devil", About(series="Dark", season=2, episode=7))),
        ("dark s1e10.mkv", Named("Dark 1x10", About(series="Dark", season=1, episode=10))),
        ("The Wire/1x03 The Buys.mp4", Named("The Buys", About(series="The Wire", season=1, episode=3))),
        ("The Wire/Season 2/01 Ebb Tide.mp4", Named("Ebb Tide", About(series="The Wire", season=2, episode=1))),
        ("The Wire/Season 2/Episode 2.mp4", Named("The Wire 2x02", About(series="The Wire", season=2, episode=2))),
        ("The Wire/Extras.mp4", Named("Extras")),
        ("S01E01.mp4", Named("Films 1x01", About(series="Films", season=1, episode=1))),
        ("...mp4", Named("Film")),
    ],
)
def test_a_name_says_what_people_read_in_it(path, said):
    assert named(ROOT / path, ROOT) == said


def test_a_name_alone_needs_no_folder():
    assert named(Path("S01E01.mp4")) == Named("1x01")


def test_films_come_in_the_order_people_count_and_nothing_else_does(tmp_path):
    for name in ("b/Film 10.mp4", "b/film 9.MKV", "a.mov", "notes.txt", ".hidden.mp4", "b/film.en.srt", ".git/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in films(tmp_path)] == ["a.mov", "b/film 9.MKV", "b/Film 10.mp4"]


def test_a_folder_without_films_says_so(tmp_path):
    with pytest.raises(Rejected) as refused:
        films(tmp_path)
    assert refused.value.reason == "no_films"
