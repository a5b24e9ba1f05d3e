"""Two cores against one, and what a killed worker costs, on whole deployments started as a person starts them.

What counts for two cores is CPU per unit of work, of all workers together, with one and with two: twice the first by the second
is what two full cores carry against one. Workers are pinned, one to a core.

Messages. One worker alone would have the load generator on the other core, two have it on theirs: it takes their turns and what
is in their caches, and the figure would be about that. So "one" is a deployment of one worker on either core, both under load at
once, with as many users and messages in flight for each worker as two workers have that are one deployment: the same cores,
the same generator, and the only difference is that they share their users. The two take turns of as many messages each, so that
a machine whose pace changes is the same for both, and stores that grow dearer (what lies in a journal goes down 50,000 rows at a
time) do so for both alike; what a deployment puts off until it rests is counted where it was caused. Of two
pairs of users whose messages go on together one is in two shards, so half of all messages change the worker. Beside it stand
two workers when no message changes the worker (`near`, by turns with the others once again), and one worker alone (`alone`).
Messages are archived for both people, as a deployment does unless it is told not to, and once more without: there a message
costs a sixth, and its way to the other worker weighs most.

Requests are for two systems, with keep-alive connections that come in anywhere, counted in units of what each kind costs one
worker, as the mix differs from run to run; what the workers use when nobody asks for anything (figures, probes) is measured
before and taken off, because it does not grow with the work. Beside them stand the rate on the wall and per CPU second of the
busiest worker.
`python -m benchmarks.runtime_cores 1 archived_messages` is one round of one part (the others: see the end).
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

USERS = 60  # of each worker
WINDOW = 12_000  # messages of a turn
WINDOW_S_MAX = 60.0
REST_S = 0.3
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
def deployment(*systems, workers, extra=None, core=0):
    """Facts of a running deployment; its workers are pinned to one core each, from this one on."""
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
                        os.sched_setaffinity(int(task.name), {(core + number) % os.cpu_count()})
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
    """Two pairs of users whose next batches leave together: one of either worker, or one inside a worker and one across.

    If every pair went on by itself, those in one worker would be faster and most of the load: of 100 messages only 16 changed
    the worker, where it has to be half of them.
    """

    def __init__(self, load):
        self.load = load
        self.batches = []  # sender, receiver and bytes
        self.coming = 0

    def go(self):
        load = self.load
        if load.unsent <= 0:
            return
        self.coming = len(self.batches)
        load.unsent -= self.coming * BATCH
        for sender, receiver, batch in self.batches:
            receiver.turn = self
            sender.transport.write(batch)

    def arrived(self):
        self.load.count += BATCH
        self.coming -= 1
        if not self.coming:
            self.go()


class Receiver(asyncio.Protocol):
    """A logged-in user who counts messages and tells the turn of each batch."""

    def __init__(self, name, transport):
        self.name = name
        self.transport = transport
        self.since = 0
        self.turn = None
        self.rest = b""

    def data_received(self, data):
        self.since += (self.rest + data).count(b"</message>")
        self.rest = data[-9:] if not data.endswith(b"</message>") else b""
        while self.since >= BATCH:
            self.since -= BATCH
            self.turn.arrived()


async def logged_in(facts, people):
    """A receiver for each."""
    receivers = []
    for name, password in people:
        client = XmppClient(name, password)
        await client.connect("127.0.0.1", int(facts["xmpp_port"]))
        await client.login()
        receivers.append(Receiver(name, client._transport))
        client._transport.set_protocol(receivers[-1])
    return receivers


class Load:
    """Messages between users of some deployments, while it is its turn, and what they cost."""

    def __init__(self, deployments, turns):
        self.deployments = deployments
        self.turns = [Turn(self) for _ in turns]
        for turn, pairs in zip(self.turns, turns, strict=True):
            for sender, receiver in pairs:
                to = f"{receiver.name}@localhost/crowd"
                one = f"<message to='{to}' type='chat' id='m'><body>As people write them.</body></message>".encode()
                turn.batches.append((sender, receiver, one * BATCH))
        self.unsent = 0
        self.clear()

    @property
    def cost_s(self):
        """CPU of all workers per message."""
        return self.used_s / self.count

    def clear(self):
        """Measure from here on."""
        self.count = self.used_s = self.wall_s = 0

    async def run(self):
        """One turn: send a window's messages and wait until all have arrived."""
        began, self.unsent = time.perf_counter(), WINDOW
        async with asyncio.timeout(WINDOW_S_MAX):
            for turn in self.turns:
                turn.go()
            while self.unsent > 0 or any(turn.coming for turn in self.turns):
                await asyncio.sleep(0.002)
        self.wall_s += time.perf_counter() - began


class Ledger:
    """Whose CPU it was: all a deployment used belongs to the load that was there last."""

    def __init__(self, deployments):
        self._deployments = deployments
        self._marks = {}

    def next(self, load=None):
        """From now on the CPU of its deployments is `load`'s; without one all is settled."""
        for facts in self._deployments:
            if load is None or facts in load.deployments:
                used_s = sum(map(cpu_s, facts["workers"]))
                owner, used_before_s = self._marks.get(facts["http_port"], (None, 0.0))
                if owner is not None:
                    owner.used_s += used_s - used_before_s
                self._marks[facts["http_port"]] = (load, used_s)


