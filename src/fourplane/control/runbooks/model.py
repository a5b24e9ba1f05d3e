"""What a runbook is, and the record of one run of it.

    alert -> checks -> action -> verification -> (the alert ends) -> undo
                   |         |           |
                   `---------`-----------`--> escalate: a person is paged

A runbook is a TOML file. Text may hold `{service}`, `{region}` and every other label of the alert in braces. Checks and the
verification ask a question of `abilities.QUESTIONS` and compare the answer; actions do one thing of `abilities.ACTIONS`. There
is no code in a runbook: what it may ask and do is bounded by those two lists.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from fourplane.control.alerts.model import Alert
from fourplane.foundation.errors import Misconfigured

LIBRARY = Path(__file__).parent / "library"
STEPS_MAX = 20
WITHIN_S_MAX = 3_600.0
_NAMED = re.compile(r"\{([a-z_]+)\}")

Phase = Literal["checks", "actions", "verify", "holding", "undo", "escalate", "over"]
StepKind = Literal["alert", "check", "action", "verify", "undo", "escalate", "note"]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asked before acting, or after: the answer must be within the bounds. A number; True is 1."""

    name: str
    ask: str
    arguments: dict[str, str] = {}
    at_least: float | None = None
    at_most: float | None = None
    within_s: float = 0.0  # asked again and again for so long

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"{self.name}: at_least or at_most is needed")
        if not 0 <= self.within_s <= WITHIN_S_MAX:
            raise ValueError(f"{self.name}: within_s is an hour at most")

    def holds(self, value: float) -> bool:
        """Whether this answer is what was hoped for."""
        low = self.at_least if self.at_least is not None else float("-inf")
        return low <= value <= (self.at_most if self.at_most is not None else float("inf"))


class Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing done."""

    name: str
    do: str
    arguments: dict[str, str] = {}


class Runbook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do about one alert. Which alerts: a pattern of the name, and of labels."""

    name: str
    title: str
    alert: str
    study: str = ""  # the chain of the case study it is
    labels: dict[str, str] = {}
    checks: tuple[Question, ...] = ()
    actions: tuple[Action, ...] = ()
    verify: Question | None = None
    undo: tuple[Action, ...] = ()  # once the alert is over, and when the verification failed
    undo_when_over: bool = False
    escalate: tuple[Action, ...] = ()
    per_hour_max: int = 6
    pause_s: float = 10.0  # after a run, for the same alert
    hold_s: float = 1_800.0  # how long the alert's end is waited for

    def __post_init__(self) -> None:
        steps = len(self.checks) + len(self.actions) + len(self.undo) + len(self.escalate)
        if steps > STEPS_MAX or not 1 <= self.per_hour_max <= 100 or not 0 <= self.hold_s <= 86_400:
            raise ValueError(f"{self.name}: {STEPS_MAX} steps, 100 runs an hour and a day of waiting are the most")
        re.compile(self.alert)

    def is_for(self, alert: Alert) -> bool:
        """Whether this alert starts it."""
        known = alert.matched()
        return re.fullmatch(self.alert, alert.name) is not None and all(
            re.fullmatch(pattern, known.get(name, "")) is not None for name, pattern in self.labels.items()
        )


class Step(msgspec.Struct, frozen=True):
    """One line of the record."""

    at_s: float
    kind: StepKind
    name: str
    told: str = ""
    ok: bool = True


class Run(msgspec.Struct):
    """One run of a runbook; written down after each step."""

    id: str
    runbook: str
    title: str
    alert: Alert
    began_s: float
    phase: Phase = "checks"
    place: int = 0  # the next step within the phase
    until_s: float = 0.0  # of a verification or of waiting
    resolved: bool = False
    acted: bool = False
    outcome: str = ""  # "", recovered, nothing to do, escalated, undone
    ended_s: float = 0.0
    steps: list[Step] = []

    @property
    def over(self) -> bool:
        return self.phase == "over"


def parse(content: str, name: str) -> Runbook:
    """The runbook in a TOML text; raises Misconfigured and says where it is wrong."""
    try:
        return msgspec.toml.decode(content, type=Runbook)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, re.error) as error:
        raise Misconfigured(f"runbook {name}: {error}", setting="chaos.runbooks") from None


def load(folder: Path) -> list[Runbook]:
    """All runbooks of a folder by name."""
    found = [parse(path.read_text(encoding="utf-8"), path.name) for path in sorted(folder.glob("*.toml"))]
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise Misconfigured(f"two runbooks of {folder} have one name", setting="chaos.runbooks")
    return found


def filled(arguments: Mapping[str, str], alert: Alert) -> dict[str, str]:
    """The arguments with the alert's labels where braces name them; unknown names become empty."""
    known: dict[str, Any] = alert.matched()
    return {key: _NAMED.sub(lambda found: str(known.get(found[1], "")), text) for key, text in arguments.items()}
