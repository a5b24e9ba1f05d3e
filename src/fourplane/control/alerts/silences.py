"""Silences: alerts that nobody needs to be told about for a while, because somebody knows.

A silence has matchers, all of which must hold, and an end; it keeps alerts from being sent, not from being seen. Matchers are
written as Alertmanager's users write them: `service="commerce"`, `alertname=~"Budget.*"`, `severity!=page`; a label that is
absent is an empty text. A silence that would match every alert is refused: it would hide the alert that counts.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from fourplane.control.alerts.model import Alert
from fourplane.control.metrics.series import Matcher
from fourplane.foundation.errors import NotFound, Overloaded, Rejected

SILENCES_MAX = 200
MATCHERS_MAX = 20
TEXT_MAX = 512
DURATION_S_MAX = 30 * 86_400.0
ENDED_KEPT_S = 86_400.0
_WRITTEN = re.compile(r'\s*([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|(\S*))\s*')


class Silence(msgspec.Struct, frozen=True):
    """Alerts that match are not sent until `ends_s` (seconds since 1970)."""

    id: str
    matchers: tuple[Matcher, ...]
    starts_s: float
    ends_s: float
    by: str
    comment: str = ""


class Silences:
    """All silences; pure but for the id, which the caller makes."""

    def __init__(self) -> None:
        self._all: dict[str, Silence] = {}

    def add(self, silence: Silence) -> None:
        """Begin it. Raises Rejected for one past a bound, Overloaded past SILENCES_MAX."""
        if not silence.matchers or len(silence.matchers) > MATCHERS_MAX:
            raise Rejected(f"a silence has 1 to {MATCHERS_MAX} matchers", code="bad_silence")
        if not 0 < silence.ends_s - silence.starts_s <= DURATION_S_MAX:
            raise Rejected("a silence lasts up to 30 days", code="bad_silence")
        if max(len(silence.by), len(silence.comment), *(len(one.text) for one in silence.matchers)) > TEXT_MAX:
            raise Rejected(f"a silence's texts have at most {TEXT_MAX} characters", code="bad_silence")
        if all(_holds(matcher, "") and matcher.operator in {"=~", "!="} for matcher in silence.matchers):
            raise Rejected("this would silence every alert", code="bad_silence")
        if len(self._all) >= SILENCES_MAX:
            raise Overloaded(f"{SILENCES_MAX} silences are enough", code="too_many_silences")
        self._all[silence.id] = silence

    def expire(self, silence_id: str, now_s: float) -> Silence:
        """End it now; raises NotFound when it has ended."""
        silence = self._all.get(silence_id)
        if silence is None or silence.ends_s <= now_s:
            raise NotFound("this silence has ended", code="no_silence")
        ended = self._all[silence_id] = msgspec.structs.replace(silence, ends_s=now_s)
        return ended

    def of(self, alert: Alert, now_s: float) -> Silence | None:
        """The silence that covers this alert now."""
        labels = alert.matched()
        return next((one for one in self.active(now_s) if covers(one, labels)), None)

    def active(self, now_s: float) -> list[Silence]:
        """Those that hold now."""
        return [one for one in self._all.values() if one.starts_s <= now_s < one.ends_s]

    def known(self) -> list[Silence]:
        """All that are kept, those that ended too."""
        return list(self._all.values())

    def sweep(self, now_s: float) -> None:
        """Forget what ended a day ago."""
        self._all = {key: one for key, one in self._all.items() if one.ends_s > now_s - ENDED_KEPT_S}


def covers(silence: Silence, labels: Mapping[str, str]) -> bool:
    """Whether every matcher holds for these labels."""
    return all(_holds(matcher, labels.get(matcher.label, "")) for matcher in silence.matchers)


def parse(texts: Sequence[str]) -> tuple[Matcher, ...]:
    """Matchers as people write them. Raises Rejected for what is none."""
    return tuple(_parsed(text) for text in texts)


def written(matchers: Sequence[Matcher]) -> str:
    """The same as a text."""
    return ", ".join(f'{one.label}{one.operator}"{one.text}"' for one in matchers)


def _parsed(text: str) -> Matcher:
    found = _WRITTEN.fullmatch(text) if len(text) <= 2 * TEXT_MAX else None
    if found is None:
        raise Rejected(f'{text[:60]!r} is no matcher; write for example service="commerce"', code="bad_matcher")
    label, operator, quoted, bare = found.groups()
    value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None and "~" not in operator else quoted or bare or ""
    matcher = Matcher(label, next(one for one in ("=", "!=", "=~", "!~") if one == operator), value)
    if "~" in operator:
        try:
            re.compile(value)
        except re.error as error:
            raise Rejected(f"{value[:60]!r} is no regular expression: {error}", code="bad_matcher") from None
    return matcher


def _holds(matcher: Matcher, text: str) -> bool:
    match matcher.operator:
        case "=":
            return text == matcher.text
        case "!=":
            return text != matcher.text
        case "=~":
            return re.fullmatch(matcher.text, text) is not None
        case "!~":
            return re.fullmatch(matcher.text, text) is None
