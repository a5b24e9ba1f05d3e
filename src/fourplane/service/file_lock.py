"""One holder per folder or shard file, kept by the kernel: gone with the process that held it, and with all it forked.

The file says who holds it (pid and whatever the holder tells), so that a second one can be refused in one clear line. The
lock belongs to the open file, which forked children share: it lasts until the last of them is gone.
"""

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from fourplane.foundation.errors import Conflict

FACTS_MAX = 4_096


class FileLock:
    """An exclusive lock on one file. Never waits."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, **facts: str) -> None:
        """Take the lock; raises Conflict (`locked`) whose fields are the holder's facts."""
        assert self._descriptor is None, "this lock is held"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _facts(os.pread(descriptor, FACTS_MAX, 0))
            os.close(descriptor)
            told = ", ".join(f"{name} {value}" for name, value in holder.items()) or "another process"
            raise Conflict(f"{self.path.name} is held by {told}", code="locked", **holder) from None
        self._descriptor = descriptor
        self.tell(**facts)

    def tell(self, **facts: str) -> None:
        """Replace what a refused second holder is told."""
        assert self._descriptor is not None, "only the holder can tell"
        content = msgspec.json.encode({"pid": str(os.getpid()), **facts})
        assert len(content) <= FACTS_MAX, "a few short facts"
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self) -> None:
        """Let go; fine when not held. The file stays, removing it would let two holders in."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None


def _facts(content: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(content, type=dict[str, str])
    except msgspec.DecodeError:
        return {}  # the holder is just writing them
