"""What runbooks may ask and do: two closed lists. Everything goes through the deployment's own doors, as an operator would.

Questions answer with a number. Actions say in a line what they did, raise what refused them, and change nothing when they
are repeated. So a door that is busy or was just cut (502, 503, no answer) is asked again for AGAIN_S: what a runbook is for
is often the reason why its own requests are turned away at first.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from fourplane.control.changes import Changes
from fourplane.control.runbooks.watch import Watch
from fourplane.edge.http_client import HttpClient
from fourplane.foundation import clock
from fourplane.foundation.errors import DeadlineExceeded, FourplaneError, Misconfigured, Unavailable
from fourplane.state.contracts import Blobs

ANSWER_S = 3.0
LOOK_S = 0.8
HTTP_MORE = 300
BUSY = frozenset({429, 502, 503})
AGAIN_S, FIRST_S = 10.0, 0.25  # how long a busy door is asked again, and the first pause
TOKEN_S = 600.0
SECONDS = 300.0
CURVES = {
    "requests per second": "sum(rate(fourplane_edge_requests_total[10s])) by (worker)",
    "errors per second": "sum(rate(fourplane_edge_errors_total[10s])) by (worker)",
    "probes that failed": "sum(rate(fourplane_control_probes_failed_total[10s])) by (system)",
    "probe, median seconds": "quantile(0.5, fourplane_control_probe_seconds[15s]) by (system)",
}

Arguments = Mapping[str, str]
Query = Callable[[str, float], Sequence[tuple[Mapping[str, str], Sequence[float]]]]  # text, seconds back
Page = Callable[[str], None]


class Abilities:
    """The lists, and what they need."""

    def __init__(
        self,
        *,
        where: Callable[[], tuple[str, int]],
        token: Callable[[], Awaitable[str]],
        systems: Sequence[str],
        query: Query,
        blobs: Blobs,
        page: Page,
    ) -> None:
        self._where = where
        self._new_token = token
        self._token = ""
        self._token_until_s = 0.0
        self._systems = systems
        self._query = query
        self._blobs = blobs
        self._page = page
        self.watch: Watch
        self.changes: Changes
        self.questions: dict[str, Callable[[Arguments], Awaitable[float]]] = {
            "regions_up": self._regions_up,
            "nodes_up": self._nodes_up,
            "steered_well": self._steered_well,
            "is_ready": self._is_ready,
            "change_age_s": self._change_age,
            "slowness": self._slowness,
            "query": self._ask_query,
        }
        self.actions: dict[str, Callable[[Arguments], Awaitable[str]]] = {
            "evacuate": lambda arguments: self._evacuate(arguments, evacuated=True),
            "take_back": lambda arguments: self._evacuate(arguments, evacuated=False),
            "page": self._page_person,
            "dashboard": self._dashboard,
            "rollback": self._rollback,
            "reapply": self._reapply,
        }

    def check(self, asks: Sequence[str], does: Sequence[str]) -> None:
        """Raise Misconfigured for a question or an action there is none of."""
        for kind, names, known in (("question", asks, self.questions), ("action", does, self.actions)):
            for name in names:
                if name not in known:
                    there = ", ".join(known)
                    raise Misconfigured(f"there is no {kind} {name!r}; there are {there}", setting="chaos.runbooks")

    # -- the deployment's doors

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """What a door answers; raises Unavailable for anything but success. Who changes something is an operator."""
        until_s, pause_s = clock.monotonic_s() + AGAIN_S, FIRST_S
        while True:
            try:
                status, content = await self._ask_once(method, path, body)
            except (Unavailable, DeadlineExceeded):
                if clock.monotonic_s() + pause_s > until_s:
                    raise
                status = None
            if status is not None and (status not in BUSY or clock.monotonic_s() + pause_s > until_s):
                break
            await clock.sleep(pause_s * (0.5 + clock.random().random() / 2))
            pause_s *= 2
        if status >= HTTP_MORE:
            raise Unavailable(f"{method} {path} answers {status}", code="door_refused")
        return msgspec.json.decode(content) if content else None

    async def _ask_once(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        client = HttpClient(*self._where())
        headers = {"content-type": "application/json"}
        if method != "GET":
            headers["authorization"] = f"Bearer {await self._operator()}"
        try:
            content = b"" if body is None else msgspec.json.encode(body)
            answer = await client.request(method, path, body=content, headers=headers, timeout_s=ANSWER_S)
        finally:
            client.close()
        return answer.status, answer.body

    async def _operator(self) -> str:
        if clock.monotonic_s() > self._token_until_s:
            self._token, self._token_until_s = await self._new_token(), clock.monotonic_s() + TOKEN_S
        return self._token

    async def nodes(self) -> list[tuple[str, str, int]]:
        """Every cache node: id, region, port."""
        if "streaming" not in self._systems:
            return []
        found = await self.api("GET", "/streaming/api/delivery")
        return [(node["id"], node["region"], node["port"]) for node in found["nodes"]]

    async def answers(self, port: int) -> bool:
        """Whether a server on this machine answers anything at all."""
        client = HttpClient(self._where()[0], port)
        try:
            await client.request("GET", "/", timeout_s=LOOK_S)
        except (FourplaneError, OSError):
            return False
        finally:
            client.close()
        return True

    def medians(self) -> dict[str, float]:
        """The median of each system's probe over the last fifteen seconds."""
        found = {}
        for labels, values in self._query(CURVES["probe, median seconds"], 15.0):
            known = [value for value in values if value == value]  # noqa: PLR0124 - NaN
            if known:
                found[labels.get("system", "")] = known[-1]
        return found

    # -- questions

    async def _regions_up(self, _: Arguments) -> float:
        return self.watch.regions_up()

    async def _nodes_up(self, arguments: Arguments) -> float:
        return self.watch.nodes_up(arguments["region"])

    async def _steered_well(self, arguments: Arguments) -> float:
        """1 when steering names no node of the region, and one that answers stands elsewhere."""
        found = (await self.api("GET", "/streaming/api/delivery"))["nodes"]
        region = arguments["region"]
        avoided = all(node["evacuated"] or not node["on"] for node in found if node["region"] == region)
        elsewhere = {node["region"] for node in found if node["on"] and not node["evacuated"]} - {region}
        return float(avoided and any(self.watch.nodes_up(name) for name in elsewhere))

    async def _is_ready(self, _: Arguments) -> float:
        """1 when every system answers."""
        for system in self._systems:
            try:
                await self.api("GET", f"/{system}/")
            except msgspec.DecodeError:
                continue  # a page is no JSON, and an answer
        return 1.0

    async def _change_age(self, _: Arguments) -> float:
        last = self.changes.last()
        if last is None:
            raise Unavailable("nothing was changed", code="no_change")
        return clock.now_us() / 1e6 - last.at_s

    async def _slowness(self, arguments: Arguments) -> float:
        return self.watch.slowness(arguments["system"])

    async def _ask_query(self, arguments: Arguments) -> float:
        """The last known value of the only series of an answer."""
        for _, values in self._query(arguments["q"], 60.0):
            known = [value for value in values if value == value]  # noqa: PLR0124 - NaN
            if known:
                return known[-1]
        raise Unavailable("the query has no answer", code="no_data")

    # -- actions

    async def _evacuate(self, arguments: Arguments, *, evacuated: bool) -> str:
        region = arguments["region"]
        await self.api("POST", f"/streaming/api/regions/{region}", {"evacuated": evacuated})
        return f"steering {'avoids' if evacuated else 'names'} the nodes of {region}"

    async def _page_person(self, arguments: Arguments) -> str:
        self._page(arguments["text"])
        return arguments["text"]

    async def _dashboard(self, arguments: Arguments) -> str:
        """Keep the curves of the last minutes, to be looked at when they have long gone from memory."""
        curves = {}
        for title, text in CURVES.items():
            rows = self._query(text, SECONDS)
            curves[title] = [
                {"labels": dict(labels), "values": [None if value != value else round(value, 4) for value in values]}  # noqa: PLR0124 - NaN
                for labels, values in rows
            ]
            await clock.sleep(0)  # five minutes of a curve take a few milliseconds: others go on between two
        at_s = clock.now_us() // 1_000_000
        key = f"control/dashboards/{at_s:012d}"
        kept = {"at_s": at_s, "seconds": SECONDS, "about": dict(arguments), "curves": curves}
        await self._blobs.put(key, msgspec.json.encode(kept), media_type="application/json")
        return f"{sum(len(rows) for rows in curves.values())} curves are kept at /control/api/dashboards/{at_s}"

    async def dashboard(self, at_s: int) -> bytes:
        """A dashboard that was kept; raises NotFound."""
        return await self._blobs.get(f"control/dashboards/{at_s:012d}")

    async def _rollback(self, _: Arguments) -> str:
        change = await self.changes.rollback(who="runbook")
        return f"version {change.takes_back} is taken back: {change.name} is {change.value:g} again"

    async def _reapply(self, _: Arguments) -> str:
        """Apply what the last rollback took back."""
        back = next((one for one in reversed(self.changes.versions) if one.takes_back), None)
        if back is None:
            return "nothing was taken back"
        change = await self.changes.apply(
            back.name, back.before, who="runbook", note=f"version {back.takes_back} again"
        )
        return f"{change.name} is {change.value:g} again: it was not the reason"
