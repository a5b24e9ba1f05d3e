"""What every open store shows on /metrics: the numbers of its statistics, one gauge each, read when somebody asks.

`fourplane_state_<field>` with the label `store` ("records.messaging"); nested statistics put their name in front
(`fourplane_state_writer_group_s_p99`). Totals are gauges too, because the cells live in the statistics.
"""

from collections.abc import Callable

import msgspec

from fourplane.foundation.telemetry import Registry

_WORDS = {"commits": "commits_total", "refused": "refused_total", "groups": "groups_total", "reads": "reads_total"}


def register(registry: Registry, store: str, statistics: Callable[[], msgspec.Struct]) -> None:
    """Make the gauges of one store; a store opened again under its name takes them over."""
    for path in _numbers(statistics(), ()):
        name = "_".join([*path[:-1], _unit(path[-1])])

        def read(path: tuple[str, ...] = path) -> float:
            value: object = statistics()
            for part in path:
                value = getattr(value, part)
            return float(value) if isinstance(value, int | float) else 0.0

        registry.gauge(f"fourplane_state_{name}", "one number of the store's statistics", read=read, store=store)


def _numbers(value: msgspec.Struct, before: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        if isinstance(inner, msgspec.Struct):
            found += _numbers(inner, (*before, name))
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            found.append((*before, name))
    return found


def _unit(field: str) -> str:
    """`group_s_p99` as `group_seconds_p99`, the spelling of all metrics."""
    return _WORDS.get(field, field.replace("_s_", "_seconds_"))
