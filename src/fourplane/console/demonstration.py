"""The demonstration: gentle crowds of all systems in a process of their own, started and stopped by an operator.

The crowd is the `load` verb with small plans; it speaks the public protocols only, so what a visitor sees is what clients
get. It runs beside the deployment, not inside it, so that the figures on the console are the deployment's own.
"""

from collections.abc import Mapping, Sequence

from fourplane.foundation import processes
from fourplane.foundation.lifecycle import Tasks
from fourplane.foundation.telemetry import Registry

LINE_MAX = 300
NICE = 5
LEFT = "The crowd of "  # how the verb begins the line that says which crowd gave up, and why


class Demonstration:
    """A lifecycle part. What a crowd lacks (a film, for example) it asks the deployment for, while the others run."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        registry: Registry,
        from_start: bool = False,
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._registry = registry
        self._from_start = from_start
        self._tasks: Tasks | None = None
        self._child: processes.Child | None = None
        self.running = False

    async def start(self, tasks: Tasks) -> None:
        """Begin at once when `up --demo` asked for it."""
        self._tasks = tasks
        if self._from_start:
            await self.order(running=True)

    async def drain(self) -> None:
        """Send the crowds home before the doors close."""
        await self.order(running=False)

    async def stop(self) -> None:
        await self.order(running=False)

    async def order(self, *, running: bool) -> None:
        """Start or stop the crowds; asking for what is so already changes nothing."""
        if running == self.running:
            return
        self.running = running
        if running:
            assert self._tasks is not None
            self._tasks.start(self._run(), "crowds")
        elif self._child is not None:
            await self._child.stop()

    async def _run(self) -> None:
        self._registry.event("info", "demo", "The demonstration starts: gentle crowds will drive every system")
        last: list[str] = []

        def told(line: str) -> None:
            last[:] = [*last, line[:LINE_MAX]][-3:]
            if line.startswith(LEFT) and self._wanted():
                self._registry.event("warning", "demo", line[:LINE_MAX])

        child = await processes.start(self._command, on_line=told, env=self._environment, nice=NICE)
        self._child = child
        if not self._wanted():
            child.terminate()
        code = await child.wait()
        self._child = None
        if self._wanted():
            self.running = False
            self._registry.event("error", "demo", f"The demonstration ended by itself ({code}): {' '.join(last)}")
        else:
            self._registry.event("info", "demo", "The demonstration stopped")

    def _wanted(self) -> bool:
        """Asked again after every wait: an operator may have changed his mind."""
        return self.running
