"""What one stream does between its opening and its session: both login profiles, resource binding, resumption.

A step whose ingredients are in memory (keys remembered a moment ago, a loaded user) is done in the call that brings it and
costs no task; otherwise it waits (`ClientStream.wait_for`) while the stream takes no further stanza. Login and policy are in
login.py and inline_login.py; here they meet the connection.
"""

from typing import TYPE_CHECKING

from fourplane.foundation.errors import FourplaneError, Rejected
from fourplane.messaging import inline_login, login, registration, stanzas
from fourplane.messaging.addresses import Address, parse
from fourplane.messaging.inline_login import Wish
from fourplane.messaging.login import BIND_NS, SASL2_NS, SASL_NS, Login, Offer, Step
from fourplane.messaging.stream_management import NAMESPACE as SM
from fourplane.messaging.user import User
from fourplane.messaging.user_session import UserSession
from fourplane.messaging.xml_stream import IQ, Stanza, StreamError

if TYPE_CHECKING:
    from fourplane.messaging.client_stream import ClientStream

REGISTRATIONS_MAX = 3  # requests of a stream, that for the form among them
BIND = [f"{BIND_NS} bind"]


class StreamLogin:
    """The way of one stream to its session; dropped when it is there."""

    __slots__ = ("_exchange", "_registrations", "_stream", "_wish")

    def __init__(self, stream: "ClientStream", offer: Offer) -> None:
        self._stream = stream
        self._exchange = Login(stream.streams.router, offer)
        self._wish: Wish | None = None
        self._registrations = 0

    def take(self, stanza: Stanza) -> None:
        """One stanza before the session; raises StreamError, or another error of a step that cannot be done."""
        stream, name = self._stream, stanza.name
        if stream.name:
            if name == f"{SM} resume":
                self._resume(stanza)
            elif name == IQ and stanza.children == BIND:
                self._bind(stanza)
            else:
                raise StreamError("not-authorized", "bind a resource first")
        elif name.startswith(f"{SASL_NS} "):
            kind, mechanism = name.partition(" ")[2], stanza.attributes.get("mechanism", "")
            text = login.sasl_text(stanza)
            step = self._exchange.try_step(kind, mechanism, text)
            if step is None:
                stream.wait_for(self._authenticate(mechanism, text))
            else:
                self._authenticated(step)
        elif name.startswith(f"{SASL2_NS} "):
            self._inline(stanza)
        elif registration.is_registration(stanza) and self._may_register():
            stream.wait_for(registration.register(stream, stanza))
        else:
            raise StreamError("not-authorized", "log in first")

    def _may_register(self) -> bool:
        """One account per stream, and never a password in the clear where TLS is required."""
        if not self._stream.streams.settings.registration or not self._exchange.offer.mechanisms:
            return False
        self._registrations += 1
        return self._registrations <= REGISTRATIONS_MAX

    async def _authenticate(self, mechanism: str, text: str) -> None:
        self._authenticated(await self._exchange.begin(mechanism, text))

    def _authenticated(self, step: Step) -> None:
        stream = self._stream
        if stream.ended:
            return
        stream.send(step.written())
        if step.name:
            stream.proved(step.name)
            stream.reopen()
        elif step.kind == "failure":
            stream.streams.login_failures += 1

    def _inline(self, stanza: Stanza) -> None:
        """XEP-0388: the exchange, and on success everything the client wished for."""
        if stanza.name == f"{SASL2_NS} authenticate":
            self._wish = wish = inline_login.read_wish(stanza)
            if wish.mechanism == login.FAST_MECHANISM and self._exchange.offer.mechanisms:
                step = inline_login.try_token(self._stream.streams.router, self._exchange, wish)
                if step is None:
                    self._stream.wait_for(self._authenticate_by_token(wish))
                    return
            else:
                step = self._exchange.try_step("auth", wish.mechanism, wish.text)
                if step is None:
                    self._stream.wait_for(self._authenticate_inline(wish))
                    return
        elif self._wish is not None:
            step = self._exchange.try_step(stanza.name.partition(" ")[2], "", login.sasl_text(stanza))
        else:
            raise StreamError("not-authorized", "log in first")
        assert step is not None, "only the first message needs the store"
        if step.kind != "success" or not self._try_succeed(step):
            self._answered(step)

    async def _authenticate_by_token(self, wish: Wish) -> None:
        step = await inline_login.by_token(self._stream.streams.router, self._exchange, wish)
        await self._answered_late(step)

    async def _authenticate_inline(self, wish: Wish) -> None:
        await self._answered_late(await self._exchange.begin(wish.mechanism, wish.text))

    async def _answered_late(self, step: Step) -> None:
        if self._stream.ended:
            return
        if step.kind == "success":
            await self._succeed(step)
        else:
            self._answered(step)

    def _answered(self, step: Step) -> None:
        if step.kind == "success":
            self._stream.wait_for(self._succeed(step))
            return
        self._stream.send(inline_login.written(step))
        if step.kind == "failure":
            self._stream.streams.login_failures += 1

    def _try_succeed(self, step: Step) -> bool:
        """Finish now when nothing must be read or written for it."""
        wish, router = self._wish, self._stream.streams.router
        assert wish is not None
        token = inline_login.try_token_for(router, step.name, wish)
        user = router.users.get(f"{step.name}@{router.settings.domains[0]}")
        if token is None or user is None or user.mailbox is not None:
            return False
        self._stream.proved(step.name)
        self._complete(step, wish, token, user)
        return True

    async def _succeed(self, step: Step) -> None:
        router, wish = self._stream.streams.router, self._wish
        assert wish is not None
        self._stream.proved(step.name)
        token = await inline_login.token_for(router, step.name, wish)
        user = await router.user(self._address(""), proved=True)
        if not self._stream.ended:
            self._complete(step, wish, token, user)

    def _complete(self, step: Step, wish: Wish, inner: bytes, user: User | None) -> None:
        stream, router = self._stream, self._stream.streams.router
        jid = self._address("").full
        resumed: UserSession | None = None
        self._wish = None
        if wish.resume is not None:
            resumed, answer = login.resume(router, step.name, wish.resume)
            inner += answer
        if resumed is None and wish.bind:
            session = self._new_session(user, inline_login.resource_for(wish))
            jid = session.address.full
            enabled = login.enable_management(router, session, wish.manage) if wish.manage is not None else b""
            inner += f"<bound xmlns='{login.BIND2_NS}'>".encode() + enabled + b"</bound>"
            if wish.carbons:
                session.carbons = True
                session.user.carbon_count += 1
            if wish.inactive:
                session.quiet = {}
        elif resumed is not None:
            jid = resumed.address.full
        stream.send(inline_login.success(step, jid, inner))
        if resumed is not None:
            stream.become(resumed)
            resumed.attach(stream)
        else:
            session_there = stream.session
            managed = session_there is not None and session_there.management is not None
            most = router.settings.stanza_max
            bound = session_there is not None
            stream.send(login.features_after_login(most, router.caps, bound=bound, managed=managed))

    def _bind(self, stanza: Stanza) -> None:
        router = self._stream.streams.router
        user = router.users.get(self._address("").bare)
        if user is None or user.mailbox is not None:
            self._stream.wait_for(self._bind_late(stanza))
        else:
            self._bound(stanza, user)

    async def _bind_late(self, stanza: Stanza) -> None:
        user = await self._stream.streams.router.user(self._address(""), proved=True)
        if not self._stream.ended:
            self._bound(stanza, user)

    def _bound(self, stanza: Stanza, user: User | None) -> None:
        try:
            session = self._new_session(user, login.requested_resource(stanza))
        except StreamError:
            raise
        except FourplaneError as error:
            own = Stanza(IQ, {"id": stanza.attributes.get("id", "")}, [], stanza.raw)
            self._stream.send(stanzas.error_reply(own, stanzas.condition_of(error), error.public))
            return
        self._stream.send(login.bound(stanza, session.address))

    def _new_session(self, user: User | None, resource: str) -> UserSession:
        """Bind `resource`; raises StreamError when the stream must end, another error when the client may try again."""
        stream, router = self._stream, self._stream.streams.router
        if user is None:
            raise StreamError("not-authorized", "the account is gone")
        address = self._address(resource)
        if len(user.sessions) >= router.settings.sessions_per_user_max and address.resource not in user.sessions:
            raise Rejected("too many connections of this account", code="resource_constraint")
        if router.session_count >= router.settings.sessions_max:
            raise StreamError("resource-constraint", "this server is full")
        session = UserSession(user, address, stream)
        user.attach(session)
        router.session_count += 1
        stream.become(session)
        return session

    def _resume(self, stanza: Stanza) -> None:
        session, answer = login.resume(self._stream.streams.router, self._stream.name, stanza)
        self._stream.send(answer)
        if session is not None:
            self._stream.become(session)
            session.attach(self._stream)

    def _address(self, resource: str) -> Address:
        bare = f"{self._stream.name}@{self._stream.streams.settings.domains[0]}"
        return parse(f"{bare}/{resource}" if resource else bare)
