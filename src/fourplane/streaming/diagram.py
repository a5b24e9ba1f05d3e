"""The study's boxes as they exist here: what each one is, its figures, its switch; hollow where nothing is built."""

from collections.abc import Callable

from fourplane.control.nodes import Figures, Node, Plane, Switch, hollow
from fourplane.foundation import clock
from fourplane.streaming.settings import CdnSettings
from fourplane.streaming.system import StreamingRooms

JOURNEY = "journeys/streaming.md"
NAMES = {"us": "US East", "eu": "EU West", "asia": "Asia Pacific"}
REGION_BOX = {"us": "CDN_US", "eu": "CDN_EU", "asia": "CDN_ASIA"}
HOLLOW: tuple[tuple[str, Plane, str], ...] = (
    ("AWS_CF", "edge", "A second delivery network that takes over when ours fails is not built yet."),
    ("USER_SVC", "service", "Accounts are shared by all systems; viewer profiles are not built yet."),
    ("REC_SVC", "service", "Recommendations are not built yet."),
    ("BILLING_SVC", "service", "Plans and invoices are not built yet; the entitlement hook of play is their place."),
    ("CASSANDRA", "state", "Viewing history per profile is not built yet."),
    ("SPINNAKER", "control", "Canaries and rollout are not built yet."),
    ("EUREKA", "control", "Discovery leases are not built yet; the delivery tree is configured."),
    ("HYSTRIX", "control", "A breaker and limits around every call are not built yet."),
    ("MONKEY", "control", "Ending instances at random is not built yet; every box here has a switch."),
    ("GORILLA", "control", "Losing a zone is not built yet."),
    ("KONG", "control", "Losing a region on a schedule is not built yet; a region's box has a switch."),
    ("AZ1", "service", "Zones come with placement over machines."),
    ("AZ2", "service", "Zones come with placement over machines."),
    ("AZ3", "service", "Zones come with placement over machines."),
    ("ALERT", "control", "Alerts over objectives are not built yet."),
    ("RUNBOOK", "control", "Automatic runbooks are not built yet."),
    ("ROLLBACK", "control", "Automatic rollback is not built yet."),
)


def nodes_of(rooms: StreamingRooms) -> list[Node]:
    """Every box of the Netflix diagrams."""
    return [
        *_services(rooms),
        *_pipeline(rooms),
        *_tree(rooms),
        *_quality(rooms),
        *[hollow(name, plane, what) for name, plane, what in HOLLOW],
    ]


def _box(
    name: str,
    plane: Plane,
    what: str,
    source: str,
    figures: Callable[[], Figures],
    *,
    switch: Switch | None = None,
    page: str = "/streaming/",
) -> Node:
    return Node(
        id=name, plane=plane, what=what, source=source, figures=figures, switch=switch, journey=JOURNEY, page=page
    )


def _services(rooms: StreamingRooms) -> list[Node]:
    def play() -> Figures:
        quality = rooms.quality
        return Figures(
            quality.plays,
            rooms.playback.refused,
            latency=rooms.play_seconds,
            facts={"sessions": quality.statistics(clock.monotonic_s()).sessions},
        )

    def gateway() -> Figures:
        return Figures(rooms.quality.plays + rooms.titles.reads, rooms.playback.refused, latency=rooms.play_seconds)

    def titles() -> Figures:
        return Figures(rooms.titles.reads)

    def searches() -> Figures:
        return Figures(rooms.finder.searches, facts={"index": "search engine" if rooms.finder.indexed else "sql store"})

    def cells() -> Figures:
        return Figures(rooms.registry.events_total, facts={"series": len(rooms.registry.cells)})

    play_switch = rooms.play_switch
    return [
        _box(
            "API_GW",
            "service",
            "The gateway in front of browse, play, beacons and studio.",
            "edge/gateway.py",
            gateway,
        ),
        _box(
            "STREAM_SVC",
            "service",
            "Play: entitlement, the nearest healthy node, signed addresses.",
            "streaming/playback.py",
            play,
            switch=play_switch,
        ),
        _box(
            "MYSQL",
            "state",
            "Titles and import jobs in the sql store; billing is not there yet.",
            "streaming/titles.py",
            titles,
        ),
        _box(
            "ES",
            "state",
            "Search over titles, people, genres and series.",
            "streaming/finding.py",
            searches,
        ),
        _box(
            "ATLAS",
            "control",
            "Metric cells of this process, folded when read.",
            "foundation/telemetry.py",
            cells,
            page="/",
        ),
        _box("DASHBOARD", "control", "The console that shows this.", "console/app.py", cells, page="/"),
    ]


