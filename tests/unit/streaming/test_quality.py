"""Totals of what players report."""

import pytest

from fourplane.streaming.quality import Beacon, Quality


def listening(sessions_max=10):
    quality = Quality(sessions_max=sessions_max, idle_s=60.0)
    quality.open("s", "t", "us", "7", 0.0)
    return quality


def test_totals_grow_by_what_is_new():
    quality = listening()
    first = Beacon("s", played_s=5, stalled_s=0.5, stalls=1, start_ms=80, height=720, bytes=100)
    quality.hear(first, 5.0)
    quality.hear(first, 6.0)
    quality.hear(Beacon("s", played_s=10, stalled_s=0.5, stalls=1, start_ms=80, height=1080, bytes=300), 10.0)
    quality.hear(first, 11.0)
    seen = quality.statistics(12.0)
    assert (seen.starts, seen.stalls, seen.bytes, seen.played_s) == (1, 1, 300, 10)
    assert seen.rebuffer_ratio == pytest.approx(0.5 / 10.5)
    assert seen.heights == {"720p": 0.5, "1080p": 0.5}


def test_unknown_sessions_count_for_nothing():
    quality = listening()
    assert not quality.hear(Beacon("other", played_s=1e9), 1.0)
    assert quality.statistics(1.0).played_s == 0


def test_a_lie_is_bounded():
    quality = listening()
    quality.hear(Beacon("s", played_s=1e12, stalled_s=-5, start_ms=-1, stalls=-9), 1.0)
    seen = quality.statistics(1.0)
    assert seen.played_s <= 60
    assert (seen.starts, seen.stalls) == (0, 0)


def test_idle_sessions_are_forgotten_and_sessions_are_bounded():
    quality = listening(sessions_max=3)
    for number in range(5):
        quality.open(str(number), "t", "eu", "8", 1.0)
    assert quality.statistics(2.0).sessions == 3
    assert quality.watching("8", 2.0) == 3
    assert quality.watching("", 2.0) == 0
    assert quality.statistics(100.0).sessions == 0


def test_a_player_that_was_closed_frees_its_place_at_once():
    quality = listening()
    quality.open("x", "t", "us", "99", 0.0)
    quality.open("y", "t", "us", "99", 0.0)
    assert quality.watching("99", 1.0) == 2
    quality.hear(Beacon("x", played_s=3.0, ended=True), 1.0)
    assert quality.watching("99", 1.0) == 1
    assert quality.played_s == 3.0


def test_who_goes_on_after_an_end_is_watching_again():
    quality = listening()
    quality.open("x", "t", "us", "99", 0.0)
    quality.hear(Beacon("x", played_s=3.0, ended=True), 1.0)
    quality.hear(Beacon("x", played_s=5.0), 2.0)
    assert quality.watching("99", 2.0) == 1
    assert quality.played_s == 5.0


def test_a_beacon_that_the_last_one_overtook_opens_nothing():
    quality = listening()
    quality.open("x", "t", "us", "99", 0.0)
    quality.hear(Beacon("x", played_s=3.0, ended=True), 1.0)
    assert quality.hear(Beacon("x", played_s=2.5), 1.1)
    assert quality.watching("99", 1.2) == 0
    assert quality.played_s == 3.0
