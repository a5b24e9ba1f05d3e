"""The WhatsApp study's boxes as they are here: what each one is, its figures, and where an operator can stop it."""

from collections.abc import Callable

from fourplane.control.nodes import Figures, Node, Plane, Switch, hollow
from fourplane.messaging.client_stream import Streams
from fourplane.messaging.group_chat import GroupChat
from fourplane.messaging.media import Media
from fourplane.messaging.routing import Router

JOURNEY = "journeys/messaging.md"


def diagram(router: Router, streams: Streams, groups: GroupChat, media: Media | None) -> list[Node]:
    """All boxes of the architecture and of the actor model, those not built drawn hollow."""
    return [
        *_edge(streams),
        *_services(router, streams, groups, media),
        *_stores(router, streams, media),
        *_control(router),
        *_delivery(router),
        *_crashes(router),
    ]


def _edge(streams: Streams) -> list[Node]:
    return [
        hollow("DNS", "edge", "One machine has one address; DNS steering comes with regions."),
        hollow("NGINX", "edge", "No proxy stands in front: clients reach the listeners of this process."),
        _node("SSL", "edge", "TLS 1.2 and 1.3, by STARTTLS or from the first byte.", "tcp_stream.py", _tls(streams)),
        hollow("GEOIP", "edge", "One region only; routing by place comes with federation."),
    ]


def _services(router: Router, streams: Streams, groups: GroupChat, media: Media | None) -> list[Node]:
    switches = router.switches
    return [
        _node(
            "CONN_MGR",
            "service",
            "Holds every connection; one shared parser serves all that stand between stanzas.",
            "client_stream.py",
            _connections(router, streams),
            switch=switches.connections,
            page="/messaging/",
        ),
        _node(
            "MSG_ROUTER",
            "service",
            "One actor per user decides where each message goes, and restarts alone when it crashes.",
            "routing.py",
            _messages(router),
            switch=switches.router,
        ),
        _node(
            "PRESENCE",
            "service",
            "Tells contacts who is there, from the memory of the sessions.",
            "presence.py",
            _presence(router),
            switch=switches.presence,
        ),
        _node(
            "GROUP_MGR",
            "service",
            "One actor per room (XEP-0045): a message is spliced once and sent to every occupant.",
            "group_chat.py",
            _groups(groups),
            switch=switches.groups,
        ),
        _node(
            "MEDIA_SVC",
            "service",
            "Signed slots for files, put and fetched over HTTP with ranges (XEP-0363).",
            "media.py",
            _slots(media),
            switch=switches.media,
        )
        if media is not None
        else hollow("MEDIA_SVC", "service", "No store for files was given to this process."),
    ]


def _stores(router: Router, streams: Streams, media: Media | None) -> list[Node]:
    return [
        _node(
            "MNESIA",
            "state",
            "Sessions live in the memory of their owner: resources, acknowledgement queues, presence.",
            "user_session.py",
            _sessions(router),
            page="/messaging/operations",
        ),
        _node("MYSQL", "state", "Accounts with SCRAM keys, in the SQL store.", "login.py", _accounts(streams)),
        _node(
            "FILE_STORE",
            "state",
            "Messages for absent users and rosters, durable before they are acknowledged.",
            "user_store.py",
            _spool(router),
            switch=router.switches.spool,
        ),
        _node("MEDIA_STORE", "state", "Files people sent, until their time is over.", "media.py", _files(media))
        if media is not None
        else hollow("MEDIA_STORE", "state", "No store for files was given to this process."),
    ]


def _control(router: Router) -> list[Node]:
    return [
        _node("STATS", "control", "The figures of every box, folded when somebody looks.", "app.py", _messages(router)),
        hollow("ALERTS", "control", "Objectives and alerts are the control plane's next step."),
        hollow("DEPLOY", "control", "Handing live connections to a new version is not built yet."),
        hollow("BACKUP", "control", "Incremental backup is not built yet."),
    ]


def _delivery(router: Router) -> list[Node]:
    """The actor model's connection layer and message flow."""
    actor = "One of the actors, a bare address each: sessions, contacts, stored messages."
    users = [_node(name, "service", actor, "user.py", _actors(router)) for name in ("USER1", "USER2", "USER3", "USERN")]
    counts = router.counts
    return [
        *users,
        _node("REGISTRY", "service", "One dictionary: bare address to actor.", "routing.py", _actors(router)),
        _node("RECEIVE", "service", "A whole stanza was cut from a stream.", "xml_stream.py", _messages(router)),
        _node(
            "LOOKUP",
            "service",
            "The recipient's actor is found, or loaded from its store.",
            "routing.py",
            _sessions(router),
        ),
        _node(
            "DELIVER",
            "service",
            "Into the mailbox of the actor, out to each session it serves.",
            "user.py",
            lambda: Figures(requests=counts.delivered),
        ),
        _node(
            "OFFLINE",
            "service",
            "Nobody there: kept, durable before it is acknowledged.",
            "user_store.py",
            _spool(router),
        ),
        _node(
            "ACK",
            "service",
            "Given when the reader has it or the disk has it, never earlier (XEP-0198).",
            "stream_management.py",
            lambda: Figures(requests=counts.delivered + counts.stored, facts={"resumable": len(router.resume_ids)}),
        ),
    ]


