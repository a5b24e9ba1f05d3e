"""Making, changing and removing one's own account (XEP-0077), where the settings allow it.

Off by default: open registration invites abuse. With `registration = true` a stream that has not logged in may make one account
(and waits for it, as for a login); a client that has logged in may change its password or leave.
"""

from typing import TYPE_CHECKING

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Forbidden, FourplaneError, Rejected
from fourplane.messaging import stanzas
from fourplane.messaging.addresses import prepare_local
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import Request, ServerQueries
from fourplane.messaging.xml_stream import IQ, Stanza

if TYPE_CHECKING:
    from fourplane.messaging.client_stream import ClientStream

REGISTER = "jabber:iq:register"
QUERY = [f"{REGISTER} query"]
EACH_S = 5.0  # between two accounts made from one address
PLACES_MAX = 10_000
FORM = f"<query xmlns='{REGISTER}'><instructions>Choose a name and a password.</instructions><username/><password/></query>"


class Registration:
    """Requests of clients that have logged in; registers itself."""

    def __init__(self, router: Router, queries: ServerQueries) -> None:
        self._router = router
        queries.own(QUERY[0], get=self._form, put=self._change)
        if router.settings.registration:
            queries.server_features.append(REGISTER)

    def _form(self, request: Request) -> None:
        name = stanzas.escape(request.account().address.local)
        fields = f"<registered/><username>{name}</username><password/>"
        request.answer(f"<query xmlns='{REGISTER}'>{fields}</query>".encode())

    def _change(self, request: Request) -> None:
        request.account()
        if not self._router.settings.registration:
            raise Forbidden("accounts are kept by an operator here", code="not_allowed")
        self._router.spawn(self._changed(request))

    async def _changed(self, request: Request) -> None:
        accounts, user = self._router.accounts, request.account()
        try:
            account = await accounts.find(user.address.local)
            if account is None:
                raise Rejected("the account is gone", code="item_not_found")
            if request.element.find(f"{{{REGISTER}}}remove") is not None:
                request.answer()
                await accounts.delete(account)
                self._router.forget(user.address)
                return
            password = request.element.findtext(f"{{{REGISTER}}}password") or ""
            if request.element.findtext(f"{{{REGISTER}}}username") != user.address.local or not password:
                raise Rejected("name and new password are needed", code="bad_request")
            await accounts.set_password(account, password)
            request.answer()
        except FourplaneError as error:
            request.refuse(stanzas.condition_of(error), error.public)


def is_registration(stanza: Stanza) -> bool:
    """Whether somebody who has not logged in asks for an account."""
    return stanza.name == IQ and stanza.children == QUERY


async def register(stream: "ClientStream", stanza: Stanza) -> None:
    """Answer a request for the form, or make the account."""
    router = stream.streams.router
    own = Stanza(IQ, {"id": stanza.attributes.get("id", "")}, [], stanza.raw)
    if stanza.attributes.get("type") == "get":
        stream.send(stanzas.result(own, FORM.encode()))
        return
    made_at = stream.streams.registered
    if clock.monotonic_s() - made_at.get(stream.peer, -EACH_S) < EACH_S:
        stream.send(stanzas.error_reply(own, "resource-constraint", "one account at a time from one place"))
        return
    element = stanzas.tree(stanza)[0]
    name, password = (element.findtext(f"{{{REGISTER}}}{field}") or "" for field in ("username", "password"))
    try:
        if not name or not password:
            raise Rejected("name and password are needed", code="not_acceptable")
        account = await router.accounts.create(prepare_local(name.strip().lower()), password)
    except Conflict:
        stream.send(stanzas.error_reply(own, "conflict", "the name is taken"))
    except FourplaneError as error:
        stream.send(stanzas.error_reply(own, "not-acceptable", error.public))
    else:
        if len(made_at) >= PLACES_MAX:
            made_at.clear()
        made_at[stream.peer] = clock.monotonic_s()
        router.registry.event("info", "messaging", f"{account.name} made an account")
        stream.send(stanzas.result(own))