async def message_loads(ones, two, people, ledger, windows):
    """Loads that took turns: a worker on each core; two workers, half or none of the messages change it; one alone."""
    *own, shared = [await logged_in(*each) for each in zip((*ones, two), people, strict=True)]
    count = len(shared) // 2
    rings = [shared[:count], shared[count:]]
    apart, half, near = Load(ones, _rings(*own)), Load([two], _half_across(*rings)), Load([two], _rings(*rings))
    await _take_turns(ledger, [apart, half], windows)
    again = Load(ones, _rings(*own))
    await _take_turns(ledger, [again, near], windows)
    alone = Load(ones[:1], _rings(own[0][: count // 2], own[0][count // 2 :]))
    await _take_turns(ledger, [alone], windows // 4)
    for receiver in (*shared, *own[0], *own[1]):
        receiver.transport.abort()
    return {"1_workers": apart, "2_workers": half, "1_workers_again": again, "2_workers_near": near, "1_alone": alone}


async def _take_turns(ledger, loads, windows):
    """All have as much to do and as much rest, so that what they put off comes to the same."""
    for number in range(1 + windows):
        for load in loads[:: 1 if number % 2 else -1]:
            ledger.next(load)
            await load.run()
        if not number:  # nothing was in any cache yet
            ledger.next()
            for load in loads:
                load.clear()
    await asyncio.sleep(REST_S)
    ledger.next()


def _rings(one, other):
    """Everybody to the next of the same list, a pair of each at a time."""
    near = [zip(ring, ring[1:] + ring[:1], strict=True) for ring in (one, other)]
    return list(zip(*near, strict=True))


def _half_across(one, other):
    """Everybody to one person, half of them of the other list, a pair of each kind at a time."""
    near, far = [], []
    for here, there in ((one, other), (other, one)):
        half = len(here) // 2
        near += zip(here[:half], here[1:half] + here[:1], strict=True)
        far += zip(here[half:], there[half:], strict=True)
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
    archived_messages(figures)
    unarchived_messages(figures)
    requests(figures, seconds=seconds)


def archived_messages(figures, *, windows=8):
    """Messages that are kept for both people."""
    _messages(figures, "messages", {"FOURPLANE_MESSAGING__ARCHIVE": "true"}, windows)


def unarchived_messages(figures, *, windows=16):
    """The same without an archive: a sixth of the work."""
    _messages(figures, "messages_unarchived", {"FOURPLANE_MESSAGING__ARCHIVE": "false"}, windows)


def _messages(figures, kind, extra, windows):
    with contextlib.ExitStack() as stack:
        ones = [stack.enter_context(deployment("messaging", workers=1, extra=extra, core=core)) for core in (0, 1)]
        two = stack.enter_context(deployment("messaging", workers=2, extra=extra))
        shared = balanced(accounts(two, 2 * USERS))
        people = [*(accounts(facts, len(shared) // 2) for facts in ones), shared]
        ledger = Ledger([*ones, two])
        loads = asyncio.run(message_loads(ones, two, people, ledger, windows))
    for name, load in loads.items():
        figures.setdefault(f"{kind}_{name}_cpu_us", []).append(1e6 * load.cost_s)
        figures.setdefault(f"{kind}_{name}_per_s", []).append(load.count / load.wall_s)
    for name, one, both in (("", "1_workers", "2_workers"), ("_near", "1_workers_again", "2_workers_near")):
        figures.setdefault(f"two_cores_{kind}{name}_ratio", []).append(2 * loads[one].cost_s / loads[both].cost_s)


def requests(figures, *, seconds=3.0):
    """Requests for two systems, on one worker and on one each."""

    def note(name, value):
        figures.setdefault(name, []).append(value)

    cost = {}  # CPU seconds of all workers per unit of work
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
            cost[workers] = (sum(used) - idle * wall) / sum(n * one for n, one in zip(count, costs, strict=True))
            note(f"requests_{workers}_workers_turned_away", turned_away(facts))
            note(f"requests_{workers}_workers_per_busiest_cpu_s", sum(count) / max(used))
            note(f"requests_{workers}_workers_per_s", sum(count) / wall)
    note("two_cores_requests_ratio", 2 * cost[1] / cost[2])


def idle_share(facts):
    """Cores that all workers use together while nobody asks for anything: the least of some seconds, as they settle."""
    shares = []
    for _ in range(5):
        before = sum(map(cpu_s, facts["workers"]))
        time.sleep(1.0)
        shares.append(sum(map(cpu_s, facts["workers"])) - before)
    return min(shares)


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
    parts = {one.__name__: one for one in (archived_messages, unarchived_messages, requests, killed_shard)}
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        for part in sys.argv[2:] or parts:
            parts[part](found)
    for key, values in found.items():
        print(f"{key:45} {statistics.median(values):14,.2f}   {' '.join(f'{one:,.2f}' for one in values)}")
