"""Faults in a running deployment, as leases: whoever asks must renew them, and what is not renewed is undone.

A worker does to itself what an experiment names: it dies and stays away (`instance_loss`, `zone_loss`, `region_loss`: a
worker stands in one place), its requests wait (`latency`), fail (`errors`) or get no answer (`partition`), its processor is
busy (`cpu_burn`). Requests pass a gate that costs one comparison while nothing is wrong. Scope: the paths of one system, and a
share of callers, always the same ones, so that the others are a control group.

Invariants: at most `FAULTS_MAX` faults; none outlives its lease by more than `SWEEP_S`; a worker that died holds no lease, its
absence is a file with an end in it. The names and arguments are those of `simulator.faults`, so one file does for both.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from fourplane.edge.asgi import AsgiApp, Receive, Scope, Send
from fourplane.edge.http_answers import error_body
from fourplane.foundation import clock, ids, processes
from fourplane.foundation.errors import NotFound, Overloaded, Rejected
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

FAULTS_MAX = 50
LEASE_S_MAX = 60.0
SWEEP_S = 0.25
ANSWER_FIRST_S = 0.05  # the order is answered before the worker that carries it out is gone
BURN_S = 0.02
AWAY_S_MAX = 120.0
KINDS = ("instance_loss", "zone_loss", "region_loss", "latency", "errors", "partition", "cpu_burn")

Kind = Literal["instance_loss", "zone_loss", "region_loss", "latency", "errors", "partition", "cpu_burn"]


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments a fault may have; each kind reads its own."""

    duration_s: float = 5.0
    zone: str = ""
    region: str = ""
    latency_s: float = 0.0
    jitter_s: float = 0.0
    share: float = 1.0  # of the callers
    status: int = 503
    one_way: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.duration_s <= 3_600 and 0 <= self.latency_s <= 60 and 0 <= self.jitter_s <= 60):
            raise ValueError("duration_s, latency_s or jitter_s is out of bounds")
        if not (0 < self.share <= 1 and 400 <= self.status <= 599):
            raise ValueError("share is within 0..1 and status within 400..599")


class FaultState(msgspec.Struct, frozen=True):
    """One fault as people see it."""

    id: str
    kind: str
    system: str
    ends_in_s: float
    touched: int


class _Fault:
    """A fault under lease."""

    __slots__ = ("ends_s", "id", "kind", "prefix", "salt", "system", "touched", "wanted")

    def __init__(self, kind: Kind, system: str, wanted: Wanted, ends_s: float) -> None:
        self.id = ids.capability()[:12]
        self.kind = kind
        self.system = system
        self.prefix = f"/{system}/"
        self.wanted = wanted
        self.ends_s = ends_s
        self.salt = self.id.encode()
        self.touched = 0

    def meets(self, path: str, caller: str) -> bool:
        """Whether this request is one of those it is for."""
        if not path.startswith(self.prefix):
            return False
        share = self.wanted.share
        if share >= 1.0:
            return True
        lot = blake2b(caller.encode(), digest_size=4, key=self.salt).digest()
        return int.from_bytes(lot, "big") < share * 2**32


