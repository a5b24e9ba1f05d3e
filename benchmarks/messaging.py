"""Messages per CPU second of one server process, beside what a bare asyncio echo manages in the same run.

The server is a child process on core 0 (uvloop, no TLS, as the peers were measured), the clients share one epoll loop on core 1.
`messages/s` is per second of the server's CPU time, which other load on the machine does not change much; `wall` is what the
clock says. Every row is the median of `--rounds` short runs.

    python -m benchmarks.messaging [--seconds 3] [--rounds 3] [--sessions 200] [--idle 2000]
"""

import argparse
import asyncio
import base64
import gc
import hashlib
import hmac
import json
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import ClassVar

import uvloop

from fourplane.foundation.ids import IdGenerator
from fourplane.foundation.lifecycle import Lifecycle
from fourplane.foundation.telemetry import Registry
from fourplane.messaging.app import Messaging
from fourplane.messaging.settings import MessagingSettings
from fourplane.service.accounts import Accounts, NewAccount
from fourplane.state.stores import Stores

PASSWORD = "bench"
NAME = "localhost"
HEADER = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>"
BODY = b"<body>Shall we meet at the bridge at eight, as we did last time?</body>"
USERS = 20_000
Steps = Generator[tuple[bytes, bytes], bytes, None]  # what to send and what to wait for


# ---- the server, in a child process


async def serve(folder: Path, users: int) -> None:
    registry, ids, stores = Registry(), IdGenerator(0), Stores(data=folder)
    accounts = Accounts(await stores.sql("accounts"), ids=ids)
    settings = MessagingSettings(port=0, tls_port=0, tls_required=False, archive=False, offline_max=10_000_000)
    messaging = Messaging(
        settings, records=await stores.records("messaging"), accounts=accounts, ids=ids, registry=registry
    )
    life = Lifecycle(registry)
    for name, part in (("stores", stores), ("accounts", accounts), ("messaging", messaging)):
        life.add(name, part)
    await life.start()
    keys = await accounts.derive_keys(PASSWORD)
    if await accounts.find("u0") is None:
        await accounts.create_many([NewAccount(f"u{number}", keys=keys) for number in range(users)])
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": messaging.port}), flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await life.stop()


class Server:
    """The child process, its CPU time and memory."""

    def __init__(self, folder: Path, users: int, *, profile: str = "") -> None:
        wrap = [sys.executable]
        if profile:
            wrap += ["-m", "cProfile", "-o", profile]
        command = [*wrap, "benchmarks/messaging.py", "--serve", str(folder), "--users", str(users)]
        self.process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=subprocess.PIPE, env=_environment())
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]
        self.pid = self.process.pid

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "src:."}


# ---- the clients


