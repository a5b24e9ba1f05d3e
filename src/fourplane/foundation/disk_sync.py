"""Make a file durable without a thread: one of the seams to the outside world.

A thread that waits for the disk needs the interpreter's lock three times a sync, and a busy loop gives it away half a
millisecond after it was asked. Linux needs no thread: the kernel syncs, and makes a descriptor readable when it is through,
which the loop sees as it sees a connection.

The kernel's worker that syncs has the processor of who asked, and a busy loop keeps it: the sync begins, and its end is told,
at the next tick of the scheduler, up to 4 ms later each. So who has much to do says between two steps that others may have a
moment (`give_way`); a sync beside a busy loop takes 0.5 ms then, not 3.5.

Elsewhere (another system, a kernel that refuses, a simulated loop) there is no `DiskSync`, and a `Worker` waits instead.
Bounds: `SYNCS_MAX` under way at a time, told as they end. Cost: 25 us of the loop a sync; `docs/decisions/0013` and `0015` have
the figures.
Source: io_submit(2), linux/aio_abi.h (IOCB_CMD_FDSYNC, Linux 4.18).
"""

import asyncio
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable

from fourplane.foundation import clock

Told = Callable[[OSError | None], object]

# io_setup, io_destroy, io_submit, io_getevents
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}.get(platform.machine())
_FDSYNC, _TELL = 3, 1
# data, key, flags, operation, priority, descriptor, buffer, size, offset, reserved, flags, descriptor to tell
_REQUEST = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")  # what the request was named, the request, 0 or an error below, nothing
SYNCS_MAX = 2  # a log's and its main file's
TRIES_MAX = 1_000
WAYS_S = 0.0001  # between two
LONG_S = 0.0005  # longer than the kernel's worker needs: a stranger had the processor
STRANGERS_SHARE = 0.03  # of the time, at most, for such


class Ways:
    """When this process lets the kernel's worker have its processor: while a sync is under way, every tenth of a millisecond at
    most, and seldom where a stranger takes it instead. Cost: 0.05 us where none is under way, else 0.4.
    """

    __slots__ = ("_next_s", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self._next_s = 0.0

    def give(self) -> None:
        """Somebody else may have a moment now."""
        if not self.under_way:
            return
        now_s = clock.monotonic_s()
        if now_s < self._next_s:
            return
        os.sched_yield()
        ended_s = clock.monotonic_s()
        took_s = ended_s - now_s
        self._next_s = ended_s + (WAYS_S if took_s < LONG_S else took_s / STRANGERS_SHARE)


_WAYS = Ways()
give_way = _WAYS.give


class DiskSync:
    """A file's syncs and its log's, told on the loop that opened this."""

    def __init__(self, context: int, event: int) -> None:
        self._context = context
        self._event = event
        self._loop = asyncio.get_running_loop()
        self._told: dict[int, Told] = {}
        self._free = list(range(SYNCS_MAX))
        self._request = ctypes.create_string_buffer(_REQUEST.size)  # the kernel has read it when the call returns
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._ended = ctypes.create_string_buffer(_EVENT.size * SYNCS_MAX)
        self._loop.add_reader(event, self._look)

    @classmethod
    def open(cls) -> "DiskSync | None":
        """One for the running loop, None where there is no such thing."""
        simulated = hasattr(asyncio.get_running_loop(), "blocking_inline")
        if sys.platform != "linux" or sys.byteorder != "little" or _NUMBERS is None or simulated:
            return None
        context = ctypes.c_ulong(0)
        if _call(_NUMBERS[0], SYNCS_MAX, ctypes.addressof(context)) != 0:
            return None
        return cls(context.value, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def begin(self, descriptor: int, told: Told) -> bool:
        """Make durable what was written to a file; `told` hears None or the error. False when the kernel refuses."""
        assert len(self._told) < SYNCS_MAX, "more syncs at a time than there are files"
        assert _NUMBERS is not None
        if self._event < 0:
            return False
        name = self._free[-1]
        _REQUEST.pack_into(self._request, 0, name, 0, 0, _FDSYNC, 0, descriptor, 0, 0, 0, 0, _TELL, self._event)
        if _call(_NUMBERS[2], self._context, 1, ctypes.addressof(self._requests)) != 1:
            return False
        self._told[self._free.pop()] = told
        _WAYS.under_way += 1
        give_way()
        return True

    def close(self) -> None:
        """Let go, behind the syncs under way, whose ends are told here."""
        assert _NUMBERS is not None
        event, self._event = self._event, -1
        ended: list[tuple[Told, OSError | None]] = []
        for _ in range(TRIES_MAX):  # a signal ends the wait early
            if not self._told:
                break
            ended += self._have_ended(1)
        silent = OSError(errno.EIO, "the kernel does not say how the sync ended")
        _WAYS.under_way -= len(self._told)
        ended += [(told, silent) for told in self._told.values()]
        self._told.clear()
        if not self._loop.is_closed():
            self._loop.remove_reader(event)
        _call(_NUMBERS[1], self._context)
        os.close(event)
        if self._loop.is_running():
            for told, error in ended:
                told(error)

    def _look(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        for told, error in self._have_ended(0):
            told(error)

    def _have_ended(self, least: int) -> list[tuple[Told, OSError | None]]:
        """Those that have; waits for so many."""
        assert _NUMBERS is not None
        count = _call(_NUMBERS[3], self._context, least, SYNCS_MAX, ctypes.addressof(self._ended), 0)
        ended: list[tuple[Told, OSError | None]] = []
        for at in range(count):
            name, _, result, _ = _EVENT.unpack_from(self._ended, at * _EVENT.size)
            self._free.append(name)
            _WAYS.under_way -= 1
            ended.append((self._told.pop(name), OSError(-result, os.strerror(-result)) if result < 0 else None))
        return ended


def _call(number: int, *arguments: int) -> int:
    """A call of the system; -1 when it refuses."""
    answer: int = _SYSCALL[len(arguments)](number, *arguments)
    return answer


_LIBRARY = ctypes.PyDLL(None)  # keeps the interpreter's lock: none of these calls waits while the loop runs
_SYSCALL = {
    count: ctypes.PYFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * (count + 1))(("syscall", _LIBRARY))
    for count in (1, 2, 3, 5)
}
