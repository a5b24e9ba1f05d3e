"""Bugs planted on purpose: the search must find each of them, or its silence about the real code proves nothing."""

from pathlib import Path

import pytest

from fourplane import simulator
from fourplane.dispatch.rides import Rides
from fourplane.messaging.user import User
from fourplane.messaging.user_store import UserStore
from fourplane.simulator import experiment, search
from fourplane.state.embedded.vfs import Disk
from fourplane.streaming.playback import MediaGuard

LIBRARY = Path(simulator.__file__).parent / "library"
SEEDS_MAX = 20


def found(name):
    """What the search says about an experiment, and after how many seeds."""
    chosen = experiment.parse((LIBRARY / f"{name}.json").read_bytes())
    failed = search.first_failure(chosen, range(1, SEEDS_MAX + 1))
    assert failed is not None
    return " | ".join(failed.violations), failed


def acknowledge_before_commit(monkeypatch):
    put = UserStore.put_offline

    def early(self, bare, ident, raw, stored):
        stored(None)
        put(self, bare, ident, raw, lambda failure: None)

    monkeypatch.setattr(UserStore, "put_offline", early)


def keep_only_for_a_single_session(monkeypatch):
    def to_bare(self, delivery, kind):
        targets = self.available()
        if not targets or self.flushing:
            self._spool(delivery)
            return
        for session in targets:
            self._push(session, delivery, alone=len(targets) == 1)

    monkeypatch.setattr(User, "_to_bare", to_bare)


def sync_lies(monkeypatch):
    def sync(self, path):
        self.syncs += 1

    monkeypatch.setattr(Disk, "sync", sync)


def trips_are_not_stored(monkeypatch):
    async def append(self, ride, events):
        return bool(events)

    monkeypatch.setattr(Rides, "_append", append)


def offers_never_lapse(monkeypatch):
    async def nothing(self):
        return 0

    monkeypatch.setattr(Rides, "expire_offers", nothing)


def any_token_opens_any_title(monkeypatch):
    monkeypatch.setattr(MediaGuard, "__call__", lambda self, target: target[target.find(b"/v/") :])


def segments_share_a_place_in_the_cache(monkeypatch):
    guard = MediaGuard.__call__

    def call(self, target):
        key = guard(self, target)
        head, _, last = key.rpartition(b"/")
        return head + b"/0.m4s" if last.endswith(b".m4s") else key

    monkeypatch.setattr(MediaGuard, "__call__", call)


@pytest.mark.parametrize(
    ("plant", "name", "said"),
    [
        (acknowledge_before_commit, "messaging-disk-stall", "acknowledged and lost"),
        (keep_only_for_a_single_session, "messaging-latency", "acknowledged and lost"),
        (sync_lies, "messaging-instance-loss", ""),
        (sync_lies, "commerce-instance-loss", ""),
        (trips_are_not_stored, "dispatch-instance-loss", "held after everything"),
        (offers_never_lapse, "dispatch-partition", "rides:"),
        (any_token_opens_any_title, "streaming-latency", "films:"),
        (segments_share_a_place_in_the_cache, "streaming-latency", "films:"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:40],
)
def test_the_search_finds_it(plant, name, said, monkeypatch):
    plant(monkeypatch)
    told, _ = found(name)
    assert said in told


def test_a_failure_is_shrunk_to_what_it_needs(monkeypatch):
    sync_lies(monkeypatch)
    chosen = experiment.parse((LIBRARY / "messaging-disk-stall.json").read_bytes())
    failed = search.first_failure(chosen, range(1, 20))
    assert failed is not None
    smallest = search.shrink(chosen, failed)
    assert smallest.kept == (1,), "the crash alone, without the stall before it"
    assert not smallest.result.passed
