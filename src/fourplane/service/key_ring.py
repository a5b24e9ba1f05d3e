"""Secret keys with ids, kept in one owner-only file, replaced without invalidating what the old ones signed.

`rotate()` makes a new current key; old keys stay for verification until `retire` drops those older than any token lives.
Several workers share the file: a key id that is not known makes the ring read the file again, at most once a second.
The file is replaced atomically and created with mode 0600.
"""

import os
from pathlib import Path

import msgspec

from fourplane.foundation import clock
from fourplane.foundation.errors import Corrupt

SCHEMA = 1
KEY_BYTES = 32
KEYS_MAX = 16
REREAD_S = 1.0


class Key(msgspec.Struct, frozen=True):
    id: str
    secret: bytes
    created_us: int


class _KeyFile(msgspec.Struct):
    schema: int
    keys: list[Key]


class KeyRing:
    """Keys by id; the last one is current."""

    __slots__ = ("_keys", "_path", "_read_s")

    def __init__(self, keys: list[Key], path: Path | None = None) -> None:
        assert keys, "a ring holds at least one key"
        self._keys = {key.id: key for key in keys}
        self._path = path
        self._read_s = clock.monotonic_s()

    @staticmethod
    def in_memory() -> "KeyRing":
        """A ring that lives as long as this process."""
        return KeyRing([_new_key()])

    @staticmethod
    def open(path: Path) -> "KeyRing":
        """The ring of this file, made with one key when absent; raises Corrupt for a file that is none."""
        keys = _read(path)
        if keys is None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, [_new_key()], only_new=True)
            keys = _read(path)
        assert keys is not None
        return KeyRing(keys, path)

    @property
    def current(self) -> Key:
        """The key that signs."""
        return next(reversed(self._keys.values()))

    def find(self, key_id: str) -> Key | None:
        """The key of this id, also one that another worker just made."""
        key = self._keys.get(key_id)
        if key is None and self._path is not None and clock.monotonic_s() - self._read_s > REREAD_S:
            self._read_s = clock.monotonic_s()
            self._keys = {one.id: one for one in _read(self._path) or self._keys.values()}
            key = self._keys.get(key_id)
        return key

    def rotate(self) -> Key:
        """Sign with a new key from now on; the oldest beyond 16 is dropped."""
        key = _new_key()
        keys = [*self._keys.values(), key][-KEYS_MAX:]
        self._replace(keys)
        return key

    def retire(self, older_than_s: float) -> int:
        """Drop keys made more than this long ago, never the current one; how many went."""
        limit_us = clock.now_us() - int(older_than_s * 1e6)
        keep = [key for key in self._keys.values() if key.created_us >= limit_us or key is self.current]
        gone = len(self._keys) - len(keep)
        if gone:
            self._replace(keep)
        return gone

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._keys)} keys>"

    def _replace(self, keys: list[Key]) -> None:
        if self._path is not None:
            _write(self._path, keys)
        self._keys = {key.id: key for key in keys}


def _new_key() -> Key:
    return Key(clock.token_bytes(4).hex(), clock.token_bytes(KEY_BYTES), clock.now_us())


def _read(path: Path) -> list[Key] | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = msgspec.json.decode(content, type=_KeyFile)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{path.name} is not a key file: {error}", file=str(path), place=0) from None
    if stored.schema != SCHEMA or not stored.keys:
        raise Corrupt(f"{path.name} has schema {stored.schema} and {len(stored.keys)} keys", file=str(path), place=0)
    return stored.keys


def _write(path: Path, keys: list[Key], *, only_new: bool = False) -> None:
    temporary = path.with_name(f".{path.name}.{clock.token_bytes(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_KeyFile(SCHEMA, keys)))
            file.flush()
            os.fsync(file.fileno())
        if only_new:
            try:
                os.link(temporary, path)  # unlike a rename, loses against a worker that was first
            except FileExistsError:
                return
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
