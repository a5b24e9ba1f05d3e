"""Answers that stand ready: the bytes of a request lead to its stored response, for objects asked for all the time.

A client sends the same bytes for the same object, so a request that was once read, checked and answered from memory need not
be read again: equal bytes ask for the same thing. What may have changed in between is compared on every hit: the time (one
comparison), and `turn`, which an entry counts up when it is freshened, leaves, or is joined by another response under its
key. Signed addresses are checked by their guard every time. Age is written again once a second. Of small
objects the whole answer stands ready; the bodies of large ones are sent by the kernel.
Bounds: `HOT_MAX` requests of at most `RAW_MAX` bytes, past that all are forgotten and learned again; `READY_MAX` answers of
at most `BODY_MAX` stand ready.
"""

from collections import deque

from fourplane.edge.cache_protocol import CacheRequest
from fourplane.edge.cache_store import CacheEntry

HOT_MAX = 8_192
RAW_MAX = 2_048
READY_MAX = 1_024
BODY_MAX = 32 << 10


class HotAnswer:
    """What one request led to; good while the entry's turn is the same."""

    __slots__ = ("entry", "request", "turn")

    def __init__(self, request: CacheRequest, entry: CacheEntry) -> None:
        self.request = request
        self.entry = entry
        self.turn = entry.turn


class HotAnswers:
    """What one node has ready; connections look into `answers`."""

    __slots__ = ("_ready", "answers")

    def __init__(self) -> None:
        self.answers: dict[bytes, HotAnswer] = {}
        self._ready: deque[CacheEntry] = deque()

    def learn(self, request: CacheRequest, entry: CacheEntry) -> None:
        """`request` is one whole plain GET, and `entry` answered it just now."""
        if len(request.raw) > RAW_MAX:
            return
        if len(self.answers) >= HOT_MAX:
            self.answers.clear()
        self.answers[request.raw] = HotAnswer(request, entry)

    def make_ready(self, entry: CacheEntry, whole: bytes, second: int) -> None:
        """Keep the answer of this second."""
        if not entry.ready:
            self._ready.append(entry)
            if len(self._ready) > READY_MAX:
                oldest = self._ready.popleft()
                oldest.ready, oldest.ready_second = b"", -1
        entry.ready, entry.ready_second = whole, second
