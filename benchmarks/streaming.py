"""Streaming against its bars: a cache node beside nginx and varnish, first pictures, waiting, encoding, fill, a lost region.

A cache node stands beside nginx's proxy_cache and varnish (`--peers`): the same objects, the same loader, alternating rounds, per
CPU second of the server.

The server is pinned to core 0, the loader to core 1 (where there are two). 64 segments of 2 MiB over 16 kept connections, one
object of 10 KiB over 64. The loader drops bodies in the kernel, so it is not the limit. What counts is the server's own CPU time
(all its threads, from /proc): wall time on shared cores says little. nginx runs with one worker, sendfile, no access log; over
TLS both speak 1.3 with the same certificate. A node on a loopback address does without the pacing of BBR where that is the
system's congestion control; nginx has no such choice, so with 2 MiB a node under the system's control ("alike") is measured
beside both. The other rows: `_streaming_plays` (a real Chromium), `_streaming_tree`
(ladder, fill, a lost region) and `_streaming_rules` (what the public cache suite and validators of manifests say).
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import select
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
SEGMENT, SEGMENTS, SMALL = 2 << 20, 64, 10 << 10
PATHS = [f"/seg/{n}" for n in range(SEGMENTS)]
KINDS = {"2 MiB": (16, PATHS), "10 KiB": (64, ["/small"]), "2 MiB TLS": (16, PATHS)}
BARS = {"2 MiB": 1.0, "10 KiB": 1.2, "2 MiB TLS": 1.0}
ALIKE = "node alike"
HZ = os.sysconf("SC_CLK_TCK")


def origin():
    """A server of the objects in a thread; its port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    body, small = os.urandom(SEGMENT), os.urandom(SMALL)

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            held = b""
            while data := connection.recv(65_536):
                held += data
                while b"\r\n\r\n" in held:
                    head, _, held = held.partition(b"\r\n\r\n")
                    content = small if b" /small " in head else body
                    fields = f'Content-Length: {len(content)}\r\nCache-Control: max-age=3600\r\nETag: "x"\r\n'
                    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n{fields}\r\n".encode() + content)

    def accept():
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening.getsockname()[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def serve_node(port, origin_port, folder, kind):
    from fourplane.edge.cache_node import CacheNode, CacheNodeSettings
    from fourplane.edge.cache_origin import OriginSettings
    from fourplane.edge.listener import ListenerSettings
    from fourplane.foundation.lifecycle import Lifecycle
    from fourplane.foundation.telemetry import Registry

    async def main():
        registry = Registry()
        settings = CacheNodeSettings(
            listener=ListenerSettings(port=port),
            origin=OriginSettings(port=origin_port),
            folder=Path(folder),
            congestion="" if "alike" in kind else "auto",
        )
        lifecycle = Lifecycle(registry)
        tls = None
        if "tls" in kind:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.minimum_version = ssl.TLSVersion.TLSv1_3
            tls.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
        lifecycle.add("cache", CacheNode(settings, registry=registry, tls=tls))
        await lifecycle.start()
        await asyncio.Event().wait()

    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())


NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 60s;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache keys_zone=all:16m max_size=1g;
  server {{ listen 127.0.0.1:{port}{secure};
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache all; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k; add_header X-Cache $upstream_cache_status; }} }}
}}
"""


NGINX_TLS = " ssl; ssl_protocols TLSv1.3; ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key"


def start(name, origin_port, folder, *, secure=False):
    """The server process and its port."""
    port = free_port()
    if secure:
        certify(folder)
    if name == "nginx":
        config = Path(folder) / "nginx.conf"
        tls = NGINX_TLS.format(folder=folder) if secure else ""
        config.write_text(NGINX.format(folder=folder, port=port, origin=origin_port, secure=tls))
        command = ["nginx", "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"]
    elif name == "varnish":
        place = ["-a", f"127.0.0.1:{port}", "-b", f"127.0.0.1:{origin_port}", "-n", f"{folder}/v", "-s", "malloc,512M"]
        command = ["varnishd", "-F", *place, "-p", "thread_pools=1"]
    else:
        kind = ("tls" if secure else "plain") + name.removeprefix("node")
        command = [sys.executable, str(Path(__file__)), "--serve", str(port), str(origin_port), str(folder), kind]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return process, port
        time.sleep(0.05)
    raise SystemExit(f"{name} did not start")


def certify(folder):
    """A certificate of our own in the folder."""
    subject = ["-subj", "/CN=localhost", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    places = ["-nodes", "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"]
    subprocess.run(["openssl", "req", "-x509", *subject, *places], check=True, capture_output=True)
    Path(folder, "tls.key").chmod(0o644)


def processes_of(pid):
    found = [pid]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        found += [int(child) for child in children.split()]
    return found


def cpu_s(pid):
    """CPU seconds of a server's processes: by the scheduler's nanoseconds, else by its ticks."""
    total = 0.0
    for one in processes_of(pid):
        with contextlib.suppress(OSError):
            threads = list(Path(f"/proc/{one}/task").iterdir())
            try:
                total += sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
            except OSError:
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / HZ
    return total


def pin(pid, core):
    if (os.cpu_count() or 1) > 1:
        for one in processes_of(pid):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(one, {core})


class Connection:
    """One kept connection of the loader."""

    def __init__(self, port, number, paths):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = [f"GET {path} HTTP/1.1\r\nHost: bench\r\nUser-Agent: loader\r\n\r\n".encode() for path in paths]
        self.next = number
        self.left = 0

    def ask(self):
        self.socket.sendall(self.requests[self.next % len(self.requests)])
        self.next += 1
        self.left = -1

    def take(self, buffer):
        """Read what is there; True when an answer is complete."""
        if self.left < 0:
            size = self.socket.recv_into(buffer, 65_536)
            head, _, body = bytes(buffer[:size]).partition(b"\r\n\r\n")
            low = head.lower()
            assert low.startswith(b"http/1.1 200"), head[:80]
            at = low.index(b"content-length: ") + 16
            self.left = int(low[at : low.find(b"\r", at) if b"\r" in low[at:] else None]) - len(body)
        else:
            self.left -= self.socket.recv_into(buffer, min(len(buffer), self.left), socket.MSG_TRUNC)
        return self.left == 0


class SecureConnection(Connection):
    """The same over TLS 1.3; the loader has to decrypt."""

    def __init__(self, port, number, paths):
        super().__init__(port, number, paths)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)
        self.socket.setblocking(False)

    def take(self, buffer):
        """Read all that is there; True when an answer is complete."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while self.left:
                if self.left > 0:
                    self.left -= self.socket.recv_into(buffer, min(len(buffer), self.left))
                    continue
                head, _, body = self.socket.recv(65_536).partition(b"\r\n\r\n")
                assert head.lower().startswith(b"http/1.1 200"), head[:80]
                self.left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]) - len(body)
            return True
        return False


def load(port, connections, paths, seconds, *, secure=False):
    """(requests, seconds) of a closed loop over kept connections."""
    poll, buffer = select.epoll(), bytearray(4 << 20)
    held = {}
    for number in range(connections):
        one = (SecureConnection if secure else Connection)(port, number * 7, paths)
        held[one.socket.fileno()] = one
        poll.register(one.socket, select.EPOLLIN)
        one.ask()
    requests, began = 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        for number, _ in poll.poll(0.5):
            if held[number].take(buffer):
                requests += 1
                held[number].ask()
    for one in held.values():
        one.socket.close()
    return requests, now - began


def measure(servers, kind, seconds):
    """Requests per CPU second of each server, one round."""
    connections, paths = KINDS[kind]
    secure = kind.endswith("TLS")
    found = {}
    for (name, encrypted), (process, port) in servers.items():
        if encrypted is not secure or (name == ALIKE and kind != "2 MiB"):
            continue
        before = cpu_s(process.pid)
        requests, wall = load(port, connections, paths, seconds, secure=secure)
        used = cpu_s(process.pid) - before
        found[name] = {"per_cpu_s": requests / used if used else 0.0, "per_s": requests / wall}
    return found


