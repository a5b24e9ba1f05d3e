"""What an operator sees of one worker: who is connected from where, which rooms are alive, what waits; and ends sessions.

Read from the objects themselves when somebody asks, so it costs nothing otherwise. Lists are cut at `LISTED_MAX`, the longest
queues and fullest rooms first. The same in a chat client: the commands of XEP-0133 (commands.py).
"""

from pathlib import Path

import msgspec

from fourplane.edge.routes import Call, Door, Reply, Route
from fourplane.foundation.errors import NotFound
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.client_stream import Streams
from fourplane.messaging.group_chat import GroupChat
from fourplane.messaging.room import Room
from fourplane.messaging.routing import Router
from fourplane.messaging.user import User, unacked_number
from fourplane.messaging.user_session import UserSession

API = "/messaging/api/operations"
PAGE = Path(__file__).parent / "static" / "operations.html"
LISTED_MAX = 200


class SessionRow(msgspec.Struct, frozen=True):
    """One resource of a user. `state`: online, away from its connection but resumable, or not shown to contacts."""

    user: str
    resource: str
    state: str
    peer: str
    secure: bool
    unacknowledged: int
    unsent_bytes: int
    waiting: int  # messages stored for the user


class RoomRow(msgspec.Struct, frozen=True):
    """One room with somebody in it, or remembered."""

    room: str
    occupants: int
    persistent: bool
    remembered: int  # messages of its history in memory


class Overview(msgspec.Struct, frozen=True):
    """One worker, now."""

    worker: int
    connections: int
    sessions: int
    users_in_memory: int
    rooms: int
    writes_waiting: int
    addresses: dict[str, int]  # those with the most connections
    session_rows: list[SessionRow]
    room_rows: list[RoomRow]


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose sessions to end."""

    user: str


class Operations:
    """Handlers over the router of this worker."""

    def __init__(self, router: Router, streams: Streams, groups: GroupChat, registry: Registry) -> None:
        self._router = router
        self._streams = streams
        self._groups = groups
        self._registry = registry

    def doors(self) -> list[Door]:
        """The page, what it shows, and the one thing it does."""
        return [
            Route("GET", "/messaging/operations", self._page, "Users, sessions, rooms and queues"),
            Route("GET", API, self.overview, "The same as JSON; `find` is part of an address", access="operator"),
            Route("POST", f"{API}/end", self.end, "End a user's sessions", body=Ended, access="operator"),
        ]

    async def overview(self, call: Call[None]) -> Overview:
        """What there is now; of `find`, if it is given."""
        return self.seen(call.query.get("find", "").strip().lower())

    async def end(self, call: Call[Ended]) -> None:
        """Close every connection of a user; their clients may come back."""
        address = self._router.parse(call.body.user)
        user = self._router.users.get(address.bare) if address is not None else None
        if user is None or not user.sessions:
            raise NotFound("this user has no session in this worker", code="no_session")
        user.close_sessions("reset")
        self._registry.event("info", "messaging", f"an operator ended the sessions of {user.address.bare}")

    def seen(self, find: str) -> Overview:
        """Rows whose address contains `find`."""
        router, streams = self._router, self._streams
        sessions = [
            (_weight(session), user, session)
            for bare, user in router.users.items()
            if find in bare
            for session in user.sessions.values()
        ]
        sessions.sort(key=lambda row: (-row[0], row[2].address.full))
        rooms = [room for bare, room in self._groups.rooms.items() if find in bare]
        rooms.sort(key=lambda room: (-len(room.by_address), room.address.bare))
        addresses = sorted(streams.from_address.items(), key=lambda item: (-item[1], item[0]))
        return Overview(
            worker=router.shards.slot if router.shards is not None else 0,
            connections=len(streams.open),
            sessions=router.session_count,
            users_in_memory=len(router.users),
            rooms=len(self._groups.rooms),
            writes_waiting=router.store.waiting_count,
            addresses=dict(addresses[:10]),
            session_rows=[_session_row(user, session) for _, user, session in sessions[:LISTED_MAX]],
            room_rows=[_room_row(room) for room in rooms[:LISTED_MAX]],
        )

    async def _page(self, _call: Call[None]) -> Reply:
        return Reply(PAGE.read_bytes())


def _weight(session: UserSession) -> int:
    stream = session.stream
    return unacked_number(session) + (stream.buffered() if stream is not None else 0)


def _session_row(user: User, session: UserSession) -> SessionRow:
    stream = session.stream
    state = "broken, may resume" if stream is None else "online" if session.presence is not None else "silent"
    return SessionRow(
        user=user.address.bare,
        resource=session.address.resource,
        state=state,
        peer=stream.peer if stream is not None else "",
        secure=stream is not None and stream.secure,
        unacknowledged=unacked_number(session),
        unsent_bytes=stream.buffered() if stream is not None else 0,
        waiting=user.offline_count,
    )


def _room_row(room: Room) -> RoomRow:
    return RoomRow(room.address.bare, len(room.by_address), room.configuration.persistent, len(room.history))
