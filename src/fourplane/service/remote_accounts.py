"""The accounts of this deployment when another worker owns them.

Every question goes to the owner by rpc; sessions, which each request asks for, are remembered here as long as the owner
itself would remember them (`sessions.cache_s`). Exchanges that verify where the connection is (SCRAM) ask the owner for the
stored keys; the throttle of their failures is this worker's own, which is enough, because a user logs in at one worker.
"""

from typing import TYPE_CHECKING, Any, Final

from fourplane.foundation import clock
from fourplane.foundation.errors import Overloaded
from fourplane.service.accounts import Accounts, AccountSettings, decoy_keys, throttle_key
from fourplane.service.login_throttle import LoginThrottle
from fourplane.service.passwords import SALT_BYTES, ScramKeys
from fourplane.service.rpc import Caller, remote
from fourplane.service.sessions import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE: Final = "accounts"
METHODS: Final = frozenset(
    (
        "close_session",
        "create",
        "create_many",
        "delete",
        "derive_keys",
        "find",
        "open_session",
        "operator_link",
        "redeem",
        "scram_keys",
        "session",
        "set_password",
        "set_roles",
        "verify_password",
    )
)

CHANGING: Final = frozenset(("delete", "set_password"))


class RemoteAccounts:
    """Has the methods of `Accounts` named in `METHODS`."""

    def __init__(self, caller: Caller, settings: AccountSettings | None = None) -> None:
        self._far = remote(Accounts, caller, SERVICE, only=METHODS)
        self._settings = (settings or AccountSettings()).sessions
        chosen = settings or AccountSettings()
        self.changes = 0  # made from here, as in Accounts; the owner's and others' are noticed when memory lapses
        self._iterations = chosen.scram_iterations
        self._throttle = LoginThrottle(chosen.throttle)
        self._decoy = clock.token_bytes(SALT_BYTES)
        self._remembered: dict[str, tuple[Identity, float]] = {}

    def __getattr__(self, name: str) -> "Callable[..., Any]":
        if name not in METHODS:
            raise AttributeError(f"the accounts are in another worker: {name} is not possible from here")
        if name in CHANGING:
            self.changes += 1
        found: Callable[..., Any] = getattr(self._far, name)
        return found

    def scram_decoy(self, name: str, mechanism: str, *, tenant: str = "main") -> ScramKeys:
        """See Accounts."""
        return decoy_keys(self._decoy, name, mechanism, tenant=tenant, iterations=self._iterations)

    def admit_login(self, name: str, *, tenant: str = "main") -> None:
        """See Accounts."""
        wait_s = self._throttle.wait_s(throttle_key(name, tenant), clock.monotonic_s())
        if wait_s > 0:
            raise Overloaded("too many wrong passwords for this name", retry_after_s=wait_s, code="login_throttled")

    def note_login(self, name: str, *, tenant: str = "main", succeeded: bool) -> None:
        """See Accounts."""
        key = throttle_key(name, tenant)
        if succeeded:
            self._throttle.succeeded(key)
        else:
            self._throttle.failed(key, clock.monotonic_s())

    async def session(self, token: str) -> Identity | None:
        """Who opened this session, None when unknown, lapsed or closed; may be `cache_s` old."""
        now = clock.monotonic_s()
        remembered = self._remembered.get(token)
        if remembered is not None and now < remembered[1]:
            return remembered[0]
        self._remembered.pop(token, None)
        identity = await self._far.session(token)
        if identity is not None:
            if len(self._remembered) >= self._settings.cache_count_max:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = (identity, now + self._settings.cache_s)
        return identity

    async def close_session(self, token: str) -> None:
        """End a session here and at the owner."""
        self._remembered.pop(token, None)
        await self._far.close_session(token)
