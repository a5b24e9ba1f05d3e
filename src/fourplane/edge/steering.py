"""Which cache node a client should use: the order of preference, from what is known of nodes and client.

The client's own ISP cache comes first, then its region's nodes, then other regions by distance; inside a class the less
loaded one, with an order that differs per client so that equal nodes share clients (rendezvous hashing). A node that is
stopped, unhealthy or full is not offered while another is. Pure: the caller knows health and load.
Source: Open Connect's steering (client's ISP and region, health, load); hashing after Thaler and Ravishankar, 1998.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

FULL = 0.95


class CdnNode(msgspec.Struct, frozen=True):
    """A node as steering sees it; `isp` is empty for a regional edge."""

    id: str
    region: str
    isp: str = ""
    healthy: bool = True
    load: float = 0.0


class Viewer(msgspec.Struct, frozen=True):
    """A client as steering sees it."""

    id: str
    region: str
    isp: str = ""


def preference(viewer: Viewer, nodes: Sequence[CdnNode], distances: Mapping[tuple[str, str], float]) -> list[str]:
    """Node ids, the best first; unhealthy and full ones only when nothing else is left.

    `distances` are between regions, in any unit; unknown pairs are far.
    """

    def rank(node: CdnNode) -> tuple[int, int, float, int, int]:
        usable = 0 if node.healthy and node.load < FULL else 1 if node.healthy else 2
        own = 0 if node.isp and node.isp == viewer.isp else 1 if not node.isp else 2
        far = 0.0 if node.region == viewer.region else distances.get((viewer.region, node.region), 1e9)
        # A foreign ISP's cache serves only its own subscribers, so it comes after every edge.
        return usable, 1 if own == 2 else 0, far, own * 100 + int(node.load * 4), _draw(viewer.id, node.id)

    return [node.id for node in sorted(nodes, key=rank)]


def isp_of(address: str, prefixes: Mapping[str, Sequence[str]]) -> str:
    """The ISP whose longest prefix holds the address, empty for none; `prefixes` are CIDR by ISP."""
    try:
        sought = ip_address(address)
    except ValueError:
        return ""
    best, found = -1, ""
    for isp, networks in prefixes.items():
        for text in networks:
            network = _network(text)
            if sought.version == network.version and sought in network and network.prefixlen > best:
                best, found = network.prefixlen, isp
    return found


@lru_cache(4_096)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)


def _draw(viewer: str, node: str) -> int:
    return int.from_bytes(blake2b(f"{viewer}/{node}".encode(), digest_size=6).digest(), "big")
