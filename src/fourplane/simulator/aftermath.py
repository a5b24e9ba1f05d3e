"""What a drill on a running deployment did to its users, and what it cost. Pure: seconds in, figures out.

The seconds before the method are the baseline. From the first fault to the last second that was not as good as before is the
disturbed time; what users would have got in it at the baseline's pace, less what they got, is what was lost. Minutes down are the
failed share of each second, added up: ten seconds in which half failed are five seconds down. Money is what was sold less,
in the currencies it was sold in, and beside it the study's rate of a million a minute (an assumption, and said to be one).
"""

from collections.abc import Mapping, Sequence

import msgspec

STUDY_PER_MINUTE = 1_000_000.0
COUNTED = {
    "streaming": ("plays",),
    "dispatch": ("rides", "completed"),
    "commerce": ("orders",),
    "messaging": ("received",),
}
SETTLED_S = 3.0


class Moment(msgspec.Struct, frozen=True):
    """Totals of everything users felt until `at_s`."""

    at_s: float
    served: int
    failed: int
    facts: dict[str, float]


class Cost(msgspec.Struct, frozen=True):
    """See the module's essay. `lost`: by what is counted, positive when there was less of it."""

    disturbed_s: float
    minutes_down: float
    errors: int
    error_share: float
    lost: dict[str, float]
    stalled_minutes: float
    study_money: float
    last_failure_s: float  # seconds after the first fault; 0: nobody noticed
    moved_s: float | None = None  # until no viewer was left at a node of the dark region
    moved: int = 0


def cost(system: str, moments: Sequence[Moment], began_s: float, ended_s: float, *, dark: Sequence[str] = ()) -> Cost:
    """The cost of faults between two seconds. `dark`: the cache nodes that were."""
    before = [one for one in moments if one.at_s <= began_s] or list(moments[:1])
    after = [one for one in moments if one.at_s > began_s]
    if not after:
        return Cost(0.0, 0.0, 0, 0.0, {}, 0.0, 0.0, 0.0)
    base, pairs = before[-1], list(zip([before[-1], *after], after, strict=False))
    last_failure_s = max((now.at_s - began_s for then, now in pairs if now.failed > then.failed), default=0.0)
    until_s = max(ended_s, began_s + last_failure_s) + SETTLED_S
    disturbed = [pair for pair in pairs if pair[1].at_s <= until_s]
    last = disturbed[-1][1] if disturbed else base
    down_s = sum(
        (now.failed - then.failed)
        / max(1, now.served + now.failed - then.served - then.failed)
        * (now.at_s - then.at_s)
        for then, now in disturbed
    )
    counted = [*COUNTED[system], *(fact for fact in last.facts if fact.startswith("sold "))]
    settled = [one for one in before if one.at_s >= base.at_s / 3]  # everybody has come by then
    first = settled[0]
    lost = {fact: _lost(fact, first, base, last) for fact in counted}
    errors, tried = last.failed - base.failed, last.served + last.failed - base.served - base.failed
    return Cost(
        disturbed_s=round(last.at_s - base.at_s, 1),
        minutes_down=round(down_s / 60, 4),
        errors=errors,
        error_share=round(errors / tried, 6) if tried else 0.0,
        lost={fact: amount for fact, amount in lost.items() if amount > 0},
        stalled_minutes=round((last.facts.get("stalled_s", 0.0) - base.facts.get("stalled_s", 0.0)) / 60, 3),
        study_money=round(down_s / 60 * STUDY_PER_MINUTE, 0),
        last_failure_s=round(last_failure_s, 1),
        moved_s=_moved_s(after, began_s, ended_s, dark) if dark else None,
        moved=int(last.facts.get("moved", 0.0) - base.facts.get("moved", 0.0)),
    )


def _lost(fact: str, first: Moment, base: Moment, last: Moment) -> float:
    """What was missing of it, at the pace of the time before."""
    span_s = base.at_s - first.at_s
    if span_s <= 0:
        return 0.0
    pace = (base.facts.get(fact, 0.0) - first.facts.get(fact, 0.0)) / span_s
    expected = pace * (last.at_s - base.at_s)
    return round(expected - (last.facts.get(fact, 0.0) - base.facts.get(fact, 0.0)), 2)


def _moved_s(after: Sequence[Moment], began_s: float, ended_s: float, dark: Sequence[str]) -> float | None:
    """Seconds until nobody was at a dark node while the fault lasted; None when somebody always was."""
    last_there = began_s
    for one in after:
        if one.at_s > ended_s:
            break
        if viewers_at(one.facts, dark) > 0:
            last_there = one.at_s
    return None if last_there >= ended_s - 1.0 else round(last_there - began_s, 1)


def viewers_at(facts: Mapping[str, float], nodes: Sequence[str]) -> int:
    """How many viewers use these nodes."""
    return int(sum(facts.get(f"at {node}", 0.0) for node in nodes))