def _pipeline(rooms: StreamingRooms) -> list[Node]:
    def encoder() -> Figures:
        seen = rooms.jobs.statistics()
        share = 0.0 if rooms.jobs.progress is None else rooms.jobs.progress.share
        return Figures(
            seen.done + seen.failed,
            seen.failed,
            saturation=1.0 if seen.running else 0.0,
            latency=rooms.jobs.seconds,
            facts={"waiting": seen.waiting, "percent": round(100 * share), "film seconds": round(seen.film_s)},
        )

    def origin() -> Figures:
        delivery = rooms.delivery
        return Figures(
            delivery.origin_requests,
            delivery.origin_errors,
            latency=delivery.origin_seconds,
            facts={"MB sent": round(delivery.origin_bytes / 1e6, 1)},
        )

    def studio() -> Figures:
        return Figures(rooms.uploads.received >> 20, facts={"MB received": rooms.uploads.received >> 20})

    jobs, origin_switch = rooms.jobs.switch, rooms.delivery.origin_switch
    return [
        _box(
            "S3",
            "state",
            "Published versions as blobs; read by the origin only.",
            "streaming/packaging.py",
            origin,
        ),
        _box(
            "STUDIO",
            "service",
            "Where films come in: uploads in pieces, resumed where they broke.",
            "streaming/uploads.py",
            studio,
            switch=rooms.studio_switch,
            page="/streaming/studio",
        ),
        _box(
            "ENCODING",
            "service",
            "The ladder of every film, in chunks on all cores, resumable.",
            "streaming/encoding.py",
            encoder,
            switch=jobs,
            page="/streaming/studio",
        ),
        _box(
            "CDN_ORIGIN",
            "state",
            "Turns a path of a published version into bytes of blobs.",
            "streaming/origin.py",
            origin,
            switch=origin_switch,
            page="/streaming/cdn",
        ),
    ]


def _tree(rooms: StreamingRooms) -> list[Node]:
    boxes: list[Node] = []
    for node in rooms.settings.cdn:
        figures = _cache_figures(rooms, (node,))
        kind = (
            f"The edge of {NAMES.get(node.region, node.region)}"
            if not node.parent
            else f"An ISP's cache below {node.parent}"
        )
        what = f"{kind}: at most {node.bytes_max >> 20} MB on disk, port {node.port}."
        switch = rooms.delivery.switches[node.id]
        boxes.append(_box(node.id, "edge", what, "edge/cache_node.py", figures, switch=switch, page="/streaming/cdn"))
    for region, name in REGION_BOX.items():
        nodes = tuple(node for node in rooms.settings.cdn if node.region == region)
        if not nodes:
            boxes.append(hollow(name, "edge", f"No node is configured in region {region}."))
            continue
        what = f"All cache nodes of {NAMES[region]}: {', '.join(node.id for node in nodes)}."
        figures, switch = _cache_figures(rooms, nodes), rooms.delivery.regions[region]
        boxes.append(_box(name, "edge", what, "edge/cache_node.py", figures, switch=switch, page="/streaming/cdn"))
        if region in {"us", "eu"}:
            what = f"The region {NAMES[region]}; its switch takes all its nodes away and players move to another."
            identity = f"REGION_{region.upper()}"
            boxes.append(
                _box(identity, "service", what, "streaming/delivery.py", figures, switch=switch, page="/streaming/cdn")
            )
    return boxes


def _cache_figures(rooms: StreamingRooms, nodes: tuple[CdnSettings, ...]) -> Callable[[], Figures]:
    def figures() -> Figures:
        running = [rooms.delivery.nodes[node.id] for node in nodes if node.id in rooms.delivery.nodes]
        seen = [node.statistics() for node in running]
        requests, hits = sum(one.requests for one in seen), sum(one.hits for one in seen)
        stored, bound = sum(one.bytes_stored for one in seen), sum(one.bytes_max for one in seen)
        return Figures(
            requests,
            sum(one.errors for one in seen),
            saturation=stored / bound if bound else 0.0,
            latency=running[0].latency if running else None,
            facts={
                "hit ratio": round(hits / requests, 3) if requests else 0.0,
                "objects": sum(one.entries for one in seen),
                "MB stored": round(stored / 1e6, 1),
                "MB out": round(sum(one.bytes_out for one in seen) / 1e6, 1),
                "MB filled": round(sum(one.bytes_filled for one in seen) / 1e6, 1),
            },
        )

    return figures


def _quality(rooms: StreamingRooms) -> list[Node]:
    def start() -> Figures:
        seen = rooms.quality.statistics(clock.monotonic_s())
        facts: dict[str, float | int | str] = {"p50 ms": round(seen.start_p50_ms), "p99 ms": round(seen.start_p99_ms)}
        return Figures(seen.starts, latency=rooms.quality.starts, facts={**facts, "goal": "p99 < 100 ms"})

    def rebuffer() -> Figures:
        seen = rooms.quality.statistics(clock.monotonic_s())
        percent = round(100 * seen.rebuffer_ratio, 3)
        return Figures(
            seen.stalls, facts={"percent of time": percent, "hours": round(seen.played_s / 3600, 2), "goal": "< 0.5 %"}
        )

    def heights() -> Figures:
        seen = rooms.quality.statistics(clock.monotonic_s())
        facts: dict[str, float | int | str] = {name: f"{share:.0%}" for name, share in seen.heights.items()}
        return Figures(seen.starts, facts={**facts, "4K": f"{seen.tall_share:.0%}", "goal": "4K 25 %"})

    def cost() -> Figures:
        sent = sum(node.bytes_out for node in rooms.delivery.nodes.values())
        price = rooms.settings.cost_per_gb
        return Figures(
            sent >> 20, facts={"$": round(sent / 1e9 * price, 4), "GB": round(sent / 1e9, 3), "$ per GB": price}
        )

    source, page = "streaming/quality.py", "/streaming/cdn"
    return [
        _box(
            "LATENCY",
            "control",
            "Time from play to the first picture, as players measured it.",
            source,
            start,
            page=page,
        ),
        _box("REBUFFER", "control", "Share of watching time spent waiting.", source, rebuffer, page=page),
        _box("QUALITY", "control", "Picture heights by seconds watched.", source, heights, page=page),
        _box("COST", "control", "Delivered bytes at the configured price.", source, cost, page=page),
    ]
