"""Bugs of a video service and its caches, planted one at a time."""

from fourplane.edge.cache_node import CacheNode
from fourplane.foundation import clock
from fourplane.foundation.errors import NotFound
from fourplane.state.embedded.vfs import Disk
from fourplane.streaming.origin import Origin
from fourplane.streaming.playback import MediaGuard, Playback


def any_token_opens_any_title(patch):
    """A cache node serves whatever is asked for, token or not."""
    patch.setattr(MediaGuard, "__call__", lambda self, target: target[target.find(b"/v/") :])


def no_token_is_asked_for(patch):
    """An address without a token is served, one with a wrong token is not."""
    guard = MediaGuard.__call__
    patch.setattr(MediaGuard, "__call__", lambda self, target: guard(self, target) if target[:3] == b"/t/" else target)


def a_token_is_remembered_for_everything(patch):
    """What a token was made for is forgotten once it was verified."""
    verify = MediaGuard._verify

    def forget(self, token, now_s):
        known = verify(self, token, now_s)
        self._known[token] = (b"/v/", known[1])
        return known

    patch.setattr(MediaGuard, "_verify", forget)


def segments_share_a_place_in_the_cache(patch):
    """The number of a segment is left out of the cache's key."""
    guard = MediaGuard.__call__

    def call(self, target):
        key = guard(self, target)
        head, _, last = key.rpartition(b"/")
        return head + b"/0.m4s" if last.endswith(b".m4s") else key

    patch.setattr(MediaGuard, "__call__", call)


def titles_share_a_place_in_the_cache(patch):
    """The cache knows an object by its last two names, so that titles answer for each other."""
    lookup = CacheNode._lookup

    def shared(self, key, request):
        places = self.__dict__.setdefault("planted", {})
        short = b"/".join(key.split(b"/")[-2:])
        entry = lookup(self, key, request)
        return places.setdefault(short, entry) if entry is not None else places.get(short)

    patch.setattr(CacheNode, "_lookup", shared)


def the_origin_cuts_one_segment_late(patch):
    """The origin reads a segment from where the next one begins."""
    read = Origin._range

    async def late(self, index, track, offset, size):
        return await read(self, index, track, offset + (16 if offset else 0), size)

    patch.setattr(Origin, "_range", late)


def the_origin_forgets_the_track(patch):
    """Every track is answered from the first one."""
    read = Origin._range

    async def first(self, index, track, offset, size):
        return await read(self, index, index.video[0], offset, size)

    patch.setattr(Origin, "_range", first)


def the_last_segment_is_missing(patch):
    """The origin counts a track's segments from one."""
    body = Origin._body

    async def short(self, index, name):
        track, _, part = name.partition("/")
        if part.endswith(".m4s") and int(part[:-4]) == len(index.track(track).segments) - 1:
            raise NotFound("no such object", code="no_such_object")
        return await body(self, index, name)

    patch.setattr(Origin, "_body", short)


def rights_end_at_once(patch):
    """A right to watch ends after a millisecond instead of hours."""

    def path(self, title, version, session):
        place = f"/v/{title}/{version}/"
        token = self._signer.sign("media", {"path": place, "session": session}, 0.001)
        return f"/t/{token}{place}"

    patch.setattr(Playback, "_signed_path", path)


def plays_are_given_the_wrong_title(patch):
    """Now and then a right is made out for another title."""
    signed = Playback._signed_path

    def path(self, title, version, session):
        right = signed(self, title, version, session)
        return right if clock.random().random() < 0.7 else right.replace("/v/" + title, "/v/" + title[::-1])

    patch.setattr(Playback, "_signed_path", path)


def sync_lies(patch):
    """The disk says yes and makes nothing durable."""

    def sync(self, path):
        self.syncs += 1

    patch.setattr(Disk, "sync", sync)


PLANTS = {
    any_token_opens_any_title: "streaming-latency",
    no_token_is_asked_for: "streaming-latency",
    a_token_is_remembered_for_everything: "streaming-latency",
    segments_share_a_place_in_the_cache: "streaming-latency",
    titles_share_a_place_in_the_cache: "streaming-latency",
    the_origin_cuts_one_segment_late: "streaming-latency",
    the_origin_forgets_the_track: "streaming-latency",
    the_last_segment_is_missing: "streaming-latency",
    rights_end_at_once: "streaming-latency",
    plays_are_given_the_wrong_title: "streaming-latency",
    sync_lies: "streaming-instance-loss",
}
