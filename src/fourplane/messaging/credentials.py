"""What a login needs of an account, remembered for a moment: SCRAM keys, and the tokens of quick logins.

A phone that lost its network comes back several times within a few seconds, and one exchange asks more than once; that
should not cost a read of the store per step. What was read is remembered for `credentials_s`, which is also how long
another worker's change of a password may go unnoticed here (as with web sessions); one made here counts at once. That an
account does not exist is never remembered. Bounded by `credentials_max`; a full table is dropped whole.
"""

from fourplane.foundation import clock
from fourplane.service.accounts import Accounts
from fourplane.service.passwords import ScramKeys


class Credentials:
    """The memory of one process."""

    __slots__ = ("_accounts", "_changes", "_keys", "_max", "_seconds", "_tokens")

    def __init__(self, accounts: Accounts, *, seconds: float, count_max: int) -> None:
        self._accounts = accounts
        self._changes = accounts.changes
        self._seconds = seconds
        self._max = count_max
        self._keys: dict[tuple[str, str], tuple[ScramKeys, float]] = {}
        self._tokens: dict[tuple[str, bytes], tuple[bytes, float]] = {}

    def remembered(self, name: str, mechanism: str) -> ScramKeys | None:
        """The keys of this name if they were read a moment ago and no password was changed in this process since."""
        if self._changes != self._accounts.changes:
            self._changes = self._accounts.changes
            self._keys.clear()
        found = self._keys.get((name, mechanism))
        return found[0] if found is not None and found[1] > clock.monotonic_s() else None

    async def keys(self, name: str, mechanism: str) -> ScramKeys | None:
        """The stored keys, None for an unknown account."""
        found = self.remembered(name, mechanism)
        if found is None:
            changes = self._accounts.changes
            found = await self._accounts.scram_keys(name, mechanism)
            if found is not None and changes == self._accounts.changes:
                if len(self._keys) >= self._max:
                    self._keys.clear()
                self._keys[name, mechanism] = (found, clock.monotonic_s() + self._seconds)
        return found

    def remembered_token(self, name: str, key: bytes) -> bytes | None:
        """The stored token of one client if it was read, or written, a moment ago."""
        found = self._tokens.get((name, key))
        return found[0] if found is not None and found[1] > clock.monotonic_s() else None

    def remember_token(self, name: str, key: bytes, value: bytes) -> None:
        """A token was read or is durable now."""
        if len(self._tokens) >= self._max:
            self._tokens.clear()
        self._tokens[name, key] = (value, clock.monotonic_s() + self._seconds)

    def forget_token(self, name: str, key: bytes) -> None:
        """A token is gone."""
        self._tokens.pop((name, key), None)
