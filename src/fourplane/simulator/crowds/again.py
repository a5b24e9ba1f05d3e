"""Sending a request again, as a page does that a person looks at. Pure but for the pause.

A request that may be sent twice (it only reads, or it carries a key by which the shop knows it again) is sent again when its
connection was cut before an answer, or when a 502 or 503 says when to come back. The tries begin within `PATIENCE_S` of the first
failure, with a pause that doubles and is drawn from its upper half, so that people who failed together do not come back
together. What is left after that is an error, and the person sees it.
"""

from collections.abc import Mapping

from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Unavailable

PATIENCE_S = 5.0
FIRST_S = 0.2
PAUSE_S_MAX = 1.6
COME_BACK = frozenset({502, 503})


class Again:
    """The patience of one request."""

    __slots__ = ("_began_s", "tries")

    def __init__(self) -> None:
        self._began_s: float | None = None
        self.tries = 0

    async def after_error(self, error: FourplaneError) -> bool:
        """Whether to try again now; waits before it says so. Only a cut or refused connection is tried again."""
        return isinstance(error, Unavailable) and await self._pause(0.0)

    async def after_answer(self, status: int, headers: Mapping[str, str]) -> bool:
        """The same for an answer."""
        told = headers.get("retry-after", "")
        return status in COME_BACK and told.isdecimal() and await self._pause(float(told))

    async def _pause(self, least_s: float) -> bool:
        now_s = clock.monotonic_s()
        if self._began_s is None:
            self._began_s = now_s
        wait_s = max(least_s, min(PAUSE_S_MAX, FIRST_S * 2**self.tries) * (0.5 + clock.random().random() / 2))
        if now_s + wait_s - self._began_s > PATIENCE_S:
            return False
        self.tries += 1
        await clock.sleep(wait_s)
        return True
