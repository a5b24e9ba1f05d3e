"""What a fault does to the worker it is in, apart from requests: its disk, its clock, its processor, its way to the others,
the cache nodes of a region. Each begins at once and gives back how it is undone; while it lasts, `pump` is called often.

Two faults of one kind: the second is refused, because undoing the first would undo it too.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol, assert_never

from fourplane.control.fault_scope import OF_REQUESTS, Fault
from fourplane.foundation import clock
from fourplane.foundation.errors import Conflict, Rejected

BURN_S = 0.02
OF_DISK = frozenset({"disk_full", "disk_stall"})

Undo = Callable[[], None]


class Partable(Protocol):
    """A peer that can be out of reach."""

    def part(self, *, parted: bool) -> None: ...


class Vanishing(Protocol):
    """A server whose place can go dark."""

    def vanish(self, *, gone: bool) -> None: ...


class Spoilable(Protocol):
    """A disk that can be full or slow."""

    def spoil(self, *, free_bytes: int | None = None, stall_s: float = 0.0) -> None: ...
    def heal(self) -> None: ...


class SkewedSource:
    """The machine's clock, wrong by `skew_us`; the steady one stays right, as in a real machine."""

    __slots__ = ("_machine", "monotonic_s", "skew_us")

    def __init__(self, machine: clock.Source) -> None:
        self._machine = machine
        self.monotonic_s = machine.monotonic_s
        self.skew_us = 0

    def now_us(self) -> int:
        return self._machine.now_us() + self.skew_us

    def cpu_s(self) -> float:
        return self._machine.cpu_s()

    def random(self) -> Random:
        return self._machine.random()

    def token_bytes(self, count: int) -> bytes:
        return self._machine.token_bytes(count)


class Machine:
    """What the faults of one worker act upon; what is not given cannot be broken."""

    def __init__(
        self,
        *,
        disk: Spoilable | None = None,
        peers: Mapping[int, Partable] | None = None,
        regions: Callable[[], Mapping[str, Sequence[Vanishing]]] = dict,
    ) -> None:
        self._disk = disk
        self._peers = peers or {}
        self._regions = regions
        self._taken: dict[str, Fault] = {}

    def begin(self, fault: Fault, parted: Sequence[int]) -> Undo:
        """Do it; how it is undone. Raises Conflict while one of the kind lasts, Rejected for what cannot be here."""
        if fault.kind in OF_REQUESTS:
            return _nothing
        if fault.kind in self._taken:
            raise Conflict(f"{fault.kind} lasts already", code="fault_lasts")
        undo = self._break(fault, parted)
        self._taken[fault.kind] = fault

        def undone() -> None:
            del self._taken[fault.kind]
            undo()

        return undone

    def pump(self) -> None:
        """Keep alive what has to be said again and again: every job of a slow disk waits."""
        slow = self._taken.get("disk_stall")
        if slow is not None and self._disk is not None:
            self._disk.spoil(stall_s=slow.wanted.stall_s)

    def _break(self, fault: Fault, parted: Sequence[int]) -> Undo:
        wanted = fault.wanted
        match fault.kind:
            case "cpu_burn":
                asyncio.get_running_loop().call_soon(self._burn, fault)
                return _nothing
            case "disk_full":
                return self._spoil(free_bytes=wanted.free_bytes)
            case "disk_stall":
                return self._spoil(stall_s=wanted.stall_s)
            case "clock_skew":
                return _skew(wanted.skew_s)
            case "service_partition":
                peers = [peer for slot, peer in self._peers.items() if slot in parted]
                if not peers:
                    raise Rejected("both services are in one process, nothing can part them", code="one_process")
                return _all(lambda one, on: one.part(parted=on), peers)
            case "region_loss":
                return _all(lambda one, on: one.vanish(gone=on), self._regions().get(wanted.region, ()))
            case "zone_loss" | "instance_loss" | "latency" | "errors" | "partition":
                return _nothing
        assert_never(fault.kind)

    def _spoil(self, *, free_bytes: int | None = None, stall_s: float = 0.0) -> Undo:
        if self._disk is None:
            raise Rejected("the stores of this worker are not on a disk of its own", code="no_disk")
        if self._taken.keys() & OF_DISK:
            raise Conflict("something is wrong with the disk already", code="fault_lasts")
        self._disk.spoil(free_bytes=free_bytes, stall_s=stall_s)
        return self._disk.heal

    def _burn(self, fault: Fault) -> None:
        """Keep the processor busy in slices, so that requests still come through between them."""
        until_s = clock.monotonic_s() + BURN_S
        while clock.monotonic_s() < until_s:
            pass
        if self._taken.get("cpu_burn") is fault:
            asyncio.get_running_loop().call_later(BURN_S / 4, self._burn, fault)


def _skew(seconds: float) -> Undo:
    source = SkewedSource(clock.source())
    source.skew_us = int(seconds * 1e6)
    installed = clock.installed(source)
    installed.__enter__()

    def undo() -> None:
        installed.__exit__(None, None, None)

    return undo


def _all(change: Callable[..., None], what: Sequence[object]) -> Undo:
    for one in what:
        change(one, True)

    def undo() -> None:
        for one in what:
            change(one, False)

    return undo


def _nothing() -> None:
    """Requests are met at the gate; a worker that is gone comes back by itself."""
