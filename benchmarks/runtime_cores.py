"""Two cores against one, and what a killed worker costs, on whole deployments started as a person starts them.

What counts for two cores is CPU per unit of work, of all workers together, with one and with two: twice the first by the second
is what two full cores carry against one. What the workers use when nobody asks for anything (figures, probes) is measured before
and taken off, because it does not grow with the work. (Requests of two kinds are units of what each costs one worker, as the mix
differs from run to run.) Beside it stand the rate on the wall and per CPU second of the busiest worker as the load happened
to be spread; on a machine with two cores the load generator takes part of both from two workers and has a core to itself
beside one. Workers are pinned, one to a core. Of two pairs of users whose messages go on together one is in two shards, so with
two workers half of all messages change it. They are archived for both people, as a deployment does unless it is told not to, and
once more without: there a message costs a sixth, and its way to the other worker weighs most. Requests are for two systems, with
keep-alive connections that come in anywhere.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from fourplane.messaging.user_store import partition_of
from fourplane.service import control_socket
from fourplane.service.shards import ShardMap
from fourplane.simulator.crowds.messaging_client import XmppClient, body_of

USERS = 60
BATCH = 16
SHARDS = ShardMap(2, 2)
CONNECTIONS = 32
SETTINGS = {
    "FOURPLANE_MESSAGING__PORT": "0",
    "FOURPLANE_MESSAGING__TLS_PORT": "0",
    "FOURPLANE_MESSAGING__TLS_REQUIRED": "false",
    "FOURPLANE_MESSAGING__ARCHIVE": "false",
    "FOURPLANE_GATEWAY__RATE_PER_S": "1000000",
}
PATHS = (b"/commerce/api/products?limit=1", b"/messaging/api/configuration")


@contextlib.contextmanager
def deployment(*systems, workers, extra=None):
    """Facts of a running deployment; its workers are pinned to one core each."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        command = [
            sys.executable,
            "-P",
            "-m",
            "fourplane",
            "up",
            *systems,
            "--port",
            "0",
            "--data",
            str(data),
            "--json",
        ]
        environment = {**os.environ, **SETTINGS, **(extra or {})}
        complaints = Path(folder, "complaints")
        with complaints.open("w") as errors:
            process = subprocess.Popen(
                [*command, "--workers", str(workers)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        try:
            line = process.stdout.readline()
            assert line, f"the deployment did not start: {complaints.read_text()[-2_000:]}"
            facts = json.loads(line)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            pids = sorted(map(int, children))
            for number, pid in enumerate(pids):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
                        os.sched_setaffinity(int(task.name), {number % os.cpu_count()})
            yield {**facts, "data": data, "workers": pids}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def accounts(facts, count):
    """Names and their password."""
    return asyncio.run(control_socket.ask(facts["data"] / "control.sock", "crowd", {"count": count}))


class Turn:
    """Two pairs of users, one inside a worker and one across (when there are two), whose next batches leave together.

    If every pair went on by itself, those in one worker would be faster and most of the load: of 100 messages only 16 changed
    the worker, where it has to be half of them.
    """

    def __init__(self):
        self.batches = []  # transport and bytes
        self.coming = 0

    def go(self):
        self.coming = len(self.batches)
        for transport, batch in self.batches:
            transport.write(batch)

    def arrived(self):
        self.coming -= 1
        if not self.coming:
            self.go()


class Receiver(asyncio.Protocol):
    """A logged-in user who counts messages and tells the turn of each batch."""

    def __init__(self, transport):
        self.transport = transport
        self.count = self.since = 0
        self.turn = None
        self.rest = b""

    def data_received(self, data):
        found = (self.rest + data).count(b"</message>")
        self.rest = data[-9:] if not data.endswith(b"</message>") else b""
        self.count += found
        self.since += found
        while self.since >= BATCH:
            self.since -= BATCH
            self.turn.arrived()


async def message_load(facts, people, seconds):
    """Messages delivered, CPU seconds of each worker, wall seconds."""
    receivers = []
    for name, password in people:
        client = XmppClient(name, password)
        await client.connect("127.0.0.1", int(facts["xmpp_port"]))
        await client.login()
        transport = client._transport
        receivers.append(Receiver(transport))
        transport.set_protocol(receivers[-1])
    turns = []
    for pairs in turns_of(people):
        turns.append(Turn())
        for here, there in pairs:
            to = f"{people[there][0]}@localhost/crowd"
            one = f"<message to='{to}' type='chat' id='m'><body>As people write them.</body></message>".encode()
            turns[-1].batches.append((receivers[here].transport, one * BATCH))
            receivers[there].turn = turns[-1]
    for turn in turns:
        turn.go()
    await asyncio.sleep(0.3)
    taken = await _measured(facts, lambda: sum(one.count for one in receivers), seconds)
    for receiver in receivers:
        receiver.transport.abort()
    return taken


def turns_of(people):
    """Who writes to whom: every user to one other, half of them across two workers, a pair of each kind at a time."""
    lists = [
        [n for n, one in enumerate(people) if SHARDS.slot_of(partition_of(f"{one[0]}@localhost")) == slot]
        for slot in (0, 1)
    ]
    near, far = [], []
    for own, other in (lists, lists[::-1]):
        half = len(own) // 2
        near += zip(own[:half], own[1:half] + own[:1], strict=True)
        far += zip(own[half:], other[half:], strict=True)
    return list(zip(near, far, strict=True))


class Visitor(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self, request):
        self.request = request
        self.count = 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        if b"HTTP/1.1 200" in data:
            self.count += 1
            self.transport.write(self.request)
        elif data.startswith(b"HTTP/1.1 "):  # turned away: the machine has too much to do
            asyncio.get_running_loop().call_later(0.05, self.again)

    def again(self):
        if not self.transport.is_closing():
            self.transport.write(self.request)


async def request_load(facts, shares, seconds):
    """The same for requests; `shares` of the connections ask for each path. The count is one per path."""
    visitors, loop, port = [[] for _ in PATHS], asyncio.get_running_loop(), int(facts["http_port"])
    for path, share, own in zip(PATHS, shares, visitors, strict=True):
        request = b"GET %b HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % (path, port)
        for _ in range(int(CONNECTIONS * share)):
            made = await loop.create_connection(lambda request=request: Visitor(request), "127.0.0.1", port)
            own.append(made[1])
    await asyncio.sleep(0.5)
    taken = await _measured(facts, lambda: Counts(sum(one.count for one in own) for own in visitors), seconds)
    for visitor in (one for own in visitors for one in own):
        visitor.transport.abort()
    return taken


class Counts(tuple):
    """Numbers that are subtracted one by one."""

    __slots__ = ()

    def __sub__(self, other):
        return Counts(one - was for one, was in zip(self, other, strict=True))


async def _measured(facts, counted, seconds):
    began, before = time.perf_counter(), counted()
    cpu = [cpu_s(pid) for pid in facts["workers"]]
    await asyncio.sleep(seconds)
    used = [cpu_s(pid) - was for pid, was in zip(facts["workers"], cpu, strict=True)]
    return counted() - before, used, time.perf_counter() - began


def two_cores(figures, *, seconds=3.0):
    """Both loads on one and on two workers."""

    def note(name, value):
        figures.setdefault(name, []).append(value)

    cost = {}  # CPU seconds of all workers per unit of work
    for kind, archive in (("messages", "true"), ("messages_unarchived", "false")):
        for workers in (1, 2):
            with deployment("messaging", workers=workers, extra={"FOURPLANE_MESSAGING__ARCHIVE": archive}) as facts:
                people = balanced(accounts(facts, USERS))
                idle = idle_share(facts)
                count, used, wall = asyncio.run(message_load(facts, people, seconds))
                cost[kind, workers] = (sum(used) - idle * wall) / count
                note(f"{kind}_{workers}_workers_cpu_us", 1e6 * cost[kind, workers])
                note(f"{kind}_{workers}_workers_per_busiest_cpu_s", count / max(used))
                note(f"{kind}_{workers}_workers_per_s", count / wall)
    costs = []
    for workers in (1, 2):
        placed = {"FOURPLANE_FLEET__PLACEMENT": "{commerce = 1, messaging = 0}"} if workers == 2 else {}
        with deployment("commerce", "messaging", workers=workers, extra=placed) as facts:
            idle = idle_share(facts)
            note(f"idle_{workers}_workers_cpu_share", idle)
            if workers == 1:
                for number in range(len(PATHS)):
                    shares = [float(one == number) for one in range(len(PATHS))]
                    count, used, wall = asyncio.run(request_load(facts, shares, seconds / 2))
                    costs.append((used[0] - idle * wall) / count[number])
            count, used, wall = asyncio.run(request_load(facts, [0.5, 0.5], seconds))
            cost["requests", workers] = (sum(used) - idle * wall) / sum(
                n * one for n, one in zip(count, costs, strict=True)
            )
            note(f"requests_{workers}_workers_turned_away", turned_away(facts))
            note(f"requests_{workers}_workers_per_busiest_cpu_s", sum(count) / max(used))
            note(f"requests_{workers}_workers_per_s", sum(count) / wall)
    for kind in ("messages", "messages_unarchived", "requests"):
        note(f"two_cores_{kind}_ratio", 2 * cost[kind, 1] / cost[kind, 2])


def idle_share(facts, seconds=2.0):
    """Cores that all workers together use while nobody asks for anything, once they have settled."""
    time.sleep(1.0)
    before = [cpu_s(pid) for pid in facts["workers"]]
    time.sleep(seconds)
    return sum(cpu_s(pid) - was for pid, was in zip(facts["workers"], before, strict=True)) / seconds


def turned_away(facts):
    """Requests that got no answer because the machine had too much to do."""
    with urllib.request.urlopen(f"http://127.0.0.1:{facts['http_port']}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return sum(int(count) for count in re.findall(r'http_shed_total\{server="http"[^}]*\} (\d+)', text))


def balanced(people):
    """As many users of each shard, so that the figure is about the cost and not about luck with so few."""
    lists = [[one for one in people if SHARDS.slot_of(partition_of(f"{one[0]}@localhost")) == slot] for slot in (0, 1)]
    most = min(map(len, lists)) // 2 * 2
    return lists[0][:most] + lists[1][:most]


def killed_shard(figures):
    """Milliseconds from SIGKILL of a shard's worker to its next answer for a user of the other one, and what was lost."""
    with deployment("messaging", workers=2) as facts:
        people = dict(accounts(facts, 20))
        here, there = ([n for n in people if SHARDS.slot_of(partition_of(f"{n}@localhost")) == slot] for slot in (0, 1))
        ms, lost = asyncio.run(_kill(facts, people, here[0], there[0]))
    figures.setdefault("killed_shard_first_answer_ms", []).append(ms)
    figures.setdefault("killed_shard_messages_lost", []).append(lost)


async def _kill(facts, people, here, there):
    sender = XmppClient(here, people[here])
    await sender.connect("127.0.0.1", int(facts["xmpp_port"]))
    await sender.login(manage=True)
    owner = json.loads((facts["data"] / "workers" / "messaging-1.lock").read_bytes().rstrip(b"\0"))["pid"]
    for number in range(50):
        sender.message(f"{there}@localhost", f"before {number}")
    os.kill(int(owner), signal.SIGKILL)
    began = time.perf_counter()
    for number in range(50):
        sender.message(f"{there}@localhost", f"after {number}")
    handled = 0
    while handled < 102:  # roster and presence are two of them
        sender.send(b"<r xmlns='urn:xmpp:sm:3'/>")
        handled = int((await sender.next("urn:xmpp:sm:3 a", wait_s=30)).attributes["h"])
    took = (time.perf_counter() - began) * 1e3
    reader = XmppClient(there, people[there])
    await reader.connect("127.0.0.1", int(facts["xmpp_port"]))
    await reader.login()
    got = set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(got) < 100:
                got.add(body_of(await reader.next(wait_s=10)))
    return took, 100 - len(got)


if __name__ == "__main__":
    found = {}
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        two_cores(found)
    killed_shard(found)
    for key, values in found.items():
        print(f"{key:45} {statistics.median(values):14,.2f}   {' '.join(f'{one:,.2f}' for one in values)}")
