"""One deployment, one folder: whoever opens `./data` first holds it until the process ends.

The lock is an flock on `deployment.lock`, so the kernel lets go of it whatever way the process ends; the file's text (pid
and address) only tells a second opener whom to ask.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from fourplane.foundation.errors import Misconfigured, Unavailable

LOCK_NAME = "deployment.lock"


class Holder(msgspec.Struct, frozen=True):
    """Who has the folder: process id, and the address of its console or control socket."""

    pid: int
    address: str


class DataFolder:
    """A data folder held by this process until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def announce(self, address: str) -> None:
        """Write down where the running deployment can be asked."""
        _write(self._descriptor, Holder(os.getpid(), address))

    def fileno(self) -> int:
        """The locked descriptor: children that inherit it keep the folder locked, so it is closed on exec."""
        return self._descriptor

    def release(self) -> None:
        """Let others in."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def hold(path: Path, *, address: str = "") -> DataFolder:
    """Make the folder where missing and lock it; raises Unavailable naming the holder, Misconfigured when it cannot be used."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(f"cannot use the data folder {path}: {error.strerror}", code="data_folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        held = holder(path)
        who = f"process {held.pid}" + (f" at {held.address}" if held.address else "") if held else "another process"
        fields = {"pid": held.pid, "address": held.address} if held else {}
        raise Unavailable(f"the data folder {path} is in use by {who}", code="data_folder_in_use", **fields) from None
    _write(descriptor, Holder(os.getpid(), address))
    return DataFolder(path, descriptor)


def holder(path: Path) -> Holder | None:
    """Who wrote itself into the lock file last; it may have ended since."""
    try:
        return msgspec.json.decode((path / LOCK_NAME).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def _write(descriptor: int, who: Holder) -> None:
    content = msgspec.json.encode(who)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