def run(options):
    """Every row of the bars, or those of `--rows`; a row that cannot be measured here says why."""
    import _streaming_plays as plays
    import _streaming_rules as rules
    import _streaming_tree as tree

    quick = getattr(options, "quick", False)
    rows = {
        "cache": lambda: throughput(options),
        "first frame": lambda: plays.first_frame(10 if quick else 100),
        "ladder": tree.ladder,
        "validators": rules.validators,
        "fill": lambda: tree.fill(requests=600 if quick else 6_000),
        "rebuffer": lambda: plays.rebuffer(8 if quick else 32),
        "region loss": lambda: tree.region(users=8 if quick else 24, seconds=16.0 if quick else 36.0),
        "cache suite": rules.suite,
        "per title": tree.per_title,  # no bar of its own: only when asked for
    }
    wanted = getattr(options, "rows", None) or [name for name in rows if name != "per title"]
    calm = {"rebuffer", "region loss"}  # rows that do little but wait, as the suite does
    beside = "cache suite" in wanted and bool(calm & set(wanted))
    found, suite = {}, None
    with ThreadPoolExecutor(1) as pool:
        for name in wanted:
            if beside and name == "cache suite":
                continue
            if beside and suite is None and name in calm:
                suite = pool.submit(row, rows, "cache suite")
            cores = os.sched_getaffinity(0)
            told = row(rows, name)
            os.sched_setaffinity(0, cores)
            found |= told if name == "cache" else {name: told}
        if suite is not None:
            found["cache suite"] = suite.result()
    return found


def row(rows, name):
    """One row's figures and how long they took."""
    began = time.monotonic()
    try:
        told = rows[name]()
    except (RuntimeError, ImportError) as error:
        return {"skipped": str(error)}
    return told if name == "cache" else {**told, "took_s": round(time.monotonic() - began, 1)}


def throughput(options):
    """Alternate rounds over node and peers (where installed); medians and ratios."""
    origin_port = origin()
    seconds = getattr(options, "seconds", None) or (0.3 if getattr(options, "quick", False) else 1.0)
    names = ["node", ALIKE, *(["nginx"] if shutil.which("nginx") else [])]
    if getattr(options, "peers", False) and shutil.which("varnishd"):
        names.append("varnish")
    with tempfile.TemporaryDirectory() as folder:
        servers = {}
        try:
            for name, secure in itertools.product(names, (False, True)):
                if name in {"varnish", ALIKE} and secure:  # varnish has no TLS of its own
                    continue
                place = Path(folder) / f"{name}-{secure}".replace(" ", "-")
                place.mkdir()
                place.chmod(0o777)
                servers[name, secure] = start(name, origin_port, place, secure=secure)
            Path(folder).chmod(0o755)
            if (os.cpu_count() or 1) > 1:
                os.sched_setaffinity(0, {1})
            for (_, secure), (process, port) in servers.items():
                pin(process.pid, 0)
                for connections, paths in [KINDS["2 MiB"], KINDS["10 KiB"]]:
                    load(port, min(4, connections), paths, max(1.0, seconds), secure=secure)
            rounds = {
                kind: [measure(servers, kind, seconds) for _ in range(options.rounds)]
                for kind in (getattr(options, "kinds", None) or KINDS)
            }
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait(10)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    }
    for kind, found in rounds.items():
        size = SMALL if kind == "10 KiB" else SEGMENT
        for name in [name for name in names if name in found[0]]:
            value = statistics.median(one[name]["per_cpu_s"] for one in found)
            result[f"{kind} {name}"] = {
                "requests_per_cpu_s": round(value),
                "gb_per_cpu_s": round(value * size / 1e9, 2),
            }
        for name in [name for name in ("node", ALIKE) if "nginx" in names and name in found[0]]:
            ratio = statistics.median(one[name]["per_cpu_s"] / one["nginx"]["per_cpu_s"] for one in found)
            told = {"node_to_nginx": round(ratio, 2), "bar": BARS[kind], "met": ratio >= BARS[kind]}
            result[f"{kind}{name.removeprefix('node')} ratio"] = told
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=4, metavar=("PORT", "ORIGIN", "FOLDER", "KIND"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="which loads (default: all)")
    parser.add_argument("--rows", nargs="*", help="which rows (default: all): cache, first frame, rebuffer, ...")
    parser.add_argument("--peers", action="store_true", help="varnish too")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.serve:
        serve_node(int(options.serve[0]), int(options.serve[1]), options.serve[2], options.serve[3])
        return
    found = run(options)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<16} {value}")
    place = Path(__file__).parent / "results"
    place.mkdir(exist_ok=True)
    (place / "streaming.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
