"""A new version takes the place of the running one, and nobody is refused.

The new parent process starts beside the old one with the same data folder (`fourplane up --takeover`), loads its code, and asks
the old one by SIGUSR1. The old one passes every listening socket (SCM_RIGHTS) through `takeover.sock` in the data folder, tells
its workers to drain and ends; the new one waits for the folder's lock and forks its workers on the same sockets. They
listened all the time: who connects in between waits in their queues. Requests under way are answered by the old workers;
chat clients and WebSockets are told to come back and do.

Embedded stores are files with one owner, so the old version ends before the new one opens them: the gap is the old one's drain
and the new one's start, about a second for a deployment without long uploads (`benchmarks/runtime.py`).
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fourplane.foundation import clock, network
from fourplane.foundation.errors import Misconfigured, Unavailable
from fourplane.foundation.network import InheritedSocket
from fourplane.foundation.processes import own_pid, pause, signal_process
from fourplane.state import data_folder
from fourplane.state.data_folder import DataFolder, Holder

NAME = "takeover.sock"
ASK_S = 10.0
TRY_S = 0.02

Slots = list[dict[str, InheritedSocket]]


def give(folder: Path, slots: Sequence[dict[str, InheritedSocket]]) -> bool:
    """Pass the sockets of all slots to whoever asked; False when nobody is there any more."""
    names = [[slot, name] for slot, sockets in enumerate(slots) for name in sockets]
    every = [one for sockets in slots for one in sockets.values()]
    try:
        network.pass_sockets(str(folder / NAME), msgspec.json.encode(names), every, timeout_s=ASK_S)
    except OSError:
        return False
    return True


def take(folder: Path, holder: Holder) -> Slots:
    """Ask the deployment that holds the folder for its sockets; it drains and ends from here on.

    Raises Unavailable when it does not answer.
    """

    def ask() -> None:
        try:
            signal_process(holder.pid, signal.SIGUSR1)
        except OSError as error:
            raise Unavailable(f"process {holder.pid} cannot be asked: {error.strerror}", code="takeover") from None

    try:
        message, every = network.take_sockets(str(folder / NAME), ask, timeout_s=ASK_S)
    except OSError:
        raise Unavailable(
            f"process {holder.pid} does not hand over its sockets; stop it and start again", code="takeover"
        ) from None
    names = msgspec.json.decode(message, type=list[tuple[int, str]])
    slots: Slots = [{} for _ in range(1 + max((slot for slot, _ in names), default=0))]
    for (slot, name), one in zip(names, every, strict=True):
        slots[slot][name] = one
    return slots


def hold(path: Path, *, takeover: bool, wait_s: float, say: Callable[[str], None]) -> tuple[DataFolder, Slots]:
    """Hold the data folder, alone or after the deployment that runs there has handed over; its sockets, if there were any."""
    if not takeover:
        return data_folder.hold(path), []
    try:
        return data_folder.hold(path), []
    except Unavailable:
        running = data_folder.holder(path)
    if running is None or running.pid == own_pid():
        raise Misconfigured(f"{path} is in use, and nobody says by whom", code="takeover")
    slots = take(path, running)
    say(f"took {sum(map(len, slots))} sockets over from process {running.pid}, which drains")
    until = clock.monotonic_s() + wait_s
    while True:
        try:
            return data_folder.hold(path), slots
        except Unavailable:
            if clock.monotonic_s() > until:
                raise
            pause(TRY_S)
