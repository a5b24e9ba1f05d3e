"""Experiments that are never finished: each breaks things and renews them until it is killed.

`python abandoned.py SOCKET FIRST COUNT` forks one process for each and writes its number once its faults are there.
"""

import asyncio
import os
import random
import sys

from fourplane.foundation.errors import FourplaneError
from fourplane.service import control_socket

FAULTS = (
    ("latency", {"latency_s": 0.2}),
    ("latency", {"latency_s": 0.1, "percent": 30}),
    ("errors", {"status": 503, "percent": 10}),
    ("errors", {"status": 500, "route": "/commerce/search"}),
    ("partition", {"percent": 10}),
    ("cpu_burn", {}),
    ("disk_full", {}),
    ("disk_stall", {"stall_s": 0.05}),
    ("clock_skew", {"skew_s": 3600}),
    ("change", {"name": "rehearsal.commerce.delay_s", "value": 0.2, "duration_s": 4}),
)
LEASE_S = 2.0


async def main(socket, seed):
    draw = random.Random(seed)

    async def order(what, **arguments):
        return await control_socket.ask(socket, "faults", {"order": what, "system": "commerce", **arguments})

    begun = []
    for kind, arguments in draw.sample(FAULTS, draw.randint(1, 3)):
        try:
            wanted = {"duration_s": 600} | arguments
            begun += (await order("begin", kind=kind, arguments=wanted, lease_s=LEASE_S))["ids"]
        except FourplaneError as error:
            if error.reason not in {"fault_lasts", "too_many_faults"}:
                raise
    os.write(1, b"%d\n" % os.getpid())
    while True:
        await order("renew", ids=begun, lease_s=LEASE_S)
        if draw.random() < 0.1:
            raise SystemExit(1)  # an experiment whose own code failed
        await asyncio.sleep(0.2)


for number in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
    if os.fork() == 0:
        asyncio.run(main(sys.argv[1], number))
for _ in range(int(sys.argv[3])):
    os.wait()
