"""An open loop of several classes over kept connections: requests leave when their time has come, whatever the answers do.

Each class has clients of its own, a few dozen kept connections: who orders is not who was just turned away. A request goes
out at its time in any case, on the connection of its class that owes the fewest answers and behind what is still owed there, as
the lines of proxies and impatient programs do; nothing that is due is left out, and latency runs from the moment it was due.
(A loop that asks nothing of a busy connection is only as open as it has connections.)

All requests are written out beforehand and leave in ticks of a millisecond, joined by connection, so that the driver has
time to spare; how late it was itself is told (`driver late ms`), because that is part of every latency. (The timers of uvloop
count milliseconds: with ticks of half a one no driver ever sleeps, and two that share a processor find themselves 4 ms late,
each behind the other's slice.)
"""

import asyncio
import random
import time
from collections import deque

DEADLINE_S = 1.0
OWED_MAX = 2_000  # on one connection
TICK_S = 0.001
LOOKS = 12  # at connections, for one that owes nothing
END = b"\r\n\r\n"
LENGTH = b"content-length: "


def quantile(values, share):
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


class Wire(asyncio.Protocol):
    """One kept connection; answers come in the order of the requests."""

    def __init__(self, kind, log):
        self.kind, self.log = kind, log
        self.buffer = b""
        self.owed = deque()  # when each was due
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.buffer:
            data = self.buffer + data
        now, position, size = time.perf_counter(), 0, len(data)
        owed, kind, log = self.owed, self.kind, self.log
        while position < size:
            end = data.find(END, position)
            if end < 0:
                break
            at = data.find(LENGTH, position, end)  # a 204 has none
            length = int(data[at + 16 : data.find(b"\r", at)]) if at > 0 else 0
            if end + 4 + length > size:
                break
            log.append((kind, owed.popleft(), now, int(data[position + 9 : position + 12])))
            position = end + 4 + length
        self.buffer = data[position:]

    def connection_lost(self, exc):
        self.transport = None
        now = time.perf_counter()
        self.log.extend((self.kind, due, now, 0) for due in self.owed)
        self.owed.clear()


class Crowd:
    """Requests by class at their times; `message(kind)` writes one, None when there are no more of it."""

    def __init__(self, port, connections, message, good):
        self.port, self.counts, self.message, self.good = port, connections, message, good
        self.random = random.Random(7)
        self.log = []
        self.turns = dict.fromkeys(connections, 0)
        self.wires = {kind: [Wire(kind, self.log) for _ in range(count)] for kind, count in connections.items()}

    def idlest(self, kind):
        """The next wire of this class that owes nothing, else the one of the next few that owes least."""
        wires, turn = self.wires[kind], self.turns[kind]
        best, least = None, OWED_MAX + 1
        for step in range(min(LOOKS, len(wires))):
            at = (turn + step) % len(wires)
            owes = len(wires[at].owed) if wires[at].transport is not None else OWED_MAX
            if owes < least:
                best, least = at, owes
            if owes == 0:
                break
        self.turns[kind] = best + 1
        return wires[best]

    async def open(self):
        """Connect everybody."""
        loop = asyncio.get_running_loop()
        for wires in self.wires.values():
            for wire in wires:
                await loop.create_connection(lambda wire=wire: wire, "127.0.0.1", self.port)

    def close(self):
        """Everybody goes."""
        for wire in (wire for wires in self.wires.values() for wire in wires if wire.transport is not None):
            wire.transport.close()

    def plan(self, rates, seconds):
        """Every request of the loop, written out beforehand: when, class, bytes."""
        found = []
        for kind, rate in rates.items():
            at = self.random.expovariate(rate) if rate > 0 else seconds
            while at < seconds and (message := self.message(kind)) is not None:
                found.append((at, kind, message))
                at += self.random.expovariate(rate)
        return sorted(found)

    async def drive(self, rates, seconds, planned=None):
        """What was asked, what came; `planned` beforehand, where several drivers are to begin at the same time."""
        planned = self.plan(rates, seconds) if planned is None else planned
        self.log.clear()
        sent, missed, lags = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0), []
        began, at = time.perf_counter() + 0.01, 0
        while at < len(planned):
            now = time.perf_counter() - began
            out = {}
            while at < len(planned) and planned[at][0] <= now:
                due, kind, message = planned[at]
                at += 1
                sent[kind] += 1
                lags.append(now - due)
                wire = self.idlest(kind)
                if wire.transport is None or len(wire.owed) >= OWED_MAX:
                    missed[kind] += 1
                    continue
                wire.owed.append(began + due)
                out.setdefault(wire, []).append(message)
            for wire, messages in out.items():
                if wire.transport is not None:
                    wire.transport.write(b"".join(messages))
            await asyncio.sleep(TICK_S)
        ends = time.perf_counter() + 3.0
        while len(self.log) + sum(missed.values()) < sum(sent.values()) and time.perf_counter() < ends:
            await asyncio.sleep(0.05)
        return self.report(sent, missed, began, seconds) | {"driver late ms": 1_000 * quantile(sorted(lags), 0.99)}

    def report(self, sent, missed, began, seconds):
        """By class, and when the last one of it was refused."""
        told = {}
        for kind in sent:
            mine = [(due, at, status) for one, due, at, status in self.log if one == kind]
            late = sorted(at - due for due, at, status in mine if status == self.good[kind])
            told[kind] = {
                "sent": sent[kind],
                "not sent": missed[kind],
                "good/s": sum(one <= DEADLINE_S for one in late) / seconds,
                "good share": sum(one <= DEADLINE_S for one in late) / max(1, sent[kind]),
                "p50 ms": 1_000 * quantile(late, 0.5) if late else None,
                "p99 ms": 1_000 * quantile(late, 0.99) if late else None,
                "shed": sum(status == 503 for _, _, status in mine),
                "other": sum(status not in (503, self.good[kind]) for _, _, status in mine),
                "last refusal s": max(
                    (due - began for due, _, status in mine if status != self.good[kind]), default=0.0
                ),
            }
        return {"kinds": told}
