"""An OpenStreetMap extract (`.osm.pbf`, `.osm`) as a road network, made in a child process.

`import_map` starts this module as a program (a city takes seconds, a country minutes, and neither may hold the loop),
passes its progress on and returns the file it wrote. The program reads highways open to cars, honours one-ways,
roundabouts, stated limits and turn restrictions, and leaves out what is private. The data are OpenStreetMap's, under
ODbL 1.0: every map drawn from them says so.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fourplane.dispatch import roads
from fourplane.foundation import processes
from fourplane.foundation.errors import FourplaneError, NotFound, Rejected, Unavailable

ATTRIBUTION = "© OpenStreetMap contributors"
LINKS = {f"{name}_link": name for name in ("motorway", "trunk", "primary", "secondary", "tertiary")}
OTHERS = {"road": "unclassified", "service": "residential"}
CLOSED = {"no", "private", "delivery", "emergency", "agricultural", "forestry"}
NOT_STREETS = {"parking_aisle", "driveway", "drive-through", "emergency_access"}
MPH = 1.609344

Progress = Callable[[float, str], None]


class _Line(msgspec.Struct):
    """One line of the program's output."""

    share: float = 0.0
    text: str = ""
    failed: str = ""


async def import_map(source: Path, target: Path, progress: Progress) -> None:
    """Write the road network of `source` to `target`; raises NotFound, Rejected (what is wrong with it) or Unavailable."""
    if not source.is_file():  # noqa: ASYNC240 - one look at a local file
        raise NotFound(f"no map at {source}", code="no_map")
    if importlib.util.find_spec("osmium") is None:
        raise Unavailable(
            "reading OpenStreetMap files needs the extra `maps` (pip install fourplane[maps])", code="no_osmium"
        )
    last = _Line()

    def on_line(text: str) -> None:
        nonlocal last
        try:
            last = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError:
            last = _Line(failed=text[:200])
        if not last.failed:
            progress(last.share, last.text)

    argv = [sys.executable, "-m", "fourplane.dispatch.osm_import", str(source), str(target)]
    child = await processes.start(argv, on_line=on_line, nice=5)
    code = await child.wait()
    if code != 0 or not target.is_file():  # noqa: ASYNC240 - as above
        raise Rejected(f"{source.name} could not be imported: {last.failed or f'exit code {code}'}", code="bad_map")


def read_roads(source: Path, tell: Progress) -> roads.Roads:
    """The network of an extract, read here and now; raises Rejected for a file that is none, is cut, or holds no roads."""
    import osmium  # noqa: PLC0415 - an optional extra

    tell(0.02, f"reading {source.name}")
    numbers: dict[int, int] = {}
    lat: list[float] = []
    lng: list[float] = []
    ways: list[roads.Way] = []
    places: dict[int, int] = {}
    try:
        read = osmium.FileProcessor(str(source)).with_locations().with_filter(osmium.filter.KeyFilter("highway"))
        for way in read:
            if not isinstance(way, osmium.osm.Way):
                continue
            kind = _road_class(way.tags)
            if kind is None:
                continue
            points: list[int] = []
            for node in way.nodes:
                if not node.location.valid():
                    continue
                number = numbers.get(node.ref)
                if number is None:
                    number = numbers[node.ref] = len(lat)
                    lat.append(node.location.lat)
                    lng.append(node.location.lon)
                if not points or points[-1] != number:
                    points.append(number)
            direction = _direction(way.tags)
            if direction < 0:
                points.reverse()
            places[way.id] = len(ways)
            ways.append(roads.Way(points, kind, direction != 0, _limit_kmh(way.tags.get("maxspeed"))))
            if len(ways) % 2_000 == 0:
                tell(min(0.6, 0.05 + len(ways) / 100_000), f"{len(ways):,} roads read")
        tell(0.62, "reading turn restrictions")
        turns = list(_turns(source, places, numbers))
    except RuntimeError as error:
        raise Rejected(f"{source.name} is not a whole OpenStreetMap file: {error}", code="bad_map") from error
    tell(0.65, f"joining {len(ways):,} roads")
    name = source.name.split(".")[0].replace("_", " ").title()
    return roads.build(np.array(lat), np.array(lng), ways, name=name, attribution=ATTRIBUTION, turns=turns)


def _turns(source: Path, ways: dict[int, int], points: dict[int, int]) -> Iterator[roads.Turn]:
    """Rules of the form way, node, way; those over a way in between, and those that except cars, are left out."""
    import osmium  # noqa: PLC0415 - an optional extra

    relations = osmium.FileProcessor(str(source), osmium.osm.RELATION)
    for relation in relations.with_filter(osmium.filter.TagFilter(("type", "restriction"))):
        if not isinstance(relation, osmium.osm.Relation):
            continue
        rule = relation.tags.get("restriction:motorcar") or relation.tags.get("restriction") or ""
        if not rule.startswith(("no_", "only_")) or "motorcar" in (relation.tags.get("except") or ""):
            continue
        members = {(member.role, member.type): member.ref for member in relation.members}
        came, via, goes = (members.get(key, -1) for key in (("from", "w"), ("via", "n"), ("to", "w")))
        if came in ways and goes in ways and via in points:
            yield roads.Turn(ways[came], points[via], ways[goes], rule.startswith("only_"))


def _road_class(tags: Any) -> int | None:
    kind = tags.get("highway")
    kind = LINKS.get(kind) or OTHERS.get(kind, kind)
    if tags.get("access") in CLOSED or tags.get("motor_vehicle") in CLOSED or tags.get("area") == "yes":
        return None
    if tags.get("service") in NOT_STREETS:
        return None
    return roads.CLASS_NUMBERS.get(kind)


def _direction(tags: Any) -> int:
    """1 one-way along the points, -1 against them, 0 both."""
    value = tags.get("oneway")
    if value in {"yes", "true", "1"}:
        return 1
    if value in {"-1", "reverse"}:
        return -1
    if value == "no":
        return 0
    return 1 if tags.get("junction") in {"roundabout", "circular"} or tags.get("highway") == "motorway" else 0


def _limit_kmh(value: str | None) -> float:
    number, _, unit = (value or "").partition(" ")
    if not number.isdecimal():
        return 0.0
    return min(float(number), 200.0) * (MPH if unit == "mph" else 1.0)


def main(argv: list[str]) -> int:
    """Import argv[0] to argv[1], one JSON line of progress at a time."""
    source, target = Path(argv[0]), Path(argv[1])

    def tell(share: float, text: str) -> None:
        sys.stdout.write(msgspec.json.encode(_Line(share, text)).decode() + "\n")
        sys.stdout.flush()

    try:
        network = read_roads(source, tell)
        tell(0.9, f"saving {len(network.lat):,} junctions")
        part = target.with_suffix(".part")
        part.write_bytes(network.to_bytes())
        part.rename(target)
    except FourplaneError as error:
        sys.stdout.write(msgspec.json.encode(_Line(failed=error.message)).decode() + "\n")
        return 1
    tell(1.0, f"{network.name}: {len(network.lat):,} junctions, {len(network.heads):,} edges")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
