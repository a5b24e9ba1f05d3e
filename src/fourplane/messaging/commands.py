"""Commands for operators in any client (XEP-0050), the part of XEP-0133 that means something here.

Each command is one form: `execute` shows it, `complete` carries it out. Only accounts with the role `operator` see the list
or may run one. A command's session is its form's fields and nothing else, so nothing is kept between the two steps.
"""

from collections.abc import Awaitable, Callable
from xml.etree import ElementTree as ET

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Forbidden, FourplaneError, NotFound, Rejected
from fourplane.messaging import stanzas
from fourplane.messaging.addresses import Address
from fourplane.messaging.delivery import Delivery
from fourplane.messaging.routing import Router
from fourplane.messaging.server_queries import Request, ServerQueries
from fourplane.messaging.stanzas import escape
from fourplane.messaging.xml_stream import MESSAGE, Stanza
from fourplane.service.accounts import Account

COMMANDS = "http://jabber.org/protocol/commands"
ADMIN = "http://jabber.org/protocol/admin#"
FORM = "jabber:x:data"
ROLE = "operator"
LISTED_MAX = 200
TOLD_AT_ONCE = 200
Fields = dict[str, str]


class Command(msgspec.Struct, frozen=True):
    """One command: its name, the fields of its form (name, kind, label), and what it does; the answer is text or fields."""

    name: str
    title: str
    fields: tuple[tuple[str, str, str], ...]
    run: Callable[[Fields], Awaitable[Fields]]