def _crashes(router: Router) -> list[Node]:
    """The actor model's fault tolerance."""

    def crashes() -> Figures:
        return Figures(requests=router.counts.crashes, facts={"crashes": router.counts.crashes})

    return [
        _node(
            "SUPERVISOR",
            "control",
            "Counts what crashes and how often; the router keeps its actors.",
            "routing.py",
            crashes,
        ),
        _node(
            "RESTART",
            "control",
            "The crashed actor alone is made again, with its live sessions.",
            "routing.py",
            crashes,
        ),
        _node(
            "ISOLATE",
            "control",
            "No other user notices; who crashes again and again is disconnected.",
            "routing.py",
            crashes,
        ),
        _node(
            "PRESERVE",
            "control",
            "What was acknowledged lies in the store and is read back.",
            "user_store.py",
            lambda: Figures(requests=router.counts.loads),
        ),
    ]


def _node(
    node_id: str,
    plane: Plane,
    what: str,
    source: str,
    figures: Callable[[], Figures],
    *,
    switch: Switch | None = None,
    page: str = "",
) -> Node:
    return Node(node_id, plane, what, f"messaging/{source}", figures, switch, JOURNEY, page)


def _tls(streams: Streams) -> Callable[[], Figures]:
    def figures() -> Figures:
        secure = sum(stream.secure for stream in streams.open.values())
        return Figures(requests=streams.opened_count, facts={"secured connections": secure})

    return figures


def _connections(router: Router, streams: Streams) -> Callable[[], Figures]:
    def figures() -> Figures:
        share = router.session_count / router.settings.sessions_max
        facts: dict[str, float | int | str] = {
            "connections": len(streams.open),
            "sessions": router.session_count,
            "parsers": streams.framers.made,
            "bytes in": streams.bytes_in,
            "bytes out": streams.bytes_out,
        }
        return Figures(streams.login_count, streams.login_failures, share, None, facts)

    return figures


def _messages(router: Router) -> Callable[[], Figures]:
    def figures() -> Figures:
        counts = router.counts
        facts: dict[str, float | int | str] = {
            "delivered": counts.delivered,
            "stored": counts.stored,
            "requests": counts.requests,
            "actors": len(router.users),
            "actor crashes": counts.crashes,
        }
        return Figures(requests=counts.messages, errors=counts.bounced + counts.crashes, facts=facts)

    return figures


def _actors(router: Router) -> Callable[[], Figures]:
    return lambda: Figures(requests=router.counts.loads, facts={"actors": len(router.users)})


def _presence(router: Router) -> Callable[[], Figures]:
    return lambda: Figures(requests=router.counts.presences)


def _groups(groups: GroupChat) -> Callable[[], Figures]:
    def figures() -> Figures:
        facts: dict[str, float | int | str] = {
            "rooms": len(groups.rooms),
            "occupants": sum(len(room.by_address) for room in groups.rooms.values()),
            "deliveries": groups.counts.deliveries,
        }
        return Figures(requests=groups.counts.messages, errors=groups.counts.refused, facts=facts)

    return figures


def _slots(media: Media) -> Callable[[], Figures]:
    return lambda: Figures(requests=media.counts.slots, errors=media.counts.refused)


def _files(media: Media) -> Callable[[], Figures]:
    def figures() -> Figures:
        counts = media.counts
        facts: dict[str, float | int | str] = {
            "files stored": counts.stored,
            "bytes stored": counts.stored_bytes,
            "bytes fetched": counts.fetched_bytes,
            "files over": counts.expired,
        }
        return Figures(requests=counts.stored + counts.fetched, facts=facts)

    return figures


def _sessions(router: Router) -> Callable[[], Figures]:
    def figures() -> Figures:
        facts: dict[str, float | int | str] = {
            "sessions": router.session_count,
            "resumable": len(router.resume_ids),
            "users in memory": len(router.users),
        }
        share = len(router.users) / (router.settings.users_in_memory_max + router.settings.sessions_max)
        return Figures(requests=router.counts.loads, saturation=share, facts=facts)

    return figures


def _accounts(streams: Streams) -> Callable[[], Figures]:
    return lambda: Figures(requests=streams.login_count + streams.login_failures, errors=streams.login_failures)


def _spool(router: Router) -> Callable[[], Figures]:
    def figures() -> Figures:
        store = router.store
        facts: dict[str, float | int | str] = {"writes waiting": store.waiting_count}
        return Figures(router.counts.stored, store.failed_count, 0.0, router.store_latency, facts)

    return figures
