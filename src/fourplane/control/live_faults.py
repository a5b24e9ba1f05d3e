"""Faults in a running deployment, as leases: whoever asks must renew them, and what is not renewed is undone.

A worker does to itself what an experiment names: it dies and stays away (`instance_loss`, and `zone_loss` and `region_loss` where
it stands in that place; a region's cache nodes go dark with it), its requests wait (`latency`), fail (`errors`) or get no
answer (`partition`), it does not reach another service (`service_partition`), its processor is busy (`cpu_burn`), its disk
full or slow (`disk_full`, `disk_stall`), its clock wrong (`clock_skew`). Requests pass a gate that costs one comparison
while nothing is wrong; hot routes have none, and others stand in their places while something is.

Invariants: at most `FAULTS_MAX` faults; none outlives its lease by more than `SWEEP_S`; a worker that died holds no lease, its
absence is a file with an end in it. The names and arguments are those of `simulator.faults`, so one file does for both.
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from fourplane.control.fault_machine import Machine, Undo
from fourplane.control.fault_scope import KINDS, OF_PLACES, OF_REQUESTS, Fault, FaultState, kind_of, told, wanted_of
from fourplane.control.places import region_of
from fourplane.edge.asgi import AsgiApp, Message, Receive, Scope, Send
from fourplane.edge.exchange import TypedApp, TypedWork
from fourplane.edge.gate_checks import session_token
from fourplane.edge.http_answers import error_body
from fourplane.edge.http_request import HotAnswer, HotHandler, HttpRequest
from fourplane.foundation import clock, processes
from fourplane.foundation.errors import FourplaneError, NotFound, Overloaded
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

__all__ = ["KINDS", "FaultDesk", "FaultState", "LiveFaults", "away_file", "stay_away"]

FAULTS_MAX = 50
OVER_MAX = 100
LEASE_S_MAX = 60.0
SWEEP_S = 0.25
ANSWER_FIRST_S = 0.05  # the order is answered before the worker that carries it out is gone
AWAY_S_MAX = 120.0
STATUS_OK = 200


class PutHot(Protocol):
    """Places a hot handler where a server looks for it; `again` in the place of the one that is there."""

    def __call__(self, method: str, path: str, handler: HotHandler, *, again: bool = False) -> None: ...


TenantOf = Callable[[str], Awaitable[str]]  # of a session token; "" for nobody


class LiveFaults:
    """A lifecycle part of one worker, and the gate its requests pass."""

    def __init__(
        self,
        registry: Registry,
        *,
        data: Path,
        slot: int,
        zone: str = "",
        machine: Machine | None = None,
        tenant_of: TenantOf | None = None,
    ) -> None:
        self._registry = registry
        self._away = away_file(data, slot)
        self._slot = slot
        self._zone = zone
        self._machine = machine or Machine()
        self._tenant_of = tenant_of
        self._faults: dict[str, Fault] = {}
        self._undo: dict[str, Undo] = {}
        self._held: dict[str, float] = {}  # path prefix to how long its answers are held back (changes.py)
        self._delays: dict[str, float] = {}  # the same by system
        self._hot: list[tuple[PutHot, str, str, HotHandler]] = []
        self._was_quiet = True
        self._beside: dict[str, Callable[[float], None]] = {}  # systems that talk to people beside HTTP, too
        self._over: deque[FaultState] = deque(maxlen=OVER_MAX)
        self._random = clock.random()
        self._strangers = 0

    async def start(self, tasks: Tasks) -> None:
        """Undo what is not renewed."""
        tasks.start(self._sweep(), "leases")

    async def drain(self) -> None:
        """A deployment that stops has no faults."""
        self.undo_all()

    async def stop(self) -> None:
        self.undo_all()

    def begin(
        self, kind: str, system: str, arguments: Mapping[str, Any], lease_s: float, *, parted: Sequence[int] = ()
    ) -> str:
        """Do it; the id with which it is renewed. Raises Rejected for a fault or arguments there are none of.

        `parted`: the slots this worker does not reach in a `service_partition`.
        """
        known, wanted = kind_of(kind), wanted_of(kind, arguments)
        if len(self._faults) >= FAULTS_MAX:
            raise Overloaded(f"{FAULTS_MAX} faults are enough", code="too_many_faults")
        now_s = clock.monotonic_s()
        fault = Fault(known, system, wanted, now_s + min(lease_s, LEASE_S_MAX, wanted.duration_s))
        self._undo[fault.id] = self._machine.begin(fault, parted)
        self._faults[fault.id] = fault
        self._tell_beside()
        self._registry.event("warning", "chaos", f"{known} in {system}: {told(wanted)}")
        if known == "instance_loss" or (known in OF_PLACES and self._stands_in(fault)):
            self._go_away(min(wanted.duration_s, AWAY_S_MAX), known)
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

    def undo(self, fault_id: str, why: str = "undone") -> None:
        """End one; raises NotFound when it has ended."""
        fault = self._faults.pop(fault_id, None)
        if fault is None:
            raise NotFound("this fault has ended", code="no_fault")
        self._undo.pop(fault_id)()
        self._tell_beside()
        self._over.append(fault.state(clock.monotonic_s(), self._slot, why))
        met = f", {fault.experiment.requests:,} requests met it" if fault.experiment.requests else ""
        self._registry.event("info", "chaos", f"{fault.kind} in {fault.system} ended{met}")

    def undo_all(self) -> int:
        """End all; how many there were."""
        found = list(self._faults)
        for fault_id in found:
            self.undo(fault_id)
        return len(found)

    def states(self) -> list[FaultState]:
        """What is wrong on purpose now."""
        now_s = clock.monotonic_s()
        return [one.state(now_s, self._slot) for one in self._faults.values()]

    def over(self) -> list[FaultState]:
        """The faults that ended last, with what their groups got."""
        return list(self._over)

    def regions_lost(self) -> set[str]:
        """The regions that are dark on purpose now."""
        return {one.wanted.region for one in self._faults.values() if one.kind == "region_loss"}

    def hold_back(self, delays: Mapping[str, float]) -> None:
        """Let the answers of systems be slower, as a release that was not good would; zero for as quick as they are."""
        self._delays = {system: seconds for system, seconds in delays.items() if seconds > 0}
        self._held = {f"/{system}/": seconds for system, seconds in self._delays.items()}
        self._tell_beside()

    def beside_http(self, system: str, hold_back: Callable[[float], None]) -> None:
        """A system whose users do not wait for HTTP alone: told how long its words are to be held back."""
        self._beside[system] = hold_back

    def _tell_beside(self) -> None:
        """Open or close the ways past the gate; latency of a whole system, and a slow release of it, for what has no gate."""
        if self.quiet != self._was_quiet:
            self._was_quiet = self.quiet
            for put, method, path, handler in self._hot:
                put(method, path, handler if self._was_quiet else leave_to_gate, again=True)
        for system, hold_back in self._beside.items():
            hold_back(
                self._delays.get(system, 0.0)
                + sum(
                    one.wanted.latency_s + one.wanted.jitter_s / 2
                    for one in self._faults.values()
                    if one.kind == "latency" and one.is_whole(system)
                )
            )

    def gate(self, app: AsgiApp) -> AsgiApp:
        """The application behind the faults; while there are none it is called as it is."""
        return cast("AsgiApp", _Gate(self, app))

    @property
    def quiet(self) -> bool:
        """Whether nothing is wrong on purpose."""
        return not (self._faults or self._held)

    def hot(self, put: "PutHot", method: str, path: str, handler: HotHandler) -> None:
        """Let `put` place a hot handler, and while there are faults one that leaves its requests to the gate."""
        self._hot.append((put, method, path, handler))
        put(method, path, handler if self.quiet else leave_to_gate)

    async def troubled(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
        """One request while faults last: it is counted in one group of each, and met by those that drew it."""
        began_s = clock.monotonic_s()
        caller, tenant = self._caller(scope), await self._tenant(scope)
        groups, status = [], 0
        drawn: list[Fault] = []
        for fault in self._faults.values():
            if fault.kind in OF_REQUESTS and fault.within(scope["path"], tenant):
                is_drawn = fault.draws(caller)
                groups.append(fault.experiment if is_drawn else fault.control)
                if is_drawn:
                    drawn.append(fault)

        if groups:
            scope["extensions"] = {}  # the shorter way of our server tells nobody its status

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            for prefix, seconds in self._held.items():
                if scope["path"].startswith(prefix):
                    await clock.sleep(seconds)
            for fault in drawn:
                if await self._met(fault, noted):
                    return
            await app(scope, receive, noted if groups else send)
        finally:
            for group in groups:
                group.count(status, clock.monotonic_s() - began_s)

    async def _met(self, fault: Fault, send: Send) -> bool:
        """Let a request feel one fault; True when that was its answer."""
        wanted = fault.wanted
        match fault.kind:
            case "latency":
                await clock.sleep(wanted.latency_s + self._random.random() * wanted.jitter_s)
            case "errors":
                await _refuse(send, wanted.status, "injected", "this error was asked for by an experiment")
                return True
            case "partition":
                while fault.id in self._faults:
                    await clock.sleep(SWEEP_S)
                await _refuse(send, 503, "partitioned", "nobody answered for a while, as an experiment wished")
                return True
            case _:
                pass
        return False

    def _caller(self, scope: Scope) -> str:
        """Who asks, by session; who has none is somebody else each time."""
        self._strangers += 1
        return _header(scope, b"cookie") or _header(scope, b"authorization") or f"request {self._strangers}"

    async def _tenant(self, scope: Scope) -> str:
        """Whose tenant asks; looked up only while a fault is for one tenant."""
        if self._tenant_of is None or not any(one.wanted.tenant for one in self._faults.values()):
            return ""
        token = session_token(_header(scope, b"cookie"), _header(scope, b"authorization"))
        if token is None:
            return ""
        try:
            return await self._tenant_of(token)
        except FourplaneError:
            return ""

    async def _sweep(self) -> None:
        while True:
            await clock.sleep(SWEEP_S)
            self._machine.pump()
            now_s = clock.monotonic_s()
            for fault in [one for one in self._faults.values() if one.ends_s <= now_s]:
                self.undo(fault.id, "its lease ran out")

    def _stands_in(self, fault: Fault) -> bool:
        if fault.kind == "zone_loss":
            return self._zone == fault.wanted.zone
        return bool(self._zone) and region_of(self._zone) == fault.wanted.region

    def _go_away(self, seconds: float, kind: str) -> None:
        self._registry.event("warning", "chaos", f"{kind}: this worker is away for {seconds:g} s")
        self._away.parent.mkdir(parents=True, exist_ok=True)
        self._away.write_text(str(clock.now_us() + int(seconds * 1e6)), encoding="ascii")
        asyncio.get_running_loop().call_later(ANSWER_FIRST_S, processes.signal_process, os.getpid(), signal.SIGKILL)


class _Gate:
    """An application whose requests meet the faults."""

    def __init__(self, faults: LiveFaults, app: AsgiApp) -> None:
        self._faults = faults
        self._app = app
        self._typed: TypedApp | None = cast("TypedApp", app) if isinstance(app, TypedApp) else None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self._faults.quiet or scope["type"] != "http":
            return self._app(scope, receive, send)
        return self._faults.troubled(self._app, scope, receive, send)

    def typed(self, request: HttpRequest) -> TypedWork | None:
        """The shorter way of our server, as long as nothing is wrong."""
        return self._typed.typed(request) if self._typed is not None and self._faults.quiet else None


def leave_to_gate(_: HttpRequest) -> HotAnswer:
    """What stands in the place of a hot handler while there are faults."""
    return None


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


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return None


class FaultDesk:
    """The orders about faults that reach this worker, from the control socket or from the worker with the console."""

    def __init__(self, faults: LiveFaults, tune: Callable[[Mapping[str, float]], None] = lambda _: None) -> None:
        """`tune` takes the values of changes.py."""
        self._faults = faults
        self._tune = tune

    async def order(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """`begin`, `renew`, `undo_all`, `states` or `tune`."""
        orders: dict[str, Callable[[], dict[str, Any]]] = {
            "begin": lambda: {
                "ids": [
                    self._faults.begin(
                        str(arguments.get("kind", "")),
                        str(arguments.get("system", "")),
                        dict(arguments.get("arguments", {})),
                        float(arguments.get("lease_s", 5.0)),
                        parted=[int(slot) for slot in arguments.get("parted", [])],
                    )
                ]
            },
            "renew": lambda: {
                "renewed": self._faults.renew(
                    [str(one) for one in arguments.get("ids", [])], float(arguments.get("lease_s", 5.0))
                )
            },
            "undo_all": lambda: {"ended": self._faults.undo_all()},
            "states": lambda: {
                "faults": msgspec.to_builtins(self._faults.states()), "over": msgspec.to_builtins(self._faults.over()),
            },
        }  # fmt: skip
        if verb == "tune":
            self._tune({str(name): float(value) for name, value in arguments.get("values", {}).items()})
            return {"tuned": 1}
        if verb not in orders:
            raise NotFound(f"no order {verb!r} about faults", code="no_order")
        return orders[verb]()
