"""Make a file durable without a thread: one of the seams to the outside world.

A thread that waits for the disk needs the interpreter's lock three times a sync, and a busy loop gives it away half a
millisecond after it was asked. Linux needs no thread: the kernel syncs, and makes a descriptor readable when it is through,
which the loop sees as it sees a connection.

Elsewhere (another system, a kernel that refuses, a simulated loop) there is no `DiskSync`, and a `Worker` waits instead.
Bounds: one sync at a time. Cost: 25 us of the loop a sync; `docs/decisions/0013` has the figures.
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

Told = Callable[[OSError | None], object]

# io_setup, io_destroy, io_submit, io_getevents
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}.get(platform.machine())
_FDSYNC, _TELL = 3, 1
# data, key, flags, operation, priority, descriptor, buffer, size, offset, reserved, flags, descriptor to tell
_REQUEST = struct.Struct("<QIIHhIQQqQII")
_EVENT_BYTES = 32
TRIES_MAX = 1_000
_RESULT, _RESULT_AT = struct.Struct("<q"), 16  # 0, or an error below


class DiskSync:
    """One file's syncs at a time, told on the loop that opened this."""

    def __init__(self, context: int, event: int) -> None:
        self._context = context
        self._event = event
        self._loop = asyncio.get_running_loop()
        self._told: Told | None = None
        self._request = ctypes.create_string_buffer(_REQUEST.size)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._ended = ctypes.create_string_buffer(_EVENT_BYTES)
        self._loop.add_reader(event, self._look)

    @classmethod
    def open(cls) -> "DiskSync | None":
        """One for the running loop, None where there is no such thing."""
        simulated = hasattr(asyncio.get_running_loop(), "blocking_inline")
        if sys.platform != "linux" or sys.byteorder != "little" or _NUMBERS is None or simulated:
            return None
        context = ctypes.c_ulong(0)
        if _call(_NUMBERS[0], 1, ctypes.addressof(context)) != 0:
            return None
        return cls(context.value, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def begin(self, descriptor: int, told: Told) -> bool:
        """Make durable what was written to a file; `told` hears None or the error. False when the kernel refuses."""
        assert self._told is None, "one sync at a time"
        assert _NUMBERS is not None
        if self._event < 0:
            return False
        _REQUEST.pack_into(self._request, 0, 0, 0, 0, _FDSYNC, 0, descriptor, 0, 0, 0, 0, _TELL, self._event)
        if _call(_NUMBERS[2], self._context, 1, ctypes.addressof(self._requests)) != 1:
            return False
        self._told = told
        return True

    def close(self) -> None:
        """Let go, behind the sync under way, whose end is told here."""
        assert _NUMBERS is not None
        event, self._event = self._event, -1
        told, self._told = self._told, None
        error = self._result() if told is not None else None
        if not self._loop.is_closed():
            self._loop.remove_reader(event)
        _call(_NUMBERS[1], self._context)
        os.close(event)
        if told is not None and self._loop.is_running():
            told(error)

    def _look(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        told, self._told = self._told, None
        if told is not None:
            told(self._result())

    def _result(self) -> OSError | None:
        """How the sync ended; waits for it."""
        assert _NUMBERS is not None
        for _ in range(TRIES_MAX):  # a signal ends the call early
            if _call(_NUMBERS[3], self._context, 1, 1, ctypes.addressof(self._ended), 0) == 1:
                break
        else:
            return OSError(errno.EIO, "the kernel does not say how the sync ended")
        result = _RESULT.unpack_from(self._ended, _RESULT_AT)[0]
        return OSError(-result, os.strerror(-result)) if result < 0 else None


def _call(number: int, *arguments: int) -> int:
    """A call of the system; -1 when it refuses."""
    answer: int = _SYSCALL[len(arguments)](number, *arguments)
    return answer


_LIBRARY = ctypes.PyDLL(None)  # keeps the interpreter's lock: none of these calls waits while the loop runs
_SYSCALL = {
    count: ctypes.PYFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * (count + 1))(("syscall", _LIBRARY))
    for count in (1, 2, 3, 5)
}