class LiveFaults:
    """A lifecycle part of one worker, and the gate its requests pass."""

    def __init__(self, registry: Registry, *, data: Path, slot: int) -> None:
        self._registry = registry
        self._away = away_file(data, slot)
        self._faults: dict[str, _Fault] = {}
        self._random = clock.random()

    async def start(self, tasks: Tasks) -> None:
        """Undo what is not renewed."""
        tasks.start(self._sweep(), "leases")

    async def drain(self) -> None:
        """A deployment that stops has no faults."""
        self.undo_all()

    async def stop(self) -> None:
        self.undo_all()

    def begin(self, kind: str, system: str, arguments: dict[str, Any], lease_s: float) -> str:
        """Do it; the id with which it is renewed. Raises Rejected for a fault or arguments there are none of."""
        known = next((one for one in KINDS if one == kind), None)
        if known is None:
            raise Rejected(f"a running deployment cannot have the fault {kind[:40]!r}; it can have {', '.join(KINDS)}")
        if len(self._faults) >= FAULTS_MAX:
            raise Overloaded(f"{FAULTS_MAX} faults are enough", code="too_many_faults")
        try:
            wanted = msgspec.convert(arguments, Wanted)
        except msgspec.ValidationError as error:
            raise Rejected(f"{kind}: {error}", code="bad_fault") from None
        now_s = clock.monotonic_s()
        fault = _Fault(cast("Kind", known), system, wanted, now_s + min(lease_s, LEASE_S_MAX, wanted.duration_s))
        if known.endswith("_loss"):
            self._go_away(min(wanted.duration_s, AWAY_S_MAX), known)
            return fault.id
        self._faults[fault.id] = fault
        if known == "cpu_burn":
            asyncio.get_running_loop().call_soon(self._burn, fault)
        self._registry.event("warning", "chaos", f"{known} in {system}: {_told(wanted)}")
        return fault.id

    def renew(self, fault_ids: list[str], lease_s: float) -> int:
        """Prolong these leases; how many of them still were."""
        now_s, found = clock.monotonic_s(), 0
        for fault_id in fault_ids:
            fault = self._faults.get(fault_id)
            if fault is not None:
                fault.ends_s = now_s + min(lease_s, LEASE_S_MAX)
                found += 1
        return found

    def undo(self, fault_id: str) -> None:
        """End one; raises NotFound when it has ended."""
        fault = self._faults.pop(fault_id, None)
        if fault is None:
            raise NotFound("this fault has ended", code="no_fault")
        self._registry.event(
            "info", "chaos", f"{fault.kind} in {fault.system} ended, {fault.touched:,} requests met it"
        )

    def undo_all(self) -> int:
        """End all; how many there were."""
        found = list(self._faults)
        for fault_id in found:
            self.undo(fault_id)
        return len(found)

    def states(self) -> list[FaultState]:
        """What is wrong on purpose now."""
        now_s = clock.monotonic_s()
        return [
            FaultState(one.id, one.kind, one.system, round(one.ends_s - now_s, 2), one.touched)
            for one in self._faults.values()
        ]

    def gate(self, app: AsgiApp) -> AsgiApp:
        """The application behind the faults; while there are none it is called as it is."""

        def passed(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if not self._faults or scope["type"] != "http":
                return app(scope, receive, send)
            return self._troubled(app, scope, receive, send)

        return cast("AsgiApp", passed)

    async def _troubled(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        caller = _cookie(scope) or (f"{client[0]}:{client[1]}" if client else "local")
        for fault in list(self._faults.values()):
            if not fault.meets(scope["path"], caller):
                continue
            fault.touched += 1
            match fault.kind:
                case "latency":
                    wanted = fault.wanted
                    await clock.sleep(wanted.latency_s + self._random.random() * wanted.jitter_s)
                case "errors":
                    await _refuse(send, fault.wanted.status, "injected", "this error was asked for by an experiment")
                    return
                case "partition":
                    while fault.id in self._faults:
                        await clock.sleep(SWEEP_S)
                    await _refuse(send, 503, "partitioned", "nobody answered for a while, as an experiment wished")
                    return
                case _:
                    pass
        await app(scope, receive, send)

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(SWEEP_S)
            now_s = clock.monotonic_s()
            for fault in [one for one in self._faults.values() if one.ends_s <= now_s]:
                self.undo(fault.id)

    def _burn(self, fault: _Fault) -> None:
        """Keep the processor busy in slices, so that requests still come through between them."""
        until_s = clock.monotonic_s() + BURN_S
        while clock.monotonic_s() < until_s:
            pass
        if fault.id in self._faults:
            asyncio.get_running_loop().call_later(BURN_S / 4, self._burn, fault)

    def _go_away(self, seconds: float, kind: str) -> None:
        self._registry.event("warning", "chaos", f"{kind}: this worker is away for {seconds:g} s")
        self._away.parent.mkdir(parents=True, exist_ok=True)
        self._away.write_text(str(clock.now_us() + int(seconds * 1e6)), encoding="ascii")
        asyncio.get_running_loop().call_later(ANSWER_FIRST_S, processes.signal_process, os.getpid(), signal.SIGKILL)


def away_file(data: Path, slot: int) -> Path:
    """Where a worker that is away on purpose says until when."""
    return data / "chaos" / f"away-{slot}"


async def stay_away(data: Path, slot: int) -> None:
    """Wait, before a worker opens anything, until an experiment lets it be back. Bounded by `AWAY_S_MAX`."""
    file = away_file(data, slot)
    try:
        until_us = int(file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return
    await clock.sleep(min(AWAY_S_MAX, max(0.0, (until_us - clock.now_us()) / 1e6)))
    file.unlink(missing_ok=True)


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = error_body(code, message, {})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _cookie(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"cookie":
            return str(value.decode("latin-1"))
    return ""


def _told(wanted: Wanted) -> str:
    given = {name: value for name, value in msgspec.to_builtins(wanted).items() if value != getattr(Wanted(), name)}
    return ", ".join(f"{name} {value}" for name, value in given.items()) or f"{wanted.duration_s:g} s"


class FaultDesk:
    """The orders about faults that reach this worker, from the control socket or from the worker with the console."""

    def __init__(self, faults: LiveFaults) -> None:
        self._faults = faults

    async def order(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """`begin`, `renew`, `undo_all` or `states`."""
        orders: dict[str, Callable[[], dict[str, Any]]] = {
            "begin": lambda: {
                "id": self._faults.begin(
                    str(arguments.get("kind", "")),
                    str(arguments.get("system", "")),
                    dict(arguments.get("arguments", {})),
                    float(arguments.get("lease_s", 5.0)),
                )
            },
            "renew": lambda: {
                "renewed": self._faults.renew(
                    [str(one) for one in arguments.get("ids", [])], float(arguments.get("lease_s", 5.0))
                )
            },
            "undo_all": lambda: {"ended": self._faults.undo_all()},
            "states": lambda: {"faults": msgspec.to_builtins(self._faults.states())},
        }
        if verb not in orders:
            raise NotFound(f"no order {verb!r} about faults", code="no_order")
        return orders[verb]()
