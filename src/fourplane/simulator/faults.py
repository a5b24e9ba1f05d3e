"""What an experiment may do to a world: the actions its method names. Each is a lease of `duration_s` and then undone.

Scope: `zone` or `region` says whose hosts are meant; without either a fault of the network is between all users and the system.
"""

from fourplane.simulator.links import Disturbance
from fourplane.simulator.stage import Stage, current

SEPARATE = "partition"


def instance_loss(duration_s: float = 3.0) -> None:
    """The system's process dies without a word and is started again on its disk."""
    stage = current()
    stage.deployment.crash()
    stage.lease("instance loss", duration_s, stage.deployment.begin)


def zone_loss(zone: str, duration_s: float = 5.0) -> None:
    """A zone loses power: its systems die, its hosts reach nobody and nobody reaches them."""
    _darkness(f"loss of zone {zone}", current().hosts(zone=zone), duration_s)


def region_loss(region: str, duration_s: float = 5.0) -> None:
    """The same for a whole region."""
    _darkness(f"loss of region {region}", current().hosts(region=region), duration_s)


def latency(latency_s: float, jitter_s: float = 0.0, duration_s: float = 5.0, zone: str = "", region: str = "") -> None:
    """Every message between these hosts and the system takes longer."""
    _between(
        f"latency {latency_s:g} s", duration_s, zone, region, Disturbance(frozenset(), frozenset(), latency_s, jitter_s)
    )


def packet_loss(share: float, duration_s: float = 5.0, zone: str = "", region: str = "") -> None:
    """A share of the messages must be sent again."""
    _between(f"packet loss {share:.0%}", duration_s, zone, region, Disturbance(frozenset(), frozenset(), loss=share))


def narrow_link(bytes_per_s: float, duration_s: float = 5.0, zone: str = "", region: str = "") -> None:
    """The way carries this much and no more."""
    narrow = Disturbance(frozenset(), frozenset(), bandwidth=bytes_per_s)
    _between(f"{bytes_per_s:g} bytes/s", duration_s, zone, region, narrow)


def partition(duration_s: float = 5.0, zone: str = "", region: str = "", *, one_way: bool = False) -> None:
    """These hosts and the system do not hear each other; one way: the system is not heard."""
    stage = current()
    system, users = frozenset({stage.deployment.host}), stage.hosts(zone=zone, region=region) - {stage.deployment.host}
    cuts = [Disturbance(system, users, cut=True)]
    if not one_way:
        cuts.append(Disturbance(users, system, cut=True))
    stage.disturb(SEPARATE, duration_s, cuts)


def disk_stall(stall_s: float = 0.5, duration_s: float = 5.0) -> None:
    """Every job of the system's disk takes this much longer."""
    stage = current()
    host = stage.deployment.host
    stage.world.stall(host, stall_s)
    stage.lease(f"disk stall {stall_s:g} s", duration_s, lambda: stage.world.stall(host, 0.0))


def disk_full(free_bytes: int = 0, duration_s: float = 5.0) -> None:
    """The system's disk takes no more than this; when there is room again the process is started anew."""
    stage = current()
    faults = stage.deployment.disk.faults
    assert faults is not None
    faults.free_bytes = free_bytes

    def undo() -> None:
        faults.free_bytes = None
        _restart(stage)

    stage.lease("disk full", duration_s, undo)


def disk_sync_failure(duration_s: float = 3.0) -> None:
    """The disk refuses to make anything durable; the process is started anew when it does again."""
    stage = current()
    faults = stage.deployment.disk.faults
    assert faults is not None
    faults.failing_syncs = 1_000_000

    def undo() -> None:
        faults.failing_syncs = 0
        _restart(stage)

    stage.lease("disk refuses to sync", duration_s, undo)


def clock_skew(skew_s: float, duration_s: float = 5.0) -> None:
    """The system's wall clock is wrong by this much."""
    stage = current()
    host = stage.deployment.host
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
    falls = stage.deployment.host in hosts
    if falls:
        stage.deployment.crash(silent=True)
    for cut in cuts:
        stage.world.network.disturb(cut)

    def undo() -> None:
        for cut in cuts:
            stage.world.network.calm(cut)
        if falls:
            stage.deployment.begin()

    stage.lease(name, duration_s, undo)


def _between(name: str, duration_s: float, zone: str, region: str, what: Disturbance) -> None:
    stage = current()
    system = frozenset({stage.deployment.host})
    users = stage.hosts(zone=zone, region=region) - system
    changed = [
        Disturbance(senders, receivers, what.latency_s, what.jitter_s, what.loss, what.bandwidth)
        for senders, receivers in ((system, users), (users, system))
    ]
    stage.disturb(name, duration_s, changed)


def _restart(stage: Stage) -> None:
    stage.deployment.crash()
    stage.deployment.begin()


def _pay_slowly(stage: Stage, delay_s: float) -> None:
    stage.deployment.payment_delay_s = delay_s
    if stage.deployment.platform is not None:
        stage.deployment.platform.payments.delay_s = delay_s
