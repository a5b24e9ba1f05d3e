"""Stores whose calls are steps of the request that makes them.

`TracedStores` opens what `Stores` opens and puts a thin layer around each: a call inside a trace is timed, a call outside is the
engine's own coroutine, handed on untouched (0.15 us). Names are `<contract>.<store> <method>`, such as `records.dispatch write`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fourplane.foundation import clock
from fourplane.foundation.tracing import STEPS_MAX, Step, Tracer, add_step, current
from fourplane.state.contracts import EventLog, Records, Search, Sql
from fourplane.state.stores import Stores

S = TypeVar("S")
METHODS = {
    "sql": ("read", "commit"),
    "records": ("get", "scan", "write"),
    "log": ("append", "read"),
    "search": ("find",),
}


class TracedStores(Stores):
    """The same stores, timed for traces."""

    tracer: Tracer | None = None

    async def sql(self, name: str) -> Sql:
        return self._traced("sql", name, await super().sql(name))

    async def records(self, name: str) -> Records:
        return self._traced("records", name, await super().records(name))

    async def log(self, name: str) -> EventLog:
        return self._traced("log", name, await super().log(name))

    async def search(self, name: str) -> Search:
        return self._traced("search", name, await super().search(name))

    def _traced(self, contract: str, name: str, store: S) -> S:
        if self.tracer is not None:
            for method in METHODS[contract]:
                own = getattr(store, method)
                if not hasattr(own, "untraced"):
                    setattr(store, method, timed(f"{contract}.{name} {method}", own))
        return store


def timed(name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`call` as a step named `name` where something is traced, and as it is elsewhere."""

    async def measured(steps: list[Step], work: Awaitable[Any]) -> Any:
        began_s = clock.monotonic_s()
        try:
            answer = await work
        except BaseException:
            add_step(steps, name, began_s, failed=True)
            raise
        if len(steps) < STEPS_MAX:
            steps.append((name, began_s, clock.monotonic_s(), False))
        return answer

    def passed(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        context = current()
        work = call(*args, **kwargs)
        return work if context is None or (steps := context.steps) is None else measured(steps, work)

    passed.untraced = call  # type: ignore[attr-defined]
    return passed
