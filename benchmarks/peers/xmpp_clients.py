"""Load for any XMPP server: logins and conversations of many clients on one epoll loop, the same bytes for every server.

Everything a client has to say after one look at its sockets leaves as one packet per socket, as a client library does it.
"""

import base64
import hashlib
import hmac
import os
import select
import socket
import ssl
import time
from collections.abc import Generator
from typing import ClassVar

NAME = "localhost"
PASSWORD = "bench"
HEADER = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>"
BODY = b"<body>Shall we meet at the bridge at eight, as we did last time?</body>"
PING = b"<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
IP_BIND_ADDRESS_NO_PORT = 24  # of Linux; Python 3.11 has no name for it
SM_REQUEST = b"<r xmlns='urn:xmpp:sm:3'/>"
UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE
Steps = Generator[tuple[bytes, bytes], bytes, None]  # what to send and what to wait for


class Client:
    """One blocking login, then a socket for the epoll loop."""

    salted: ClassVar[dict[tuple[bytes, int], bytes]] = {}

    def __init__(
        self,
        port: int,
        name: str,
        *,
        sm: bool = False,
        presence: bool = True,
        later: bool = False,
        plain: bool = False,
        tls: bool = False,
        local: str = "",
    ) -> None:
        self.name = name
        self.plain = plain  # the password itself, where the server is not measured at it
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if local:  # its port is chosen when it connects: quick also when most of them are taken
            self.sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            self.sock.bind((local, 0))
        self.sock.connect(("127.0.0.1", port))
        if tls:
            self.sock = UNVERIFIED.wrap_socket(self.sock)
        self.taken = 0  # stanzas of the server, counted from the moment stream management is on
        if not later:
            steps = self.login(sm=sm, presence=presence)
            wanted: tuple[bytes, bytes] | None = next(steps)
            while wanted is not None:
                wanted = following(steps, self.ask(*wanted))
        self.sock.setblocking(False)

    def login(self, *, sm: bool = False, presence: bool = True) -> Steps:
        """What to send and what to wait for, step by step."""
        yield (HEADER, b"</stream:features>")
        yield from self._plainly() if self.plain else self._scram()
        yield (HEADER, b"</stream:features>")
        bind = (
            b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>"
        )
        yield (bind, b"</iq>")
        if sm:
            yield (b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>", b"/>")
        if presence:
            roster = b"<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq><presence/>"
            got = yield (roster + PING, b"id='p'")
            self.taken = stanzas_in(got)

    def _plainly(self) -> Steps:
        auth = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%s</auth>"
        yield (auth % base64.b64encode(b"\0" + self.name.encode() + b"\0" + PASSWORD.encode()), b"<success")

    def _scram(self) -> Steps:
        bare = b"n=" + self.name.encode() + b",r=" + base64.b64encode(os.urandom(12))
        auth = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>%s</auth>"
        got = yield (auth % base64.b64encode(b"n,," + bare), b"</challenge>")
        answer = b"<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>%s</response>"
        yield (answer % base64.b64encode(self.proof(bare, _text(got))), b"</success>")

    def proof(self, bare: bytes, first: bytes) -> bytes:
        """The second message of SCRAM-SHA-1."""
        fields = dict(part.split(b"=", 1) for part in first.split(b","))
        key = (fields[b"s"], int(fields[b"i"]))
        if key not in self.salted:
            self.salted[key] = hashlib.pbkdf2_hmac("sha1", PASSWORD.encode(), base64.b64decode(key[0]), key[1])
        client_key = hmac.digest(self.salted[key], b"Client Key", "sha1")
        without = b"c=biws,r=" + fields[b"r"]
        signature = hmac.digest(hashlib.sha1(client_key).digest(), bare + b"," + first + b"," + without, "sha1")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))
        return without + b",p=" + proof

    def ask(self, data: bytes, until: bytes) -> bytes:
        self.sock.setblocking(True)
        self.sock.sendall(data)
        got = b""
        while until not in got:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError(f"{self.name}: {got[-300:]!r}")
            got += more
        return got


