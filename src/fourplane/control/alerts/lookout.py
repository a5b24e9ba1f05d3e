"""The part that looks after workers and their stores: reads from the metrics store how long each worker has been up and which
servers of stores do not answer, keeps the heartbeat file.

It finds at the start whether the process before was killed; then that is a condition like any death, and the time nobody was
there is booked as failed probes: users were not served, and nobody was there to ask.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fourplane.control.alerts.book import Condition
from fourplane.control.alerts.stores import StoreWatch
from fourplane.control.alerts.workers import Heartbeat, WorkerWatch
from fourplane.control.metrics.store import MetricsStore
from fourplane.foundation import clock
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

TICK_S = 1.0
UP = "fourplane_control_up_seconds"
UNANSWERED = "fourplane_state_unanswered"


def tell_uptime(registry: Registry) -> None:
    """Every worker: how long it has been up, for whoever looks after it."""
    began_s = clock.monotonic_s()
    registry.gauge(UP, "seconds since this process started", read=lambda: clock.monotonic_s() - began_s)


class Lookout:
    """A lifecycle part of the worker with the console. `outage` hears for how long nobody was there."""

    def __init__(
        self,
        *,
        store: MetricsStore | None,
        heartbeat: Heartbeat,
        registry: Registry,
        ready: Callable[[], bool],
        own: str,
        systems: Mapping[str, str],
        outage: Callable[[float], object],
    ) -> None:
        self.watch = WorkerWatch(systems)
        self.stores = StoreWatch()
        self._store = store
        self._heartbeat = heartbeat
        self._registry = registry
        self._ready = ready
        self._own = own
        self._outage = outage
        self._looked_at = 0

    async def start(self, tasks: Tasks) -> None:
        """See whether the process before was killed; then look once a second."""
        now_s = clock.now_us() / 1e6
        away_s = self._heartbeat.away_s(now_s)
        if away_s is not None:
            self.watch.was_killed(now_s, self._own, away_s)
            self._outage(away_s)
        self._heartbeat.beat(now_s)
        tasks.start(self._run(), "lookout")

    async def drain(self) -> None:
        """From now on nothing is a surprise: `ready` says so."""

    async def stop(self) -> None:
        self._heartbeat.rest()

    def conditions(self, now_s: float) -> Iterator[Condition]:
        """Workers that are down or were, and stores whose server is away."""
        yield from self.watch.conditions(now_s)
        yield from self.stores.conditions(now_s)

    def look(self, now_s: float) -> None:
        """Take in the newest closed step of the store."""
        if self._store is None:
            return
        steps = self._store.windows.tiers[0].steps
        if not steps or steps[-1].at == self._looked_at:
            return
        self._looked_at = steps[-1].at
        table, values = self._store.table, steps[-1].values
        ids = table.select(UP)
        ids = ids[ids < len(values)]
        found = values[ids]
        workers = table.texts(ids, "worker")
        asked = table.select(UNANSWERED)
        asked = asked[asked < len(values)]
        places = zip(table.texts(asked, "store"), table.texts(asked, "worker"), strict=True)
        self.stores.seen(now_s, dict(zip(places, values[asked].tolist(), strict=True)))
        self.watch.seen(
            now_s,
            {
                worker or self._own: float(value)
                for worker, value in zip(workers, found, strict=True)
                if not np.isnan(value)
            },
        )

    async def _run(self) -> None:
        while True:
            await clock.sleep(TICK_S)
            now_s = clock.now_us() / 1e6
            if self._ready():
                self._heartbeat.beat(now_s)
                self.look(now_s)
