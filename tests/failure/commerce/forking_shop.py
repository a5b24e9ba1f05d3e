"""A program that forks a shop as often as it is asked: imports are paid once, every shop is a fresh process on the same folder.

Reads `start` or `reap` a line; tells `pid N`, and the child its `port N`, or `reaped`.
"""

import asyncio
import os
import sys
from pathlib import Path

from tests.journeys.commerce import rig


def main() -> None:
    data = Path(sys.argv[1])
    for line in sys.stdin:
        if line.strip() == "reap":
            os.waitpid(-1, 0)
            os.write(1, b"reaped\n")
            continue
        pid = os.fork()
        if pid == 0:
            asyncio.run(rig.serve(data))
            os._exit(0)
        os.write(1, b"pid %d\n" % pid)


if __name__ == "__main__":
    main()
