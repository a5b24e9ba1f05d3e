"""People who chat: they log in, write to friends, read, go away for a while and come back to what was sent meanwhile.

Each user has a few friends. One loop draws the next action over all users at the plan's rate, mostly a message to a
friend, sometimes a departure (half of them without a word, as phones do) or a return. Every message carries its
number, so the crowd knows what must arrive: `facts` says how much was sent, received, and received twice.
"""

import asyncio
import ssl
from collections import deque

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.messaging.xml_stream import MESSAGE, Stanza
from fourplane.simulator.crowds import Plan, Progress, Tally, Target
from fourplane.simulator.crowds.messaging_client import XmppClient

LEAVE_SHARE = 0.03
FRIENDS = 5
WORDS = (
    "hello",
    "on my way",
    "see you at eight",
    "did you see this?",
    "ok",
    "running late",
    "call me",
    "haha",
    "good night",
)
LOGINS_AT_ONCE = 8
SETTLE_S = 1.0
SENT_MAX = 50_000


class Chatter:
    """One person of the crowd."""

    def __init__(self, name: str, password: str, friends: list[str]) -> None:
        self.name = name
        self.password = password
        self.friends = friends
        self.client: XmppClient | None = None


class MessagingCrowd:
    """Drives the XMPP port. `accounts` are (name, password) pairs that exist; made by the deployment for its crowds."""

    def __init__(
        self, accounts: list[tuple[str, str]], *, domain: str = "localhost", tls: ssl.SSLContext | None = None
    ) -> None:
        names = [name for name, _ in accounts]
        self._people = [
            Chatter(name, password, [names[(index + step) % len(names)] for step in range(1, FRIENDS + 1)])
            for index, (name, password) in enumerate(accounts)
        ]
        self._domain = domain
        self._tls = tls
        self._sent: dict[str, float] = {}
        self._order: deque[str] = deque()
        self._seen: set[str] = set()

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None:
        """Chat until the plan is over, then let what is on its way arrive."""
        people = self._people[: plan.users] if plan.users else self._people
        for name in ("sent", "received", "duplicates", "online"):
            tally.facts.setdefault(name, 0.0)
        await self._arrive(target, people, tally, progress)
        chance = clock.random()
        began = clock.monotonic_s()
        try:
            while not plan.duration_s or clock.monotonic_s() - began < plan.duration_s:
                await clock.sleep(chance.expovariate(max(plan.rate_per_s, 0.01)))
                await self._act(chance.choice(people), target, tally)
                tally.facts["online"] = sum(person.client is not None for person in people)
                if plan.duration_s:
                    done = min(1.0, (clock.monotonic_s() - began) / plan.duration_s)
                    progress(done, f"{tally.facts['sent']:.0f} sent, {tally.facts['received']:.0f} received")
            for person in people:
                if person.client is None:
                    await self._come(person, target, tally)
            await clock.sleep(SETTLE_S)
        finally:
            for person in people:
                client, person.client = person.client, None
                if client is not None:
                    await client.close()

    async def _arrive(self, target: Target, people: list[Chatter], tally: Tally, progress: Progress) -> None:
        for begin in range(0, len(people), LOGINS_AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for person in people[begin : begin + LOGINS_AT_ONCE]:
                    group.create_task(self._come(person, target, tally))
            progress(0.0, f"{min(begin + LOGINS_AT_ONCE, len(people))} of {len(people)} logged in")

    async def _act(self, person: Chatter, target: Target, tally: Tally) -> None:
        chance = clock.random()
        if person.client is None or person.client.closed:
            person.client = None
            await self._come(person, target, tally)
        elif chance.random() < LEAVE_SHARE:
            client, person.client = person.client, None
            if chance.random() < 0.5:
                client.abort()
            else:
                await client.close()
            tally.facts["departures"] = tally.facts.get("departures", 0.0) + 1
        else:
            try:
                friend = f"{chance.choice(person.friends)}@{self._domain}"
                ident = person.client.message(friend, chance.choice(WORDS))
            except FourplaneError as error:
                tally.failed(error.reason)
                return
            tally.facts["sent"] += 1
            self._sent[ident] = clock.monotonic_s()
            self._order.append(ident)
            if len(self._order) > SENT_MAX:
                self._sent.pop(self._order.popleft(), None)

    async def _come(self, person: Chatter, target: Target, tally: Tally) -> None:
        began = clock.monotonic_s()
        resource = clock.token_bytes(4).hex()
        client = XmppClient(person.name, person.password, domain=self._domain, resource=resource)
        client.on_stanza = lambda stanza: self._got(stanza, tally)
        try:
            port = target.xmpp_tls_port if self._tls is not None else target.xmpp_port
            await client.connect(target.host, port, tls=self._tls, direct=True)
            await client.login(manage=True)
        except FourplaneError as error:
            tally.failed(error.reason)
            client.abort()
        except OSError:
            tally.failed("refused")
        else:
            person.client = client
            tally.done("login", clock.monotonic_s() - began)

    def _got(self, stanza: Stanza, tally: Tally) -> None:
        if stanza.name != MESSAGE:
            return
        ident = stanza.attributes.get("id", "")
        if stanza.attributes.get("type") == "error":
            tally.failed("message_refused")
            return
        began = self._sent.pop(ident, None)
        if began is None:
            if ident in self._seen:
                tally.facts["duplicates"] += 1
            return
        self._seen.add(ident)
        if len(self._seen) > SENT_MAX:
            self._seen.clear()
        tally.facts["received"] += 1
        away = "urn:xmpp:delay delay" in stanza.children
        tally.done("delivery after absence" if away else "delivery", clock.monotonic_s() - began)