def _text(got: bytes) -> bytes:
    return base64.b64decode(got[got.index(b">", got.index(b"<challenge")) + 1 : got.index(b"</challenge")])


def stanzas_in(data: bytes) -> int:
    return sum(data.count(start) for start in (b"<message ", b"<iq ", b"<presence "))


def following(steps: Steps, got: bytes) -> tuple[bytes, bytes] | None:
    try:
        return steps.send(got)
    except StopIteration:
        return None


class Loop:
    """The sockets of some clients; `turn` yields who got what, and afterwards sends what they answered."""

    def __init__(self, clients: list[Client]) -> None:
        self._poll = select.epoll()
        self._clients = {client.sock.fileno(): client for client in clients}
        self._out: dict[Client, bytes] = {}
        for fd in self._clients:
            self._poll.register(fd, select.EPOLLIN)

    def say(self, client: Client, data: bytes) -> None:
        self._out[client] = self._out.get(client, b"") + data

    def send(self) -> None:
        out, self._out = self._out, {}
        for client, data in out.items():
            client.sock.setblocking(True)
            client.sock.sendall(data)
            client.sock.setblocking(False)

    def turn(self, timeout_s: float = 1.0) -> Generator[tuple[Client, bytes], None, None]:
        for fd, _ in self._poll.poll(timeout_s):
            client = self._clients[fd]
            try:
                data = client.sock.recv(1 << 20)
            except ssl.SSLWantReadError:
                continue
            while isinstance(client.sock, ssl.SSLSocket) and client.sock.pending():
                data += client.sock.recv(1 << 20)
            if not data:
                raise ConnectionError(f"{client.name} was disconnected")
            yield client, data
        self.send()

    def close(self) -> None:
        self._poll.close()


def converse(clients: list[Client], window: int, seconds: float, *, sm: bool = False) -> int:
    """Pairs keep `window` messages in flight each way; how many arrived. With `sm` every message asks for its acknowledgement."""
    loop, messages, partner = Loop(clients), {}, {}
    for index, client in enumerate(clients):
        partner[client] = other = clients[index ^ 1]
        head = f"<message to='{other.name}@{NAME}/r' type='chat' id='m{index}'>".encode()
        messages[client] = head + BODY + b"</message>" + (SM_REQUEST if sm else b"")
        loop.say(client, messages[client] * window)
    loop.send()
    until, arrived = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for client, data in loop.turn():
            count = data.count(b"</message>")
            arrived += count
            client.taken += count
            if sm and b"<r " in data:
                loop.say(client, b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % client.taken)
            if count:
                loop.say(partner[client], messages[partner[client]] * count)
    loop.close()
    return arrived


def drain(clients: list[Client], quiet_s: float = 0.2, *, sm: bool = False, patience_s: float = 20) -> None:
    """Wait until every client's ping behind all it said was answered, and then until nothing comes any more."""
    loop, waiting = Loop(clients), set(clients)
    for client in clients:
        loop.say(client, PING)
    loop.send()
    until = time.perf_counter() + patience_s
    while time.perf_counter() < until:
        quiet = True
        for client, data in loop.turn(quiet_s):
            client.taken += stanzas_in(data)
            if b"id='p'" in data or b'id="p"' in data:
                waiting.discard(client)
            if sm and b"<r " in data:
                loop.say(client, b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % client.taken)
            quiet = False
        if quiet and not waiting:
            break
    loop.close()


def store_offline(clients: list[Client], seconds: float, absent: int) -> int:
    """Batches of 10 to somebody absent (`absent` upwards), acknowledged by a ping; how many were acknowledged."""
    loop, batches = Loop(clients), {}
    for index, client in enumerate(clients):
        head = f"<message to='u{absent + index}@{NAME}' type='chat' id='o'>".encode()
        batches[client] = (head + BODY + b"</message>") * 10 + PING
        loop.say(client, batches[client])
    loop.send()
    until, stored, got = time.perf_counter() + seconds, 0, dict.fromkeys(clients, b"")
    while time.perf_counter() < until:
        for client, data in loop.turn():
            got[client] += data
            if b"<iq" in got[client]:
                stored += 10
                got[client] = b""
                loop.say(client, batches[client])
    loop.close()
    return stored


