"""What an experiment may do to a world: the actions its method names. Each is a lease of `duration_s` and then undone.

Scope: `zone` or `region` says whose hosts are meant; without either a fault of the network is between all users and the system.
`percent` takes that share of the hosts, at least one, drawn by the seed. Where the system has several sites, a fault of a
process, a disk or a clock meets one of them, drawn by the seed; the loss of a zone or region meets all that stand in it.
"""

from fourplane.foundation.errors import Rejected
from fourplane.simulator.deployment import SimulatedDeployment
from fourplane.simulator.links import Disturbance
from fourplane.simulator.stage import Stage, current

SEPARATE = "partition"


def instance_loss(duration_s: float = 3.0) -> None:
    """The system's process dies without a word and is started again on its disk."""
    stage, site = current(), _some_site()
    site.crash()
    stage.lease("instance loss", duration_s, site.begin)


def leader_loss(duration_s: float = 8.0) -> None:
    """The machine under the system's leader is gone for this long; where there are replicas, another one takes over."""
    stage, site = current(), _some_site()
    site.lose_host()
    stage.lease(f"loss of {site.host}", duration_s, site.begin)


def zone_loss(zone: str, duration_s: float = 5.0) -> None:
    """A zone loses power: its systems die, its hosts reach nobody and nobody reaches them."""
    _darkness(f"loss of zone {zone}", current().hosts(zone=zone), duration_s)


def region_loss(region: str, duration_s: float = 5.0) -> None:
    """The same for a whole region."""
    _darkness(f"loss of region {region}", current().hosts(region=region), duration_s)


def latency(
    latency_s: float,
    jitter_s: float = 0.0,
    duration_s: float = 5.0,
    zone: str = "",
    region: str = "",
    *,
    percent: float = 100.0,
) -> None:
    """Every message between these hosts and the system takes longer."""
    slow = Disturbance(frozenset(), frozenset(), latency_s, jitter_s)
    _between(f"latency {latency_s:g} s", duration_s, _users(zone, region, percent), slow)


def packet_loss(
    share: float, duration_s: float = 5.0, zone: str = "", region: str = "", *, percent: float = 100.0
) -> None:
    """A share of the messages must be sent again."""
    lossy = Disturbance(frozenset(), frozenset(), loss=share)
    _between(f"packet loss {share:.0%}", duration_s, _users(zone, region, percent), lossy)


def narrow_link(
    bytes_per_s: float, duration_s: float = 5.0, zone: str = "", region: str = "", *, percent: float = 100.0
) -> None:
    """The way carries this much and no more."""
    narrow = Disturbance(frozenset(), frozenset(), bandwidth=bytes_per_s)
    _between(f"{bytes_per_s:g} bytes/s", duration_s, _users(zone, region, percent), narrow)


def partition(
    duration_s: float = 5.0, zone: str = "", region: str = "", *, one_way: bool = False, percent: float = 100.0
) -> None:
    """These hosts and the system do not hear each other; one way: the system is not heard."""
    stage = current()
    system, users = stage.sites.hosts, _users(zone, region, percent)
    cuts = [Disturbance(system, users, cut=True)]
    if not one_way:
        cuts.append(Disturbance(users, system, cut=True))
    stage.disturb(SEPARATE, duration_s, cuts)


def leader_alone(duration_s: float = 6.0) -> None:
    """The leader reaches its users and no other replica; without replicas nothing happens."""
    stage, site = current(), _some_site()
    leader = frozenset({site.host})
    rest = site.hosts - leader
    cuts = [Disturbance(leader, rest, cut=True), Disturbance(rest, leader, cut=True)]
    stage.disturb(f"{site.host} alone", duration_s, cuts)


def service_partition(duration_s: float = 6.0, zone: str = "", region: str = "", *, one_way: bool = False) -> None:
    """Sites of a zone or region (or one drawn) and those elsewhere do not hear each other; users hear them all."""
    stage = current()
    here = stage.hosts(zone=zone, region=region) & stage.sites.hosts if zone or region else _some_site().hosts
    rest = stage.sites.hosts - here
    cuts = [Disturbance(here, rest, cut=True)]
    if not one_way:
        cuts.append(Disturbance(rest, here, cut=True))
    stage.disturb("partition between services", duration_s, cuts)


