"""The pictures of docs/concepts/dispatch.md, from real runs: `python -m benchmarks.peers.dispatch_pictures docs/images`.

Three drawings (SVG) of one pick-up in the generated city: the cells a search looks into, the road times that reach its
twenty candidates, and one pool of riders decided by two rules. With `--page`, the operations page as well (PNG).
"""

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path

import numpy as np
from benchmarks.peers.dispatch_demand import fifo
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from fourplane.dispatch import cells, compiled
from fourplane.dispatch.city import make_city
from fourplane.dispatch.driver_index import DriverIndex, IndexSettings, make_updates, open_index
from fourplane.dispatch.eta import Eta
from fourplane.dispatch.matching import MatchingSettings, cheapest_pairs, costs
from fourplane.dispatch.roads import Roads
from fourplane.dispatch.traffic import Traffic, pick_nodes

SIZE = 640
FREE, BUSY, RIDE, INK, SOFT, LAND, ROAD = "#0a9d58", "#e08600", "#2563eb", "#1c2430", "#8a94a3", "#f3f1ec", "#d5cfc2"


class Paper:
    """An SVG over a square of the city."""

    def __init__(self, roads: Roads, lat: float, lng: float, half_m: float) -> None:
        self.roads, self.x0, self.y0, self.half_m = roads, *self._metres(roads, lat, lng), half_m
        self.parts = [f'<rect width="{SIZE}" height="{SIZE}" fill="{LAND}"/>']

    @staticmethod
    def _metres(roads: Roads, lat: float, lng: float) -> tuple[float, float]:
        return (lng - roads.west) * roads.x_scale, (lat - roads.south) * roads.y_scale

    def at(self, lat: float, lng: float) -> tuple[float, float]:
        x, y = self._metres(self.roads, lat, lng)
        scale = SIZE / (2 * self.half_m)
        return round((x - self.x0 + self.half_m) * scale, 1), round((self.half_m - (y - self.y0)) * scale, 1)

    def streets(self, colour_of=lambda _edge: ROAD, width: float = 1.4) -> None:
        roads = self.roads
        near = (abs(roads.x - self.x0) < self.half_m * 1.05) & (abs(roads.y - self.y0) < self.half_m * 1.05)
        by_colour: dict[str, list[str]] = {}
        for edge in np.flatnonzero(near[roads.tails] & near[roads.heads]).tolist():
            tail, head = int(roads.tails[edge]), int(roads.heads[edge])
            a, b = self.at(roads.lat[tail], roads.lng[tail]), self.at(roads.lat[head], roads.lng[head])
            by_colour.setdefault(colour_of(edge), []).append(f"M{a[0]:.0f} {a[1]:.0f}L{b[0]:.0f} {b[1]:.0f}")
        for colour, lines in by_colour.items():
            self.parts.append(f'<path d="{"".join(lines)}" stroke="{colour}" stroke-width="{width}" fill="none"/>')

    def dot(self, lat: float, lng: float, colour: str, size: float = 4) -> None:
        x, y = self.at(lat, lng)
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="{size}" fill="{colour}" stroke="#fff" stroke-width="1"/>')

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: str, dash: str = "") -> None:
        (x1, y1), (x2, y2) = self.at(*a), self.at(*b)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="2"{dashed}/>')

    def text(self, x: float, y: float, words: str, colour: str = INK, size: int = 14) -> None:
        style = f'font-family="system-ui,sans-serif" font-size="{size}" fill="{colour}"'
        halo = f'stroke="{LAND}" stroke-width="4" paint-order="stroke"'
        self.parts.append(f'<text x="{x}" y="{y}" {style} {halo}>{words}</text>')

    def save(self, path: Path, title: str) -> None:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" role="img"><title>{title}</title>'
        path.write_text(head + "".join(self.parts) + "</svg>\n", encoding="utf-8")


