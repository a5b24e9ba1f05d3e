"""Who is near, and how soon would they be here: the nearest free drivers of a place with their road times, as bytes.

Asked for one place, the answer leaves from inside the protocol (a hot route): no task, no objects for the twenty
candidates, one compiled call that searches, times and writes (`answer_kernels`). Only the plain question is answered there:
this very query, from somebody without a session, under a Host the gateway has let in before, within the rate; all the
rest, and every refusal, goes the gateway's way. Heads seen lately are remembered, since a client says the same ones again.

Cost: 0.1 ms for twenty of 20,000 cars in Porto, nearly all of it the search; 0.2 ms more the other way.
"""

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourplane.dispatch.driver_index import Metres, check_point, to_e7
from fourplane.dispatch.eta import Ranked, Space
from fourplane.dispatch.index_layout import AVAILABLE, STATUS_MASK
from fourplane.edge.gate_checks import request_id
from fourplane.edge.http_answers import answer, date_line, error_body, seconds_text
from fourplane.edge.http_request import HotAnswer, HotHandler, HttpRequest
from fourplane.edge.rate_limit import RateLimit
from fourplane.edge.replies import JSON_HEADERS, JSON_LINES
from fourplane.edge.routes import Call, Reply, Route
from fourplane.foundation import clock
from fourplane.foundation.errors import Rejected

if TYPE_CHECKING:
    from fourplane.dispatch.app import Dispatch

PATH = "/dispatch/api/estimates/drivers"
PLACES_MAX = 100
BURST_S = 2.0  # as the gateway's buckets
HEADS_MAX, HOSTS_MAX = 256, 64
QUERY = re.compile(rb"start_latitude=(-?[0-9]{1,2}(?:\.[0-9]{1,15})?)&start_longitude=(-?[0-9]{1,3}(?:\.[0-9]{1,15})?)")
PARTICULAR = (b"\ncookie:", b"\nauthorization:", b"\nx-request-id:", b"\ntraceparent:", b"\nx-fourplane-peer:")


class NearDrivers(msgspec.Struct, frozen=True):
    """Free drivers, nearest by line first, as columns; `seconds` null: not within a quarter of an hour by road."""

    drivers: list[int]
    metres: list[float]
    seconds: list[float | None]
    latitude: list[float]
    longitude: list[float]


class NearManyAnswer(msgspec.Struct, frozen=True):
    """One answer per place; nobody where no road is near."""

    near: list[NearDrivers]


class PlacesBody(msgspec.Struct, frozen=True):
    places: list[tuple[float, float]]


