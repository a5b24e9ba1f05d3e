"""What players say of themselves with every request (CTA-5004, CMCD), read from the query of a media address.

Only three things are kept: that a buffer ran dry (`bs`), the measured throughput (`mtp`) and the rate asked for (`br`).
A player says `bs` once per stall, so nodes hear of stalls of players that send no beacons.
"""

import re
from urllib.parse import unquote_to_bytes

import msgspec

QUERY_MAX = 2_000
_PAIR = re.compile(rb"(br|mtp)=(\d{1,9})\b")


class CmcdStatistics(msgspec.Struct, frozen=True):
    """Totals of what was said."""

    requests: int
    starved: int
    mean_kbps: float
    mean_throughput_kbps: float


class Cmcd:
    """Listens to media requests; costs nothing for those that say nothing."""

    __slots__ = ("_asked", "_measured", "requests", "starved")

    def __init__(self) -> None:
        self.requests = 0
        self.starved = 0
        self._asked = [0, 0]
        self._measured = [0, 0]

    def hear(self, query: bytes) -> None:
        """Take one request's query, which holds `CMCD=`."""
        if len(query) > QUERY_MAX:
            return
        said = unquote_to_bytes(query.partition(b"CMCD=")[2].partition(b"&")[0])
        self.requests += 1
        for part in said.split(b","):
            if part == b"bs":
                self.starved += 1
        for name, value in _PAIR.findall(said):
            kept = self._asked if name == b"br" else self._measured
            kept[0] += 1
            kept[1] += int(value)

    def statistics(self) -> CmcdStatistics:
        return CmcdStatistics(
            self.requests,
            self.starved,
            self._asked[1] / self._asked[0] if self._asked[0] else 0.0,
            self._measured[1] / self._measured[0] if self._measured[0] else 0.0,
        )
