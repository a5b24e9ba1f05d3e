"""A city's evening: cars that drive and answer offers, riders who ask.

The cars are one fleet behind one gateway: four times a second all of them report in frames over the location feed, and
the gateway's news tell which car got which offer. A car accepts most offers, declines some and ignores a few, drives the
roads to its rider, then to the destination, and cruises again. Riders come as a Poisson stream from the city's centres;
a few give up early. `users` is the number of cars, `rate_per_s` the number of rides asked for. Shapes: `steady`,
`rush` (three times the rate in the middle third).
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import msgspec
import numpy as np

from fourplane.dispatch import feed_frames as frames
from fourplane.dispatch.driver_index import make_updates
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import Traffic, pick_nodes
from fourplane.edge.http_client import HttpClient, HttpClientSettings
from fourplane.foundation import clock, network
from fourplane.foundation.errors import FourplaneError, Rejected, Unavailable
from fourplane.simulator.crowds import Plan, Progress, Tally, Target
from fourplane.simulator.crowds.again import Again

API = "/dispatch/api"
PERIOD_S = 0.25
PACE = 1.5  # cars drive a little faster than the map says, so that an evening fits a demonstration
RIDERS = 400
OPEN_MAX = 2_000
GREETING_S, FEED_PATIENCE_S, PRESENT_S = 5.0, 60.0, 5.0
LOOKS_MISSED_MAX = 3
ONCE = frozenset({"/fleets"})  # what must not be asked twice
FRAME_RECORDS = 4_096
TRIP_M = (900.0, 6_000.0)
DECLINES, IGNORES, GIVES_UP = 0.05, 0.02, 0.02


class News(msgspec.Struct):
    """What the feed tells a gateway, as far as a car cares."""

    kind: str
    driver: int = -1
    trip: str = ""
    status: str = ""
    pickup: dict[str, Any] = {}
    dropoff: dict[str, Any] = {}
    first: int = 0
    count: int = 0
    code: str = ""
    message: str = ""


class Gateway(asyncio.Protocol):
    """The fleet's connection to the location feed."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader()
        self._decoder = msgspec.json.Decoder(News)
        self.news: asyncio.Queue[News | None] = asyncio.Queue()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own classes say nothing of asyncio's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for _, payload in self._reader.feed(data):
            self.news.put_nowait(self._decoder.decode(payload))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self.news.put_nowait(None)

    def send(self, kind: int, payload: bytes) -> None:
        """One frame up; dropped when the feed is gone."""
        if self._transport is not None:
            self._transport.write(frames.frame(kind, payload))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class DispatchCrowd:
    """Drives a deployment's dispatch over HTTP and the location feed."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        self._jobs: dict[int, News] = {}
        self._stage: dict[int, str] = {}
        self._said: dict[int, tuple[str, str]] = {}  # by driver: the last verb about a trip whose news did not come yet
        self._deciding: set[tuple[int, str]] = set()  # driver and trip of offers that are thought about
        self._present: set[int] = set()  # drivers of whose trips the feed spoke since it was greeted
        self._free_riders: list[str] = []

    async def drive(self, target: Target, plan: Plan, tally: Tally, progress: Progress) -> None:
        """Run until the plan is over or this is cancelled."""
        self._tally, self._plan = tally, plan
        rng = clock.random()
        self._numbers = np.random.default_rng(rng.getrandbits(32))
        self._client = HttpClient(target.host, target.http_port, settings=HttpClientSettings(connections_max=128))
        try:
            await self._prepare(target, plan, progress)
            await self._run(plan, progress)
        finally:
            self._client.close()
            if hasattr(self, "_gateway"):
                self._gateway.close()

    async def _prepare(self, target: Target, plan: Plan, progress: Progress) -> None:
        progress(0.0, "fetching the road network")
        roads = Roads.from_bytes(await self._raw("GET", "/map/network"))
        self._roads, self._eta = roads, Eta(roads)
        self._traffic = Traffic(roads, plan.users, self._numbers, pace=PACE)
        progress(0.0, f"{plan.users:,} cars take to the roads of {roads.name}")
        fleet = await self._call(
            "POST", "/fleets", {"name": "crowd", "count": plan.users}, authorization=f"Bearer {target.operator_token}"
        )
        self._first = int(fleet["first"])
        self._feed = target.host, int(fleet["feed_port"]) or target.location_port
        self._feed_token = str(fleet["feed_token"]).encode()
        await self._greet()

    async def _run(self, plan: Plan, progress: Progress) -> None:
        began = clock.monotonic_s()
        self._open: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._move()), group.create_task(self._hear(group))]
            try:
                while plan.duration_s <= 0 or clock.monotonic_s() - began < plan.duration_s:
                    share = (clock.monotonic_s() - began) / plan.duration_s if plan.duration_s > 0 else 0.0
                    rush = 3.0 if plan.shape == "rush" and 1 / 3 < share < 2 / 3 else 1.0
                    await clock.sleep(clock.random().expovariate(max(plan.rate_per_s, 0.01) * rush))
                    self._start(group, self._ride)
                    facts = self._tally.facts
                    progress(share, f"{facts.get('rides', 0):.0f} rides, {facts.get('completed', 0):.0f} completed")
            finally:
                for task in [*background, *self._open]:
                    task.cancel()

    def _start(self, group: asyncio.TaskGroup, work: Callable[[], Awaitable[None]]) -> None:
        """Begin it in a task of its own; it is made there, for a task that is cancelled before its first step awaits nothing."""
        if len(self._open) >= OPEN_MAX:
            self._tally.failed("missed")
            return
        task = group.create_task(self._guarded(work))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except FourplaneError as error:
            self._tally.failed(error.reason)

    # -- cars

    async def _move(self) -> None:
        sequence, last = int(clock.now_us() // 62_500) & 0xFFFFFFFF, clock.monotonic_s()
        numbers = np.arange(self._first, self._first + self._plan.users, dtype=np.uint32)
        while True:
            await clock.sleep(PERIOD_S)
            now = clock.monotonic_s()
            for car in self._traffic.step(min(now - last, 2.0)):
                self._arrived(car)
            last, sequence = now, (sequence + 1) & 0xFFFFFFFF
            lat, lng = self._traffic.places()
            updates = make_updates(numbers, lat, lng, np.full(len(numbers), sequence, np.uint32))
            for at in range(0, len(updates), FRAME_RECORDS):
                self._gateway.send(frames.POSITIONS, updates[at : at + FRAME_RECORDS].tobytes())
            self._tally.facts["positions"] = self._tally.facts.get("positions", 0) + len(updates)

    async def _hear(self, group: asyncio.TaskGroup) -> None:
        while True:
            news = await self._gateway.news.get()
            if news is None:
                await self._come_back(group)
            elif news.kind == "offer":
                if (news.driver, news.trip) not in self._deciding and self._job(news) is None:
                    self._start(group, partial(self._answer, news))
            elif news.kind == "driver_trip":
                self._follow(group, news)
            elif news.kind == "error":
                self._tally.failed(news.code)

    async def _come_back(self, group: asyncio.TaskGroup) -> None:
        """The feed hung up: greet it again; it tells what goes on, and what we said last may not have been heard."""
        self._tally.failed("feed_hung_up")
        self._present.clear()
        until = clock.monotonic_s() + FEED_PATIENCE_S
        while True:
            await clock.sleep(0.3 + 0.4 * clock.random().random())
            try:
                await self._greet()
                break
            except (FourplaneError, OSError):
                if clock.monotonic_s() > until:
                    raise
        for driver, (verb, trip) in self._said.items():
            self._verb(verb, driver, trip)
        self._start(group, partial(self._forget_ended, dict(self._jobs)))

    async def _forget_ended(self, jobs: dict[int, News]) -> None:
        """Trips the feed said nothing of ended while it was away: their cars cruise again."""
        await clock.sleep(PRESENT_S)
        for driver, job in jobs.items():
            if driver not in self._present and self._jobs.get(driver) is job:
                self._release(driver)

    async def _greet(self) -> None:
        """Connect to the feed and put all cars on the road."""
        _, gateway = await network.connect(Gateway, self._feed[0], self._feed[1])
        gateway.send(frames.HELLO, self._feed_token)
        try:
            async with asyncio.timeout(GREETING_S):
                if await gateway.news.get() is None:
                    raise Unavailable("the location feed hung up")
        except BaseException as error:
            gateway.close()
            if isinstance(error, TimeoutError):
                raise Unavailable("the location feed does not greet") from error
            raise
        self._gateway = gateway
        self._verb("online", self._first, count=self._plan.users)

    async def _answer(self, offer: News) -> None:
        luck = clock.random().random()
        self._deciding.add((offer.driver, offer.trip))
        try:
            await clock.sleep(0.4 + 2.0 * clock.random().random())
        finally:
            self._deciding.discard((offer.driver, offer.trip))
        if luck < DECLINES:
            self._verb("decline", offer.driver, offer.trip)
        elif luck > IGNORES + DECLINES:
            self._jobs[offer.driver] = offer
            self._verb("accept", offer.driver, offer.trip)

    def _follow(self, group: asyncio.TaskGroup, news: News) -> None:
        """A trip of one of our cars moved on."""
        car, job = news.driver - self._first, self._job(news)
        if job is None:
            return
        self._said.pop(news.driver, None)
        self._present.add(news.driver)
        match news.status:
            case "accepted":
                if (asked := self._asked.pop(news.trip, None)) is not None:
                    self._tally.done("matched", clock.monotonic_s() - asked)
                self._go(car, job.pickup, "to_pickup")
            case "arriving":
                self._start(group, partial(self._later, "start", news.driver, news.trip))
            case "in_progress":
                self._go(car, job.dropoff, "to_dropoff")
            case _:
                if news.status == "completed":
                    self._tally.facts["completed"] = self._tally.facts.get("completed", 0) + 1
                self._release(news.driver)

    def _job(self, news: News) -> News | None:
        """The trip a car has taken, if the news are about that."""
        job = self._jobs.get(news.driver)
        return job if job is not None and job.trip == news.trip else None

    def _release(self, driver: int) -> None:
        self._jobs.pop(driver, None)
        self._said.pop(driver, None)
        self._stage.pop(driver - self._first, None)
        self._traffic.release(driver - self._first)

    def _go(self, car: int, goal: dict[str, Any], stage: str) -> None:
        roads = self._roads
        node = self._traffic.next_node(car)
        try:
            way = self._eta.route(
                float(roads.lat[node]), float(roads.lng[node]), float(goal["lat"]), float(goal["lng"])
            )
        except Rejected as error:
            self._tally.failed(error.reason)
            return
        self._stage[car] = stage
        self._traffic.send(car, way.edges)

    def _arrived(self, car: int) -> None:
        job = self._jobs.get(car + self._first)
        if job is not None:
            verb = {"to_pickup": "arrive", "to_dropoff": "finish"}.get(self._stage.get(car, ""))
            if verb is not None:
                self._verb(verb, job.driver, job.trip)

    async def _later(self, verb: str, driver: int, trip: str) -> None:
        await clock.sleep(1.0 + 4.0 * clock.random().random())
        self._verb(verb, driver, trip)

    def _verb(self, verb: str, driver: int, trip: str = "", *, count: int = 1) -> None:
        if trip and verb != "decline":
            self._said[driver] = verb, trip
        self._gateway.send(
            frames.VERBS, msgspec.json.encode({"verb": verb, "driver": driver, "trip": trip, "count": count})
        )

    # -- riders

    async def _ride(self) -> None:
        token = self._free_riders.pop() if self._free_riders else (await self._call("POST", "/guests", {}))["token"]
        try:
            start, end = self._way()
            roads = self._roads
            began = clock.monotonic_s()
            estimate = await self._call("POST", "/requests/estimate", {
                "product_id": clock.random().choices(("go", "comfort", "van"), (8, 2, 1))[0],
                "start_latitude": float(roads.lat[start]), "start_longitude": float(roads.lng[start]),
                "end_latitude": float(roads.lat[end]), "end_longitude": float(roads.lng[end]),
            }, x_rider_token=token)  # fmt: skip
            self._tally.done("estimate", clock.monotonic_s() - began)
            began = clock.monotonic_s()
            ride = await self._call(
                "POST", "/requests", {"fare_id": estimate["fare"]["fare_id"]},
                x_rider_token=token, idempotency_key=clock.token_bytes(8).hex(),
            )  # fmt: skip
            self._tally.done("request", clock.monotonic_s() - began)
            self._tally.facts["rides"] = self._tally.facts.get("rides", 0) + 1
            self._asked[ride["request_id"]] = began
            await self._see_through(ride["request_id"], token)
        finally:
            if len(self._free_riders) < RIDERS:
                self._free_riders.append(token)

    async def _see_through(self, ride: str, token: str) -> None:
        if clock.random().random() < GIVES_UP:
            await clock.sleep(4 + 10 * clock.random().random())
            await self._call("DELETE", f"/requests/{ride}", x_rider_token=token)
            self._tally.facts["cancelled"] = self._tally.facts.get("cancelled", 0) + 1
            return
        pause, missed = 10.0, 0
        while True:
            await clock.sleep(pause)
            try:
                shown = await self._call("GET", f"/requests/{ride}", x_rider_token=token)
            except FourplaneError as error:  # the rider looks again later
                missed += 1
                if missed > LOOKS_MISSED_MAX:
                    raise
                self._tally.failed(error.reason)
                continue
            if shown["status"] in {"completed", "no_drivers_available", "rider_canceled", "driver_canceled"}:
                self._tally.facts[shown["status"]] = self._tally.facts.get(shown["status"], 0) + (
                    0 if shown["status"] == "completed" else 1
                )
                self._asked.pop(ride, None)
                if shown["status"] == "completed":
                    stars = clock.random().choices((5, 4, 3, 1), (80, 14, 4, 2))[0]
                    await self._call("POST", f"/requests/{ride}/rating", {"stars": stars}, x_rider_token=token)
                return
            pause = min(pause * 1.3, 60.0)

    def _way(self) -> tuple[int, int]:
        roads = self._roads
        nodes = pick_nodes(roads, 12, self._numbers)
        start = int(nodes[0])
        for end in nodes[1:]:
            away = float(np.hypot(roads.x[end] - roads.x[start], roads.y[end] - roads.y[start]))
            if TRIP_M[0] < away < TRIP_M[1]:
                return start, int(end)
        return start, int(nodes[1])

    async def _call(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        return msgspec.json.decode(await self._raw(method, path, body, **headers))

    async def _raw(self, method: str, path: str, body: object = None, **headers: str) -> bytes:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["content-type"] = "application/json"
        content = b"" if body is None else msgspec.json.encode(body)
        again = Again()
        while True:
            try:
                answer = await self._client.request(method, f"{API}{path}", body=content, headers=sent, timeout_s=20)
            except FourplaneError as error:
                if path not in ONCE and await again.after_error(error):
                    continue
                raise
            if path in ONCE or not await again.after_answer(answer.status, answer.headers):
                break
        if again.tries:
            self._tally.facts["asked_again"] = self._tally.facts.get("asked_again", 0) + 1
        if answer.status >= 400:
            try:
                code = str(msgspec.json.decode(answer.body)["error"]["code"])
            except (msgspec.DecodeError, KeyError, TypeError):
                code = f"http_{answer.status}"
            raise Rejected(f"{method} {path}: {code}", code=code)
        return answer.body