class Near:
    """The doors of this question."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._d = dispatch
        self._heads: set[bytes] = set()
        self._hosts: set[bytes] = set()
        self._space = Space(1, dispatch.settings.matching.candidates)
        rate = dispatch.settings.ride_calls_per_s
        self._limit = RateLimit(rate, rate * BURST_S)

    def routes(self) -> list[Route]:
        rate = self._d.settings.ride_calls_per_s
        return [
            Route("GET", PATH, self.near, "Nearest free drivers and their road times to a place",
                  answer=NearDrivers, rate_per_s=rate),
            Route("POST", PATH, self.near_many, "The same for up to 100 places [latitude, longitude]",
                  body=PlacesBody, answer=NearManyAnswer, rate_per_s=rate),
        ]  # fmt: skip

    def hot_routes(self) -> list[tuple[str, str, HotHandler]]:
        """What is answered inside the protocol."""
        return [("GET", PATH, self.hot)]

    def hot(self, request: HttpRequest) -> HotAnswer:
        """The whole answer to a plain question; None: the gateway has to look."""
        asked = QUERY.fullmatch(request.query)
        if asked is None or not self._is_plain(request):
            return None
        lat, lng = float(asked[1]), float(asked[2])
        if abs(lat) > 90 or abs(lng) > 180:
            return None
        verdict = self._limit.take(request.peer, clock.monotonic_s())
        extra = b"x-request-id: %b\r\nratelimit-limit: %d\r\nratelimit-remaining: %d\r\n" % (
            request_id(None).encode(), verdict.limit, verdict.remaining,
        )  # fmt: skip
        if not verdict.allowed:
            return _too_many(verdict.limit, verdict.retry_after_s)
        space = self._space
        space.lats[0], space.lngs[0] = round(lat * 1e7), round(lng * 1e7)
        body = self._answer(space)
        if body is None or space.counts[0] <= 0:  # in the sea nobody is near for a reason
            return None
        return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (JSON_LINES, extra, date_line(), len(body), body)

    async def near(self, call: Call[None]) -> Reply | NearDrivers:
        lat, lng = point(call, "start")
        if len(self._hosts) < HOSTS_MAX:
            self._hosts.add(call.headers.get("host", "").encode("latin-1"))  # the gateway let it in
        space = Space(1, self._d.settings.matching.candidates)
        space.lats[0], space.lngs[0] = round(lat * 1e7), round(lng * 1e7)
        body = self._answer(space)
        if body is None:
            (ranked,) = self._rank(np.array([lat]), np.array([lng]))
            if len(ranked.drivers) == 0:
                self._d.eta.snap(lat, lng, "the start")
            return self._told(ranked)
        if space.counts[0] <= 0:
            self._d.eta.snap(lat, lng, "the start")
        return _json(body)

    async def near_many(self, call: Call[PlacesBody]) -> Reply | NearManyAnswer:
        places = call.body.places
        if not 1 <= len(places) <= PLACES_MAX:
            raise Rejected(f"ask for 1 to {PLACES_MAX} places at once", code="bad_count")
        for place in places:
            check_point(*place)
        lats, lngs = np.array(places, np.float64).T
        space = Space(len(places), self._d.settings.matching.candidates)
        space.lats[:], space.lngs[:] = to_e7(lats), to_e7(lngs)
        body = self._answer(space)
        if body is None:
            return NearManyAnswer([self._told(one) for one in self._rank(lats, lngs)])
        return _json(b'{"near":[%b]}' % body)

    def _answer(self, space: Space) -> bytes | None:
        matching = self._d.settings.matching
        return self._d.eta.near_json(
            self._d.index,
            space,
            radius_m=matching.radius_m,
            mask=STATUS_MASK,
            wanted=AVAILABLE,
            limit_s=matching.eta_s_max,
        )

    def _rank(self, lats: Metres, lngs: Metres) -> list[Ranked]:
        matching = self._d.settings.matching
        return self._d.eta.rank_many(
            self._d.index, np.ascontiguousarray(lats), np.ascontiguousarray(lngs), radius_m=matching.radius_m,
            count=matching.candidates, mask=STATUS_MASK, wanted=AVAILABLE, limit_s=matching.eta_s_max,
        )  # fmt: skip

    def _told(self, ranked: Ranked) -> NearDrivers:
        lats, lngs = self._d.index.places(ranked.drivers.astype(np.uint32))
        return NearDrivers(
            ranked.drivers.tolist(), ranked.metres.round(1).tolist(),
            [seconds if seconds < np.inf else None for seconds in ranked.etas.round(1).tolist()],
            lats.round(7).tolist(), lngs.round(7).tolist(),
        )  # fmt: skip

    def _is_plain(self, request: HttpRequest) -> bool:
        """Whether nothing in this head is of anybody in particular, and its Host is one of ours."""
        raw = request.raw
        head = raw[raw.find(b"\r\n") :]
        if head in self._heads:
            return True
        low = head.lower()
        if not raw or any(name in low for name in PARTICULAR) or request.header(b"host") not in self._hosts:
            return False
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads.add(head)
        return True


def bearer(call: Call[Any]) -> str:
    """The token of `Authorization: Bearer`, "" where there is none."""
    kind, _, token = call.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def point(call: Call[Any], which: str) -> tuple[float, float]:
    """`start` or `end` of a query; raises Rejected."""
    try:
        lat, lng = float(call.query[f"{which}_latitude"]), float(call.query[f"{which}_longitude"])
    except KeyError as error:
        raise Rejected(f"the query needs {error.args[0]}", code="missing_point") from None
    except ValueError:
        raise Rejected("a coordinate is not a number", code="bad_point") from None
    check_point(lat, lng)
    return lat, lng


def _json(body: bytes) -> Reply:
    return Reply(body, media_type="application/json", headers={"cache-control": "no-store"})


def _too_many(limit: int, retry_after_s: float) -> bytes:
    headers = {name.decode(): value.decode() for name, value in JSON_HEADERS[1:]}
    headers |= {"retry-after": seconds_text(retry_after_s), "ratelimit-limit": str(limit), "ratelimit-remaining": "0"}
    body = error_body("rate_limited", "too many requests from here", {"limit": limit})
    return answer(429, body, headers=headers)