def disk_stall(stall_s: float = 0.5, duration_s: float = 5.0) -> None:
    """Every job of the system's disk takes this much longer."""
    stage = current()
    host = _some_site().host
    stage.world.stall(host, stall_s)
    stage.lease(f"disk stall {stall_s:g} s", duration_s, lambda: stage.world.stall(host, 0.0))


def disk_full(free_bytes: int = 0, duration_s: float = 5.0) -> None:
    """The system's disk takes no more than this; when there is room again the process is started anew."""
    stage, site = current(), _some_site()
    faults = site.disk.faults
    assert faults is not None
    faults.free_bytes = free_bytes

    def undo() -> None:
        faults.free_bytes = None
        _restart(site)

    stage.lease("disk full", duration_s, undo)


def disk_sync_failure(duration_s: float = 3.0) -> None:
    """The disk refuses to make anything durable; the process is started anew when it does again."""
    stage, site = current(), _some_site()
    faults = site.disk.faults
    assert faults is not None
    faults.failing_syncs = 1_000_000

    def undo() -> None:
        faults.failing_syncs = 0
        _restart(site)

    stage.lease("disk refuses to sync", duration_s, undo)


def clock_skew(skew_s: float, duration_s: float = 5.0) -> None:
    """The system's wall clock is wrong by this much."""
    stage = current()
    host = _some_site().host
    stage.world.skew(host, skew_s)
    stage.lease(f"clock {skew_s:+g} s", duration_s, lambda: stage.world.skew(host, 0.0))


def slow_dependency(delay_s: float = 3.0, duration_s: float = 5.0) -> None:
    """The payment provider answers this much later."""
    stage = current()
    _pay_slowly(stage, delay_s)
    stage.lease(f"payments {delay_s:g} s slower", duration_s, lambda: _pay_slowly(stage, 0.0))


def retry_storm(factor: float = 10.0, duration_s: float = 5.0) -> None:
    """Everybody acts this many times as often, as people do who press a button again and again."""
    stage = current()
    stage.people.surge(factor)
    stage.lease(f"{factor:g} times the traffic", duration_s, lambda: stage.people.surge(1.0))


def undo_all() -> None:
    """End every fault that has not ended: what rollbacks ask for, and what the runner does anyway."""
    current().undo_all()


def _darkness(name: str, hosts: frozenset[str], duration_s: float) -> None:
    stage = current()
    rest = stage.all_hosts() - hosts
    cuts = [Disturbance(hosts, rest, cut=True), Disturbance(rest, hosts, cut=True)]
    fallen = [site for site in stage.sites.all if site.host in hosts]
    for cut in cuts:
        stage.world.network.disturb(cut)
    for site in fallen:
        site.lose_host()

    def undo() -> None:
        for cut in cuts:
            stage.world.network.calm(cut)
        for site in fallen:
            site.begin()

    stage.lease(name, duration_s, undo)


def _users(zone: str, region: str, percent: float) -> frozenset[str]:
    """Whose ways are meant: hosts of users, or of the zone or region, or a share of these."""
    stage = current()
    hosts = sorted(stage.hosts(zone=zone, region=region) - stage.sites.hosts)
    if not 0 < percent <= 100:
        raise Rejected(f"percent is more than 0 and at most 100, not {percent:g}", code="experiment")
    return frozenset(stage.chance.sample(hosts, max(1, round(len(hosts) * percent / 100)))) if hosts else frozenset()


def _between(name: str, duration_s: float, users: frozenset[str], what: Disturbance) -> None:
    stage = current()
    system = stage.sites.hosts
    changed = [
        Disturbance(senders, receivers, what.latency_s, what.jitter_s, what.loss, what.bandwidth)
        for senders, receivers in ((system, users), (users, system))
    ]
    stage.disturb(name, duration_s, changed)


def _some_site() -> SimulatedDeployment:
    """The site that is meant: the only one, or one drawn by the seed."""
    stage = current()
    return stage.sites.home if len(stage.sites.all) == 1 else stage.chance.choice(stage.sites.all)


def _restart(site: SimulatedDeployment) -> None:
    site.crash()
    site.begin()


def _pay_slowly(stage: Stage, delay_s: float) -> None:
    stage.deployment.payment_delay_s = delay_s
    if stage.deployment.platform is not None:
        stage.deployment.platform.payments.delay_s = delay_s