def search(roads: Roads, index: DriverIndex, place: tuple[float, float], folder: Path) -> None:
    """The cells of the index around a pick-up, and the twenty nearest cars."""
    paper = Paper(roads, *place, 2_300)
    paper.streets(width=1)
    ids, counts = index.count_by_cell()
    found, metres = index.nearest(*place, radius_m=2_000, count=20)
    reach = float(metres.max())
    for cell, count in zip(ids.tolist(), counts.tolist(), strict=True):
        ring = cells.corners(cell)
        looked = min(cells.distance_m(*place, *corner) for corner in ring) < reach or count == 0
        points = " ".join(f"{x},{y}" for x, y in (paper.at(*corner) for corner in ring))
        fill = "rgba(37,99,235,.16)" if looked else "none"
        paper.parts.append(f'<polygon points="{points}" fill="{fill}" stroke="{SOFT}" stroke-width="1"/>')
        x, y = paper.at(*np.mean(ring, axis=0))
        paper.text(x - 8, y, str(count), SOFT, 12)
    snapshot = index.snapshot()
    near = set(found.tolist())
    for number, lat, lng in zip(snapshot.drivers, snapshot.lat * 1e-7, snapshot.lng * 1e-7, strict=True):
        if int(number) not in near:
            paper.dot(lat, lng, FREE, 1.6)
    for lat, lng in zip(*index.places(found), strict=True):
        paper.dot(lat, lng, BUSY, 5)
    paper.dot(*place, INK, 7)
    paper.text(
        14,
        28,
        f"{len(snapshot.drivers):,} cars in {len(ids)} cells of level 13; the 20 nearest lie within {reach:.0f} m",
    )
    paper.save(folder / "dispatch-index.svg", "Which cells a search looks into")


def times(roads: Roads, eta: Eta, index: DriverIndex, place: tuple[float, float], folder: Path) -> None:
    """How long every street around is from the pick-up by road, and what that makes of the twenty nearest."""
    (ranked,) = eta.rank_many(
        index, np.array([place[0]]), np.array([place[1]]), radius_m=2_000, count=20, mask=15, wanted=1
    )
    graph = csr_matrix((roads.seconds.astype(float), roads.heads, roads.starts), shape=(len(roads.lat),) * 2)
    seconds = dijkstra(graph.T, indices=eta.snap(*place).node)
    last = float(ranked.etas[np.isfinite(ranked.etas)].max())
    paper = Paper(roads, *place, 1_300)

    def colour(edge: int) -> str:
        share = seconds[roads.tails[edge]] / last
        return ROAD if share > 1 else f"hsl({210 - 170 * round(float(share), 1):.0f} 70% 50%)"

    paper.streets(colour, 2.4)
    by_line, by_road = int(ranked.metres.argmin()), int(ranked.etas.argmin())
    lats, lngs = index.places(ranked.drivers.astype(np.uint32))
    for n, (lat, lng) in enumerate(zip(lats, lngs, strict=True)):
        paper.dot(
            lat, lng, FREE if n == by_road else BUSY if n == by_line else SOFT, 7 if n in {by_road, by_line} else 5
        )
        x, y = paper.at(lat, lng)
        paper.text(x + 8, y + 5, f"{ranked.etas[n]:.0f} s", INK if n in {by_road, by_line} else SOFT, 12)
    paper.dot(*place, INK, 8)
    paper.text(14, 28, f"one search backwards from the rider meets all 20 within {last:.0f} s of road")
    paper.save(folder / "dispatch-eta.svg", "Road times from one reverse search")


def pool(roads: Roads, eta: Eta, index: DriverIndex, folder: Path) -> None:
    """Riders of one window and the cars they get by two rules."""
    rng, settings = np.random.default_rng(18), MatchingSettings()
    middle = roads.center
    near = np.flatnonzero((abs(roads.lat - middle[0]) < 0.008) & (abs(roads.lng - middle[1]) < 0.011))
    riders = rng.choice(near, 9, replace=False)
    ranked = eta.rank_many(index, roads.lat[riders], roads.lng[riders], radius_m=2_000, count=3, mask=15, wanted=1)
    requests = np.repeat(np.arange(len(riders)), [len(one.drivers) for one in ranked])
    drivers = np.concatenate([one.drivers for one in ranked])
    etas = np.concatenate([one.etas for one in ranked])
    cost = costs(etas, np.full(len(etas), 5.0), np.zeros(len(etas)), settings)
    for name, rule in (("fifo", fifo), ("cheapest", cheapest_pairs)):
        paper = Paper(roads, *middle, 1_500)
        paper.streets(width=1)
        pairs = rule(requests, drivers, cost)
        for pair in pairs:
            rider = riders[requests[pair]]
            lat, lng = index.places(drivers[pair : pair + 1].astype(np.uint32))
            paper.line((float(roads.lat[rider]), float(roads.lng[rider])), (float(lat[0]), float(lng[0])), RIDE)
        for lat, lng in zip(*index.places(np.unique(drivers).astype(np.uint32)), strict=True):
            paper.dot(lat, lng, FREE, 6)
        for n, rider in enumerate(riders.tolist()):
            paper.dot(roads.lat[rider], roads.lng[rider], INK, 6)
            x, y = paper.at(roads.lat[rider], roads.lng[rider])
            paper.text(x + 8, y + 5, str(n + 1), INK, 13)
        total = float(etas[pairs].sum())
        words = {"fifo": "first come, nearest car", "cheapest": "cheapest pair first"}[name]
        paper.text(14, 28, f"{words}: {len(pairs)} of {len(riders)} riders, {total / max(len(pairs), 1):.0f} s each")
        paper.save(folder / f"dispatch-match-{name}.svg", words)