def make_rooms(clients: list[Client], rooms: int) -> None:
    """Spread the clients over `rooms` rooms; each first one makes the room."""
    join = "<presence to='{room}@groups.localhost/{name}'><x xmlns='http://jabber.org/protocol/muc'/></presence>"
    form = "<iq type='set' id='c' to='{room}@groups.localhost'><query xmlns='http://jabber.org/protocol/muc#owner'>"
    form += "<x xmlns='jabber:x:data' type='submit'/></query></iq>"
    loop = Loop(clients)
    for first in (True, False):
        for index, client in enumerate(clients):
            if (index < rooms) is first:
                loop.say(client, join.format(room=f"room{index % rooms}", name=client.name).encode())
                loop.say(client, form.format(room=f"room{index % rooms}").encode() if first else b"")
        loop.send()
        drain(clients)
    loop.close()


def speak(clients: list[Client], rooms: int, seconds: float, window: int = 4) -> int:
    """The first client of each room keeps `window` messages in flight to it; deliveries to occupants."""
    loop, messages = Loop(clients), {}
    for index, client in enumerate(clients[:rooms]):
        head = f"<message to='room{index}@groups.localhost' type='groupchat' id='g'>".encode()
        messages[client] = head + BODY + b"</message>"
        loop.say(client, messages[client] * window)
    loop.send()
    until, arrived = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for client, data in loop.turn():
            count = data.count(b"</message>")
            arrived += count
            if count and client in messages:
                loop.say(client, messages[client] * count)
    loop.close()
    return arrived


def make_watchers(shown: Client, watchers: list[Client]) -> None:
    """Let `watchers` see the presence of `shown`."""
    loop = Loop([shown, *watchers])
    for client in watchers:
        loop.say(client, f"<presence type='subscribe' to='{shown.name}@{NAME}'/>".encode())
    loop.send()
    drain([shown, *watchers])
    for client in watchers:
        loop.say(shown, f"<presence type='subscribed' to='{client.name}@{NAME}'/>".encode())
    loop.send()
    drain([shown, *watchers])
    loop.close()


def show(shown: Client, watchers: list[Client], seconds: float, window: int = 2) -> int:
    """Presence of one client with many watchers, again when the last one has seen it; deliveries."""
    loop = Loop([shown, *watchers])
    presence = b"<presence><show>away</show><status>at the bridge</status></presence>"
    loop.say(shown, presence * window)
    loop.send()
    until, arrived = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for client, data in loop.turn():
            count = data.count(b"</presence>")
            if client is shown:
                continue
            arrived += count
            if client is watchers[-1]:
                loop.say(shown, presence * count)
    loop.close()
    return arrived


def logins(port: int, seconds: float, first: int, accounts: int, at_once: int = 100) -> int:
    """Clients that come, log in up to the first ping and go, `at_once` at a time; how many did."""
    poll = select.epoll()
    running: dict[int, tuple[Client, Steps, bytes, bytes]] = {}
    begun = done = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or running:
        while len(running) < at_once and time.perf_counter() < until:
            client = Client(port, f"u{first + begun % accounts}", later=True)
            begun += 1
            steps = client.login()
            data, wanted = next(steps)
            client.sock.send(data)
            running[client.sock.fileno()] = (client, steps, wanted, b"")
            poll.register(client.sock.fileno(), select.EPOLLIN)
        for fd, _ in poll.poll(1):
            client, steps, wanted, got = running[fd]
            more = client.sock.recv(65_536)
            got += more
            next_step = (b"", wanted) if wanted not in got else following(steps, got)
            if next_step is None or not more:
                poll.unregister(fd)
                del running[fd]
                client.sock.close()
                done += bool(more)
            elif wanted in got:
                client.sock.send(next_step[0])
                running[fd] = (client, steps, next_step[1], b"")
            else:
                running[fd] = (client, steps, wanted, got)
    poll.close()
    return done


