"""What an experiment may ask of a world: the probes of a steady state. They read what people felt."""

from fourplane.simulator.stage import current


def availability(window_s: float = 10.0) -> float:
    """The share of actions that were served during the last seconds; 1 when nobody tried."""
    stage = current()
    served, failed = stage.people.felt.totals(since_s=stage.world.now_s - window_s)
    return served / (served + failed) if served + failed else 1.0


def slowest_s(window_s: float = 10.0) -> float:
    """The slowest served action of the last seconds."""
    stage = current()
    since = int(stage.world.now_s - window_s)
    seconds = stage.people.felt.seconds
    return max((second.slowest_s for at, second in seconds.items() if at >= since), default=0.0)


def broken_promises() -> int:
    """How many promises were broken so far, as far as people noticed."""
    return len(current().people.felt.violations)


def is_up() -> bool:
    """Whether the system's process runs and has started; of several sites every one."""
    return current().sites.is_up