async def page(folder: Path) -> None:
    """The operations page with ten thousand cars, light and wide, after a while of rides."""
    import msgspec
    from playwright.async_api import async_playwright
    from tests.journeys.dispatch.rig import QUICK, running

    from fourplane.simulator.crowds import Plan, Tally, Target
    from fourplane.simulator.crowds.dispatch import DispatchCrowd

    settings = msgspec.structs.replace(
        QUICK, index=IndexSettings(), matching=MatchingSettings(), guests_per_s=1e6, ride_calls_per_s=1e6
    )  # fmt: skip
    async with running(settings=settings) as city, async_playwright() as tools:
        operator = await city.accounts.create("operator", "a long password", roles=("operator",))
        token = await city.accounts.open_session(operator)
        target = Target("127.0.0.1", city.server.port, operator_token=token)
        plan = Plan(users=10_000, rate_per_s=12.0, duration_s=0.0)
        crowd = asyncio.create_task(DispatchCrowd().drive(target, plan, Tally(), lambda _share, _text: None))
        browser = await tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        base = f"http://127.0.0.1:{city.server.port}/dispatch"
        for name, width, height, scheme in (
            ("wide-light", 1_280, 720, "light"), ("wide-dark", 1_280, 720, "dark"), ("phone-light", 390, 800, "light"),
        ):  # fmt: skip
            people = await browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme,
                extra_http_headers={"authorization": f"Bearer {token}"},
            )  # fmt: skip
            shown = await people.new_page()
            await shown.goto(f"{base}/operations")
            await asyncio.sleep(12 if name == "wide-light" else 4)
            await shown.screenshot(path=folder / f"dispatch-operations-{name}.png")
            print(name, await shown.locator("#smooth").inner_text())
            await shown.get_by_role("radio", name="Supply").click()
            await asyncio.sleep(2)
            await shown.screenshot(path=folder / f"dispatch-heat-{name}.png")
            await shown.get_by_role("radio", name="Cars").click()
            riding = shown.locator(".trip", has_text="riding").first
            await (riding if await riding.count() else shown.locator(".trip").first).click(timeout=90_000)
            await asyncio.sleep(6)
            await shown.screenshot(path=folder / f"dispatch-replay-{name}.png")
            await shown.goto(f"{base}/")
            await asyncio.sleep(2)
            await shown.get_by_role("button", name="Surprise me").click()
            await asyncio.sleep(2)
            await shown.screenshot(path=folder / f"dispatch-rider-{name}.png")
            await people.close()
        await browser.close()
        crowd.cancel()
        await asyncio.gather(crowd, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", action="store_true", help="the operations page too, in Chromium")
    options = parser.parse_args()
    compiled.compile_all()
    roads, rng = make_city(), np.random.default_rng(5)
    index, eta, cars = open_index(IndexSettings()), Eta(roads), 1_500
    lat, lng = Traffic(roads, cars, rng).places()
    numbers = np.arange(cars, dtype=np.uint32)
    index.set_states(numbers, np.ones(cars, np.uint32))
    index.update(make_updates(numbers, lat, lng, np.ones(cars, np.uint32)), 0)
    node = int(pick_nodes(roads, 40, rng)[7])
    place = float(roads.lat[node]), float(roads.lng[node])
    search(roads, index, place, options.folder)
    times(roads, eta, index, place, options.folder)
    few = open_index(IndexSettings())
    some = numbers[:150]
    few.set_states(some, np.ones(len(some), np.uint32))
    few.update(make_updates(some, lat[:150], lng[:150], np.ones(150, np.uint32)), 0)
    pool(roads, eta, few, options.folder)
    if options.page:
        asyncio.run(page(Path(tempfile.mkdtemp()) if options.folder == Path() else options.folder))


if __name__ == "__main__":
    main()
