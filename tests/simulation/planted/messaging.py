"""Bugs of a chat server, planted one at a time."""

from fourplane.messaging import user_store
from fourplane.messaging.stream_management import MODULUS, StreamManagement
from fourplane.messaging.user import User
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.user_store import UserStore
from fourplane.state.embedded.vfs import Disk


def acknowledge_before_commit(patch):
    """A stored message is acknowledged before it is on disk."""
    put = UserStore.put_offline

    def early(self, bare, ident, raw, stored, **origin):
        stored(None)
        put(self, bare, ident, raw, lambda failure: None, **origin)

    patch.setattr(UserStore, "put_offline", early)


def acknowledge_before_the_reader(patch):
    """A message is acknowledged when it was passed on, not when its reader has it."""
    patch.setattr(UserSession, "owe", lambda self: 0)


def acknowledge_what_waits(patch):
    """The reported number of handled stanzas ignores the writes that are not finished."""
    patch.setattr(StreamManagement, "durable_h", lambda self, *_: self.handled % MODULUS)


def keep_only_for_a_single_session(patch):
    """Of several broken sessions none keeps the message."""

    def to_bare(self, delivery, kind):
        targets = self.available()
        if not targets or self.flushing:
            self._spool(delivery)
            return
        for session in targets:
            self._push(session, delivery, alone=len(targets) == 1)

    patch.setattr(User, "_to_bare", to_bare)


def forget_what_was_not_taken(patch):
    """When a session ends, what its client never acknowledged is settled instead of stored."""

    def keep_unacked(self, session):
        for owed in session.management.unacked if session.management is not None else ():
            owed.settle()

    patch.setattr(User, "keep_unacked", keep_unacked)


def a_broken_session_keeps_nothing(patch):
    """What comes while a session waits to be resumed lies in memory alone and counts as safe."""

    def keep(self, owed):
        owed.settle()

    patch.setattr(User, "keep", keep)


def stored_messages_newest_first(patch):
    """What came in the user's absence is sent in the wrong order."""
    offline = UserStore.offline

    async def backwards(self, bare, limit):
        return (await offline(self, bare, limit))[::-1]

    patch.setattr(UserStore, "offline", backwards)


def live_messages_overtake_stored_ones(patch):
    """A new message is pushed while older ones are still being read from the store."""
    to_bare = User._to_bare

    def overtake(self, delivery, kind):
        flushing, self.flushing = self.flushing, False
        to_bare(self, delivery, kind)
        self.flushing = flushing

    patch.setattr(User, "_to_bare", overtake)


def one_partition_for_all(patch):
    """Everybody's stored messages lie in one partition."""
    patch.setattr(user_store, "partition_of", lambda bare: b"xmpp/everybody")


def stored_messages_go_before_they_are_taken(patch):
    """Stored messages are forgotten when they were sent, not when the client has them."""

    async def at_once(self):
        return True

    patch.setattr(UserSession, "wait_taken", at_once)


def sync_lies(patch):
    """The disk says yes and makes nothing durable."""

    def sync(self, path):
        self.syncs += 1

    patch.setattr(Disk, "sync", sync)


PLANTS = {
    acknowledge_before_commit: "messaging-disk-stall",
    acknowledge_before_the_reader: "messaging-late-readers",
    acknowledge_what_waits: "messaging-disk-stall",
    keep_only_for_a_single_session: "messaging-latency",
    forget_what_was_not_taken: "messaging-latency",
    a_broken_session_keeps_nothing: "messaging-instance-loss",
    stored_messages_newest_first: "messaging-partition",
    live_messages_overtake_stored_ones: "messaging-retry-storm",
    one_partition_for_all: "messaging-latency",
    stored_messages_go_before_they_are_taken: "messaging-late-readers",
    sync_lies: "messaging-instance-loss",
}
