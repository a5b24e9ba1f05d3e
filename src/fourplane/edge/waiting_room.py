"""A waiting room: when more people come than can be served, who came first goes in first, and everybody is told how long.

The room opens by itself when the admission turns away what people wait for, and closes when nobody is left in it. Whose page is
shed gets the next number, as a signed place, and as long as somebody waits whoever comes new takes a place too. Numbers
are let in as fast as the shop
holds out: a few more every second while nobody is shed, half as many as soon as somebody is. A number that is let in is
exchanged for a signed pass, which is good for a visit. The highest class (orders, payment) is never asked for a pass, and
pages that are kept as bytes are shown to everybody.

The line is two counters, so it is bounded by arithmetic: nobody is stored, nobody can be forgotten. Fair because a place says
only its number, cannot be made elsewhere, and belongs to one opening of the room (`Signer`); asking again gives a place
further back. The estimate is the people ahead over the speed of the last minute, and says so when the line stands still.

`Line` is pure: times are arguments. It works without JavaScript (the page asks again by itself) and for programs
(`.../waiting-room/place` as JSON, place and pass in header fields as well as in cookies). Cost: a place 25 us, a check 8 us.
"""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import msgspec

from fourplane.edge.http_answers import answer, error_answer, seconds_text
from fourplane.edge.http_request import HotAnswer, HotHandler, HttpRequest
from fourplane.edge.replies import PAGE_HEADERS
from fourplane.edge.routes import Priority, Reply
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError, Misconfigured, Overloaded
from fourplane.foundation.telemetry import Registry

if TYPE_CHECKING:
    from fourplane.edge.admission import Admission
    from fourplane.service.tokens import Signer

PLACE: Final = "waiting_place"
PASS: Final = "waiting_pass"  # noqa: S105 - the name of a cookie
SPEED_S: Final = 60.0  # over which the speed of the line is told
TURN_S: Final = 0.1
FRESH_S: Final = 2.0  # what was shed longer ago opens nothing
TARGET_MAX: Final = 2_000


class WaitingRoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands behind the room and how it moves; without prefixes there is none."""

    prefixes: tuple[str, ...] = ("/commerce/",)
    entries_per_s: float = 20.0  # at first
    entries_per_s_min: float = 1.0
    entries_per_s_max: float = 500.0
    places_max: int = 200_000
    visit_s: float = 900.0
    place_s: float = 7_200.0
    calm_s: float = 5.0  # without anybody shed before it closes
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        if any(not one.startswith("/") for one in self.prefixes):
            raise Misconfigured("a prefix of the waiting room begins with a slash", code="bad_prefix")


class WaitingRequired(Overloaded):
    """A request that needs a pass while the room is open; `place` is where to get one."""

    code = "waiting_room"

    def __init__(self, room: str, path: str, retry_after_s: float) -> None:
        text = "others came first: take a place in the waiting room"
        super().__init__(text, retry_after_s=retry_after_s, place=f"{room}/place")
        self._room, self._path = room, path

    def way(self, query: str) -> Reply:
        """The same for a person: the way to the room."""
        to = quote(f"{self._path}?{query}" if query else self._path, safe="/")
        return Reply(status=303, headers={"location": f"{self._room}?to={to}", "cache-control": "no-store"})


class WaitingRoomStatistics(msgspec.Struct, frozen=True):
    """The room in numbers."""

    active: bool
    openings: int
    waiting: int
    joined: int
    entered: int
    entries_per_s: float


class Line:
    """Who has which number, and who may go in. Invariant: `served` <= `given` whenever somebody waits, and never falls."""

    __slots__ = ("_calm_s", "_marks", "_owed", "_settings", "_since_s", "active", "given", "opening", "rate", "served")

    def __init__(self, settings: WaitingRoomSettings) -> None:
        self._settings = settings
        self.active = False
        self.opening = 0
        self.given = self.served = 0
        self.rate = settings.entries_per_s
        self._owed = self._since_s = self._calm_s = 0.0
        self._marks: list[tuple[float, int]] = []  # once a second: when, `served`

    def turn(self, now_s: float, *, crowded: bool) -> None:
        """Time has passed: open, let some in, or close."""
        if not self.active:
            if crowded:
                self.active, self.opening = True, self.opening + 1
                self.given = self.served = 0
                self.rate, self._owed = self._settings.entries_per_s, 0.0
                self._since_s = self._calm_s = now_s
                self._marks = [(now_s, 0)]
            return
        settings, passed_s = self._settings, min(now_s - self._since_s, 5.0)
        self._since_s = now_s
        if crowded:
            self._calm_s = now_s
            self.rate = max(settings.entries_per_s_min, self.rate * 0.5**passed_s)
        else:
            self.rate = min(settings.entries_per_s_max, self.rate * 1.15**passed_s)
        self._owed += self.rate * passed_s
        entering = min(int(self._owed), self.given - self.served)
        self.served += entering
        self._owed = min(self._owed - entering, 1.0)
        if now_s - self._marks[-1][0] >= 1.0:
            self._marks = [mark for mark in self._marks if mark[0] >= now_s - SPEED_S]
            self._marks.append((now_s, self.served))
        if self.served == self.given and now_s - self._calm_s >= settings.calm_s:
            self.active = False

    def join(self) -> int:
        """The next number; raises Overloaded when the room is full."""
        if self.given - self.served >= self._settings.places_max:
            raise Overloaded("the waiting room is full; come back later", retry_after_s=60.0, code="waiting_room_full")
        self.given += 1
        return self.given

    def estimate_s(self, number: int, now_s: float) -> float | None:
        """How long this number has still to wait at the speed of the last minute; None while the line stands still."""
        ahead = number - self.served
        if ahead <= 0:
            return 0.0
        since_s, before = self._marks[0]
        if now_s - since_s < 2.0:
            return ahead / self.rate
        speed = (self.served - before) / (now_s - since_s)
        return ahead / speed if speed > 0 else None


class WaitingRoom:
    """The room of one server: the line, its tokens, its page."""

    def __init__(self, settings: WaitingRoomSettings, signer: "Signer", registry: Registry) -> None:
        self.settings = settings
        self.line = Line(settings)
        self._signer = signer
        self._registry = registry
        self._prefixes = settings.prefixes
        self.path = f"/{settings.prefixes[0].split('/')[1]}/waiting-room"  # where its system is, in whichever worker
        self._told = (0, 0.0)  # how many were shed at the last look, and when that was
        self._raw_prefixes = tuple(one.encode() for one in settings.prefixes)
        self._opening = ""  # tokens of another opening, or another process, are worth nothing
        self._admissions: list[Admission] = []
        self._joined = registry.counter("fourplane_edge_waiting_room_joined_total", "places given")
        self._entered = registry.counter("fourplane_edge_waiting_room_entered_total", "people let in")
        registry.gauge(
            "fourplane_edge_waiting_room_waiting_count",
            "people in the waiting room",
            read=lambda: float(self.line.given - self.line.served),
        )

    def watch(self, admission: "Admission") -> None:
        """Open and let in by what this admission sheds."""
        self._admissions.append(admission)

    def hot_routes(self) -> list[tuple[str, str, HotHandler]]:
        """Its own pages, answered inside the protocol whatever is shed: method, path, handler."""
        return [
            ("GET", self.path, self.page),
            ("GET", f"{self.path}/place", self.place),
            ("GET", f"{self.path}/room.js", _script),
        ]

    def statistics(self) -> WaitingRoomStatistics:
        line = self.line
        waiting, entered = line.given - line.served, self._entered.value
        return WaitingRoomStatistics(
            line.active, line.opening, waiting, self._joined.value, entered, round(line.rate, 1) if line.active else 0.0
        )

    # -- who is stopped

    def turn(self, *, crowded: bool = False) -> None:
        """Let time pass; called with every request that has to do with the room. `crowded`: one was shed just now."""
        now_s, line, before = clock.monotonic_s(), self.line, self.line.active
        count, looked_s = self._told
        if before and now_s - looked_s < TURN_S:
            return
        shed = sum(admission.shed_count(Priority.USER) for admission in self._admissions)
        self._told = (shed, now_s)
        line.turn(now_s, crowded=crowded or (shed > count and (before or now_s - looked_s < FRESH_S)))
        if line.active and not before:
            self._opening = clock.token_bytes(6).hex()
            self._registry.event("warning", "edge", "the waiting room is open: more people come than can be served")
        elif before and not line.active:
            self._registry.event(
                "info", "edge", f"the waiting room is empty again: {line.given} people came through it"
            )

    def instead(self, data: bytes, target: bytes) -> bytes | None:
        """What a person whose page was just shed is told: the way to a place. None for everything that is not a page."""
        if not target.startswith(self._raw_prefixes) or b"text/html" not in data or len(target) > TARGET_MAX:
            return None
        if PASS.encode() in data or b"\r\nwaiting-pass:" in data.lower():
            return None  # it has waited already: another place would send it round in a circle
        self.turn(crowded=True)
        if not self.line.active:
            return None
        return _redirect(f"{self.path}?to={quote(target.decode('latin-1'), safe='/')}")

    def stops(self, path: str, headers: Mapping[str, str], priority: Priority) -> bool:
        """Whether this request needs a pass that it does not carry: as long as others wait."""
        if priority == Priority.CRITICAL or not path.startswith(self._prefixes):
            return False
        self.turn()
        if not self.line.active or self.line.given == self.line.served:
            return False
        told = headers.get("waiting-pass") or _cookie(headers.get("cookie", ""), PASS)
        return self._number(PASS, told) is None

    # -- its pages

    def page(self, request: HttpRequest) -> HotAnswer:
        """The room itself: a place for who has none, the way in for who may go in."""
        self.turn()
        to = self._target(request.query)
        number, token = self._place_of(request)
        if not self.line.active or (number is not None and number <= self.line.served):
            return self._let_in(to, number)
        fields: dict[str, str] = {"cache-control": "no-store"}
        if number is None:
            try:
                number, token = self._new_place()
            except Overloaded as full:
                return error_answer(503, full.reason, full.message, close=False, headers={"retry-after": "60"})
            fields["set-cookie"] = _set_cookie(PLACE, token, self.settings.place_s)
        body = self._page(number, to)
        fields |= {name.decode(): value.decode() for name, value in PAGE_HEADERS}
        return answer(200, body, media_type="text/html; charset=utf-8", headers=fields)

    def place(self, request: HttpRequest) -> HotAnswer:
        """The same for programs and for the page's script: a place is taken, told, or exchanged for a pass."""
        self.turn()
        number, token = self._place_of(request)
        fields = {"cache-control": "no-store"}
        if not self.line.active or (number is not None and number <= self.line.served):
            told: dict[str, object] = {"state": "enter", "ahead": 0, "estimate_s": 0.0}
            if number is not None:
                pass_token = self._pass(number)
                fields["set-cookie"] = _set_cookie(PASS, pass_token, self.settings.visit_s)
                told["pass"] = pass_token
            return answer(200, msgspec.json.encode(told), headers=fields)
        if number is None:
            try:
                number, token = self._new_place()
            except Overloaded as full:
                return error_answer(503, full.reason, full.message, close=False, headers={"retry-after": "60"})
            fields["set-cookie"] = _set_cookie(PLACE, token, self.settings.place_s)
        estimate = self._estimate(number)
        told = {
            "state": "wait",
            "ahead": number - self.line.served,
            "estimate_s": None if estimate is None else round(estimate, 1),
            "ask_again_s": self.settings.poll_s,
            "place": token,
        }
        return answer(200, msgspec.json.encode(told), headers=fields)

    # -- tokens

    def _estimate(self, number: int) -> float | None:
        return self.line.estimate_s(number, clock.monotonic_s())

    def _new_place(self) -> tuple[int, str]:
        number = self.line.join()
        self._joined.value += 1
        return number, self._signer.sign(PLACE, self._claims(number), self.settings.place_s)

    def _pass(self, number: int) -> str:
        self._entered.value += 1
        return self._signer.sign(PASS, self._claims(number), self.settings.visit_s)

    def _claims(self, number: int) -> dict[str, str]:
        return {"number": str(number), "opening": self._opening}

    def _place_of(self, request: HttpRequest) -> tuple[int | None, str]:
        told = (request.header(b"waiting-place") or b"").decode("latin-1")
        token = told or _cookie((request.header(b"cookie") or b"").decode("latin-1"), PLACE)
        return self._number(PLACE, token), token

    def _number(self, audience: str, token: str) -> int | None:
        """The number of a place or pass of this opening."""
        if not token:
            return None
        try:
            claims = self._signer.verify(audience, token)
        except (FourplaneError, ValueError, msgspec.DecodeError):
            return None
        if claims.get("opening") != self._opening:
            return None
        return int(claims["number"])

    def _page(self, number: int, to: str) -> bytes:
        ahead, poll_s = number - self.line.served, self.settings.poll_s
        wait = wait_text(self._estimate(number))
        before = "You are next." if ahead <= 1 else f"{ahead - 1:,} people are before you."
        return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>Waiting room</title>
