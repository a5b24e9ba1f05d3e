"""A cache node alone on its host, far from the origin it fills from, and how steering hears whether it answers.

The node is the same as in `./fourplane cache`. Home asks every node for a sign of life; one that gives none is switched off in
steering until it does again, so that new plays go elsewhere; players that are under way move by themselves.
"""

from fourplane.control.nodes import Switch
from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
from fourplane.edge.cache_origin import OriginSettings
from fourplane.edge.listener import ListenerSettings
from fourplane.foundation import clock
from fourplane.foundation.errors import FourplaneError
from fourplane.foundation.lifecycle import Tasks
from fourplane.service import call_context
from fourplane.service.rpc import idempotent
from fourplane.simulator.deployment import Platform
from fourplane.streaming.playback import MediaGuard

ASK_S = 2.0


class Health:
    """What steering asks a node."""

    @idempotent
    async def is_alive(self) -> bool:
        """Whether it serves."""
        return True


class CacheSite(Health):
    """A lifecycle part: one node, filled from the origin at home."""

    def __init__(self, on: Platform, *, port: int, origin: str, origin_port: int) -> None:
        self.node = CacheNode(
            CacheNodeSettings(
                name=on.host,
                listener=ListenerSettings(host=on.host, port=port),
                origin=OriginSettings(host=origin, port=origin_port),
                obey_request=False,
                whole=True,
                key_host=False,
                cors=True,
            ),
            registry=on.registry,
            guard=MediaGuard(on.signer),
        )

    async def start(self, tasks: Tasks) -> None:
        await self.node.start(tasks)

    async def drain(self) -> None:
        await self.node.drain()

    async def stop(self) -> None:
        await self.node.stop()


async def watched(health: Health, switch: Switch) -> None:
    """Keep the switch as the node is; runs until it is cancelled."""
    while True:
        try:
            with call_context.within(ASK_S):
                switch.on = await health.is_alive()
        except FourplaneError:
            switch.on = False
        await clock.sleep(ASK_S)
