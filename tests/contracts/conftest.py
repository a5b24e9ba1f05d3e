"""One suite per contract, run on every engine: this file knows how to open each of them.

A test gets `on`, a function that runs `async def body(store)` on the engine of this round: on real threads and files, in memory,
in the simulator on a faulty disk, or on a server started here. Servers that are not installed skip with the reason.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fourplane.simulator import loop as simulator
from fourplane.state.embedded.vfs import Disk, Faults
from fourplane.state.stores import Stores, StoresSettings

POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server of this test run: `kill` as kill -9 does, `start` again on the same port and data."""

    def __init__(self, argv, port, url, folder, ready):
        self.argv, self.port, self.url, self.folder, self._ready = argv, port, url, folder, ready
        self.process = None

    def start(self):
        log = (self.folder / "server.log").open("ab")
        for _ in range(50):  # children of a killed server may still be ending, and it refuses to start beside them
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, start_new_session=True, cwd="/")
            for _ in range(600):
                if self._ready():
                    return self
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
            else:
                break
            time.sleep(0.1)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def kill(self):
        """The processes that it made with it: one of them may still answer what is asked at once."""
        os.kill(self.process.pid, signal.SIGSTOP)  # so that it makes no more
        for pid in [*children(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children(parent):
    """Processes that say this is who started them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def answers(port, question, expected):
    def ready():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(question)
                return probe.recv(len(expected)) == expected
        except OSError:
            return False

    return ready


def new_redis():
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="fourplane-redis-"))
    port = free_port()
    argv = [
        binary,
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--requirepass",
        "a secret/1",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    return Server(
        argv, port, f"redis://:a%20secret%2F1@127.0.0.1:{port}/1", folder, answers(port, b"PING\r\n", b"-NOAUTH")
    )


def new_postgres():
    if not POSTGRES_FOLDERS:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="fourplane-postgres-"))
    binaries, port = POSTGRES_FOLDERS[0], free_port()
    as_nobody = []
    if os.geteuid() == 0:
        as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    make = [
        *as_nobody,
        binaries / "initdb",
        "-D",
        folder / "data",
        "-A",
        "trust",
        "-U",
        "fourplane",
        "-N",
        "-E",
        "UTF8",
    ]
    subprocess.run(
        make, check=True, capture_output=True, cwd="/", env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    )
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    argv = [*as_nobody, str(binaries / "postgres"), "-D", str(folder / "data"), *settings]
    query = [
        binaries / "psql",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-U",
        "fourplane",
        "-d",
        "postgres",
        "-c",
        "SELECT 1",
    ]

    def ready():
        return subprocess.run(query, check=False, capture_output=True, cwd="/").returncode == 0

    return Server(argv, port, f"postgresql://fourplane@127.0.0.1:{port}/postgres", folder, ready)


def new_s3(*tls):
    """Our own small S3 server as a program of its own; with a certificate and key it speaks TLS."""
    folder, port = Path(tempfile.mkdtemp(prefix="fourplane-s3-")), free_port()
    program = Path(__file__).parent / "s3_server.py"
    argv = [sys.executable, program, str(port), folder / "objects", "bucket", "KEYID", "a secret/1", *tls]
    scheme = "https" if tls else "http"
    url = f"s3://KEYID:a%20secret%2F1@bucket/some/prefix?endpoint={scheme}://127.0.0.1:{port}"
    return Server(argv, port, url, folder, listens(port))


def listens(port):
    def ready():
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    return ready


def running(server):
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server():
    yield from running(new_redis())


@pytest.fixture(scope="session")
def postgres_server():
    yield from running(new_postgres())


@pytest.fixture(scope="session")
def s3_server():
    yield from running(new_s3())


@pytest.fixture
def opener(tmp_path, request):
    """`opener(contract, engine)` gives `on`; every call of `on` has a store of its own."""
    serial = iter(range(1, 1_000))

    def choose(contract, engine):
        if engine == "redis":
            settings = StoresSettings(cache=request.getfixturevalue("redis_server").url)
        elif engine == "postgresql":
            url = request.getfixturevalue("postgres_server").url
            settings = StoresSettings(sql=url, records=url)
        elif engine == "s3":
            settings = StoresSettings(blobs=request.getfixturevalue("s3_server").url)
        elif engine == "memory":
            settings = StoresSettings(sql="memory://", records="memory://", log="memory://", search="memory://")
        else:
            settings = StoresSettings()

        async def within(body, disk=None):
            number = next(serial)
            stores = Stores(settings, data=tmp_path / str(number), disk=disk)
            try:
                name = f"s{number}-{os.getpid()}-{abs(hash(request.node.name)) % 10**8}"
                return await body(await getattr(stores, contract)(name))
            finally:
                await stores.stop()

        def on(body):
            if engine != "simulated":
                return asyncio.run(within(body))
            disk = Disk(faults=Faults(stall_s=0.2))
            return simulator.run(lambda _: within(body, disk), seed=7).result

        return on

    return choose