class Commands:
    """The list and its execution; registers itself."""

    def __init__(self, router: Router, queries: ServerQueries) -> None:
        self._router = router
        who = ("accountjid", "jid-single", "Account")
        secret = ("password", "text-private", "Password")
        found = (
            Command("add-user", "Add a user", (who, secret), self._add),
            Command("delete-user", "Delete a user", (("accountjids", "jid-multi", "Accounts"),), self._delete),
            Command("change-user-password", "Change a password", (who, secret), self._change_password),
            Command(
                "end-user-session", "End a user's sessions", (("accountjids", "jid-multi", "Accounts"),), self._end
            ),
            Command("get-user-roster", "See a user's contacts", (who,), self._roster),
            Command("get-online-users-num", "Count users online", (), self._count_online),
            Command("get-online-users-list", "List users online", (), self._list_online),
            Command("announce", "Tell everybody online", (("announcement", "text-multi", "Message"),), self._announce),
        )
        self._commands = {ADMIN + command.name: command for command in found}
        queries.own(f"{COMMANDS} command", put=self._asked)
        queries.server_features.append(COMMANDS)
        queries.commands = self._list

    def _asked(self, request: Request) -> None:
        self._router.spawn(self._answer(request))

    async def _answer(self, request: Request) -> None:
        element = request.element
        node, action = element.get("node", ""), element.get("action", "execute")
        try:
            await self._check_operator(request.delivery.sender)
            command = self._commands.get(node)
            if command is None:
                raise NotFound("there is no such command")
            form = element.find(f"{{{FORM}}}x")
            head = f"<command xmlns='{COMMANDS}' node='{escape(node)}' sessionid='{self._router.ids.next()}'"
            if action == "cancel":
                request.answer(f"{head} status='canceled'/>".encode())
            elif form is None and command.fields:
                request.answer(f"{head} status='executing'>{_form(command)}</command>".encode())
            else:
                result = await command.run(_submitted(form))
                request.answer(f"{head} status='completed'>{_result(result)}</command>".encode())
        except FourplaneError as error:
            request.refuse(stanzas.condition_of(error), error.public)

    def _list(self, request: Request) -> None:
        self._router.spawn(self._listed(request))

    async def _listed(self, request: Request) -> None:
        shown: list[str] = []
        try:
            await self._check_operator(request.delivery.sender)
            domain = self._router.settings.domains[0]
            for node, command in self._commands.items():
                shown.append(f"<item jid='{escape(domain)}' node='{node}' name='{escape(command.title)}'/>")
        except FourplaneError:
            pass  # nobody else learns which there are
        space = "http://jabber.org/protocol/disco#items"
        request.answer(f"<query xmlns='{space}' node='{COMMANDS}'>{''.join(shown)}</query>".encode())

    async def _check_operator(self, sender: Address) -> None:
        account = await self._router.accounts.find(sender.local) if sender.domain in self._router.domains else None
        if account is None or ROLE not in account.roles:
            raise Forbidden("only for operators")

    async def _account(self, text: str) -> tuple[Address, Account]:
        address = self._router.parse(text.strip())
        if address is None or address.domain not in self._router.domains:
            raise Rejected("not an address of this server", code="jid_malformed")
        account = await self._router.accounts.find(address.local)
        if account is None:
            raise NotFound("there is no such account")
        return address, account

    async def _add(self, fields: Fields) -> Fields:
        address = self._router.parse(fields.get("accountjid", ""))
        if address is None or address.domain not in self._router.domains or not address.local:
            raise Rejected("not an address of this server", code="jid_malformed")
        if fields.get("password-verify", fields.get("password", "")) != fields.get("password", ""):
            raise Rejected("the two passwords differ", code="not_acceptable")
        account = await self._router.accounts.create(address.local, fields.get("password", ""))
        return {"note": f"{account.name} was added"}

    async def _delete(self, fields: Fields) -> Fields:
        gone = []
        for text in fields.get("accountjids", "").splitlines()[:LISTED_MAX]:
            address, account = await self._account(text)
            if ROLE in account.roles:
                raise Conflict("an operator is not deleted this way", code="not_allowed")
            await self._router.accounts.delete(account)
            self._router.forget(address)
            gone.append(account.name)
        return {"note": f"deleted: {', '.join(gone) or 'nobody'}"}

    async def _change_password(self, fields: Fields) -> Fields:
        _, account = await self._account(fields.get("accountjid", ""))
        await self._router.accounts.set_password(account, fields.get("password", ""))
        return {"note": f"{account.name} has a new password"}

    async def _end(self, fields: Fields) -> Fields:
        count = 0
        for text in fields.get("accountjids", "").splitlines()[:LISTED_MAX]:
            address, _ = await self._account(text)
            user = self._router.users.get(address.bare)
            if user is not None:
                count += len(user.sessions)
                user.close_sessions("not-authorized")
        return {"note": f"{count} sessions ended"}

    async def _roster(self, fields: Fields) -> Fields:
        address, _ = await self._account(fields.get("accountjid", ""))
        stored = await self._router.store.load(address.bare)
        listed = [f"{one.jid} ({one.subscription})" for one in stored.contacts.values() if one.in_roster]
        return {"accountjid": address.bare, "roster": "\n".join(listed)}

    async def _count_online(self, _fields: Fields) -> Fields:
        return {"onlineusersnum": str(sum(bool(user.sessions) for user in self._router.users.values()))}

    async def _list_online(self, _fields: Fields) -> Fields:
        online = [bare for bare, user in self._router.users.items() if user.sessions]
        return {"onlineuserjids": "\n".join(online[:LISTED_MAX])}

    async def _announce(self, fields: Fields) -> Fields:
        text = fields.get("announcement", "").strip()
        if not text:
            raise Rejected("an announcement says something", code="not_acceptable")
        home = self._router.parse(self._router.settings.domains[0])
        assert home is not None
        told = [user.address for user in self._router.users.values() if user.sessions]
        for number, to in enumerate(told):
            if number % TOLD_AT_ONCE == 0:
                await clock.sleep(0)
            head = f"<message type='headline' from='{escape(home.full)}' to='{escape(to.bare)}'>"
            raw = f"{head}<body>{escape(text)}</body></message>".encode()
            stanza = Stanza(MESSAGE, {"type": "headline"}, ["jabber:client body"], raw)
            self._router.route(Delivery(stanza, raw, home, to, None))
        return {"note": f"told to {len(told)} users"}


def _form(command: Command) -> str:
    fields = f"<field var='FORM_TYPE' type='hidden'><value>{ADMIN.rstrip('#')}</value></field>"
    for name, kind, label in command.fields:
        fields += f"<field var='{name}' type='{kind}' label='{escape(label)}'><required/></field>"
    actions = "<actions execute='complete'><complete/></actions>"
    return f"{actions}<x xmlns='{FORM}' type='form'><title>{escape(command.title)}</title>{fields}</x>"


def _submitted(form: ET.Element | None) -> Fields:
    if form is None:
        return {}
    found: Fields = {}
    for field in form.findall(f"{{{FORM}}}field"):
        found[field.get("var", "")] = "\n".join(value.text or "" for value in field.findall(f"{{{FORM}}}value"))
    return found


def _result(result: Fields) -> str:
    if "note" in result:
        return f"<note type='info'>{escape(result['note'])}</note>"
    fields = ""
    for name, text in result.items():
        values = "".join(f"<value>{escape(line)}</value>" for line in text.splitlines())
        fields += f"<field var='{name}'>{values}</field>"
    return f"<x xmlns='{FORM}' type='result'>{fields}</x>"
