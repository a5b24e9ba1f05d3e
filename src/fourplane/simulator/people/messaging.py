"""People who chat: they send numbered messages, ask for acknowledgements, vanish without a word and come back."""

import asyncio

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging.user_store import partition_of
from fourplane.messaging.xml_stream import MESSAGE, Stanza
from fourplane.service.accounts import NewAccount
from fourplane.simulator.checkers.messages import MessageBook
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of
from fourplane.simulator.loop import World
from fourplane.simulator.people import Felt, Pace
from fourplane.simulator.sites import Sites
from fourplane.simulator.systems import XMPP_PORT, shards_of

PASSWORD = "correct horse battery staple"  # noqa: S105 - of people who do not exist
DOMAIN = "localhost"
EVERY_S = 1.5
VANISH_SHARE = 0.05
BEFORE_MESSAGES = 2  # the roster request and the presence of every login
LOGIN_S = 10.0
SETTLE_S = 26.0  # longer than a broken session may be resumed
ACK = "urn:xmpp:sm:3 a"


class Person:
    """One account with at most one connection, to the site that has this user."""

    def __init__(self, name: str, host: str, address: str) -> None:
        self.name = name
        self.host = host
        self.address = address
        self.client: XmppClient | None = None
        self.session = ""
        self.outbox: list[str] = []  # of this session, in order
        self.number = 0
        self.sessions = 0


class MessagingPeople:
    """Drives the XMPP ports of a system."""

    def __init__(self, world: World, sites: Sites, hosts: list[str], count: int) -> None:
        self.felt = Felt()
        self.book = MessageBook()
        self._world = world
        self._deployment = sites.home
        shards = shards_of(len(sites.all))
        self._people = [
            Person(
                name, hosts[number % len(hosts)], sites.all[shards.slot_of(partition_of(f"{name}@{DOMAIN}"))].address
            )
            for number, name in enumerate(f"p{number}" for number in range(count))
        ]
        self.pace = Pace(EVERY_S)
        self._asked: dict[str, float] = {}
        self._settled = False

    async def begin(self) -> None:
        assert self._deployment.platform is not None
        accounts = self._deployment.platform.accounts
        with self._world.on(self._deployment.host):
            keys = await accounts.derive_keys(PASSWORD)
            await accounts.create_many([NewAccount(person.name, keys=keys) for person in self._people])
        for person in self._people:
            await self._come(person)

    async def drive(self, duration_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for person in self._people:
                with self._world.on(person.host):
                    group.create_task(self._chat(person, clock.monotonic_s() + duration_s))

    async def settle(self) -> None:
        """Everybody is online, everything on its way arrives; some come back once more, to see what was kept for them."""
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                for person in self._people:
                    group.create_task(self._come_until(person))
            await clock.sleep(SETTLE_S)
        self._settled = True

    async def check(self) -> list[str]:
        if self._settled:
            for name, count in self.book.counts.items():
                self.felt.facts[name] = count
        return self.book.check(settled=self._settled) + self.felt.violations

    def surge(self, factor: float) -> None:
        self.pace.factor = factor

    async def _chat(self, person: Person, until_s: float) -> None:
        chance = clock.random()
        while clock.monotonic_s() < until_s:
            await self.pace.wait()
            if person.client is None or person.client.closed:
                await self._come(person)
            elif chance.random() < VANISH_SHARE:
                person.client.abort()
                person.client = None
            else:
                self._send(person)

    def _send(self, person: Person) -> None:
        client = person.client
        assert client is not None
        place = clock.random().randrange(len(self._people) - 1)
        friend = self._people[place] if self._people[place] is not person else self._people[-1]
        person.number += 1
        try:
            ident = client.message(f"{friend.name}@{DOMAIN}", f"{person.number}")
            client.send(b"<r xmlns='urn:xmpp:sm:3'/>")
        except FourplaneError as error:
            self.felt.failed(error.reason)
            return
        person.outbox.append(ident)
        self._asked[ident] = clock.monotonic_s()
        self.book.sent(ident, person.name, friend.name, person.number)

    async def _come_until(self, person: Person) -> None:
        """A fresh session, however many tries it takes within a minute."""
        if person.client is not None:
            person.client.abort()
            person.client = None
        for _ in range(12):
            await self._come(person)
            if self._is_in(person):
                return
            await clock.sleep(5.0)
        self.felt.violated(f"recovery: {person.name} could not log in for a minute after everything was whole")

    def _is_in(self, person: Person) -> bool:
        return person.client is not None and not person.client.closed

    async def _come(self, person: Person) -> None:
        began = clock.monotonic_s()
        person.sessions += 1
        session = f"{person.name}/{person.sessions}"
        client = XmppClient(person.name, PASSWORD, resource=f"r{person.sessions}")
        client.on_stanza = lambda stanza: self._got(person, session, stanza)
        person.session, person.outbox, person.client = session, [], None
        try:
            with self._world.on(person.host):
                async with asyncio.timeout(LOGIN_S):
                    await client.connect(person.address, XMPP_PORT)
                    await client.login(manage=True)
        except FourplaneError as error:
            self.felt.failed(error.reason)
            client.abort()
        except (OSError, TimeoutError) as error:
            self.felt.failed(type(error).__name__)
            client.abort()
        else:
            person.client = client
            self.felt.served("login", clock.monotonic_s() - began)

    def _got(self, person: Person, session: str, stanza: Stanza) -> None:
        if stanza.name == ACK and session == person.session:
            count = int(stanza.attributes.get("h", "0")) - BEFORE_MESSAGES
            for ident in person.outbox[: max(0, count)]:
                self.book.acknowledged(ident)
        if stanza.name != MESSAGE:
            return
        ident = stanza.attributes.get("id", "")
        if stanza.attributes.get("type") == "error":
            self.book.refused(ident)
            self.felt.failed("bounced")
            return
        if not body_of(stanza):
            return
        self.book.shown(ident, person.name, session)
        began = self._asked.pop(ident, None)
        if began is not None:
            self._world.note(f"{ident} shown")
            self.felt.served("message", clock.monotonic_s() - began)
