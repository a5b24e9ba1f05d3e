"""Chaos Toolkit's experiment format: what a file says, checked before anything runs.

Read and written: title, description, tags, steady-state-hypothesis (probes with tolerances), method (actions and probes with
pauses), rollbacks, extensions. Providers are of type `python` and may name `fourplane.simulator.faults`, `.probes` and
`.live_only`. Our own part is the extension `x-fourplane` (see `setting`).
Source: chaostoolkit.org/reference/api/experiment; a test asks chaostoolkit-lib about every file of the library.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from fourplane.foundation.errors import Rejected
from fourplane.simulator import faults, live_only, probes
from fourplane.simulator.setting import EXTENSION, Ours

MODULES = {
    "fourplane.simulator.faults": faults,
    "fourplane.simulator.probes": probes,
    "fourplane.simulator.live_only": live_only,
}
ACTIVITIES_MAX = 200


class Activity(msgspec.Struct, frozen=True):
    """One action or probe; `raw` is what the file said."""

    kind: str
    name: str
    call: Callable[..., object]
    arguments: dict[str, Any]
    before_s: float
    after_s: float
    tolerance: Any
    raw: dict[str, Any]


class Experiment(msgspec.Struct, frozen=True):
    """A valid experiment."""

    title: str
    hypothesis: tuple[Activity, ...]
    method: tuple[Activity, ...]
    rollbacks: tuple[Activity, ...]
    ours: Ours
    raw: dict[str, Any]

    def sized(self, *, people: int = 0, duration_s: float = 0.0, sites: tuple[str, ...] = ()) -> "Experiment":
        """The same with as many people, as long, and at as many sites, as said; 0 and () leave it as the file says."""
        own = self.ours
        ours = msgspec.structs.replace(
            own, people=people or own.people, duration_s=duration_s or own.duration_s, sites=sites or own.sites
        )
        rest = [one for one in self.raw["extensions"] if one.get("name") != EXTENSION]
        raw = self.raw | {"extensions": [*rest, msgspec.to_builtins(ours)]}
        return msgspec.structs.replace(self, ours=ours, raw=raw)

    def only(self, kept: Iterable[int]) -> "Experiment":
        """The same with only these activities of the method (by place, from 0)."""
        chosen = sorted(set(kept))
        method = tuple(self.method[place] for place in chosen)
        raw = self.raw | {"method": [activity.raw for activity in method]}
        return msgspec.structs.replace(self, method=method, raw=raw)


def parse(content: bytes) -> Experiment:
    """The experiment of a JSON file; raises Rejected and says where it is wrong."""
    try:
        raw = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise Rejected(f"not JSON: {error}", code="experiment") from None
    return validate(raw)


def validate(raw: Any) -> Experiment:
    """The same from what was decoded."""
    _require(isinstance(raw, dict), "an experiment is an object")
    for field in ("title", "description"):
        _require(isinstance(raw.get(field), str) and raw[field], f"{field} is missing")
    stated = raw.get("steady-state-hypothesis") or {"title": "none", "probes": []}
    _require(isinstance(stated, dict) and isinstance(stated.get("title"), str), "steady-state-hypothesis has no title")
    hypothesis = _activities(stated.get("probes", []), "steady-state-hypothesis")
    for probe in hypothesis:
        _require(probe.kind == "probe", f"{probe.name}: a hypothesis asks probes only")
        _require("tolerance" in probe.raw, f"{probe.name}: a probe of the hypothesis needs a tolerance")
    method = _activities(raw.get("method", []), "method")
    rollbacks = _activities(raw.get("rollbacks", []), "rollbacks")
    return Experiment(raw["title"], hypothesis, method, rollbacks, _ours(raw), raw)


def tolerates(tolerance: Any, value: object) -> bool:
    """Whether a probe's value is what was expected: a scalar, a list of choices, a range, or a pattern."""
    match tolerance:
        case bool() | None:
            return value is tolerance
        case int() | float() | str():
            return value == tolerance
        case list():
            return value in tolerance
        case {"type": "range", "range": [low, high]}:
            return isinstance(value, (int, float)) and low <= value <= high
        case {"type": "regex", "pattern": str(pattern)}:
            return re.search(pattern, str(value)) is not None
    raise Rejected(f"tolerance {tolerance!r:.80} is not supported: scalar, list, range or regex", code="experiment")


def _activities(listed: Any, place: str) -> tuple[Activity, ...]:
    _require(
        isinstance(listed, list) and len(listed) <= ACTIVITIES_MAX, f"{place} is a list of {ACTIVITIES_MAX} at most"
    )
    return tuple(_activity(raw, f"{place}[{number}]") for number, raw in enumerate(listed))


def _activity(raw: Any, place: str) -> Activity:
    _require(isinstance(raw, dict), f"{place} is an object")
    kind, name, provider = raw.get("type"), raw.get("name"), raw.get("provider")
    _require(kind in {"action", "probe"}, f"{place}.type is action or probe")
    _require(isinstance(name, str) and name, f"{place}.name is missing")
    _require(isinstance(provider, dict) and provider.get("type") == "python", f"{place}.provider.type is python")
    module = MODULES.get(provider.get("module", ""))
    _require(module is not None, f"{place}.provider.module is one of {', '.join(MODULES)}")
    func = str(provider.get("func", ""))
    call = getattr(module, func, None)
    ours = inspect.isfunction(call) and call.__module__ == getattr(module, "__name__", "") and not func.startswith("_")
    _require(ours, f"{place}.provider.func: there is no {func[:60]!r}")
    assert callable(call)
    arguments = provider.get("arguments", {})
    try:
        inspect.signature(call).bind(**arguments)
    except TypeError as error:
        raise Rejected(f"{place}: {func} {error}", code="experiment") from None
    pauses = raw.get("pauses", {})
    before_s, after_s = float(pauses.get("before", 0)), float(pauses.get("after", 0))
    if "tolerance" in raw:
        tolerates(raw["tolerance"], 0)
    return Activity(kind, name, call, arguments, before_s, after_s, raw.get("tolerance"), raw)


def _ours(raw: dict[str, Any]) -> Ours:
    listed = [one for one in raw.get("extensions", []) if isinstance(one, dict) and one.get("name") == EXTENSION]
    _require(len(listed) == 1, f"the extension {EXTENSION} says which system is meant")
    try:
        return msgspec.convert(listed[0], Ours)
    except msgspec.ValidationError as error:
        raise Rejected(f"extensions.{EXTENSION}: {error}", code="experiment") from None


def _require(holds: object, said: str) -> None:
    if not holds:
        raise Rejected(f"experiment: {said}", code="experiment")
