"""From needs to machines, money and availability: one plan.

Cores: the peak over what one core does, with `HEADROOM` of each core left free. On a machine of c cores the work is worth
`effective(c)` cores (`scalability.py`). With zones the rest must carry a lost one (z / (z - 1)); with regions the others must
carry a lost region (r / (r - 1)). The cheapest kind of machine wins.

Availability of the topology alone: machines, zones and regions fail independently; a component stands while one zone
at most is down, the whole while every component stands in one region at least, minus the time that moving the users of a lost
region takes. Mistakes of people and of programs are not in it; no formula has them.

Phase: 1 while everything fits one process, 2 while it fits machines in one place, 3 with zones, 4 with regions and edge nodes.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from fourplane.control.plan import studies
from fourplane.control.plan.demand import ASSUMPTIONS, Assumption, Need, System, assumed, needs
from fourplane.control.plan.figures import Figure
from fourplane.control.plan.prices import Machine, Prices
from fourplane.control.plan.scalability import Scalability
from fourplane.foundation.errors import Rejected

HEADROOM = 0.6
MEMORY_USED = 0.7
NETWORK_USED = 0.7
PHASE_2_CORES = 16.0
PHASE_4_USERS = 100_000_000  # the studies' own border
REGIONS_MAX, ZONES_MAX = 30, 6
MACHINE_UP, ZONE_UP, REGION_UP = 0.999, 0.9995, 0.9999
REGION_LOSSES_A_YEAR, EVACUATION_S, YEAR_S = 0.5, 60.0, 365.25 * 86_400
POINTS_A_MACHINE = 100.0  # metric points a second that one machine sends
DEFAULT_SCALABILITY = Scalability(1.0, 0.03, 0.0002)


class _Ground(msgspec.Struct, frozen=True):
    """What every line of one plan is computed with."""

    figures: Mapping[str, Figure]
    prices: Prices
    law: Scalability
    regions: int
    zones: int
    phase: int


class Line(msgspec.Struct, frozen=True):
    """One component of a plan."""

    component: str
    plane: str
    study_row: str
    peak: float
    unit: str
    per_core: float
    basis: str
    cores: float
    machines: int
    machine: str
    stored_gb: float
    moved_gb: float
    cost: float


class Plan(msgspec.Struct, frozen=True):
    """What so many users take."""

    system: System
    users: int
    regions: int
    zones: int
    phase: int
    why: str
    next_phase: str
    lines: list[Line]
    machines: int
    cost: float
    currency: str
    cost_per_user: float
    availability: float
    down_minutes_a_month: float
    study: list[tuple[str, str, str, str, str]]
    study_users: int
    figures: list[Figure]
    assumptions: list[Assumption]
    scalability: Scalability
    scalability_basis: str


def plan(
    system: System,
    users: int,
    *,
    figures: Mapping[str, Figure],
    prices: Prices,
    regions: int = 0,
    zones: int = 0,
    habits: Mapping[str, float] | None = None,
    scalability: Scalability | None = None,
) -> Plan:
    """The plan; `regions` and `zones` 0: as many as the phase has. Raises Rejected for sizes that make no sense."""
    if not 0 <= regions <= REGIONS_MAX or not 0 <= zones <= ZONES_MAX:
        raise Rejected(f"a plan has up to {REGIONS_MAX} regions of up to {ZONES_MAX} zones", code="bad_topology")
    law = scalability or DEFAULT_SCALABILITY
    values = assumed(system, habits)
    wanted = needs(system, users, values, figures["session_bytes"].value)
    cores = {need.component: _cores(need, figures) for need in wanted}
    phase, why = _phase(users, wanted, sum(cores.values()), regions, zones)
    regions = regions or (3 if phase == 4 else 1)
    zones = zones or (3 if phase >= 3 else 1)
    ground = _Ground(figures, prices, law, regions, zones, phase)
    lines = [_line(need, cores[need.component], ground) for need in wanted]
    if phase == 1:
        lines = _together(lines, wanted, prices, law)
    lines.append(_monitoring(sum(line.machines for line in lines), ground))
    cost = sum(line.cost for line in lines)
    up = availability(regions, zones, sum(line.machines > 0 for line in lines), alone=phase == 1)
    used = {need.figure for need in wanted if need.figure} | ({"session_bytes"} if system == "messaging" else set())
    return Plan(
        system, users, regions, zones, phase, why, _next(phase, users, wanted, cores, figures), lines,
        sum(line.machines for line in lines), cost, prices.currency, cost / users, up, (1 - up) * 30 * 24 * 60,
        list(studies.ROWS[system]), studies.USERS[system], [figures[name] for name in sorted(used)],
        [Assumption(one.name, values[one.name], one.what) for one in ASSUMPTIONS[system]], law,
        "measured" if scalability is not None else "assumed",
    )  # fmt: skip


def availability(regions: int, zones: int, components: int, *, alone: bool = False) -> float:
    """The share of time in which the topology carries its users."""
    if alone:
        return MACHINE_UP * ZONE_UP * REGION_UP
    if zones == 1:
        component = ZONE_UP
        region = REGION_UP * component  # all components share the zone
    else:
        down = 1 - ZONE_UP
        component = sum(math.comb(zones, lost) * down**lost * ZONE_UP ** (zones - lost) for lost in (0, 1))
        region = REGION_UP * component
    del components  # they stand and fall with the same zones
    moving = REGION_LOSSES_A_YEAR * EVACUATION_S / YEAR_S if regions > 1 else 0.0
    return (1 - (1 - region) ** regions) * (1 - moving)


def _cores(need: Need, figures: Mapping[str, Figure]) -> float:
    return need.peak / (figures[need.figure].value * HEADROOM) if need.figure else 0.0


def _phase(users: int, wanted: Sequence[Need], cores: float, regions: int, zones: int) -> tuple[int, str]:
    memory = sum(need.memory_gib for need in wanted)
    if regions > 1:
        return 4, f"{regions} regions were asked for"
    if users >= PHASE_4_USERS:
        return 4, f"more than {PHASE_4_USERS:,} users, as in the studies: a region must be able to go"
    if zones > 1:
        return 3, f"{zones} zones were asked for"
    if cores > PHASE_2_CORES:
        return 3, f"{cores:,.0f} cores at the peak: a machine's loss must not be everybody's"
    if cores > 1 or memory > 4:
        return 2, f"{cores:,.1f} cores and {memory:,.1f} GiB at the peak: more than one process carries"
    return 1, f"{cores:,.2f} cores at the peak: one process carries it"


def _next(
    phase: int, users: int, wanted: Sequence[Need], cores: Mapping[str, float], figures: Mapping[str, Figure]
) -> str:
    total = sum(cores.values())
    if phase == 4 or total <= 0:
        return "the last phase: more of the same"
    busiest = max(wanted, key=lambda need: cores[need.component])
    figure = figures[busiest.figure]
    told = f"{busiest.component.lower()} fills up first ({digits(figure.value)} {figure.unit}, {figure.basis})"
    match phase:
        case 1:
            limit = users / total
            return f"phase 2 at about {_round(limit):,} users: {told}, and one process has one core"
        case 2:
            return f"phase 3 at about {_round(users * PHASE_2_CORES / total):,} users: {told}, and a lost machine is too much"
    return f"phase 4 at about {PHASE_4_USERS:,} users, or when users far away must be near: a region must be able to go"


def _line(need: Need, cores: float, ground: _Ground) -> Line:
    figures, prices, phase = ground.figures, ground.prices, ground.phase
    regions, zones = ground.regions, ground.zones
    spare = (zones / (zones - 1) if zones > 1 else 1.0) * (regions / (regions - 1) if regions > 1 else 1.0)
    gbit = need.peak * 8 if need.unit == "GB/s" else 0.0
    wanted, memory = cores * spare, need.memory_gib * spare / MEMORY_USED
    machine, count = _cheapest(prices, ground.law, wanted, memory, gbit * spare / NETWORK_USED)
    if count:
        count = max(count, zones * regions)
    copies = (3 if phase >= 3 else 1) * regions
    objects = need.object_gb * regions
    cost = (
        count * machine.per_month
        + need.disk_gb * copies * prices.disk_gb
        + objects * prices.object_gb
        + need.egress_gb * prices.egress_gb
        + need.delivered_gb * (prices.own_delivery_gb if phase == 4 else prices.egress_gb)
        + (need.disk_gb + need.object_gb) * 0.05 * (regions - 1) * prices.between_regions_gb
    )
    figure = figures[need.figure] if need.figure else None
    return Line(
        need.component, need.plane, need.study_row, need.peak, need.unit, figure.value if figure else 0.0,
        figure.basis if figure else "derived", wanted, count, machine.name if count else "",
        need.disk_gb * copies + objects, need.egress_gb + need.delivered_gb, cost,
    )  # fmt: skip


def _cheapest(prices: Prices, law: Scalability, cores: float, memory: float, gbit: float) -> tuple[Machine, int]:
    def count(machine: Machine) -> int:
        parts = (cores / law.effective(machine.cores), memory / machine.memory_gib, gbit / machine.network_gbit_s)
        return math.ceil(max(parts) - 1e-9)

    best = min(prices.machines, key=lambda machine: (count(machine) * machine.per_month, machine.per_month))
    return best, count(best)


def _together(lines: list[Line], wanted: Sequence[Need], prices: Prices, law: Scalability) -> list[Line]:
    """Phase 1: one machine for all; it is written with the first line."""
    memory = sum(need.memory_gib for need in wanted) / MEMORY_USED
    machine, _ = _cheapest(prices, law, sum(line.cores for line in lines), max(memory, 1.0), 0.0)
    kinds = {one.name: one.per_month for one in prices.machines}
    alone = []
    for number, line in enumerate(lines):
        own = line.machines * kinds.get(line.machine, 0.0)
        first = number == 0
        alone.append(
            msgspec.structs.replace(
                line,
                machines=1 if first else 0,
                machine=machine.name if first else "the same process",
                cost=line.cost - own + (machine.per_month if first else 0.0),
            )
        )
    return alone


def _monitoring(machines: int, ground: _Ground) -> Line:
    points, figure = machines * POINTS_A_MACHINE, ground.figures["points"]
    cores = points / (figure.value * HEADROOM)
    machine, count = _cheapest(ground.prices, ground.law, max(cores, 0.01), 0.0, 0.0)
    alone = ground.phase == 1
    count = 0 if alone else max(count, ground.zones)
    return Line(
        "Metrics and control", "control", "Monitoring", points, "points/s", figure.value, figure.basis, cores, count,
        "the same process" if alone else machine.name, 0.0, 0.0, count * machine.per_month,
    )  # fmt: skip


def digits(value: float) -> str:
    """Whole numbers from a hundred on, fewer digits below; a forecast has no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _round(value: float) -> int:
    """Two digits are all that a forecast has."""
    if value < 1:
        return 1
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / unit) * unit)