class Client:
    """One blocking login, then a socket for the epoll loop."""

    salted: ClassVar[dict[tuple[bytes, int], bytes]] = {}

    def __init__(self, port: int, name: str, *, sm: bool = False, presence: bool = True, later: bool = False) -> None:
        self.name = name
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(("127.0.0.1", port))
        self.rest = b""
        self.inflight = 0
        self.handled = 0
        if not later:
            steps = self.login(sm=sm, presence=presence)
            wanted = next(steps)
            while wanted is not None:
                wanted = _following(steps, self.ask(*wanted))
        self.sock.setblocking(False)

    def login(self, *, sm: bool = False, presence: bool = True) -> Steps:
        """What to send and what to wait for, step by step."""
        yield (HEADER, b"</stream:features>")
        bare = b"n=" + self.name.encode() + b",r=" + base64.b64encode(os.urandom(12))
        auth = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>%s</auth>"
        got = yield (auth % base64.b64encode(b"n,," + bare), b"</challenge>")
        first = base64.b64decode(got[got.index(b">") + 1 : got.rindex(b"</")])
        fields = dict(part.split(b"=", 1) for part in first.split(b","))
        key = (fields[b"s"], int(fields[b"i"]))
        if key not in self.salted:
            self.salted[key] = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(key[0]), key[1])
        client_key = hmac.digest(self.salted[key], b"Client Key", "sha256")
        without = b"c=biws,r=" + fields[b"r"]
        signature = hmac.digest(hashlib.sha256(client_key).digest(), bare + b"," + first + b"," + without, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))
        answer = b"<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>%s</response>"
        yield (answer % base64.b64encode(without + b",p=" + proof), b"</success>")
        yield (HEADER, b"</stream:features>")
        bind = (
            b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>"
        )
        yield (bind, b"</iq>")
        if sm:
            yield (b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>", b"/>")
        if presence:
            roster = b"<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq><presence/>"
            yield (roster + b"<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>", b"id='p'/>")
            if sm:
                self.sock.sendall(b"<a xmlns='urn:xmpp:sm:3' h='3'/>")

    def ask(self, data: bytes, until: bytes) -> bytes:
        self.sock.setblocking(True)
        self.sock.sendall(data)
        got = b""
        while until not in got:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError(got[-300:])
            got += more
        return got


def converse(clients: list[Client], window: int, seconds: float, *, sm: bool = False) -> int:
    """Pairs keep `window` messages in flight each way; how many arrived."""
    poll = select.epoll()
    by_fd = {}
    partner = {}
    messages = {}
    for index, client in enumerate(clients):
        other = clients[index ^ 1]
        by_fd[client.sock.fileno()] = client
        partner[client] = other
        head = f"<message to='{other.name}@{NAME}/r' type='chat' id='m{index}'>".encode()
        messages[client] = head + BODY + b"</message>"
        poll.register(client.sock.fileno(), select.EPOLLIN)
    for client in clients:
        client.sock.send(messages[client] * window)
    until = time.perf_counter() + seconds
    arrived = 0
    while time.perf_counter() < until:
        for fd, _ in poll.poll(1):
            client = by_fd[fd]
            data = client.sock.recv(262_144)
            count = data.count(b"</message>")
            if sm and b"urn:xmpp:sm:3" in data:
                arrived += _converse_sm(client, data, partner[client], messages)
                continue
            arrived += count
            if sm:
                client.handled += count
            if count:
                partner[client].sock.send(messages[partner[client]] * count)
    poll.close()
    return arrived


def _converse_sm(client: Client, data: bytes, other: Client, messages: dict[Client, bytes]) -> int:
    count = data.count(b"</message>")
    client.handled += count
    if b"<r " in data:
        client.sock.send(b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % (client.handled + 3))
    if count:
        other.sock.send((messages[other] + b"<r xmlns='urn:xmpp:sm:3'/>") * count)
    return count


def drain(clients: list[Client], quiet_s: float = 0.3) -> None:
    poll = select.epoll()
    by_fd = {client.sock.fileno(): client for client in clients}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    while ready := poll.poll(quiet_s):
        for fd, _ in ready:
            by_fd[fd].sock.recv(1 << 20)
    poll.close()


def measure(server: Server, work: Callable[[], int]) -> dict[str, float]:
    cpu, wall = server.cpu_s(), time.perf_counter()
    done = work()
    cpu, wall = server.cpu_s() - cpu, time.perf_counter() - wall
    return {"per_cpu_s": done / max(cpu, 1e-9), "wall": done / wall}


def store_offline(port: int, clients: list[Client], seconds: float) -> int:
    """Batches of 10 to somebody absent, acknowledged by a ping; how many were acknowledged."""
    del port
    poll = select.epoll()
    by_fd = {client.sock.fileno(): (index, client) for index, client in enumerate(clients)}
    batch = {}
    for index, client in enumerate(clients):
        head = f"<message to='u{USERS - 1 - index}@{NAME}' type='chat' id='o'>".encode()
        batch[client] = (head + BODY + b"</message>") * 10 + b"<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>"
        poll.register(client.sock.fileno(), select.EPOLLIN)
        client.sock.send(batch[client])
    until, stored = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for fd, _ in poll.poll(1):
            _, client = by_fd[fd]
            if b"id='p'" in client.sock.recv(262_144):
                stored += 10
                client.sock.send(batch[client])
    poll.close()
    return stored


def logins(port: int, seconds: float, first: int, at_once: int = 32) -> int:
    """Clients that come, log in up to the first ping and go, `at_once` at a time; how many did."""
    poll = select.epoll()
    running: dict[int, tuple[Client, Steps, bytes, bytes]] = {}
    begun = done = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or running:
        while len(running) < at_once and time.perf_counter() < until:
            client = Client(port, f"u{first + begun % 5_000}", later=True)
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
            following = (b"", wanted) if wanted not in got else _following(steps, got)
            if following is None or not more:
                poll.unregister(fd)
                del running[fd]
                client.sock.close()
                done += bool(more)
            elif wanted in got:
                client.sock.send(following[0])
                running[fd] = (client, steps, following[1], b"")
            else:
                running[fd] = (client, steps, wanted, got)
    poll.close()
    return done


def _following(steps: Steps, got: bytes) -> tuple[bytes, bytes] | None:
    try:
        return steps.send(got)
    except StopIteration:
        return None


def run(options: argparse.Namespace) -> dict:
    os.sched_setaffinity(0, {1 if (os.cpu_count() or 1) > 1 else 0})
    folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-"))
    rows: dict[str, dict[str, float]] = {}
    server = Server(folder, USERS, profile=options.profile)
    try:
        clients = [Client(server.port, f"u{number}") for number in range(options.sessions)]
        for name, window in (("one-to-one, 1 in flight", 1), ("one-to-one, 16 in flight", 16)):
            found = []
            for _ in range(options.rounds):
                found.append(measure(server, lambda w=window: converse(clients, w, options.seconds)))
                drain(clients)
            rows[name] = _median(found)
        rows["offline messages stored, durable"] = _median(
            [
                measure(server, lambda: store_offline(server.port, clients, options.seconds))
                for _ in range(options.rounds)
            ]
        )
        for client in clients:
            client.sock.close()
        time.sleep(0.5)
        managed = [Client(server.port, f"u{number + 1_000}", sm=True) for number in range(options.sessions)]
        found = []
        for _ in range(options.rounds):
            found.append(measure(server, lambda: converse(managed, 1, options.seconds, sm=True)))
            drain(managed)
        rows["one-to-one with stream management, 1 in flight"] = _median(found)
        for client in managed:
            client.sock.close()
        rows["logins (SCRAM-SHA-256, roster, presence)"] = measure(
            server, lambda: logins(server.port, options.seconds, 3_000)
        )
        before = server.rss()
        idle = [Client(server.port, f"u{number + 9_000}") for number in range(options.idle)]
        time.sleep(1)
        rows["bytes per idle session"] = {"bytes": (server.rss() - before) / options.idle}
        del idle
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "rows": rows,
    }


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--users", type=int, default=USERS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", default="", help="write a cProfile of the server there")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--idle", type=int, default=2_000)
    options = parser.parse_args()
    if options.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve, options.users))
        return
    result = run(options)
    target = Path("benchmarks/results/messaging.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2))
    print(result["machine"])
    for name, row in result["rows"].items():
        print(f"{name:50}", "  ".join(f"{key} {value:,.0f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
