"""One connection of a client, whatever carries it: opening, login, session, end (RFC 6120 section 4).

Two shells carry it: tcp_stream.py (STARTTLS or TLS from the start) and web_stream.py (RFC 7395). Phases only go forward:
OPENING (a header is awaited) and READY (stanzas) alternate until login is complete; SESSION is a bound resource; ENDED
takes nothing more. While a step waits (`wait_for`), what comes stays in `_backlog`; when that is much, reading is paused.

Backpressure: a stream whose reader is slow is `congested`; whoever writes to it is paused until it has caught up or was
disconnected after `stalled_s`. Reasons for a pause are counted by name, reading goes on when none is left.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.network import InheritedSocket
from fourplane.messaging import login, stanzas
from fourplane.messaging.login import TLS_NS, Offer
from fourplane.messaging.routing import Router
from fourplane.messaging.stream_compression import COMPRESS
from fourplane.messaging.stream_login import StreamLogin
from fourplane.messaging.stream_management import NAMESPACE as SM
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.xml_stream import Framer, FramerStack, Stanza, StreamError

if TYPE_CHECKING:
    from fourplane.messaging.handover import Handover

STREAM_ERRORS_NS = "urn:ietf:params:xml:ns:xmpp-streams"
STARTTLS = f"{TLS_NS} starttls"
SM_ENABLE = f"{SM} enable"
SM_RESUME = f"{SM} resume"
SM_REQUEST = b"<r xmlns='urn:xmpp:sm:3'/>"
BACKLOG_MAX = 4  # stanzas of one client that wait for a step of its login before it is paused
NO_REASON: frozenset[str] = frozenset()  # one for all: an empty set of one's own takes 216 bytes
LOOPBACK = ("127.", "::1")  # workers and terminators of TLS on this machine
FLUSH_BYTES = 64 * 1024  # what may wait for the end of the tick


class Phase(IntEnum):
    OPENING = 0
    READY = 1
    SESSION = 2
    ENDED = 3


SESSION = Phase.SESSION  # looked up once for every stanza


class Streams:
    """What all connections of one process share: parsers, and the list of those with something to write."""

    def __init__(self, router: Router, *, certificate_der_hash: bytes, tls_offered: bool) -> None:
        self.router = router
        self.settings = router.settings
        self.binding = certificate_der_hash
        self.tls_offered = tls_offered
        self.handover: Handover | None = None  # of users who are in other workers
        self.framers = FramerStack(router.settings.depth_max, router.settings.attributes_max)
        self.open: dict[int, ClientStream] = {}
        self.from_address: dict[str, int] = {}  # connections, as `address_connections_max` counts them
        self.opened_count = 0
        self.login_count = 0
        self.registered: dict[str, float] = {}  # when an account was last made from an address
        self.login_failures = 0
        self.bytes_in = self.bytes_out = 0
        self.held_back_s = 0.0  # what a rehearsed slow release or a fault adds before anything is written
        self._dirty: list[ClientStream] = []
        self._number = 0
        self._offers: dict[bool, tuple[Offer, bytes]] = {}

    def add(self, stream: "ClientStream") -> int:
        """Count a new connection; its number."""
        self._number += 1
        self.opened_count += 1
        self.open[self._number] = stream
        return self._number

    def count(self, address: str) -> bool:
        """One more connection from this address; False when that is too many."""
        found = self.from_address.get(address, 0) + 1
        self.from_address[address] = found
        most = self.settings.address_connections_max
        return not most or found <= most or address.startswith(LOOPBACK)

    def uncount(self, address: str) -> None:
        """One connection less."""
        left = self.from_address.get(address, 0) - 1
        if left > 0:
            self.from_address[address] = left
        else:
            self.from_address.pop(address, None)

    def offer(self, *, secure: bool) -> tuple[Offer, bytes]:
        """What a connection may use to log in, and how it is told."""
        found = self._offers.get(secure)
        if found is None:
            required = self.settings.tls_required
            made = Offer(secure=secure, starttls=self.tls_offered, tls_required=required, binding=self.binding)
            found = self._offers[secure] = (
                made,
                made.features(tls_required=required, registration=self.settings.registration),
            )
        return found

    def mark(self, stream: "ClientStream") -> None:
        """`stream` has something to write: all such streams are written together at the end of this tick."""
        if not self._dirty:
            loop = asyncio.get_running_loop()
            if self.held_back_s > 0.0:
                loop.call_later(self.held_back_s, self.flush)
            else:
                loop.call_soon(self.flush)
        self._dirty.append(stream)

    def flush(self) -> None:
        """Write what waits."""
        dirty, self._dirty = self._dirty, []
        for stream in dirty:
            stream.flush()


class ClientStream:
    """One connection; a shell implements `_write`, `_header`, `_footer`, `_close`, `_pause`, `_resume`."""

    __slots__ = (
        "_backlog",
        "_deadline",
        "_framer",
        "_login",
        "_number",
        "_out_bytes",
        "_paused_for",
        "_slowed",
        "_stall",
        "_stanza_max",
        "acknowledges",
        "congested",
        "name",
        "opened",
        "out",
        "peer",
        "phase",
        "secure",
        "session",
        "streams",
    )

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.phase = Phase.OPENING
        self.session: UserSession | None = None
        self.name = ""  # the proved account
        self.secure = False
        self.opened = False  # our own header was sent
        self.congested = False
        self.acknowledges = False  # the session tells its count at the end of this tick
        self.peer = ""
        self._stanza_max = streams.settings.stanza_max_before_login
        self.out: list[bytes] = []
        self._out_bytes = 0
        self._login: StreamLogin | None = None
        self._framer: Framer | None = None
        self._backlog: deque[Stanza] | None = None
        self._paused_for = NO_REASON
        self._slowed: list[UserSession] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._number = streams.add(self)
        loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = loop.call_later(streams.settings.login_s, self._too_late)

    def send(self, data: bytes) -> None:
        """Queue one stanza; it leaves with everything else of this tick."""
        out = self.out
        if not out and not self.acknowledges:
            self.streams.mark(self)
        out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > FLUSH_BYTES:
            self.flush()

    def acknowledge(self) -> None:
        """Send the session's count of handled stanzas at the end of this tick, once for all that came."""
        if not self.acknowledges:
            if not self.out:
                self.streams.mark(self)
            self.acknowledges = True

    def flush(self) -> None:
        """Hand what waits to the network."""
        out, self.out = self.out, []
        self._out_bytes = 0
        if self.acknowledges:
            self.acknowledges = False
            if self.session is not None:
                out += self.session.acknowledgement()
        if out and self.phase is not Phase.ENDED:
            self._write(out)

    def received(self, data: bytes) -> None:
        """Bytes inside an open stream."""
        session = self.session
        if (
            session is not None
            and self._framer is None
            and session.management is not None
            and session.user.mailbox is None
        ):
            self._managed(session, data)
        else:
            self._feed(data)

    def _managed(self, session: UserSession, data: bytes) -> None:
        """Bytes of a client with stream management, between two stanzas: often its marks stand around one stanza."""
        try:
            data, asked = session.take_marks(data)
        except StreamError as error:
            self.fail(error)
            return
        if data:
            self._feed(data)
        if asked and session is self.session:
            if self._framer is None:
                session.want_acknowledgement()
            else:  # what looked like a request stands inside a stanza
                self._feed(SM_REQUEST)

    def _feed(self, data: bytes) -> None:
        framer = self._framer
        framers = self.streams.framers
        if framer is None:
            framer = framers.shared()
        failure: StreamError | None = None
        try:
            complete = framer.feed(data, self._stanza_max)
        except StreamError as error:
            failure, complete = error, framer.accepted()
        if failure is not None or not framer.idle:
            framers.taken(framer)
            self._framer = framer
        elif self._framer is not None:
            framers.give_back(framer)
            self._framer = None
        if self.phase is SESSION and self._backlog is None:
            self._session_stanzas(complete)
        else:
            self._take(complete)
        if self.phase is Phase.ENDED:
            return
        if framer.closed:
            self.end()
        elif failure is not None:
            self.fail(failure)

    def go_on(self, *, secure: bool, peer: str) -> None:
        """Go on where another worker passed this connection: the opening was spoken, a login is awaited."""
        self.secure, self.opened = secure, True
        self.came_from(peer)
        self.phase = Phase.READY
        self._login = StreamLogin(self, self.offer()[0])

    def came_from(self, peer: str) -> bool:
        """The connection comes from this network address; False, and its end, when too many do."""
        if self.peer:
            self.streams.uncount(self.peer)
        self.peer = peer
        if peer and not self.streams.count(peer):
            self.fail(StreamError("policy-violation", "too many connections from your address"))
            return False
        return True

    def detach(self) -> tuple[InheritedSocket, Callable[[bool], None]]:
        """What to pass to another worker, and whom to tell whether it was; raises Unavailable when the client is gone."""
        raise NotImplementedError

    def left(self) -> None:
        """The connection is somebody else's now."""
        self.phase = Phase.ENDED
        self._release()

    def fail(self, error: StreamError) -> None:
        """Tell the client what was wrong with its stream, then close it."""
        if self.phase is Phase.ENDED:
            return
        text = f"<text xmlns='{STREAM_ERRORS_NS}'>{stanzas.escape(error.text)}</text>" if error.text else ""
        what = f"<stream:error><{error.condition} xmlns='{STREAM_ERRORS_NS}'/>{text}</stream:error>"
        self._finish(what.encode())

    def end(self) -> None:
        """The client said goodbye: its session ends without waiting for a resumption."""
        session, self.session = self.session, None
        if session is not None:
            session.stream = None
            session.user.ended(session)
        self._finish(b"")

    def lost(self) -> None:
        """The connection is gone."""
        was_open = self.phase is not Phase.ENDED
        self.phase = Phase.ENDED
        self._release()
        session, self.session = self.session, None
        if was_open and session is not None:
            session.disconnected()

    def pause(self, reason: str) -> None:
        """Read nothing more until every reason is resumed."""
        if not self._paused_for and self.phase is not Phase.ENDED:
            self._pause()
        self._paused_for |= {reason}

    def resume(self, reason: str) -> None:
        """One reason to pause is over."""
        if reason in self._paused_for:
            self._paused_for = (self._paused_for - {reason}) or NO_REASON
            if not self._paused_for and self.phase is not Phase.ENDED:
                self._resume()

    def slow_down(self, source: UserSession) -> None:
        """The reader is slow: pause whoever writes to it."""
        stream = source.stream
        if stream is None or stream is self:
            return
        if self._slowed is None:
            self._slowed = []
        if source not in self._slowed:
            self._slowed.append(source)
            stream.pause(f"slow {self._number}")

    def writing_paused(self) -> None:
        """The network takes nothing more for now."""
        self.congested = True
        if self._stall is None:
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(self.streams.settings.stalled_s, self.give_up)

    def writing_resumed(self) -> None:
        """The network has caught up."""
        self.congested = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        slowed, self._slowed = self._slowed, None
        for source in slowed or ():
            if source.stream is not None:
                source.stream.resume(f"slow {self._number}")

    def give_up(self) -> None:
        """The client takes nothing any more: cut the connection, its session may be resumed."""
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDED
            session, self.session = self.session, None
            if session is not None:
                session.disconnected()
            self._release()
            self._abort()

    def buffered(self) -> int:
        """Bytes that the network has not taken yet."""
        return self._out_bytes + self._unsent()

    def open_stream(self, attributes: dict[str, str]) -> None:
        """The client's header has come: answer with ours and the features."""
        settings = self.streams.settings
        target = attributes.get("to", "")
        domain = target.lower() if target else settings.domains[0]
        known = domain in self.streams.router.domains
        self._send_header(domain if known else settings.domains[0], attributes.get("from", ""))
        if not known:
            raise StreamError("host-unknown", f"this server serves {', '.join(settings.domains)}")
        if attributes.get("version", "0.9").split(".")[0] != "1":
            raise StreamError("unsupported-version")
        if not self.streams.router.switches.connections.on:
            raise StreamError("system-shutdown", "the connection manager was stopped by an operator")
        self.phase = Phase.READY
        if self.name:
            zlib = self._compressible()
            self.send(login.features_after_login(settings.stanza_max, self.streams.router.caps, zlib=zlib))
            return
        offer, features = self.offer()
        if self._login is None:
            self._login = StreamLogin(self, offer)
        self.send(features)

    def _session_stanzas(self, complete: list[Stanza]) -> None:
        router = self.streams.router
        session = self.session
        assert session is not None
        for stanza in complete:
            try:
                if stanza.name == SM_ENABLE:
                    self.send(login.enable_management(router, session, stanza))
                elif stanza.name == SM_RESUME:
                    self.send(login.refused_resumption())
                else:
                    router.from_session(session, stanza)
            except StreamError as error:
                self.fail(error)
            if self.phase is not SESSION or self.session is not session:
                return

    def _take(self, complete: list[Stanza]) -> None:
        """Stanzas before the session, one at a time: each may wait."""
        if self._backlog is not None:
            self._backlog.extend(complete)
            if len(self._backlog) > BACKLOG_MAX:
                self.pause("login")
            return
        for index, stanza in enumerate(complete):
            if self.phase is Phase.SESSION:
                self._session_stanzas(complete[index:])
                return
            if self.streams.handover is not None and self._passes(self.streams.handover, complete[index:]):
                return
            try:
                self._before_session(stanza)
            except StreamError as error:
                self.fail(error)
            except FourplaneError as error:
                self.fail(StreamError("internal-server-error", error.public))
            if self._has_turned() or self._has_queued(complete[index + 1 :]):
                return

    def _passes(self, handover: "Handover", complete: list[Stanza]) -> bool:
        """Whether the user these words come from is in another worker; then the connection goes there with them."""
        if self.name:
            return False
        rest = b"".join(stanza.raw for stanza in complete[1:])
        if self._framer is not None:
            rest += self._framer.unfinished
        if not handover.try_pass(self, complete[0], rest):
            return False
        self._backlog = deque()
        return True

    def _before_session(self, stanza: Stanza) -> None:
        if stanza.name == STARTTLS and not self.name and not self.secure and self.streams.tls_offered:
            self._start_tls()
        elif stanza.name == COMPRESS and self.name:
            self._start_compression(stanza)
        elif self._login is not None:
            self._login.take(stanza)
        else:
            raise StreamError("not-authorized", "log in first")

    def _has_turned(self) -> bool:
        """Whether the last stanza ended the stream or began a new one."""
        return self.phase in {Phase.ENDED, Phase.OPENING}

    def _has_queued(self, rest: list[Stanza]) -> bool:
        """Whether the last stanza waits for something; `rest` then waits behind it."""
        if self._backlog is None:
            return False
        self._backlog.extend(rest)
        return True

    @property
    def ended(self) -> bool:
        """Nothing is taken or sent any more."""
        return self.phase is Phase.ENDED

    def proved(self, name: str) -> None:
        """The client has proved to be `name`."""
        self.name = name
        self.streams.login_count += 1

    def become(self, session: UserSession) -> None:
        """The stream carries `session` from now on."""
        self.session = session
        self.name = session.address.local  # the same text, once
        self._login = None
        self.phase = Phase.SESSION
        self._stanza_max = self.streams.settings.stanza_max
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def wait_for(self, step: Coroutine[Any, Any, None]) -> None:
        """Take no further stanza until `step` has ended."""
        self._backlog = deque()
        self.streams.router.spawn(self._waiting(step))

    async def _waiting(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except StreamError as error:
            self.fail(error)
        except FourplaneError as error:
            self.fail(StreamError("internal-server-error", error.public))
        backlog, self._backlog = self._backlog, None
        if self.phase is Phase.ENDED:
            return
        if backlog:
            self._take(list(backlog))
        if self._backlog is None:
            self.resume("login")

    def _finish(self, last: bytes) -> None:
        if not self.opened and last:
            self._send_header(self.streams.settings.domains[0], "")
        if last:
            self.send(last)
        out, self.out = self.out, []
        if self.acknowledges and self.session is not None:
            self.acknowledges = False
            out = [*self.session.acknowledgement(), *out]
        footer = self._footer()
        self._write([*out, footer] if footer else out)
        self.phase = Phase.ENDED
        session, self.session = self.session, None
        if session is not None:
            session.disconnected()
        self._release()
        self._close()

    def _release(self) -> None:
        if self.streams.open.pop(self._number, None) is not None and self.peer:
            self.streams.uncount(self.peer)
        self._framer = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.writing_resumed()

    def _send_header(self, domain: str, to: str) -> None:
        self.opened = True
        stream_id = clock.token_bytes(12).hex()
        addressed = f" to='{stanzas.escape(to)}'" if to else ""
        self.send(
            self._header(f" from='{stanzas.escape(domain)}' id='{stream_id}'{addressed} version='1.0' xml:lang='en'")
        )

    def _too_late(self) -> None:
        self._deadline = None
        self.fail(StreamError("connection-timeout", "the login took too long"))

    def reopen(self) -> None:
        """The client sends a new header now."""
        self.phase = Phase.OPENING
        self.opened = False
        self._framer = None

    def offer(self) -> tuple[Offer, bytes]:
        """What this connection may use to log in, and how it is told."""
        return self.streams.offer(secure=self.secure)

    def _start_tls(self) -> None:
        raise StreamError("unsupported-stanza-type")

    def _compressible(self) -> bool:
        return False

    def _start_compression(self, stanza: Stanza) -> None:
        raise StreamError("unsupported-stanza-type", stanza.name)

    def _write(self, out: list[bytes]) -> None:
        raise NotImplementedError

    def _header(self, attributes: str) -> bytes:
        raise NotImplementedError

    def _footer(self) -> bytes:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _abort(self) -> None:
        raise NotImplementedError

    def _pause(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _unsent(self) -> int:
        raise NotImplementedError