AGENT = "d4565fa7-4d72-4749-b3d3-740edbf87770"
WISH = f"<user-agent id='{AGENT}'/><bind xmlns='urn:xmpp:bind:0'/>"
FAST = "<fast xmlns='urn:xmpp:fast:0'/>"
SASL2 = "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{}'><initial-response>{}</initial-response>{}</authenticate>"


def fast_token(port: int, name: str) -> bytes:
    """Log in once with SCRAM and be given a token (XEP-0484)."""
    client = Client(port, name, later=True)
    client.ask(HEADER, b"</stream:features>")
    bare = b"n=" + name.encode() + b",r=" + base64.b64encode(os.urandom(12))
    asked = f"{WISH}<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/>"
    begin = SASL2.format("SCRAM-SHA-1", base64.b64encode(b"n,," + bare).decode(), asked)
    first = _text(client.ask(begin.encode(), b"</challenge>"))
    answer = base64.b64encode(client.proof(bare, first)).decode()
    got = client.ask(f"<response xmlns='urn:xmpp:sasl:2'>{answer}</response>".encode(), b"</success>")
    client.sock.close()
    return got.split(b" token='", 1)[1].split(b"'", 1)[0]


def reconnects(port: int, seconds: float, tokens: dict[str, bytes], at_once: int = 100) -> int:
    """Clients that come, are back in their session after one round trip with a token, and go; how many were."""
    poll, running, begun, done, names = select.epoll(), {}, 0, 0, list(tokens)
    said = {}
    for name, token in tokens.items():
        proof = base64.b64encode(name.encode() + b"\0" + hmac.digest(token, b"Initiator", "sha256")).decode()
        said[name] = HEADER + SASL2.format("HT-SHA-256-NONE", proof, WISH + FAST).encode()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or running:
        while len(running) < at_once and time.perf_counter() < until:
            name = names[begun % len(names)]
            client = Client(port, name, later=True)
            begun += 1
            client.sock.send(said[name])
            running[client.sock.fileno()] = [client, b""]
            poll.register(client.sock.fileno(), select.EPOLLIN)
        for fd, _ in poll.poll(1):
            entry = running[fd]
            more = entry[0].sock.recv(65_536)
            entry[1] += more
            if not more or b"</success>" in entry[1]:
                poll.unregister(fd)
                entry[0].sock.close()
                del running[fd]
                done += bool(more)
    poll.close()
    return done


def durable_writes(client: Client, absent: str, count: int) -> list[float]:
    """From sending one message to somebody absent until a ping behind it proves that it is on disk; sorted, in s."""
    message = f"<message to='{absent}@{NAME}' type='chat' id='o'>".encode() + BODY + b"</message>" + PING
    found = []
    for _ in range(count):
        began = time.perf_counter()
        client.ask(message, b"id='p'")
        found.append(time.perf_counter() - began)
    client.sock.setblocking(False)
    return sorted(found)


def latencies(clients: list[Client], rate: float, seconds: float) -> list[float]:
    """One-way times of messages sent at a fixed rate whatever the server does, from the moment each was due; sorted, in s."""
    loop, found = Loop(clients), []
    began = time.perf_counter()
    number, total = 0, int(rate * seconds)
    while len(found) < total and time.perf_counter() < began + seconds + 5:
        now = time.perf_counter()
        while number < total and began + number / rate <= now:
            sender, other = clients[number % len(clients)], clients[(number % len(clients)) ^ 1]
            due = f"{began + number / rate:.6f}"
            text = f"<message to='{other.name}@{NAME}/r' type='chat' id='{due}'><body>timed</body></message>"
            loop.say(sender, text.encode())
            number += 1
        loop.send()
        for _, data in loop.turn(0.001):
            now = time.perf_counter()
            for part in data.split(b"<message ")[1:]:
                at = part.find(b" id=")
                found.append(now - float(part[at + 5 :].split(part[at + 4 : at + 5], 1)[0]))
    loop.close()
    return sorted(found)
