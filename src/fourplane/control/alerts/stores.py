"""Servers of stores that went away: said as what it is, beside the budgets that burn because of it.

Every store on a server tells how many calls went unanswered since the last that was answered. While that number grows, somebody
asks and nobody is there. One condition for all stores, because they mostly share a server. Pure.
"""

from collections.abc import Iterator, Mapping

from fourplane.control.alerts.book import Condition

GROWN_S = 2.5  # the number need not grow each second: callers wait before they ask again
FOR_S = 1.5  # a connection that broke and was opened again is no news
NAMED_MAX = 6

Place = tuple[str, str]  # store and worker


class StoreWatch:
    """The stores of one deployment that are on servers."""

    def __init__(self) -> None:
        self._before: dict[Place, float] = {}
        self._grew_s: dict[Place, float] = {}

    def seen(self, now_s: float, unanswered: Mapping[Place, float]) -> None:
        """What each worker said of each store; a store that was not told of is as it was (NaN is not telling either)."""
        for place, count in unanswered.items():
            if count > self._before.get(place, 0.0):
                self._grew_s[place] = now_s
            elif count == 0:
                self._grew_s.pop(place, None)
            if count >= 0:
                self._before[place] = count

    def conditions(self, now_s: float) -> Iterator[Condition]:
        """One while any store gets no answer."""
        away = sorted({store for (store, _), grew_s in self._grew_s.items() if now_s - grew_s <= GROWN_S})
        if away:
            names = ", ".join(away[:NAMED_MAX]) + (
                f" and {len(away) - NAMED_MAX} more" if len(away) > NAMED_MAX else ""
            )
            yield Condition("StoreAway", "state", "page", f"a server of stores does not answer: {names}", for_s=FOR_S)