<noscript><meta http-equiv="refresh" content="{seconds_text(poll_s)}"></noscript>
<link rel="stylesheet" href="/console/style.css">
<style>body{{font:1rem/1.6 system-ui,sans-serif;color-scheme:light dark;max-width:34rem;margin:14vh auto;padding:0 1.2rem}}
progress{{width:100%;height:.5rem}}strong{{font-size:1.6rem;display:block}}</style>
<script src="{self.path}/room.js" defer></script></head>
<body><main data-to="{html.escape(to, quote=True)}" data-poll="{poll_s:g}" data-room="{self.path}"><h1>A moment, please</h1>
<p>More people are here than we can serve at once. Your place is kept; whoever came first goes in first.</p>
<p role="status" aria-live="polite"><strong id="ahead">{before}</strong><span id="wait">{wait}</span></p>
<progress id="way" aria-hidden="true"></progress>
<p><small>This page goes on by itself. Closing it costs you nothing as long as you come back in this browser.</small></p>
</main></body></html>""".encode()

    def _let_in(self, to: str, number: int | None) -> bytes:
        if number is None:
            return _redirect(to)
        return _redirect(to, {"set-cookie": _set_cookie(PASS, self._pass(number), self.settings.visit_s)})

    def _target(self, query: bytes) -> str:
        """Where a person wanted to go; never another host, never a place that is not behind this room."""
        for part in query.split(b"&"):
            name, _, value = part.partition(b"=")
            to = unquote(value.decode("latin-1"))
            if name == b"to" and to.startswith(self._prefixes) and not to.startswith("//") and to.isprintable():
                return quote(to, safe="/?&=%+,:;@!$'()*~")[:TARGET_MAX]
        return self._prefixes[0]


def _redirect(to: str, fields: Mapping[str, str] | None = None) -> bytes:
    return answer(303, headers={"location": to, "cache-control": "no-store", **(fields or {})}, media_type="text/plain")


def _cookie(cookies: str, name: str) -> str:
    for part in cookies.split(";"):
        found, _, value = part.strip().partition("=")
        if found == name:
            return value
    return ""


def _set_cookie(name: str, token: str, seconds: float) -> str:
    return f"{name}={token}; Max-Age={int(seconds)}; Path=/; HttpOnly; SameSite=Lax"


def wait_text(estimate_s: float | None) -> str:
    """An estimate as a person says it, never shorter than it is."""
    if estimate_s is None:
        return "The line is standing still at the moment."
    if estimate_s <= 60:
        return "Less than a minute to go."
    minutes = int(estimate_s // 60) + 1
    return f"About {minutes} minutes to go." if minutes < 60 else f"More than {minutes // 60} hours to go."


SCRIPT = b"""const main = document.querySelector("main");
const ahead = document.getElementById("ahead"), wait = document.getElementById("wait"), way = document.getElementById("way");
let first = 0;
const words = (seconds) => {
  if (seconds === null) return "The line is standing still at the moment.";
  if (seconds <= 60) return "Less than a minute to go.";
  const minutes = Math.floor(seconds / 60) + 1;
  return minutes < 60 ? `About ${minutes} minutes to go.` : `More than ${Math.floor(minutes / 60)} hours to go.`;
};
const look = async () => {
  let pause = Number(main.dataset.poll);
  try {
    const answer = await fetch(`${main.dataset.room}/place`, { cache: "no-store" });
    const told = await answer.json();
    if (told.state === "enter") { location.replace(main.dataset.to); return; }
    if (told.state === "wait") {
      first = Math.max(first, told.ahead);
      ahead.textContent = told.ahead <= 1 ? "You are next." : `${(told.ahead - 1).toLocaleString()} people are before you.`;
      wait.textContent = words(told.estimate_s);
      way.max = first; way.value = first - told.ahead;
      pause = told.ask_again_s;
    }
  } catch { wait.textContent = "We cannot be reached at the moment; asking again."; }
  setTimeout(look, 1000 * pause * (0.8 + 0.4 * Math.random()));
};
look();
"""
_SCRIPT_ANSWER = answer(
    200,
    SCRIPT,
    media_type="text/javascript; charset=utf-8",
    headers={"cache-control": "public, max-age=300", "x-content-type-options": "nosniff"},
    dated=False,
)


def _script(_request: HttpRequest) -> HotAnswer:
    return _SCRIPT_ANSWER
