"""Very many sessions at once on one machine: a server process and a client process for every 18,000, and what memory they take.

Each server process has its own accounts and listens on its own port; what is measured is what sessions cost, in the process
and in the kernel, not how they find each other. The clients log in with SCRAM, show themselves and say nothing. At the end
some pairs write to each other through every process, to show that all of it still works. Each client process has two
loopback addresses: a connection takes an even port while there is one, and past 14,000 from one address the kernel tries
all of them each time.

    python -m benchmarks.peers.xmpp_crowd --port P --first N --count N --local 127.0.0.2 ...     (one client process)
"""

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers.xmpp_clients import Client, Steps, converse, following
from benchmarks.peers.xmpp_servers import Fourplane

PER_PROCESS = 18_000
AT_ONCE = 100
STEP = 3_000  # sessions between two points of the curve
AVAILABLE_MIN = 2 << 30  # bytes of memory that stay free: the machine is not only ours
POLLS = ("MemAvailable", "Slab", "SUnreclaim")


def many(count: int) -> dict[str, float]:
    """`count` sessions over as many processes as they need; prints the curve and returns its last point."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    last: dict[str, float] = {}
    with ExitStack() as ends:
        groups = -(-count // PER_PROCESS)
        servers: list[Fourplane] = []
        start = _memory(servers)["MemAvailable"]
        for group in range(groups):
            folder = Path(tempfile.mkdtemp(prefix="fourplane-bench-"))
            ends.callback(shutil.rmtree, folder, ignore_errors=True)
            here = min(PER_PROCESS, count - group * PER_PROCESS)
            server = Fourplane(folder, here, first=group * PER_PROCESS)
            ends.callback(server.stop)
            servers.append(server)
            said = f"server {group + 1} of {groups}: {server.rss() >> 20} MiB with {here} accounts"
            print(said, file=sys.stderr, flush=True)
        before = _memory(servers)
        began = time.perf_counter()
        done = 0
        for group, server in enumerate(servers):
            here = min(PER_PROCESS, count - group * PER_PROCESS)
            arguments = ["--port", server.port, "--first", group * PER_PROCESS, "--count", here]
            arguments += ["--local", f"127.0.{group}.2", "--local", f"127.0.{group}.3"]
            command = [sys.executable, "-m", "benchmarks.peers.xmpp_crowd", *map(str, arguments)]
            client = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "src:."}
            )
            ends.callback(_end, client)
            assert client.stdout is not None
            told: dict[str, int] = {}
            for line in client.stdout:
                told = json.loads(line)
                if "held" not in told:
                    break
                now = _memory(servers)
                held = done + told["held"]
                last = {"sessions": held, "seconds": round(time.perf_counter() - began, 1)}
                last["server_bytes"] = round((now["rss"] - before["rss"]) / held)
                last["kernel_bytes_both_ends"] = round((now["Slab"] - before["Slab"]) / held)
                last["taken_mib"] = round((start - now["MemAvailable"]) / 2**20)
                last["available_mib"] = round(now["MemAvailable"] / 2**20)
                print("  ".join(f"{key} {value:,}" for key, value in last.items()), file=sys.stderr, flush=True)
                if now["MemAvailable"] < AVAILABLE_MIN:
                    return last
            done += here
            assert told.get("exchanged", 0) > 0, f"process {group} delivers nothing"
        for server in servers:
            server.process.kill()  # a proper end of so many sessions takes as long as their beginning
    return last


def _memory(servers: list[Fourplane]) -> dict[str, float]:
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in POLLS:
            found[name] = float(rest.split()[0]) * 1024
    return found | {"rss": float(sum(server.rss() for server in servers))}


def _end(client: "subprocess.Popen[bytes]") -> None:
    assert client.stdin is not None
    client.stdin.close()
    client.wait(60)


def hold(port: int, first: int, count: int, local: list[str]) -> None:
    """Log `count` clients in, tell how far it is, let some talk, and hold them until the input is closed."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    def told(held: int) -> None:
        if held % STEP == 0 or held == count:
            print(json.dumps({"held": held}), flush=True)

    held = come(port, first, count, local=local, told=told)
    some = held[: min(count // 2 * 2, 100)]
    print(json.dumps({"exchanged": converse(some, 1, 0.5)}), flush=True)
    sys.stdin.read()


def come(
    port: int,
    first: int,
    count: int,
    *,
    local: list[str],
    plain: bool = False,
    told: Callable[[int], None] | None = None,
) -> list[Client]:
    """Clients that have logged in and shown themselves, `AT_ONCE` at a time; `told` how many are there."""
    poll, begun = select.epoll(), 0
    held: list[Client] = []
    running: dict[int, list[Any]] = {}
    while len(held) < count:
        while len(running) < AT_ONCE and begun < count:
            client = Client(port, f"u{first + begun}", later=True, plain=plain, local=local[begun % len(local)])
            begun += 1
            steps: Steps = client.login()
            data, until = next(steps)
            client.sock.send(data)
            running[client.sock.fileno()] = [client, steps, until, b""]
            poll.register(client.sock.fileno(), select.EPOLLIN)
        for fd, _ in poll.poll(1):
            entry = running[fd]
            more = entry[0].sock.recv(65_536)
            if not more:
                raise ConnectionError(f"{entry[0].name} was disconnected")
            entry[3] += more
            if entry[2] not in entry[3]:
                continue
            following_step = following(entry[1], entry[3])
            if following_step is None:
                poll.unregister(fd)
                held.append(running.pop(fd)[0])
                if told is not None:
                    told(len(held))
                continue
            entry[0].sock.send(following_step[0])
            entry[2:] = [following_step[1], b""]
    poll.close()
    return held


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "first", "count"):
        made.add_argument(f"--{name}", type=int, required=True)
    made.add_argument("--local", action="append", required=True)
    options = made.parse_args()
    hold(options.port, options.first, options.count, options.local)


if __name__ == "__main__":
    main()
