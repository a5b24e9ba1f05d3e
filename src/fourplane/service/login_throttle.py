"""How long a name must wait after wrong passwords.

The first `free_failures` cost nothing; each further one doubles the wait up to `wait_s_max`, which bounds both the guesses
(120 an hour at 30 s) and the harm a stranger can do to a name's owner. A name that does not exist is
treated the same, so that waiting tells nothing. Pure: `now` is an argument. Bounded: the oldest of `names_max` is forgotten.
"""

import msgspec


class ThrottleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    free_failures: int = 5
    wait_s: float = 1.0
    wait_s_max: float = 30.0
    forget_s: float = 900.0
    names_max: int = 100_000


class LoginThrottle:
    """Failures per name; `wait_s(name, now)` is 0 when a try is allowed."""

    __slots__ = ("_failures", "_settings")

    def __init__(self, settings: ThrottleSettings | None = None) -> None:
        self._settings = settings or ThrottleSettings()
        self._failures: dict[str, tuple[int, float]] = {}

    def wait_s(self, name: str, now: float) -> float:
        """Seconds until `name` may try again."""
        entry = self._failures.get(name)
        if entry is None:
            return 0.0
        count, since = entry
        if now - since > self._settings.forget_s:
            del self._failures[name]
            return 0.0
        over = count - self._settings.free_failures
        if over < 0:
            return 0.0
        wait = min(self._settings.wait_s_max, self._settings.wait_s * 2.0 ** min(over, 30))
        return max(0.0, since + wait - now)

    def failed(self, name: str, now: float) -> None:
        """Count a wrong password."""
        count, since = self._failures.pop(name, (0, now))
        if now - since > self._settings.forget_s:
            count = 0
        self._failures[name] = (count + 1, now)
        while len(self._failures) > self._settings.names_max:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, name: str) -> None:
        """Forget the failures of `name`."""
        self._failures.pop(name, None)

    def __len__(self) -> int:
        return len(self._failures)
