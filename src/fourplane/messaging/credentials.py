"""What a login needs of an account, remembered for a moment: SCRAM keys, and the tokens of quick logins.

A phone that lost its network comes back several times within a few seconds, and one exchange asks more than once; that
should not cost a read of the store per step. What was read is remembered for `credentials_s`, which is also how long
another worker's change of a password may go unnoticed here (as with web sessions); one made here counts at once. That an
account does not exist is never remembered. Bounded by `credentials_max`; a crowd that logged in once leaves nothing behind.
"""

from typing import Generic, TypeVar

from fourplane.foundation import clock
from fourplane.service.accounts import Accounts
from fourplane.service.passwords import ScramKeys

K = TypeVar("K")
V = TypeVar("V")


class Credentials:
    """The memory of one process: two generations of each table, of which the older goes every `seconds`."""

    __slots__ = ("_accounts", "_changes", "_keys", "_max", "_seconds", "_tokens", "_turn_s")

    def __init__(self, accounts: Accounts, *, seconds: float, count_max: int) -> None:
        self._accounts = accounts
        self._changes = accounts.changes
        self._seconds = seconds
        self._max = count_max
        self._turn_s = clock.monotonic_s() + seconds / 2
        self._keys: Generations[tuple[str, str], ScramKeys] = Generations()
        self._tokens: Generations[tuple[str, bytes], bytes] = Generations()

    def remembered(self, name: str, mechanism: str) -> ScramKeys | None:
        """The keys of this name if they were read a moment ago and no password was changed in this process since."""
        self._look_at_clock()
        return self._keys.find((name, mechanism))

    async def keys(self, name: str, mechanism: str) -> ScramKeys | None:
        """The stored keys, None for an unknown account."""
        found = self.remembered(name, mechanism)
        if found is None:
            changes = self._accounts.changes
            found = await self._accounts.scram_keys(name, mechanism)
            if found is not None and changes == self._accounts.changes:
                self._keys.put((name, mechanism), found, self._max)
        return found

    def remembered_token(self, name: str, key: bytes) -> bytes | None:
        """The stored token of one client if it was read, or written, a moment ago."""
        self._look_at_clock()
        return self._tokens.find((name, key))

    def remember_token(self, name: str, key: bytes, value: bytes) -> None:
        """A token was read or is durable now."""
        self._look_at_clock()
        self._tokens.put((name, key), value, self._max)

    def forget_token(self, name: str, key: bytes) -> None:
        """A token is gone."""
        self._tokens.forget((name, key))

    def _look_at_clock(self) -> None:
        if self._changes != self._accounts.changes:
            self._changes = self._accounts.changes
            self._keys = Generations()
        now = clock.monotonic_s()
        if now >= self._turn_s:
            self._turn_s = now + self._seconds / 2
            self._keys.turn()
            self._tokens.turn()


class Generations(Generic[K, V]):
    """A table that forgets without looking at its entries: the younger half becomes the older, the older is dropped."""

    __slots__ = ("_older", "_younger")

    def __init__(self) -> None:
        self._younger: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def find(self, key: K) -> V | None:
        """The value, if it is not forgotten."""
        found = self._younger.get(key)
        return found if found is not None else self._older.get(key)

    def put(self, key: K, value: V, count_max: int) -> None:
        """Remember a value; a full table turns early."""
        if len(self._younger) >= count_max // 2:
            self.turn()
        self._younger[key] = value

    def forget(self, key: K) -> None:
        """Forget one value."""
        self._younger.pop(key, None)
        self._older.pop(key, None)

    def turn(self) -> None:
        """One period is over."""
        self._older, self._younger = self._younger, {}
