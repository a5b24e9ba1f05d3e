"""When a drill begins by itself: Chaos Monkey's rules, as a pure core.

On working days between two hours, so that people are there; by a coin whose odds make `mean_days` working days between two
drills of a system, and never less than `min_days` after the last one; never for a system that opted out. Off unless switched
on; and leashed: it says what it would do and does it only once the leash is taken off. Source: Netflix' Chaos Monkey, docs.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

import msgspec

from fourplane.foundation.errors import Misconfigured

DAY_S = 86_400.0

Kind = Literal["zone-down", "kill", "slow", "10x"]


class ScheduleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When, how often, and whether at all."""

    enabled: bool = False
    leashed: bool = True
    from_hour: int = 9
    to_hour: int = 15
    utc_offset_h: float = 0.0
    weekdays: tuple[int, ...] = (0, 1, 2, 3, 4)  # Monday is 0
    mean_days: float = 2.0
    min_days: float = 1.0
    opt_out: tuple[str, ...] = ()
    drill: Kind = "kill"

    def __post_init__(self) -> None:
        if not (0 <= self.from_hour < self.to_hour <= 24 and 0 < self.min_days <= self.mean_days):
            raise Misconfigured("from_hour is before to_hour and min_days at most mean_days", setting="chaos.schedule")


def is_working_time(settings: ScheduleSettings, now_s: float) -> bool:
    """Whether people are there now."""
    zone = timezone(timedelta(hours=settings.utc_offset_h))
    now = datetime.fromtimestamp(now_s, UTC).astimezone(zone)
    return now.weekday() in settings.weekdays and settings.from_hour <= now.hour < settings.to_hour


def due(
    settings: ScheduleSettings,
    systems: Sequence[str],
    last_s: Mapping[str, float],
    now_s: float,
    *,
    looked_s: float,
    draw: Mapping[str, float],
) -> list[str]:
    """The systems whose turn it is. `looked_s`: since the last look; `draw`: a number of 0..1 per system."""
    if not settings.enabled or not is_working_time(settings, now_s):
        return []
    day_s = (settings.to_hour - settings.from_hour) * 3_600.0
    odds = looked_s / (settings.mean_days * day_s)
    return [
        system
        for system in systems
        if system not in settings.opt_out
        and now_s - last_s.get(system, float("-inf")) >= settings.min_days * DAY_S
        and draw[system] < odds
    ]
